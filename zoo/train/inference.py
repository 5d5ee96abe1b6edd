"""What is done with a finished run: evaluate it again, predict on new files, take its features."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ...leaderboards.schema import read_final, read_record
from .. import metrics
from ..backbones.base import Fitted, Model
from ..data.base import Dataset, Part
from ..data.spec import Spec
from ..errors import ZooError
from ..files import atomic, read_json
from ..foreign import reading, refuse_links_out
from ..recipe import Recipe, load, read_by
from ..registry import find
from ..runs import finished, reader_of, refuse_unscored, require_finished, task_options
from ..stored import within_budget
from ..trust import trusting, typed
from . import head
from .evaluate import collect
from .rows import load_rows
from .run import Session, build, make_dataset, quiet_lightning


def open_run(run: Path, prepared: bool = True, *, trust_code: bool = False) -> Session:
    """The dataset, model (with its weights) and task of a finished run.

    Without `prepared` they are what the run's own `prep/` says: no training data is read, or need be there still.
    `trust_code`: run the code files that the run may name; without it such a run is refused.
    """
    require_finished(run)
    refuse_links_out(run)
    with trusting(everything=trust_code):
        recipe, sample = load(str(run / "recipe.yaml")), prepared and head.read(run)["sample"]
    # loader processes are this machine's affair, which the recipe of another one does not know
    recipe = replace(recipe, train=recipe.train | {"workers": min(recipe.train["workers"], os.cpu_count() or 1)})
    dataset, weights = make_dataset(recipe, sample), run / "model.safetensors"
    if not prepared and "class_weights" in recipe.task:
        # of a loss, which is not taken here; they would be counted in training data
        recipe = replace(recipe, task=recipe.task | {"class_weights": "none"})
    spec = dataset.prepare() if prepared else _saved_spec(recipe, run)
    with reading(run / "recipe.yaml", "recipe of these weights"), within_budget(weights):
        s = build(recipe, dataset, spec)
    s.task.model.load_file(weights)
    return s


def _saved_spec(recipe: Recipe, run: Path) -> Spec:
    """What the run's `prep/` says, where its recipe asks for data of the same sizes."""
    spec = Spec.load(run / "prep")
    for name, size in spec.sizes.items():
        if recipe.data.get(name) not in (None, size):
            raise ZooError(
                f"{run / 'recipe.yaml'}: data.{name} is {recipe.data[name]}, and {size} in prep/spec.json; restore both"
            )
    return spec


def evaluate_run(run: Path) -> tuple[dict, list[str]]:
    """Evaluate the saved weights on the test part again and compare with the record and its rows."""
    refuse_unscored(run)
    with quiet_lightning():
        s = open_run(run)
        rows = collect(s.task, s.datamodule(), s.dataset.part("test"))
        values = metrics.compute(s.task.rows, rows, **s.task.metric_options())
    record = read_record(run / "record.json")
    stated = {name: metric.value for name, metric in record.metrics.items()}
    saved = load_rows(run / "predictions.npz")
    same = all(name in saved and np.array_equal(saved[name], rows[name]) for name in rows)
    facts = {"run": str(run), "metrics": values, "record": stated, "rows_identical": same}
    lines = [f"{'metric':<20}{'now':>10}{'record':>10}"]
    for name, value in values.items():
        now, then = ("undefined" if v is None else f"{v:.4f}" for v in (value, stated.get(name)))
        lines.append(f"{name:<20}{now:>10}{then:>10}")
    then = {"manifest_sha256": record.data.manifest_sha256, "split_sha256": record.data.split_sha256[0]}
    changed = head.changes(s.dataset, then)
    why = "" if changed else " (another device, precision or version rounds differently)"
    lines.append("prediction rows are identical" if same else f"prediction rows differ{why}")
    if changed:
        lines.append(f"{changed} since the run was trained")
    facts["changed"] = changed
    return facts, lines


