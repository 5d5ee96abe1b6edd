"""One recipe to one run folder: set up, train or fit, finish; and go on with what was interrupted.

runs/<model>/<dataset>[-<task>][@<split>]/<number>-seed<seed>/
    recipe.yaml prep/ metrics.csv checkpoints/ model.safetensors config.json predictions.npz plots/ record.json
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from ..api import create_dataset
from ..backbones.base import Fitted
from ..data.base import Dataset
from ..data.spec import Spec
from ..errors import ZooError
from ..files import hash_json, locked, read_json, runs_root, write_json
from ..recipe import Recipe, load
from ..registry import find
from ..runs import require_begun
from ..seeding import derive
from .config import TrainConfig
from .console import Console
from .engine import Engine, load_state
from .task import Task

CHILD = "STATEZOO_RUN_FOLDER"  # tells the processes that DDP starts which folder the first one chose


@dataclass
class Session:
    """The objects of one execution."""

    recipe: Recipe
    dataset: Dataset
    spec: Spec
    task: Task
    config: TrainConfig
    seed: int

    @property
    def fitted(self) -> bool:
        """True where the model is not a network."""
        return isinstance(self.task.model, Fitted)

    def datamodule(self):
        """Loaders as the recipe says; evaluating again in the same batches rounds in the same way."""
        names = ("batch_size", "eval_batch_size", "workers", "sampler")
        return self.dataset.datamodule(seed=self.seed, **{name: getattr(self.config, name) for name in names})


def session(recipe: Recipe, sample: bool = False) -> Session:
    """Build dataset, model and task of a recipe; the weights depend on the recipe's seed alone."""
    dataset = make_dataset(recipe, sample)
    return build(recipe, dataset, dataset.prepare())


def make_dataset(recipe: Recipe, sample: bool = False):
    """The adapter of a recipe, or of its sample; nothing is read yet."""
    arguments = recipe.arguments("data")
    if sample:
        cls = find("dataset", recipe.data["name"]).load()
        return cls.sample(**{key: value for key, value in arguments.items() if key != "root"})
    arguments.pop("subset", None) if ":" in recipe.data["name"] else None
    return create_dataset(recipe.data["name"], **arguments)


def build(recipe: Recipe, dataset, spec: Spec) -> Session:
    """Model and task of a recipe for a prepared dataset, or for one that was: `spec` says what it is made of."""
    model_class, wanted = find("model", recipe.model["name"]).load(), recipe.task["name"]
    if model_class.serves and wanted not in model_class.serves:
        raise ZooError(
            f"{recipe.model['name']} is made for {' and '.join(model_class.serves)}, not for {wanted}; choose another "
            f"model, or {recipe.model['name']}/{recipe.data['name']}-{model_class.serves[0]}"
        )
    torch.manual_seed(derive(recipe.seed, "weights"))
    model = model_class.from_spec(spec, **recipe.arguments("model"))
    task = find("task", wanted).load()(model, spec, **recipe.arguments("task"))
    task.accept(dataset)
    return Session(recipe, dataset, spec, task, TrainConfig(**recipe.arguments("train")), recipe.seed)


