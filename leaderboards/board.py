"""Boards: records found, grouped by benchmark, seeds of one recipe taken together, with intervals.

A row is a model under one recipe; its value is the mean over seeds. The interval is a hierarchical percentile
bootstrap: each replicate draws test groups (the same draw for every seed, whose test rows are the same) and seeds, both
with replacement. It is recomputed from the prediction rows beside the records; where rows are absent there is none.
Rows of a board meet the same draws, so that differences are paired. A row's rank is one more than the number of rows
that are better in the primary metric by a difference whose 95 % interval leaves out zero: rows of one rank are tied.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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
RESAMPLES, QUANTILES = 1000, (0.025, 0.975)


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
    draws: dict[str, np.ndarray] = field(
        repr=False
    )  #: bootstrap replicates per metric, (RESAMPLES,); empty without rows
    rank: int | None = None  #: None where rows are absent


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
    made = [replace(row, rank=_rank(row, made, first.primary, lower)) for row in made]
    name, n = first.benchmark.name, first.data.n["test"]
    return Board(name, first.benchmark.sample, first.primary, n, tuple(made), first.floor)


def _rank(row: Row, rows: list[Row], primary: str, lower: bool) -> int | None:
    if not all(other.draws for other in rows):
        return None
    ahead = (difference(other, row, primary)[1:] for other in rows if other is not row)
    return 1 + sum(high < 0 if lower else low > 0 for low, high in ahead)


def difference(one: Row, other: Row, metric: str) -> tuple[float, float, float]:
    """How much `one` is above `other` in a metric, with the 95 % interval of the paired replicates."""
    low, high = np.quantile(one.draws[metric] - other.draws[metric], QUANTILES).tolist()
    return one.value[metric] - other.value[metric], low, high


def _row(found: tuple[Found, ...]) -> Row:
    records = [one.record for one in found]
    value = {}
    for name in records[0].metrics:
        values = [record.metrics[name].value for record in records]
        value[name] = None if None in values else float(np.mean(values))
    draws, interval = {}, dict.fromkeys(value)
    if all(one.predictions for one in found):
        key = {"records": [record.id for record in records], "resamples": RESAMPLES, "metrics": metrics.METRIC_VERSION}
        arrays, facts = cached("leaderboards", key, lambda: hierarchical(found))
        draws = dict(zip(facts["names"], arrays["draws"].T, strict=True))
        interval |= {name: _bounds(column) for name, column in draws.items()}
    seeds = tuple(record.seed for record in records)
    return Row(records[0].model.name, records[0].recipe.id, seeds, value, interval, found, draws)


def _bounds(draws: np.ndarray) -> tuple[float, float] | None:
    return tuple(np.quantile(draws, QUANTILES).tolist()) if np.isfinite(draws).all() else None


def hierarchical(found: tuple[Found, ...]) -> tuple[dict[str, np.ndarray], dict]:
    """Replicates of the mean over seeds, drawing test groups and seeds: `draws` (RESAMPLES, metrics), and `names`."""
    names, samples = [], []
    for one in found:
        rows, options = load_rows(one.predictions), _options(one.record)
        names, one_seed = metrics.replicates(one.record.benchmark.task, rows, resamples=RESAMPLES, seed=0, **options)
        samples.append(one_seed)
    drawn = generator(0, "seeds").integers(len(found), size=(RESAMPLES, len(found)))
    return {"draws": np.stack(samples)[drawn, np.arange(RESAMPLES)[:, None]].mean(1)}, {"names": names}


def _options(record: Record) -> dict:
    """The options of `metrics.compute` among a record's protocol."""
    known = metrics.TASKS[record.benchmark.task].options
    protocol = record.benchmark.protocol.items()
    return {name: tuple(value) if isinstance(value, list) else value for name, value in protocol if name in known}


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
    values = metrics.compute(record.benchmark.task, load_rows(found.predictions), **_options(record))
    for name, stated in record.metrics.items():
        value = values.get(name)
        if (value is None) != (stated.value is None) or value is not None and abs(value - stated.value) > 1e-9:
            raise ZooError(
                f"{found.path}: {name} is {stated.value} in the record and {value} by its rows; the record is wrong"
            )


def table(board: Board, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Header and lines of a board as text: rank (equal ranks are ties), values with intervals."""
    others = [name for name in board.rows[0].value if name != board.primary]
    columns = columns or (board.primary, *others[:3])
    lines = [["rank", "model", "seeds", *columns]]
    for row in board.rows:
        cells = [_cell(row.value[name], row.interval[name]) for name in columns]
        lines.append([str(row.rank or "-"), row.model, str(len(row.seeds)), *cells])
    lines.append(["", "floor", "", *(_cell(board.floor.get(name), None) for name in columns)])
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
