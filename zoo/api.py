"""The functions of `import statezoo`: list, create and load by name."""

from __future__ import annotations

from pathlib import Path

from .errors import BadArgument, ZooError
from .files import read_json
from .foreign import reading
from .listing import select
from .registry import find
from .trust import trusting, typed


def list_models(
    filter: str | None = None, *, task: str | None = None, kind: str | None = None, details: bool = False
) -> list[str] | dict[str, dict]:
    """Registered model names, sorted: all, or those of a glob ("mamba*"), for a task, or of a kind of input.

    `details`: a dict of name to `summary`, `kinds` (of input), `tasks`, and `parameters`, counted for data of `sizes`;
    both are None of models that are fitted and of those from outside the zoo.
    """
    found = select("models", filter, task=task, kind=kind)
    return found if details else list(found)


def create_model(name: str, **config):
    """Build a registered model, or one of a code file: `create_model("sasrec", num_items=1000, dim=128)`."""
    with typed(name):
        entry = find("model", name)
        return entry.load()(**{**entry.config, **config})


def create_dataset(name: str, *, data=None, **config):
    """Build a dataset adapter, or one of a code file: `create_dataset("ml-100k", split="global-time")`.

    `data`: a pandas DataFrame in place of a file, for adapters that name their columns:
    `create_dataset("log", data=frame, user="customer", item="sku", time="sold_at")`. The three columns are copied to
    the cache and read as a Parquet file; errors tell rows by their position.
    """
    with typed(name):
        entry = find("dataset", name)
        subset = entry.key.partition(":")[2]
        cls, config = entry.load(), ({"subset": subset} if subset else {}) | config
        if data is None:
            return cls(**config)
        if not hasattr(cls, "from_frame"):
            plain = f", or create_dataset('{cls.plain}', data=...)" if cls.plain else ""
            raise ZooError(f"{entry.key} reads no DataFrame; leave data= out and give its folder by root={plain}")
        return cls.from_frame(data, **config)


def load(folder: Path | str, *, trust_code: bool = False):
    """The trained model of a run (or any folder with `config.json` and `model.safetensors`), ready to predict.

    `trust_code`: run the code file that the folder may name as its model's; without it such a folder is refused.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ZooError(f"{folder}: no {name}; give the folder of a finished run")
    from .stored import within_budget

    name, config, code = _saved(folder / "config.json")
    with trusting(everything=trust_code):
        entry = find("model", name)
        if code != entry.sha256 and code is not None:
            raise ZooError(f"{entry.file}: has changed since {folder} was trained; put it back, or train anew")
        cls = entry.load()
    weights = folder / "model.safetensors"
    with reading(folder / "config.json", f"configuration of {name}"), within_budget(weights):
        try:
            model = cls(**config)
        except BadArgument as error:
            raise ZooError(f"{folder / 'config.json'}: {error}; take it and the weights from one run") from error
    model.load_file(weights)
    return model


def open_run(folder: Path | str, *, trust_code: bool = False):
    """A finished run with `model`, `spec`, `recipe`, `record` and `predict`; nothing but its folder is needed.

    `open_run("runs/...").predict("new.csv", top=20)` gives the table that `zoo predict` writes. `trust_code`: run the
    code files that the folder may name; without it such a folder is refused.
    """
    from .train.inference import Run

    return Run(folder, trust_code=trust_code)


def _saved(path: Path) -> tuple[str, dict, str | None]:
    """Name, constructor arguments and the hash of a code file from a `config.json`."""
    saved = read_json(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("name"), str):
        raise ZooError(f"{path}: names no model; restore it, or give the folder of a finished run")
    config, code = saved.get("config"), saved.get("code")
    if not isinstance(config, dict) or not (code is None or isinstance(code, str)):
        raise ZooError(f"{path}: holds no arguments for {saved['name']} under `config`; restore it")
    return saved["name"], config, code