class Run:
    """A finished run, ready to predict; its folder is all that it needs."""

    def __init__(self, folder: Path | str, *, trust_code: bool = False):
        self.folder = Path(folder)
        with quiet_lightning():
            self._session = open_run(self.folder, prepared=False, trust_code=trust_code)

    @property
    def model(self) -> Model | Fitted:
        """The trained model."""
        return self._session.task.model

    @property
    def spec(self) -> Spec:
        """What goes in and out: vocabulary, classes, sizes."""
        return self._session.spec

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that it was trained by."""
        return self._session.recipe

    @property
    def record(self) -> dict:
        """The record: scores, data, environment, cost; of a run on everything its `final.json`, without scores."""
        mark = finished(self.folder)
        return read_json(mark) if mark.name == "record.json" else read_final(mark).model_dump()

    def predict(
        self, source, *, features: bool = False, out: Path | str | None = None, data: dict | None = None, **options
    ):
        """Predictions for a file, a folder or a pandas DataFrame without labels, as `zoo predict` makes them.

        Gives a DataFrame, written to `out` (.parquet or .csv) where that is given, or the paths of the written clouds
        (`out`: a new folder; default one in the run). `features`: embeddings in place of predictions. `data`: how the
        file is read, such as `{"user": "customer"}`; its `name` chooses another adapter. `options` are the task's, such
        as `top` of next_item. What was left out is warned of, and counted in `.attrs["counts"]` of the DataFrame.
        """
        made = self._predict(source, Path(out) if out is not None else None, features, data or {}, options)
        for line in made.left_out():
            warnings.warn(line, stacklevel=2)
        if made.table is None:
            return made.files
        made.table.attrs["counts"] = dict(made.counts)
        return made.table

    def _predict(self, source, out: Path | None, features: bool, data: dict, options: dict, told=str) -> Predicted:
        task = self._session.task
        if not isinstance(data, dict):
            raise ZooError(f"data={data!r}: say how the source is read by a dict, such as data={{'user': 'customer'}}")
        if features and options:
            raise ZooError(f"{told(next(iter(options)))} is of predictions, not of features; leave it out")
        options = task_options(self.recipe.task["name"], task.predict_options, options, told)
        clouds = not features and hasattr(task, "write_files")
        if out is not None and not clouds and out.suffix not in (".parquet", ".csv"):
            raise ZooError(f"{told('out')} {out}: write .parquet or .csv")
        if out is None and clouds:
            # a folder of its own: files of another time would look like answers
            names = chain(["predictions"], (f"predictions-{n}" for n in count(2)))
            out = next(self.folder / name for name in names if not (self.folder / name).exists())
        if clouds and (out.is_file() or out.suffix in (".ply", ".csv", ".parquet")):
            raise ZooError(f"{told('out')} {out}: {task.rows} writes one .ply for each cloud; give a folder")
        if clouds and out.is_dir() and any(out.iterdir()):
            raise ZooError(f"{told('out')} {out}: holds files already; give a new folder")
        chosen = typed(str(data["name"])) if "name" in data else nullcontext()
        with quiet_lightning(), self.recipe.trusted(), chosen, tempfile.TemporaryDirectory() as folder:
            shown = source if isinstance(source, (str, os.PathLike)) else type(source).__name__
            reader, source = self._reader(source, data, Path(folder))
            reader.asked |= task.asks(**options)
            part = reader.inference(source, self.folder / "prep")
            if not len(part) and (features or not part.unserved):
                why = next(iter((part.unserved or {"": "it holds none"}).values()))
                raise ZooError(f"{shown}: no sample can be predicted for ({why}); check how the file is read")
            given = part.batch(np.arange(1)) if len(part) else task.model.inputs
            missing = [name for name in task.model.inputs if name not in given]
            if missing:
                raise ZooError(
                    f"{shown}: gives no {missing[0]}, which the model needs; see `zoo data describe {reader.name}`"
                )
            if clouds:
                for batch in _batches(self._session, part):
                    task.write_files(task.outputs(batch), batch, part, out)
                return Predicted(len(part), reader.counts, None, sorted(out.rglob("*.ply")), out)
            found = _features(self._session, part) if features else _predictions(self._session, part, options)
        table = pd.DataFrame(found)
        if out is not None:
            _write_table(out, table)
        return Predicted(len(part), reader.counts, table, [], out, listed=not features)

    def _reader(self, source, changes: dict, folder: Path) -> tuple[Dataset, Path]:
        """The adapter that reads `source`, and the file or folder; of a DataFrame its copy in `folder`."""
        recipe, trained = self.recipe, self._session.dataset
        is_file = isinstance(source, (str, os.PathLike))
        if is_file and not Path(source).exists():
            raise ZooError(f"{source}: no such file or folder; check the path")
        name = changes.get("name", recipe.data["name"])
        if not is_file and "name" not in changes and not hasattr(type(trained), "from_frame"):
            if not trained.plain:
                raise ZooError(f"{trained.name} reads no {type(source).__name__}; give a file or folder")
            name = trained.plain
        reading = {"name": name, **changes} if name != recipe.data["name"] else changes
        cls = reader_of(find("dataset", recipe.data["name"]), reading).load()
        if is_file and not reading:
            return trained, Path(source)
        recipe = read_by(recipe, name, {key: value for key, value in changes.items() if key != "name"})
        if is_file:
            reader = make_dataset(recipe)
        elif hasattr(cls, "from_frame"):
            reader = cls.from_frame(source, folder, **{key: recipe.data[key] for key in cls.reading})
            source = reader.folder / reader.source_files()[0]
        else:
            raise ZooError(f"{name} reads no {type(source).__name__}; give a file or folder")
        reader.read_for(trained, changes)
        return reader, Path(source)


@dataclass(frozen=True)
class Predicted:
    """What predicting gave: a table, or files in the folder `out`."""

    samples: int
    counts: dict[str, int]
    table: pd.DataFrame | None
    files: list[Path]
    out: Path | None
    listed: bool = True
    """Whether samples that could not be used stand in the table."""

    def left_out(self) -> list[str]:
        """Lines that tell what of the source could not be used."""
        what = ("events_of_unknown",) if self.listed else ("events_of_unknown", "users_of_unknown")
        ignored = {name: n for name, n in self.counts.items() if n and name.startswith(what)}
        return [f"{n} {name.replace('_', ' ')} left out" for name, n in ignored.items()]


def predict(
    run: Path, source: Path, *, out: Path | None, features: bool, data: dict, options: dict, told=str
) -> tuple[dict, list[str]]:
    """`zoo predict`: a table (.parquet or .csv) or a folder of clouds (.ply), in the run where `out` names no place."""
    opened = Run(run)
    if out is None and (features or not hasattr(opened._session.task, "write_files")):
        out = run / ("features.parquet" if features else "predictions.parquet")
    made = opened._predict(source, out, features, data, options, told)
    lines = [f"{made.samples} samples -> {made.out}", *made.left_out()]
    return {"out": str(made.out), "samples": made.samples, **made.counts}, lines


def _batches(s: Session, part: Part):
    s.task.eval()
    with torch.inference_mode():
        yield from s.datamodule().eval_dataloader(part)


def _predictions(s: Session, part: Part, options: dict) -> pd.DataFrame:
    """A table of predictions, one line each; of several per sample the best first, as `rank`.

    Samples of which no candidate is left come last with the `reason`, and behind them those that the part does not
    serve, with what the task answers without inputs.
    """
    if not hasattr(s.task, "predictions"):
        raise ZooError(f"the task {s.task.rows} writes no predictions for files yet; use `zoo eval`")
    found = [s.task.predictions(s.task.outputs(batch), batch, **options) for batch in _batches(s, part)]
    answer = s.task.without_inputs(**options) if part.unserved else {}
    # no sample is served: the columns are those of the answer, without lines
    found = found or [{name: column[:0, None] for name, column in answer.items()}]
    columns = {name: np.ma.concatenate([one[name] for one in found]) for name in found[0]}
    if all(column.ndim == 1 for column in columns.values()):
        return pd.DataFrame({"id": part.ids, **{name: column.data for name, column in columns.items()}})
    mask = np.ma.getmaskarray(next(iter(columns.values())))
    sample, place = np.nonzero(~mask)  # masked: there were fewer
    flat = {name: column.data[~mask] for name, column in columns.items()}
    table = pd.DataFrame({"id": part.ids[sample], "rank": place + 1, **flat})
    exhausted = dict.fromkeys(part.ids[mask.all(1)], s.task.nothing_left)
    if not exhausted and not part.unserved:
        return table
    table = table.assign(rank=table["rank"].astype("Int64"), reason="")
    return pd.concat([table, _listed(table, exhausted, {}), _listed(table, part.unserved, answer)], ignore_index=True)


def _listed(table: pd.DataFrame, reasons: Mapping[str, str], answer: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Lines, with the columns of `table`, of samples with their reasons: the answer for each, else one without one."""
    size = len(next(iter(answer.values()), ()))
    lines = table.iloc[:0].reindex(range(len(reasons) * max(size, 1)))
    for name, reason in (("id", list(reasons)), ("reason", list(reasons.values()))):
        lines[name] = np.repeat(np.array(reason, dtype=object), max(size, 1))
    if size:
        lines["rank"] = pd.array(np.tile(np.arange(1, size + 1), len(reasons)), "Int64")
        for name, column in answer.items():
            lines[name] = np.tile(column, len(reasons))
    return lines


def _features(s: Session, part: Part) -> dict[str, np.ndarray]:
    if s.fitted:
        raise ZooError(f"{s.recipe.model['name']} is no network and has no features; leave --features out")
    found = []
    for batch in _batches(s, part):
        found.append(s.task.model.pooled_features(*s.task.inputs(batch)).float().cpu().numpy())
    matrix = np.concatenate(found)
    return {"id": part.ids, **{f"f{i}": matrix[:, i] for i in range(matrix.shape[1])}}


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False) if path.suffix == ".parquet" else frame.to_csv(temporary, index=False)
