"""The functions of `import statezoo`: list, create and load by name."""

from __future__ import annotations

from pathlib import Path

from .errors import ZooError
from .files import read_json
from .listing import select
from .registry import find


def list_models(filter: str | None = None, *, task: str | None = None, kind: str | None = None) -> list[str]:
    """Registered model names, sorted: all, or those of a glob ("mamba*"), for a task, or of a kind of input."""
    return list(select("models", filter, task=task, kind=kind))


def create_model(name: str, **config):
    """Build a registered model: `create_model("sasrec", num_items=1000, dim=128)`."""
    entry = find("model", name)
    return entry.load()(**{**entry.config, **config})


def create_dataset(name: str, *, data=None, **config):
    """Build a dataset adapter: `create_dataset("ml-100k", split="global-time")`.

    `data`: a pandas DataFrame in place of a file, for adapters that name their columns:
    `create_dataset("log", data=frame, user="customer", item="sku", time="sold_at")`. The three columns are copied to
    the cache and read as a Parquet file; errors tell rows by their position.
    """
    entry = find("dataset", name)
    subset = entry.key.partition(":")[2]
    cls, config = entry.load(), ({"subset": subset} if subset else {}) | config
    if data is None:
        return cls(**config)
    if not hasattr(cls, "from_frame"):
        plain = f", or create_dataset('{cls.plain}', data=...)" if cls.plain else ""
        raise ZooError(f"{entry.key} reads no DataFrame; leave data= out and give its folder by root={plain}")
    return cls.from_frame(data, **config)


def load(folder: Path | str):
    """The trained model of a run (or any folder with `config.json` and `model.safetensors`), ready to predict."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ZooError(f"{folder}: no {name}; give the folder of a finished run")
    saved = read_json(folder / "config.json")
    model = find("model", saved["name"]).load()(**saved["config"])
    model.load_file(folder / "model.safetensors")
    return model


def open_run(folder: Path | str):
    """A finished run with `model`, `spec`, `recipe`, `record` and `predict`; nothing but its folder is needed.

    `open_run("runs/...").predict("new.csv", top=20)` gives the table that `zoo predict` writes.
    """
    from .train.inference import Run

    return Run(folder)
