"""Boards: records found, grouped by benchmark, seeds of one recipe taken together, with intervals.

A row is a model under one recipe; its value is the mean over seeds. Where a data set is split into folds, the test rows
of the folds that a seed has are pooled before anything is computed, and only rows of the same folds share a board. A
further view of the test part (a slice, such as clouds in random poses) has a board of its own, `<board>/<slice>`.

The interval is a hierarchical percentile bootstrap: each replicate draws test groups (the same draw for every seed,
whose test rows are the same) and seeds, both with replacement. It is recomputed from the prediction rows beside the
records; where rows are absent there is none. Rows of a board meet the same draws, so that differences are paired. A
row's rank is one more than the number of rows that are better in the primary metric by a difference whose 95 % interval
leaves out zero: rows of one rank are tied.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..zoo import metrics
from ..zoo.data.cache import cached
from ..zoo.errors import ZooError, printable, unknown
from ..zoo.files import hash_file, runs_root, write_json
from ..zoo.foreign import below, reading
from ..zoo.registry import ROOT
from ..zoo.runs import refuse_unscored
from ..zoo.seeding import generator
from ..zoo.train.rows import load_rows
from .schema import LARGEST_PREDICTIONS, Record, read_record

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
    settings: str = ""  #: those that tell its recipe from others of the same model on the board

    @property
    def label(self) -> str:
        """The model, and its settings where that is not enough."""
        return f"{self.model} ({self.settings})" if self.settings else self.model


@dataclass(frozen=True)
class Board:
    """All rows of a benchmark, best first, and the floor."""

    name: str
    sample: bool
    primary: str
    n_test: int
    rows: tuple[Row, ...]
    floor: dict[str, float | None]


def find_records(runs: bool = False) -> list[Found]:
    """The committed records, and with `runs` those of this machine's runs."""
    paths = sorted(RECORDS.glob("*/*/*.json"))
    if runs and runs_root().is_dir():
        paths += sorted(runs_root().rglob("record.json"))
    return [Found(read_record(path), path) for path in paths]


@dataclass(frozen=True)
class Plan:
    """A board before anything is computed: its name, and its rows, which are seeds, which are folds."""

    name: str
    view: str
    rows: list[list[tuple[Found, ...]]]

    @property
    def found(self) -> list[Found]:
        """All its records."""
        return [one for row in self.rows for pooled in row for one in pooled]


def boards(found: Iterable[Found], wanted: str | None = None) -> list[Board]:
    """Group records into boards; with `wanted`, those of that name, or else those whose names hold it."""
    made = [_board(plan.rows, plan.view) for plan in select(plans(found), wanted)]
    return sorted(made, key=lambda board: (board.sample, board.name))


def select(planned: list[Plan], wanted: str | None) -> list[Plan]:
    """The plans of the name `wanted`, or else those whose names hold it; an unknown name fails with the nearest."""
    if not wanted:
        return planned
    chosen = [plan for plan in planned if plan.name == wanted] or [plan for plan in planned if wanted in plan.name]
    if not chosen:
        raise unknown("benchmark", wanted, {plan.name for plan in planned})
    return chosen


def plans(found: Iterable[Found]) -> list[Plan]:
    """Group records into boards to be."""
    newest: dict[tuple, Found] = {}
    for one in found:
        record = one.record
        split = (record.fold or "", *record.data.split_sha256)
        place = (record.board(), record.entry(), record.seed, split)
        # of several runs of one recipe, seed and fold the newest stands
        if place not in newest or newest[place].record.created < record.created:
            newest[place] = one
    folds: dict[tuple, list[Found]] = {}
    for (board, entry, seed, _), one in sorted(newest.items(), key=lambda pair: pair[0]):
        folds.setdefault((board, entry, seed), []).append(one)
    groups: dict[tuple, dict[tuple, list[tuple[Found, ...]]]] = {}
    for (board, entry, _), pooled in folds.items():
        splits = tuple((one.record.fold, *one.record.data.split_sha256) for one in pooled)
        groups.setdefault((board, splits), {}).setdefault(entry, []).append(tuple(pooled))
    made = []
    for group in groups.values():
        rows = list(group.values())
        views = {view for row in rows for pooled in row for one in pooled for view in one.record.slices}
        made += [_plan(rows, view) for view in ("", *sorted(views))]
    return made