def train(
    source: str,
    overrides: list[str] = (),
    *,
    sample: bool = False,
    resume: str | bool = False,
    folder: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Train a recipe and return its finished folder; `resume` goes on with a run (True: the newest of this recipe)."""
    child = os.environ.get(CHILD) if int(os.environ.get("LOCAL_RANK", 0)) > 0 else None
    made = not (resume or child or folder)
    if resume:
        run = Path(resume) if isinstance(resume, str) else _newest(_place(source, sample))
        recipe, sample = _resumed(run, source, overrides), read_json(run / "data.json")["sample"]
    else:
        recipe = load(source, overrides, sample=sample)
        run = Path(child) if child else folder or _new(_place(recipe.id, sample), recipe)
    console = Console(quiet or child is not None)
    os.environ[CHILD] = str(run)
    try:
        if child:
            return _train(recipe, run, sample, console)
        with locked(
            run / ".lock", wait=0, busy=f"{run} is being written by another process; wait for it, or start a new run"
        ):
            if not resume and (run / "recipe.yaml").exists():
                raise ZooError(f"{run} holds a run already; add --resume to go on with it, or give another folder")
            return _train(recipe, run, sample, console)
    except KeyboardInterrupt as stop:
        if _begun(run):
            raise KeyboardInterrupt(f"`zoo train {recipe.id} --resume {run}` goes on") from stop
        raise
    finally:
        os.environ.pop(CHILD, None)
        if made and not _begun(run):
            shutil.rmtree(run, ignore_errors=True)  # nothing to go on with, and no number used up


def _train(recipe: Recipe, run: Path, sample: bool, console: Console) -> Path:
    from .finish import finish

    if recipe.train["threads"]:
        torch.set_num_threads(recipe.train["threads"])
    if recipe.note:
        console.line(recipe.note)
    with quiet_lightning():
        if (run / "record.json").is_file():
            console.line(f"{run} is finished; nothing to do")
            return run
        s = session(recipe, sample)
        if not (run / "recipe.yaml").is_file():
            recipe.save(run / "recipe.yaml")
            write_json(run / "data.json", {"sample": sample, "folder": str(s.dataset.folder), **fingerprint(s.dataset)})
        elif changed := changes(s.dataset, read_json(run / "data.json")):
            raise ZooError(f"{run}: {changed} since it began; put the data back, or start a new run")
        (run / "prep").mkdir(parents=True, exist_ok=True)
        s.spec.save(run / "prep")
        s.dataset.save_prep(run / "prep")
        console.line(_headline(s, run))
        if counted := [f"{name.replace('_', ' ')} {value:,}" for name, value in s.dataset.facts().items() if value]:
            console.line(f"data: {', '.join(counted)}")
        try:
            done = _fit_fitted(s, run) if s.fitted else _fit_network(s, run, console)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, size = len(s.dataset.part("train")), s.config.batch_size
            world = s.config.devices * s.config.num_nodes
            fits = (b for b in range(size + 1, count + 1) if not 0 < count % (b * world) < 2 * world)
            remedy = next((f"set train.batch_size={b}" for b in fits), "give more data")
            raise ZooError(
                f"{count} training samples in batches of {size} leave a batch of one, which has no variance for batch "
                f"norm; {remedy}"
            ) from error
        except torch.OutOfMemoryError as error:
            raise ZooError(
                f"out of memory at batch size {s.config.batch_size}; set train.batch_size="
                f"{max(1, s.config.batch_size // 2)} and train.accumulate=2, or train.precision=bf16-mixed"
            ) from error
        return finish(s, run, done, console)


def _begun(run: Path) -> bool:
    """Whether training has begun, or is over."""
    return any((run / name).is_file() for name in ("metrics.csv", "model.safetensors", "record.json"))


def fingerprint(dataset) -> dict[str, str]:
    """Hashes of the files and of the split."""
    return {"manifest_sha256": hash_json(dataset.manifest()), "split_sha256": dataset.split_hash()}


def changes(dataset, then: dict) -> str:
    """In words what is no longer as in an earlier `fingerprint`; "" where nothing is known to differ."""
    now = fingerprint(dataset)
    told = {"manifest_sha256": "files of the data set have changed", "split_sha256": "the split has changed"}
    return " and ".join(words for key, words in told.items() if then.get(key, now[key]) != now[key])


def _headline(s: Session, run: Path) -> str:
    sizes = ", ".join(f"{len(part)} {name}" for name, part in s.dataset.parts.items())
    origin = "SYNTHETIC SAMPLE of " if s.dataset.is_sample else ""
    preset = " (tiny preset)" if s.dataset.is_sample else ""
    return f"{s.recipe.model['name']}{preset} on {origin}{s.dataset.key} ({sizes}), seed {s.seed} -> {run}"


def _fit_fitted(s: Session, run: Path) -> dict:
    began = time.perf_counter()
    s.task.model.fit(s.dataset.part("train"), s.spec)
    return {
        "seconds": time.perf_counter() - began,
        "steps": 0,
        "samples": len(s.dataset.part("train")),
        "device": "cpu",
        "world": 1,
    }


def _fit_network(s: Session, run: Path, console: Console) -> dict:
    config = s.config
    state = load_state(run)
    data = s.datamodule()
    world = config.devices * config.num_nodes
    per_epoch = len(data.train_steps(ranks={"rank": 0, "world": world}).batch_sampler)
    total = per_epoch * config.epochs if config.max_steps is None else min(config.max_steps, per_epoch * config.epochs)
    if total < 1:
        raise ZooError(
            f"train.epochs={config.epochs}, train.max_steps={config.max_steps}: nothing to train; give at least 1"
        )
    s.task.train_config, s.task.total_steps = config, -(-total // config.accumulate)
    if config.init_from and not state:
        from .weights import init_from

        console.line(init_from(s.task.model, config.init_from))
    if state:
        s.task.model.load_state_dict(state["model"])
        console.line(f"resumes at step {state['progress']['step']}")
    engine = Engine(run, data, config, s.seed, per_epoch, total, state, console)
    accelerator = (
        config.accelerator if config.accelerator != "auto" else ("gpu" if torch.cuda.is_available() else "cpu")
    )
    deterministic = config.deterministic if config.deterministic is not None else accelerator == "cpu"
    torch.use_deterministic_algorithms(deterministic)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision={"32": "32-true"}.get(config.precision, config.precision),
        max_epochs=1,
        callbacks=[engine],
        logger=_loggers(config, run),
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=config.log_every,
        num_sanity_val_steps=0,
        default_root_dir=run,
    )
    if not engine.progress.stopped and engine.progress.step < total:
        ranks = {"rank": trainer.global_rank, "world": world}
        if config.compile:
            s.task.loss = torch.compile(s.task.loss, dynamic=False)
        try:
            trainer.fit(s.task, _Stream(data, engine.progress.step, total, ranks))
        except SystemExit as stop:  # what Lightning makes of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt from stop
    torch.use_deterministic_algorithms(False)
    device = trainer.strategy.root_device
    return {
        "seconds": engine.progress.seconds,
        "steps": engine.progress.step,
        "samples": engine.progress.samples,
        "device": device,
        "world": world,
        "best_step": engine.progress.best_step,
        "deterministic": deterministic,
        "rank": trainer.global_rank,
    }


class _Stream(L.LightningDataModule):
    """The training steps from `first` to `total` as one loader; made when the ranks are known."""

    def __init__(self, data, first: int, total: int, ranks: dict):
        super().__init__()
        self.data, self.first, self.total, self.world = data, first, total, ranks["world"]

    def train_dataloader(self):
        return self.data.train_steps(self.first, self.total, {"rank": self.trainer.global_rank, "world": self.world})


def _loggers(config: TrainConfig, run: Path):
    """Lightning loggers by recipe; "auto" is TensorBoard where it is installed."""
    import importlib.util

    import lightning.pytorch.loggers as known

    if config.logger in (None, False):
        return False
    if config.logger == "auto":
        if importlib.util.find_spec("tensorboard") is None:
            return False
        return [known.TensorBoardLogger(run, name="", version="tensorboard")]
    wanted = config.logger if isinstance(config.logger, list) else [config.logger]
    made = []
    for entry in wanted:
        entry = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = entry.pop("name", "")
        if not hasattr(known, name):
            from ..errors import unknown

            raise unknown("logger", name, [n for n in dir(known) if n.endswith("Logger")], where="train.logger")
        made.append(getattr(known, name)(**({"save_dir": str(run)} | entry)))
    return made


@contextmanager
def quiet_lightning():
    """Lightning's advertisements, and its worries about loaders that the zoo made on purpose, are not the user's."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def _place(recipe_id: str, sample: bool) -> Path:
    """The folder of a recipe's runs; runs on the synthetic sample lie apart."""
    return runs_root() / (re.sub(r"[^\w@.+-]+", "/", recipe_id).strip("./") + ("-sample" if sample else ""))


def _new(place: Path, recipe: Recipe) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(found.group(1)) for path in place.iterdir() if (found := re.match(r"(\d+)-seed", path.name))]
        run = place / f"{max(numbers, default=0) + 1:03d}-seed{recipe.seed}"
        try:
            run.mkdir()
            return run
        except FileExistsError:
            continue  # another process took the number


def _newest(place: Path) -> Path:
    for run in sorted(place.glob("*-seed*"), reverse=True) if place.is_dir() else []:
        if _begun(run) and not (run / "record.json").is_file():
            return run
    raise ZooError(f"no unfinished run in {place}; start one without --resume")


def _resumed(run: Path, source: str, overrides: list[str]) -> Recipe:
    """The run's own recipe with machine settings of `overrides`; what would change the result is refused."""
    require_begun(run)
    saved = load(str(run / "recipe.yaml"))
    recipe = load(str(run / "recipe.yaml"), overrides)
    if not source.endswith((".yaml", ".yml")) and saved.id != source:
        raise ZooError(f"{run} is a run of {saved.id}, not of {source}; `zoo train {saved.id} --resume {run}`")
    for section, values in saved.scientific().items():
        for key, value in values.items():
            if recipe.scientific()[section][key] != value:
                raise ZooError(f"{run}: was started with {section}.{key}={value}; drop the override or start a new run")
    if recipe.seed != saved.seed:
        raise ZooError(f"{run}: was started with seed={saved.seed}; drop the override or start a new run")
    return recipe
