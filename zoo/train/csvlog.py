"""The run's own log, `metrics.csv`: step, epoch, split, metric, value; one value a row, exact, without wall times.

A resumed run cuts it back to the step of the state it goes on from, so that it ends with the bytes of a run that was
never interrupted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ..files import write_text

HEADER = "step,epoch,split,metric,value\n"


class CsvLog:
    """Append-only log of one run."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, step: int) -> None:
        """Begin at `step`: keep only whole rows up to it."""
        kept = [HEADER]
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
                if line.endswith("\n") and int(line.split(",", 1)[0]) <= step:
                    kept.append(line)
        write_text(self.path, "".join(kept))

    def write(self, step: int, epoch: int, split: str, values: Mapping[str, float | None]) -> None:
        """Append a row per metric; None is an empty value."""
        text = io.StringIO()
        for name, value in values.items():
            csv.writer(text, lineterminator="\n").writerow(
                [step, epoch, split, name, "" if value is None else repr(float(value))]
            )
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(text.getvalue())


def read_log(path: Path) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """(split, metric) -> steps and values, for pictures."""
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    with open(path, encoding="utf-8", newline="") as log:
        for row in csv.DictReader(log):
            if row["value"]:
                steps, values = curves.setdefault((row["split"], row["metric"]), ([], []))
                steps.append(int(row["step"]))
                values.append(float(row["value"]))
    return curves
