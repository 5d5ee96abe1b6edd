"""What is done with a finished run: evaluate it again, predict on new files, take its features."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch

from .. import metrics
from ..data.base import Part
from ..data.spec import Spec
from ..errors import ZooError
from ..files import atomic, read_json
from ..recipe import load
from ..runs import require_finished
from .evaluate import collect
from .rows import load_rows
from .run import Session, build, changes, make_dataset, quiet_lightning, session


def open_run(run: Path, prepared: bool = True) -> Session:
    """The dataset, model (with its weights) and task of a finished run.

    Without `prepared` they are what the run's own `prep/` says: no training data is read, or need be there still.
    """
    require_finished(run)
    recipe, sample = load(str(run / "recipe.yaml")), read_json(run / "data.json")["sample"]
    if prepared:
        s = session(recipe, sample)
    else:
        if "class_weights" in recipe.task:  # of a loss, which is not taken here; they would be counted in training data
            recipe = replace(recipe, task=recipe.task | {"class_weights": "none"})
        s = build(recipe, make_dataset(recipe, sample), Spec.load(run / "prep"))
    s.task.model.load_file(run / "model.safetensors")
    return s


def evaluate_run(run: Path) -> tuple[dict, list[str]]:
    """Evaluate the saved weights on the test part again and compare with the record and its rows."""
    with quiet_lightning():
        s = open_run(run)
        rows = collect(s.task, s.datamodule(), s.dataset.part("test"))
        values = metrics.compute(s.task.rows, rows, **s.task.metric_options())
    record = read_json(run / "record.json")
    stated = {name: metric["value"] for name, metric in record["metrics"].items()}
    saved = load_rows(run / "predictions.npz")
    same = all(np.array_equal(saved[name], rows[name]) for name in rows)
    facts = {"run": str(run), "metrics": values, "record": stated, "rows_identical": same}
    lines = [f"{'metric':<20}{'now':>10}{'record':>10}"]
    for name, value in values.items():
        now, then = ("undefined" if v is None else f"{v:.4f}" for v in (value, stated[name]))
        lines.append(f"{name:<20}{now:>10}{then:>10}")
    data = record["data"]
    changed = changes(s.dataset, {**data, "split_sha256": data["split_sha256"][0]})
    why = "" if changed else " (another device, precision or version rounds differently)"
    lines.append("prediction rows are identical" if same else f"prediction rows differ{why}")
    if changed:
        lines.append(f"{changed} since the run was trained")
    facts["changed"] = changed
    return facts, lines


def predict(run: Path, source: Path, *, out: Path | None, top: int, features: bool) -> tuple[dict, list[str]]:
    """Predict on a file or folder without labels: a table (.parquet or .csv), or a folder of clouds (.ply)."""
    if not source.exists():
        raise ZooError(f"{source}: no such file or folder; check the path")
    with quiet_lightning():
        s = open_run(run, prepared=False)
        part = s.dataset.inference(source, run / "prep")
        given = part.batch(np.arange(1))
        missing = [name for name in s.task.model.inputs if name not in given]
        if missing:
            raise ZooError(
                f"{source}: gives no {missing[0]}, which the model needs; see `zoo data describe {s.dataset.name}`"
            )
        if not features and hasattr(s.task, "write_files"):
            if out is None:
                # a folder of its own: files of another time would look like answers
                names = chain(["predictions"], (f"predictions-{n}" for n in count(2)))
                out = next(run / name for name in names if not (run / name).exists())
            if out.is_file() or out.suffix in (".ply", ".csv", ".parquet"):
                raise ZooError(f"--out {out}: {s.task.rows} writes one .ply for each cloud; give a folder")
            if out.is_dir() and any(out.iterdir()):
                raise ZooError(f"--out {out}: holds files already; give a new folder")
            for batch in _batches(s, part):
                s.task.write_files(s.task.outputs(batch), batch, part, out)
        else:
            table = _features(s, part) if features else _predictions(s, part, top)
            out = out or run / ("features.parquet" if features else "predictions.parquet")
            _write_table(out, table)
    ignored = {name: n for name, n in s.dataset.counts.items() if n and name.startswith("events_of_unknown")}
    lines = [
        f"{len(part)} samples -> {out}",
        *(f"{n} {name.replace('_', ' ')} left out" for name, n in ignored.items()),
    ]
    return {"out": str(out), "samples": len(part), **s.dataset.counts}, lines


def _batches(s: Session, part: Part):
    s.task.eval()
    with torch.inference_mode():
        yield from s.datamodule().eval_dataloader(part)


def _predictions(s: Session, part: Part, top: int) -> dict[str, np.ndarray]:
    if not hasattr(s.task, "predictions"):
        raise ZooError(f"the task {s.task.rows} writes no predictions for files yet; use `zoo eval`")
    found = [s.task.predictions(s.task.outputs(batch), batch, top) for batch in _batches(s, part)]
    columns = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    width = next(iter(columns.values())).shape[1:]
    if not width:
        return {"id": part.ids, **columns}
    # several predictions per sample: one line each, best first
    rank = np.tile(np.arange(1, width[0] + 1), len(part))
    return {
        "id": np.repeat(part.ids, width[0]),
        "rank": rank,
        **{name: column.reshape(-1) for name, column in columns.items()},
    }


def _features(s: Session, part: Part) -> dict[str, np.ndarray]:
    if s.fitted:
        raise ZooError(f"{s.recipe.model['name']} is no network and has no features; leave --features out")
    found = []
    for batch in _batches(s, part):
        features = s.task.model.forward_features(*s.task.inputs(batch))
        if features.ndim == 3 and s.spec.inputs.kind == "points":
            features = features.amax(1)
        elif features.ndim == 3:  # a sequence: its last valid step stands for it
            last = batch["length"] - 1 if "length" in batch else torch.full((len(features),), features.shape[1] - 1)
            features = features[torch.arange(len(features)), last]
        found.append(features.float().cpu().numpy())
    matrix = np.concatenate(found)
    return {"id": part.ids, **{f"f{i}": matrix[:, i] for i in range(matrix.shape[1])}}


def _write_table(path: Path, table: dict[str, np.ndarray]) -> None:
    import pandas as pd

    frame = pd.DataFrame(table)
    if path.suffix not in (".parquet", ".csv"):
        raise ZooError(f"--out {path}: write .parquet or .csv")
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False) if path.suffix == ".parquet" else frame.to_csv(temporary, index=False)