def _plan(rows: list[list[tuple[Found, ...]]], view: str) -> Plan:
    """Of the rows that have the view."""
    rows = [row for row in rows if not view or all(view in one.record.slices for pooled in row for one in pooled)]
    return Plan(_name([one.record for one in rows[0][0]], view), view, rows)


def _board(rows: list[list[tuple[Found, ...]]], view: str) -> Board:
    first, folds = rows[0][0][0].record, [one.record for one in rows[0][0]]
    made = [_row(tuple(row), view) for row in rows]
    lower = first.metrics[first.primary].better == "lower"
    made.sort(
        key=lambda row: (
            row.value[first.primary] is None,
            (row.value[first.primary] or 0) * (1 if lower else -1),
            row.model,
        )
    )
    made = [replace(row, rank=_rank(row, made, first.primary, lower), settings=_settings(row, made)) for row in made]
    sizes = [record.data.n["test"] for record in folds]
    return Board(_name(folds, view), first.benchmark.sample, first.primary, sum(sizes), tuple(made), _floor(folds))


def _name(folds: list[Record], view: str) -> str:
    """`<benchmark>`, of several folds `@fold1-5` or `@fold1+fold3`, and the view."""
    name = folds[0].benchmark.name
    if len(folds) > 1:
        numbers = [int(record.fold.removeprefix("fold")) for record in folds]
        whole = numbers == list(range(numbers[0], numbers[-1] + 1))
        told = f"fold{numbers[0]}-{numbers[-1]}" if whole else "+".join(f"fold{number}" for number in numbers)
        name = f"{name.rpartition('@')[0]}@{told}"
    return f"{name}/{view}" if view else name


def _floor(folds: list[Record]) -> dict[str, float | None]:
    """The floor; of several folds the mean of theirs, each fitted on its own training part, weighed by test samples."""
    weights, floors = [record.data.n["test"] for record in folds], [record.floor for record in folds]
    columns = {name: [floor.get(name) for floor in floors] for name in floors[0]}
    return {
        name: None if None in values else float(np.average(values, weights=weights)) for name, values in columns.items()
    }


def _rank(row: Row, rows: list[Row], primary: str, lower: bool) -> int | None:
    if not all(other.draws for other in rows):
        return None
    ahead = (difference(other, row, primary)[1:] for other in rows if other is not row)
    return 1 + sum(high < 0 if lower else low > 0 for low, high in ahead)


def _settings(row: Row, rows: list[Row]) -> str:
    """`section.key=value` for each setting in which the rows of one model differ, as one would override them."""

    def flat(one: Row) -> dict[str, str]:
        sections = one.records[0].record.settings().items()
        return {f"{section}.{key}": printable(str(value)) for section, part in sections for key, value in part.items()}

    own, others = flat(row), [flat(one) for one in rows if one.model == row.model and one is not row]
    keys = sorted({key for other in others for key in own.keys() | other.keys() if own.get(key) != other.get(key)})
    return " ".join(f"{key}={own.get(key, 'null')}" for key in keys)


def difference(one: Row, other: Row, metric: str) -> tuple[float, float, float]:
    """How much `one` is above `other` in a metric, with the 95 % interval of the paired replicates."""
    low, high = np.quantile(one.draws[metric] - other.draws[metric], QUANTILES).tolist()
    return one.value[metric] - other.value[metric], low, high


def _row(seeds: tuple[tuple[Found, ...], ...], view: str) -> Row:
    found = [one for folds in seeds for one in folds]
    first, value, draws = found[0].record, {}, {}
    for name in first.metrics:
        held = [(one.record.slices[view] if view else one.record.metrics).get(name) for one in found]
        stated = [metric and metric.value for metric in held]
        # a metric of several folds is that of their pooled rows, not a mean over folds
        value[name] = None if None in stated or len(stated) > len(seeds) else float(np.mean(stated))
    interval = dict.fromkeys(value)
    if all(one.predictions for one in found):
        ids = [[one.record.id for one in folds] for folds in seeds]
        key = {"records": ids, "view": view, "resamples": RESAMPLES, "metrics": metrics.METRIC_VERSION}
        with reading(found[0].path, "record of these rows", "take it off the board, or put its rows back"):
            arrays, facts = cached("leaderboards", key, lambda: hierarchical(seeds, view))
        draws = dict(zip(facts["names"], arrays["draws"].T, strict=True))
        interval |= {name: _bounds(column) for name, column in draws.items()}
        if len(found) > len(seeds):
            pooled = dict(zip(facts["names"], arrays["value"].tolist(), strict=True))
            value |= {name: pooled[name] if np.isfinite(pooled[name]) else None for name in value}
    numbers = tuple(folds[0].record.seed for folds in seeds)
    return Row(first.model.name, _recipe(first), numbers, value, interval, tuple(found), draws)


