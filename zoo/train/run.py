"""One recipe to one run folder: set up, train or fit, finish; and go on with what was interrupted.

runs/<model>/<dataset>[-<task>][@<split>]/<number>-seed<seed>/
    recipe.yaml prep/ metrics.csv checkpoints/ model.safetensors config.json predictions.npz plots/ record.json

Where the split holds nothing out (`Dataset.evaluates`), `final.json` stands in place of predictions and record.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from ..backbones.base import Fitted
from ..data.base import Dataset, Part
from ..data.spec import Spec
from ..errors import ZooError, unknown
from ..files import locked, runs_root, writing
from ..foreign import below, is_name, safe_name
from ..ops.backends import held
from ..recipe import Recipe, load
from ..registry import find
from ..runs import FINISHED, finished
from ..seeding import seed_all
from ..stored import check_fit
from . import head
from .config import TrainConfig
from .console import Console
from .csvlog import HEADER
from .engine import Engine
from .final import refuse_patience
from .memory import fits
from .state import NAME, conditions, require_same
from .state import load as load_state
from .task import Task

CHILD = "STATEZOO_RUN_FOLDER"  # tells the processes that DDP starts which folder the first one chose
#: Lightning's loggers, and the arguments of each that a recipe may give: none says where to write, or whom to tell
LOGGERS = {
    "CSVLogger": ("version", "prefix", "flush_logs_every_n_steps"),
    "TensorBoardLogger": ("version", "prefix", "sub_dir", "log_graph", "default_hp_metric"),
    "WandbLogger": ("version", "prefix", "offline", "project", "entity", "group", "tags", "job_type"),
    "MLFlowLogger": ("prefix", "experiment_name", "run_name", "synchronous"),
}


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

    @property
    def given(self) -> Part:
        """A part of such inputs as the model is given to answer for: `test`, or `train` where nothing is held out."""
        return self.dataset.part("test" if self.dataset.evaluates else "train")

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
    with recipe.trusted():
        cls = find("dataset", recipe.data["name"]).load()
        if sample:
            return cls.sample(**{key: value for key, value in arguments.items() if key != "root"})
        return cls(**arguments)


def build(recipe: Recipe, dataset, spec: Spec) -> Session:
    """Model and task of a recipe for a prepared dataset, or for one that was: `spec` says what it is made of."""
    for what, name in (("name", dataset.key), ("version", dataset.version), ("split", dataset.split_name or "none")):
        safe_name(name, f"the data set's {what}", dataset.name)  # now, not where the record is written
    wanted = recipe.task["name"]
    with recipe.trusted():
        model_class, task_class = find("model", recipe.model["name"]).load(), find("task", wanted).load()
    if model_class.serves and wanted not in model_class.serves:
        raise ZooError(
            f"{recipe.model['name']} is made for {' and '.join(model_class.serves)}, not for {wanted}; choose another "
            f"model, or {recipe.model['name']}/{recipe.data['name']}-{model_class.serves[0]}"
        )
    seed_all(recipe.seed, "weights")
    model = model_class.from_spec(spec, **recipe.arguments("model"))
    task = task_class(model, spec, **recipe.arguments("task"))
    dataset.asked |= task.asks()
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
    """Train a recipe and return its finished folder; `resume` goes on with a run (True: the newest of this recipe).

    What ends before there is anything to go on with leaves nothing behind. A code file that a YAML recipe or a run
    names is refused, unless `source` or an override is its path, or all of it stands in
    `zoo.trust.trusting(everything=True)`.
    """
    child = os.environ.get(CHILD) if int(os.environ.get("LOCAL_RANK", 0)) > 0 else None
    if resume:
        run = Path(resume) if isinstance(resume, str) else _newest(_place(head.id_of(source), sample))
        recipe, sample = head.resumed(run, source, overrides)
        made = []
    else:
        recipe = load(source, overrides, sample=sample)
        place = Path(child or folder or _place(recipe.id, sample))
        made = [path for path in (place, *place.parents) if not path.exists()]
        run = place if child or folder else _new(place, recipe)
        made = made if child or folder else [run, *made]
    console = Console(quiet or child is not None)
    os.environ[CHILD] = str(run)
    try:
        if child:
            with recipe.trusted():
                return _train(recipe, run, sample, console)
        there = set(os.listdir(run)) if run.is_dir() else set()
        busy = f"{run} is being written by another process; wait for it, or start a new run"
        with recipe.trusted(), locked(run / ".lock", wait=0, busy=busy):
            if not resume and (run / "recipe.yaml").exists():
                raise ZooError(f"{run} holds a run already; add --resume to go on with it, or give another folder")
            try:
                return _train(recipe, run, sample, console)
            finally:
                if not resume and not _begun(run):
                    _take_away(run, there)
    except KeyboardInterrupt as stop:
        if _begun(run):
            raise KeyboardInterrupt(f"`zoo train {recipe.words} --resume {run}` goes on") from stop
        raise
    finally:
        os.environ.pop(CHILD, None)
        for path in () if _begun(run) else made:  # those that hold nothing
            with suppress(OSError):
                path.rmdir()


def _train(recipe: Recipe, run: Path, sample: bool, console: Console) -> Path:
    from .finish import finish

    threads = TrainConfig(**recipe.arguments("train")).threads
    if threads:
        torch.set_num_threads(threads)
    if recipe.note:
        console.line(recipe.note)
    with quiet_lightning():
        if finished(run):
            console.line(f"{run} is finished; nothing to do")
            return run
        dataset = make_dataset(recipe, sample)
        refuse_patience(recipe, dataset)
        s, state = build(recipe, dataset, dataset.prepare()), load_state(run)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the first process writes for all
            if not (run / "recipe.yaml").is_file():
                head.write(run, recipe, s.dataset, s.spec, sample)
            else:
                for line in head.go_on(run, recipe, s.dataset, s.spec, begun=state is not None):
                    console.line(line)
        console.line(_headline(s, run))
        if counted := [f"{name.replace('_', ' ')} {value:,}" for name, value in s.dataset.facts().items() if value]:
            console.line(f"data: {', '.join(counted)}")
        try:
            with writing(run):
                done = _fit_fitted(s) if s.fitted else _fit_network(s, run, state, console)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, size = len(s.dataset.part("train")), s.config.batch_size
            world = s.config.devices * s.config.num_nodes
            whole = (b for b in range(size + 1, count + 1) if not 0 < count % (b * world) < 2 * world)
            remedy = next((f"set train.batch_size={b}" for b in whole), "give more data")
            raise ZooError(
                f"{count} training samples in batches of {size} leave a batch of one, which has no variance for batch "
                f"norm; {remedy}"
            ) from error
        with held(done.get("backends", {})):
            return finish(s, run, done, console)


def _begun(run: Path) -> bool:
    """Whether there is anything to go on with: a state, rows of the log, or what a finished training leaves."""
    if any((run / name).is_file() for name in ("checkpoints/last.ckpt", "model.safetensors", *FINISHED)):
        return True
    return (run / "metrics.csv").is_file() and (run / "metrics.csv").stat().st_size > len(HEADER)


def _take_away(run: Path, there: set[str]) -> None:
    """Remove from `run` what was not `there`; the caller holds its lock."""
    for path in run.iterdir():
        if path.name in there:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _headline(s: Session, run: Path) -> str:
    sizes = ", ".join(f"{len(part)} {name}" for name, part in s.dataset.parts.items() if len(part))
    origin = "SYNTHETIC SAMPLE of " if s.dataset.is_sample else ""
    preset = " (tiny preset)" if s.dataset.is_sample else ""
    return f"{s.recipe.model['name']}{preset} on {origin}{s.dataset.key} ({sizes}), seed {s.seed} -> {run}"


def _fit_fitted(s: Session) -> dict:
    began = time.perf_counter()
    count = len(s.dataset.part("train"))
    seed_all(s.seed, "fit")
    with fits(f"in fitting {s.recipe.model['name']} on {count} samples", "give fewer", "use a machine with more"):
        s.task.model.fit(s.dataset.part("train"), s.spec)
    s.task.accept_fitted(s.dataset)
    return {"seconds": time.perf_counter() - began, "steps": 0, "samples": count, "device": "cpu", "world": 1}


def _fit_network(s: Session, run: Path, state: dict | None, console: Console) -> dict:
    config = s.config
    data = s.datamodule()
    world = config.devices * config.num_nodes
    per_epoch = len(data.train_steps(ranks={"rank": 0, "world": world}).batch_sampler)
    total = per_epoch * config.epochs if config.max_steps is None else min(config.max_steps, per_epoch * config.epochs)
    if total < 1:
        raise ZooError(
            f"train.epochs={config.epochs}, train.max_steps={config.max_steps}: nothing to train; give at least 1"
        )
    s.task.train_config, s.task.total_steps = config, -(-total // config.accumulate)
    engine = Engine(run, data, config, s.seed, per_epoch, total, state, console)
    trainer, deterministic = _trainer(config, run, engine)
    device = trainer.strategy.root_device
    engine.conditions = conditions(
        s.recipe,
        world=world,
        device=device,
        strategy=type(trainer.strategy).__name__,
        deterministic=deterministic,
    )
    if state:
        require_same(run, state, engine.conditions)
        if trainer.is_global_zero:
            engine.go_back()
        check_fit(state["model"], s.task.model.state_dict(), run / "checkpoints" / NAME)
        s.task.model.load_state_dict(state["model"])
        console.line(f"resumes at step {state['progress']['step']}")
    elif config.init_from:
        from .weights import init_from

        console.line(init_from(s.task.model, config.init_from))
    if not engine.progress.stopped and engine.progress.step < total:
        ranks = {"rank": trainer.global_rank, "world": world}
        if config.compile:
            s.task.loss = torch.compile(s.task.loss, dynamic=False)
        torch.use_deterministic_algorithms(deterministic)
        try:
            with held(engine.backends), fits(f"at batch size {config.batch_size}", *_smaller(s)):
                trainer.fit(s.task, _Stream(data, engine.progress.step, total, ranks))
        except SystemExit as stop:  # what Lightning makes of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt from stop
        finally:
            torch.use_deterministic_algorithms(False)
    return {
        "seconds": engine.progress.seconds,
        "steps": engine.progress.step,
        "samples": engine.progress.samples,
        "device": device,
        "world": world,
        "best_step": engine.progress.best_step,
        "best_epoch": -(-engine.progress.best_step // per_epoch),
        "deterministic": deterministic,
        "rank": trainer.global_rank,
        "backends": engine.backends,
    }


def _trainer(config: TrainConfig, run: Path, engine: Engine) -> tuple[L.Trainer, bool]:
    """Lightning's Trainer, and whether algorithms are to be deterministic."""
    accelerator = (
        config.accelerator if config.accelerator != "auto" else ("gpu" if torch.cuda.is_available() else "cpu")
    )
    deterministic = config.deterministic if config.deterministic is not None else accelerator == "cpu"
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
    return trainer, deterministic


