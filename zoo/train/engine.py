"""The zoo's side of a Lightning training: exact resume, evaluation, best weights, early stopping, the log.

Lightning's Trainer runs the optimisation (devices, precision, DDP, clipping, accumulation) over one long stream of
steps; this callback counts them. Before every step all random generators are reseeded from (seed, step, rank), so that
the state of a run is its weights, its optimiser and a few numbers, and a run that goes on from a saved state does the
same arithmetic as one that was never stopped.

The training loss is told as the mean over batches, averaged over processes: of the batches since the last row of the
log, and at the end of an epoch of all its batches.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch

from .. import metrics
from ..data.datamodule import DataModule
from ..errors import ZooError
from ..files import atomic
from ..foreign import reading
from ..seeding import seed_all
from ..stored import check_fit, restore
from .config import TrainConfig
from .console import Console
from .csvlog import CsvLog
from .evaluate import collect
from .state import NAME, BestWeights, save
from .task import Task


@dataclass
class Progress:
    """What a run has done so far; saved with every state."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0  # evaluations since the best
    stopped: bool = False
    loss_count: int = 0  # batches since the last row of the log
    epoch_count: int = 0  # batches of this epoch
    seconds: float = 0.0  # training time since the run began, evaluation left out
    samples: int = 0


class Engine(L.Callback):
    """Counts steps, evaluates, saves and restores; one per run."""

    def __init__(
        self,
        folder: Path,
        data: DataModule,
        config: TrainConfig,
        seed: int,
        per_epoch: int,
        total: int,
        state: dict | None,
        console: Console,
    ):
        self.folder, self.data, self.config, self.seed = folder, data, config, seed
        self.per_epoch, self.total, self.state, self.console = per_epoch, total, state, console
        if state:
            check_state(state, folder / "checkpoints" / NAME)
        self.conditions: dict = {}  # see state.py
        self.progress = Progress(**state["progress"]) if state else Progress()
        self.csv = CsvLog(folder / "metrics.csv")
        self.best = BestWeights(folder, state["best_sha256"] if state else None)
        self.backends: dict[str, str] = dict(state["backends"]) if state else {}  # what served each call of an op
        self.ema: dict[str, torch.Tensor] | None = None
        self.began = 0.0
        self.due = False  # a state is to be saved at the next optimiser step

    def go_back(self) -> None:
        """Make the log and the best weights what the state counts; an error where they are no longer."""
        self.csv.counted(self.state["log"])
        self.best.go_back()

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, task: Task) -> None:
        """Put back optimiser and schedule (the weights are there already) and cut the log."""
        self.ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
        if self.config.ema:
            self.ema = {name: tensor.detach().clone() for name, tensor in task.model.state_dict().items()}
        if self.state:
            path = self.folder / "checkpoints" / NAME
            with reading(path, "state of this run's optimiser", "start a new run"):
                restore(trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler, self.state)
            if self.ema is not None:
                check_fit(self.state["ema"] or {}, self.ema, path)
                self.ema = {name: self.state["ema"][name].to(tensor.device) for name, tensor in self.ema.items()}
        if trainer.is_global_zero:
            self.csv.start(self.state and self.state["log"])
        # sums of the loss since the last row of the log, and over this epoch; each process has its own
        sums = self.state["losses"][trainer.global_rank] if self.state else [0.0, 0.0]
        self.losses = torch.tensor(sums, dtype=torch.float64, device=task.device)
        self.began = time.perf_counter()
        self.console.start(self.total, self.progress.step)

    def on_train_batch_start(self, trainer: L.Trainer, task: Task, batch, batch_idx: int) -> None:
        """Reseed: dropout and noise of a step depend on the step alone."""
        seed_all(self.seed, "step", self.progress.step, trainer.global_rank)

    def on_train_batch_end(self, trainer: L.Trainer, task: Task, outputs, batch, batch_idx: int) -> None:
        """Count, log, and at the end of an epoch evaluate and save."""
        p = self.progress
        p.step += 1
        p.loss_count += 1
        p.epoch_count += 1
        p.samples += len(batch["index"])
        self.losses += task.step_loss.double()
        last = p.step == self.total
        ends = p.step % self.per_epoch == 0 or last
        stepped = p.step % self.config.accumulate == 0 or last
        if self.ema is not None and stepped:
            self._update_ema(task)
        if p.step % self.config.log_every == 0 or ends:
            self._log_loss(trainer, ends)
        if ends:
            if not self.data.dataset.evaluates:
                self._go_without_evaluation(trainer, task, last)
            elif (p.step // self.per_epoch) % self.config.eval_every == 0 or last:
                self._evaluate(trainer, task)
            self.due = True
        elif self.config.save_every and p.step % self.config.save_every == 0:
            self.due = True
        if self.due and stepped:  # gradients that are still being accumulated are not part of a state
            self._save(trainer, task)
            self.due = False
        self.console.step(p.step)
        if p.stopped:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, task: Task) -> None:
        """Close the progress display."""
        self.console.stop()

    def on_exception(self, trainer: L.Trainer, task: Task, exception: BaseException) -> None:
        """As at the end: what comes next on the terminal is not part of the display."""
        self.console.stop()

    # steps ----------------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs finished, as the log counts them."""
        return -(-self.progress.step // self.per_epoch)

    def _update_ema(self, task: Task) -> None:
        with torch.no_grad():
            for name, tensor in task.model.state_dict().items():
                if tensor.is_floating_point():
                    self.ema[name].lerp_(tensor, 1 - self.config.ema)
                else:
                    self.ema[name].copy_(tensor)

    def _log_loss(self, trainer: L.Trainer, ends: bool) -> None:
        """A row with the mean since the last one; where an epoch ends another, with the mean over its batches."""
        p = self.progress
        recent, epoch = trainer.strategy.reduce(self.losses.clone(), reduce_op="mean").tolist()
        means = {"loss": recent / p.loss_count} | ({"epoch_loss": epoch / p.epoch_count} if ends else {})
        if not math.isfinite(means["loss"]):
            raise ZooError(f"training loss is {means['loss']} at step {p.step}; lower train.lr or set train.clip=1")
        if trainer.is_global_zero:
            self.csv.write(p.step, self.epoch, "train", means)
        self.console.loss(means["epoch_loss" if ends else "loss"])
        self.losses[0], p.loss_count = 0, 0
        if ends:
            self.losses[1], p.epoch_count = 0, 0

    def _evaluate(self, trainer: L.Trainer, task: Task) -> None:
        p = self.progress
        self._clock()
        with self.averaged(task):
            rows = collect(
                task,
                self.data,
                self.data.dataset.part("valid"),
                device=task.device,
                precision=self.config.precision,
                ranks=self.ranks,
            )
            values = metrics.compute(task.rows, rows, **task.metric_options())
            value, lower = values[task.primary], metrics.TASKS[task.rows].lower_is_better(task.primary)
            better = value is not None and (p.best is None or (value < p.best if lower else value > p.best))
            if better:
                p.best, p.best_step, p.stale = value, p.step, 0
                if trainer.is_global_zero:
                    self.best.replace(lambda path: _save_weights(task, path))
            else:
                p.stale += 1
        if trainer.is_global_zero:
            self.csv.write(p.step, self.epoch, "valid", values)
            for logger in trainer.loggers:
                logger.log_metrics({f"valid/{name}": v for name, v in values.items() if v is not None}, p.step)
        p.stopped = self.config.patience is not None and p.stale >= self.config.patience
        self.console.evaluated(self.epoch, p.step, task.primary, value, p.best, p.stopped)
        self.began = time.perf_counter()

    def _go_without_evaluation(self, trainer: L.Trainer, task: Task, last: bool) -> None:
        """Where nothing is held out the last weights are the best ones."""
        if last:
            self.progress.best_step = self.progress.step
            with self.averaged(task):
                if trainer.is_global_zero:
                    self.best.replace(lambda path: _save_weights(task, path))
        self.console.epoch(self.epoch, self.progress.step)

    def _clock(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self.began
        self.began = now

    def averaged(self, task: Task):
        """Within this block the model holds the averaged weights, if there are any."""
        return _Swapped(task, self.ema)

    def _save(self, trainer: L.Trainer, task: Task) -> None:
        """Write the resumable state; loadable with weights_only=True."""
        self._clock()
        losses = trainer.strategy.all_gather(self.losses).reshape(-1, 2).tolist()
        if not trainer.is_global_zero:
            return
        state = {
            "model": task.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "ema": self.ema,
            "progress": asdict(self.progress),
            "losses": losses,
            "log": self.csv.mark(),
            "best_sha256": self.best.sha256,
            "backends": self.backends,
        }
        save(self.folder, state | self.conditions)
        self.best.saved()


class _Swapped:
    def __init__(self, task: Task, weights: dict | None):
        self.task, self.weights = task, weights

    def __enter__(self) -> None:
        if self.weights is not None:
            self.kept = {name: tensor.detach().clone() for name, tensor in self.task.model.state_dict().items()}
            self.task.model.load_state_dict(self.weights)

    def __exit__(self, *error) -> None:
        if self.weights is not None:
            self.task.model.load_state_dict(self.kept)


def _save_weights(task: Task, path: Path) -> None:
    with atomic(path) as temporary:
        task.model._write(temporary)


def check_state(state: dict, path: Path) -> None:
    """Raise where a saved state lacks what an engine goes on from, or holds something else in its place."""
    kinds = {"model": dict, "optimizer": dict, "scheduler": dict, "progress": dict, "log": dict, "backends": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    wrong += [] if isinstance(state.get("ema", 0), dict | None) else ["ema"]
    wrong += [] if isinstance(state.get("best_sha256", 0), str | None) else ["best_sha256"]
    losses = state.get("losses")
    pairs = isinstance(losses, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in losses)
    wrong += [] if pairs and losses and all(_is_number(x) for pair in losses for x in pair) else ["losses"]
    if not wrong:
        fresh, saved, log = asdict(Progress()), state["progress"], state["log"]
        numbers = (name for name in fresh if name not in ("best", "stopped"))
        wrong += [f"progress.{name}" for name in numbers if not _is_number(saved.get(name)) or saved[name] < 0]
        wrong += [] if set(saved) == set(fresh) and isinstance(saved.get("stopped"), bool) else ["progress"]
        wrong += [] if isinstance(saved.get("best", 0), float | int | None) else ["progress.best"]
        counted = isinstance(log.get("bytes"), int) and log["bytes"] >= 0 and isinstance(log.get("sha256"), str)
        wrong += [] if counted else ["log"]
    if wrong:
        raise ZooError(f"{path}: is no state to go on from ({wrong[0]} is missing or no such thing); start a new run")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
