"""Boards: records found, grouped by benchmark, seeds of one recipe taken together, with intervals.

A row is a model under one recipe; its value is the mean over seeds. The interval is a hierarchical percentile
bootstrap: each replicate draws test groups (the same draw for every seed, whose test rows are the same) and seeds, both
with replacement. It is recomputed from the prediction rows beside the records; where rows are absent there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..zoo import metrics
from ..zoo.data.cache import cached
from ..zoo.errors import ZooError
from ..zoo.files import hash_file, read_json, runs_root, write_json
from ..zoo.registry import ROOT
from ..zoo.seeding import generator
from ..zoo.train.rows import load_rows
from .schema import LARGEST_PREDICTIONS, Record

RECORDS = ROOT / "leaderboards" / "records"
RESAMPLES = 1000


@dataclass(frozen=True)
class Found:
    """A record and where it lies."""

    record: Record
    path: Path

    @property
    def predictions(self) -> Path | None:
        """The rows beside the record, if they are there and are the recorded ones."""
        beside = (
            self.path.with_suffix(".npz") if self.path.name != "record.json" else self.path.with_name("predictions.npz")
        )
        return beside if beside.is_file() and hash_file(beside) == self.record.predictions.sha256 else None


@dataclass(frozen=True)
class Row:
    """A line of a board: mean over seeds and interval per metric."""

    model: str
    recipe: str
    seeds: tuple[int, ...]
    value: dict[str, float | None]
    interval: dict[str, tuple[float, float] | None]
    records: tuple[Found, ...]


@dataclass(frozen=True)
class Board:
    """All rows of a benchmark, best first, and the floor."""

    name: str
    sample: bool
    primary: str
    n_test: int
    rows: tuple[Row, ...]
    floor: dict[str, float | None]


def read_record(path: Path) -> Record:
    """A record file, validated."""
    try:
        return Record.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ZooError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; records are written by runs, not by hand"
        ) from error


def find_records(runs: bool = False) -> list[Found]:
    """The committed records, and with `runs` those of this machine's runs."""
    paths = sorted(RECORDS.glob("*/*/*.json"))
    if runs and runs_root().is_dir():
        paths += sorted(runs_root().rglob("record.json"))
    return [Found(read_record(path), path) for path in paths]


def boards(found: Iterable[Found]) -> list[Board]:
    """Group records into boards."""
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(one.record.board(), []).append(one)
    return sorted((_board(group) for group in groups.values()), key=lambda board: (board.sample, board.name))


def _board(group: list[Found]) -> Board:
    first = group[0].record
    rows: dict[tuple[str, str], dict[int, Found]] = {}
    for one in group:
        # of several runs of one recipe and seed the newest stands
        seeds = rows.setdefault((one.record.model.name, one.record.recipe.sha256), {})
        if one.record.seed not in seeds or seeds[one.record.seed].record.created < one.record.created:
            seeds[one.record.seed] = one
    made = [_row(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in rows.values()]
    lower = first.metrics[first.primary].better == "lower"
    made.sort(
        key=lambda row: (
            row.value[first.primary] is None,
            (row.value[first.primary] or 0) * (1 if lower else -1),
            row.model,
        )
    )
    return Board(
        first.benchmark.name, first.benchmark.sample, first.primary, first.data.n["test"], tuple(made), first.floor
    )


def _row(found: tuple[Found, ...]) -> Row:
    records = [one.record for one in found]
    value = {}
    for name in records[0].metrics:
        values = [record.metrics[name].value for record in records]
        value[name] = None if None in values else float(np.mean(values))
    interval = dict.fromkeys(value)
    if all(one.predictions for one in found):
        key = {"records": [record.id for record in records], "resamples": RESAMPLES, "metrics": metrics.METRIC_VERSION}
        interval = cached("leaderboards", key, lambda: ({}, hierarchical(found)))[1]
    return Row(
        records[0].model.name,
        records[0].recipe.id,
        tuple(record.seed for record in records),
        value,
        {name: tuple(pair) if pair else None for name, pair in interval.items()},
        found,
    )


def hierarchical(found: tuple[Found, ...]) -> dict[str, tuple[float, float] | None]:
    """95 % interval of the mean over seeds, drawing test groups and seeds."""
    task = found[0].record.benchmark.task
    options = {
        name: tuple(v) if isinstance(v, list) else v
        for name, v in found[0].record.benchmark.protocol.items()
        if name in metrics.TASKS[task].options
    }
    samples, names = [], []
    for one in found:
        names, replicates = metrics.replicates(task, load_rows(one.predictions), resamples=RESAMPLES, seed=0, **options)
        samples.append(replicates)
    drawn = generator(0, "seeds").integers(len(found), size=(RESAMPLES, len(found)))
    mean = np.stack(samples)[drawn, np.arange(RESAMPLES)[:, None]].mean(1)
    return {
        name: tuple(np.quantile(column, (0.025, 0.975)).tolist()) if np.isfinite(column).all() else None
        for name, column in zip(names, mean.T, strict=True)
    }


def add(run: Path) -> Path:
    """Copy the record of a finished run, and its predictions where they are small, to the committed records."""
    if not (run / "record.json").is_file():
        raise ZooError(f"{run}: no record.json; give the folder of a finished run")
    found = Found(read_record(run / "record.json"), run / "record.json")
    if found.record.benchmark.sample:
        raise ZooError(f"{run}: trained on the synthetic sample, which boards do not hold; train on the real data")
    if found.predictions is None:
        raise ZooError(f"{run}: predictions.npz is missing or is not what the record says; run `zoo eval` again")
    target = RECORDS / found.record.benchmark.name / found.record.model.name / f"{found.record.id}.json"
    write_json(target, found.record.model_dump())
    if found.record.predictions.bytes <= LARGEST_PREDICTIONS:
        shutil.copyfile(found.predictions, target.with_suffix(".npz"))
    return target


def verify(found: Found) -> None:
    """Recompute a record's metrics from its rows; raise where they are not what it states."""
    if found.predictions is None:
        return
    record = found.record
    options = {
        name: tuple(v) if isinstance(v, list) else v
        for name, v in record.benchmark.protocol.items()
        if name in metrics.TASKS[record.benchmark.task].options
    }
    values = metrics.compute(record.benchmark.task, load_rows(found.predictions), **options)
    for name, stated in record.metrics.items():
        value = values.get(name)
        if (value is None) != (stated.value is None) or value is not None and abs(value - stated.value) > 1e-9:
            raise ZooError(
                f"{found.path}: {name} is {stated.value} in the record and {value} by its rows; the record is wrong"
            )


def table(board: Board, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Header and lines of a board as text, values with intervals."""
    columns = (
        columns
        or tuple(name for name in board.rows[0].value if name == board.primary)
        + tuple(name for name in board.rows[0].value if name != board.primary)[:3]
    )
    lines = [["model", "seeds", *columns]]
    for row in board.rows:
        lines.append(
            [row.model, str(len(row.seeds)), *(_cell(row.value[name], row.interval[name]) for name in columns)]
        )
    lines.append(["(floor)", "", *(_cell(board.floor.get(name), None) for name in columns)])
    return lines


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def markdown(board: Board, columns: tuple[str, ...] = ()) -> str:
    """A board as a Markdown table."""
    header, *lines = table(board, columns)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