def _smaller(s: Session) -> list[str]:
    """What makes a training step take less memory, in the order in which to try it."""
    size, config = s.config.batch_size, s.config
    remedies = list(s.task.memory_remedies())
    if size > 1:
        remedies.append(f"set train.batch_size={size // 2} and train.accumulate={2 * config.accumulate}")
    if config.precision == "32":
        remedies.append("set train.precision=bf16-mixed")
    return remedies


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
    names = [name for name in LOGGERS if name in known.__all__]
    made = []
    for entry in config.logger if isinstance(config.logger, list) else [config.logger]:
        if not isinstance(entry, (str, dict)):
            raise ZooError(f"train.logger: {str(entry)[:80]!r} is no logger; write a name, or name and arguments")
        arguments = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = str(arguments.pop("name", ""))
        if name not in names:
            raise unknown("logger", name, names, where="train.logger")
        _check_logger(name, arguments)
        try:
            made.append(getattr(known, name)(save_dir=str(run), **arguments))
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise ZooError(f"train.logger {name}: {error}; mend the argument, or install what it needs") from error
    return made


def _check_logger(name: str, arguments: dict) -> None:
    """Plain values that lead nowhere out of the run; the rest is the user's own, and stands in the environment."""
    for key, value in arguments.items():
        if key not in LOGGERS[name]:
            raise unknown("argument", str(key), LOGGERS[name], where=f"train.logger {name}, which writes into the run")
        for text in value if isinstance(value, list) else [value]:
            plain = text is None or isinstance(text, (str, int, float))
            if not plain or isinstance(text, str) and not all(map(is_name, text.split("/"))):
                told = f"train.logger: {key}={str(text)[:80]!r} is no plain name"
                raise ZooError(f"{told}; use letters, digits and . _ @ + : - alone")


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
    parts = [part for part in re.split(r"[^A-Za-z0-9_@.+-]+", recipe_id) if part.strip(".")] or ["recipe"]
    return below(runs_root(), *parts[:-1], parts[-1] + ("-sample" if sample else ""))


def _new(place: Path, recipe: Recipe) -> Path:
    while True:
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        numbers = [int(found.group(1)) for path in place.iterdir() if (found := re.match(r"(\d+)-seed", path.name))]
        run = place / f"{max(numbers, default=0) + 1:03d}-seed{recipe.seed}"
        with suppress(FileExistsError, FileNotFoundError):  # another process took the number, or the empty folder away
            run.mkdir()
            return run


def _newest(place: Path) -> Path:
    for run in sorted(place.glob("*-seed*"), reverse=True) if place.is_dir() else []:
        if (run / "recipe.yaml").is_file() and not finished(run):
            return run
    raise ZooError(f"no unfinished run in {place}; start one without --resume")
