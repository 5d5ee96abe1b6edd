"""The run's own log, `metrics.csv`: step, epoch, split, metric, value; one value a row, exact, without wall times.

Rows `train,loss` are means over the batches since the row before them; rows `train,epoch_loss`, at the end of each
epoch, are means over all its batches. A state of the run counts the bytes of the log and holds their hash: a resumed
run checks them and cuts off what came later, so that it ends with the bytes of a run that was never interrupted.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from ..errors import ZooError
from ..files import sync, write_text, writing
from ..foreign import reading

HEADER = "step,epoch,split,metric,value\n"


class CsvLog:
    """Append-only log of one run."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, mark: Mapping | None = None) -> None:
        """Begin behind the rows that `mark` of a saved state counts; with none, begin anew."""
        kept = self.counted(mark) if mark else HEADER.encode()
        write_text(self.path, kept.decode())
        self.size, self.digest = len(kept), hashlib.sha256(kept)

    def counted(self, mark: Mapping) -> bytes:
        """The bytes that `mark` counts; an error where the file no longer holds them."""
        kept = self.path.read_bytes()[: mark["bytes"]] if self.path.is_file() else b""
        if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            what = "rows are missing" if len(kept) < mark["bytes"] else "rows have changed"
            raise ZooError(
                f"{self.path}: {what} of those that the saved state counts (its first {mark['bytes']} bytes); put the "
                "file back as it was, or start a new run"
            )
        return kept

    def write(self, step: int, epoch: int, split: str, values: Mapping[str, float | None]) -> None:
        """Append a row per metric; None is an empty value."""
        text = io.StringIO()
        for name, value in values.items():
            csv.writer(text, lineterminator="\n").writerow(
                [step, epoch, split, name, "" if value is None else repr(float(value))]
            )
        rows = text.getvalue().encode()
        with writing(self.path), open(self.path, "ab") as log:
            log.write(rows)
        self.size += len(rows)
        self.digest.update(rows)

    def mark(self) -> dict:
        """What a state counts of the log: its bytes, which are on the disk from now on, and their hash."""
        sync(self.path)
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}


def read_log(path: Path) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """(split, metric) -> steps and values, for pictures."""
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    with reading(path, "log of a run", "delete it"), open(path, encoding="utf-8", newline="") as log:
        for row in csv.DictReader(log):
            if row["value"]:
                steps, values = curves.setdefault((row["split"], row["metric"]), ([], []))
                steps.append(int(row["step"]))
                values.append(float(row["value"]))
    return curves