def _recipe(record: Record) -> str:
    """The recipe's id, without its fold."""
    return record.recipe.id.removesuffix(f"@{record.fold}") if record.fold else record.recipe.id


def _bounds(draws: np.ndarray) -> tuple[float, float] | None:
    return tuple(np.quantile(draws, QUANTILES).tolist()) if np.isfinite(draws).all() else None


def hierarchical(seeds: tuple[tuple[Found, ...], ...], view: str = "") -> tuple[dict[str, np.ndarray], dict]:
    """Of each seed's rows, its folds pooled: `value` (metrics,), the mean over seeds, and `draws` (RESAMPLES, metrics).

    Draws are replicates of that mean, in which test groups and seeds are drawn; beside them the `names` of the metrics.
    """
    names, samples, values = [], [], []
    for folds in seeds:
        task, options = folds[0].record.benchmark.task, folds[0].record.metric_options()
        parts = [load_rows(one.predictions, view) for one in folds]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        names, draws = metrics.replicates(task, rows, resamples=RESAMPLES, seed=0, **options)
        found = metrics.compute(task, rows, **options)
        values.append([np.nan if found[name] is None else found[name] for name in names])
        samples.append(draws)
    drawn = generator(0, "seeds").integers(len(seeds), size=(RESAMPLES, len(seeds)))
    mean = np.stack(samples)[drawn, np.arange(RESAMPLES)[:, None]].mean(1)
    return {"draws": mean, "value": np.mean(values, 0)}, {"names": names}


def add(run: Path) -> Path:
    """Copy the record of a finished run, and its predictions where they are small, to the committed records."""
    refuse_unscored(run)
    if not (run / "record.json").is_file():
        raise ZooError(f"{run}: no record.json; give the folder of a finished run")
    found = Found(read_record(run / "record.json"), run / "record.json")
    if found.record.benchmark.sample:
        raise ZooError(f"{run}: trained on the synthetic sample, which boards do not hold; train on the real data")
    if found.predictions is None:
        raise ZooError(f"{run}: predictions.npz is missing or is not what the record says; run `zoo eval` again")
    verify(found)
    record = found.record
    target = below(RECORDS, record.benchmark.name, record.model.name, f"{record.id}.json")
    write_json(target, found.record.model_dump())
    if found.record.predictions.bytes <= LARGEST_PREDICTIONS:
        shutil.copyfile(found.predictions, target.with_suffix(".npz"))
    return target


def verify(found: Found) -> None:
    """Recompute a record's metrics from its rows; raise where they are not what it states."""
    if found.predictions is None:
        return
    record = found.record
    for view, claimed in {"": record.metrics, **record.slices}.items():
        rows = load_rows(found.predictions, view)
        with reading(found.path, "record of these rows", "the record is wrong"):
            values = metrics.compute(record.benchmark.task, rows, **record.metric_options()) if rows else {}
        for name, stated in claimed.items():
            value = values.get(name)
            if (value is None) != (stated.value is None) or value is not None and abs(value - stated.value) > 1e-9:
                told = f"{view} {name}".strip()
                raise ZooError(
                    f"{found.path}: {told} is {stated.value} in the record and {value} by its rows; the record is wrong"
                )


def table(board: Board, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Header and lines of a board as text: rank (equal ranks are ties), values with intervals."""
    others = [name for name in board.rows[0].value if name != board.primary]
    columns = columns or (board.primary, *others[:3])
    lines = [["rank", "model", "seeds", *columns]]
    for row in board.rows:
        cells = [_cell(row.value[name], row.interval[name]) for name in columns]
        lines.append([str(row.rank or "-"), row.label, str(len(row.seeds)), *cells])
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
