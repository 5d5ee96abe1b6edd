"""The four functions of `import statezoo`: list, create and load by name."""

from __future__ import annotations

from pathlib import Path

from .errors import ZooError
from .files import read_json
from .registry import entries, find


def list_models() -> list[str]:
    """All registered model names, sorted."""
    return list(entries("model"))


def create_model(name: str, **config):
    """Build a registered model: `create_model("sasrec", num_items=1000, dim=128)`."""
    entry = find("model", name)
    return entry.load()(**{**entry.config, **config})


def create_dataset(name: str, **config):
    """Build a dataset adapter: `create_dataset("ml-100k", split="global-time")`."""
    entry = find("dataset", name)
    subset = entry.key.partition(":")[2]
    return entry.load()(**({"subset": subset} if subset else {}), **config)


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
