"""What a training run tells on the terminal: a live bar where there is one; always a line per evaluation or epoch."""

from __future__ import annotations

import sys
import time

from ..errors import printable


class Console:
    """Progress of one run; silent on every process but the first."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.bar = None
        self.train_loss: float | None = None

    def line(self, text: str) -> None:
        """Print a line above the bar; names in it may hold a terminal's control codes, and brackets."""
        text = printable(text)
        if self.bar and not self.quiet:
            self.bar.console.print(text, highlight=False, markup=False, emoji=False)
        elif not self.quiet:
            print(text, flush=True)

    def start(self, total: int, done: int) -> None:
        """Begin to show `total` steps of which `done` are made."""
        self.total, self.first, self.began = total, done, time.perf_counter()
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self.bar.start()
            self.row = self.bar.add_task("train", total=total, completed=done, loss="")

    def step(self, step: int) -> None:
        """A step is done."""
        if self.bar:
            self.bar.update(self.row, completed=step)

    def loss(self, value: float) -> None:
        """The training loss to show: the mean since the last row of the log, or of an epoch at its end."""
        self.train_loss = value
        if self.bar:
            self.bar.update(self.row, loss=f"{value:.4f}")

    def evaluated(
        self, epoch: int, step: int, name: str, value: float | None, best: float | None, stopped: bool
    ) -> None:
        """An evaluation is done."""
        shown = "undefined" if value is None else f"{value:.4f}"
        mark = " *" if value is not None and value == best else ""
        self.epoch(epoch, step, f"  valid {name} {shown}{mark}", stopped)

    def epoch(self, epoch: int, step: int, told: str = "", stopped: bool = False) -> None:
        """An epoch is done; `told` is what evaluating behind it found."""
        rate = (time.perf_counter() - self.began) / max(1, step - self.first)
        left = "stops early" if stopped else f"{rate * (self.total - step):.0f} s left"
        self.line(f"epoch {epoch:>4}  step {step:>6}/{self.total}  loss {self.train_loss:.4f}{told}  {left}")

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()
            self.bar = None
