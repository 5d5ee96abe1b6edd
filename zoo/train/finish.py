"""The end of a run: best weights, test rows, metrics with intervals, the record, pictures and the table.

Where the split holds nothing out there are no rows and no record: `final.json` says what the run is.

Everything here is a function of what training left in the folder, so that a run killed in this phase ends the same.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist

from ...leaderboards.schema import (
    Benchmark,
    Code,
    Cost,
    Data,
    Environment,
    Final,
    Interval,
    Metric,
    ModelFacts,
    Predictions,
    RecipeFacts,
    Record,
    TrainedOn,
    TrainingCost,
)
from .. import metrics, plots
from ..backbones.base import parameter_count
from ..files import hash_file, hash_folder, hash_json, write_json
from ..ops.backends import serving
from . import head
from .console import Console
from .evaluate import collect
from .final import command
from .rows import save_rows

RESAMPLES, LEVEL = 1000, 0.95


def finish(s, run: Path, done: dict, console: Console) -> Path:
    """Evaluate on the test part and write everything a finished run holds; returns the folder."""
    ranks = {"rank": done.get("rank", 0), "world": done["world"]}
    device = done["device"]
    if not s.fitted:
        s.task.to(device)
    _load_best(s.task.model, run / "checkpoints" / "best.safetensors", ranks)
    if s.dataset.evaluates:
        return _finish_scored(s, run, done, console, ranks)
    if ranks["rank"] == 0:
        _save_model(s, run)
        write_json(run / "final.json", _final(s, run, done).model_dump())
        for line in unscored_summary(s, run):
            console.line(line)
    return run


def _save_model(s, run: Path) -> None:
    s.task.to("cpu") if not s.fitted else None
    s.task.model.save(run, s.recipe.model["name"], s.recipe.code_of("model"))
    if (run / "metrics.csv").is_file():
        plots.curves(run)


def _finish_scored(s, run: Path, done: dict, console: Console, ranks: dict) -> Path:
    data, device = s.datamodule(), done["device"]
    began = time.perf_counter()
    how = {"device": device, "precision": s.config.precision, "ranks": ranks}
    with serving() as backends:
        rows = collect(s.task, data, s.dataset.part("test"), **how)
    eval_seconds = time.perf_counter() - began
    sliced = {name: collect(s.task, data, part, **how) for name, part in s.dataset.slices().items()}
    if ranks["rank"]:
        return run
    _save_model(s, run)
    save_rows(run / "predictions.npz", rows, sliced)
    record = _record(s, run, rows, sliced, done, eval_seconds, backends)
    s.task.pictures(run / "plots", rows, s.dataset.part("test"))
    write_json(run / "record.json", record.model_dump())
    for line in [*summary(record, run, s.recipe.words), *_serving(s, run, done)]:
        console.line(line)
    return run


def _serving(s, run: Path, done: dict) -> list[str]:
    """A line with the command that trains the model to serve, where the data set has a split for it."""
    epochs = None if s.fitted else done["best_epoch"]
    if not s.dataset.split_of_all or epochs == 0:  # 0: no evaluation gave a number
        return []
    return [f"to serve, train on everything: {command(s.recipe, s.dataset, run, epochs)}"]


def _load_best(model, path: Path, ranks: dict) -> None:
    """The best weights of the run, those of the first process on all: its file may be late, or on another machine."""
    if ranks["rank"] == 0 and path.is_file():
        model.load_file(path)
    if ranks["world"] > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def score(s, rows) -> dict[str, Metric]:
    """Metrics of rows with bootstrap intervals over groups."""
    options = s.task.metric_options()
    values = metrics.compute(s.task.rows, rows, **options)
    bounds = metrics.intervals(s.task.rows, rows, resamples=RESAMPLES, level=LEVEL, seed=0, **options)
    schema = metrics.TASKS[s.task.rows]
    return {
        name: Metric(
            value=value,
            low=bounds[name][0] if bounds[name] else None,
            high=bounds[name][1] if bounds[name] else None,
            better="lower" if schema.lower_is_better(name) else "higher",
        )
        for name, value in values.items()
    }


def _record(s, run: Path, rows, sliced: dict, done: dict, eval_seconds: float, backends: set[str]) -> Record:
    floor = metrics.compute(
        s.task.rows, s.task.trivial(s.dataset.part("train"), s.dataset.part("test")), **s.task.metric_options()
    )
    return Record(
        benchmark=Benchmark(**_trained_on(s), protocol=s.task.protocol(), metric_version=metrics.METRIC_VERSION),
        **_facts(s, run, done, backends),
        primary=s.task.primary,
        metrics=score(s, rows),
        interval=Interval(method="percentile bootstrap over groups", level=LEVEL, resamples=RESAMPLES, seed=0),
        floor=floor,
        slices={name: score(s, part) for name, part in sliced.items()},
        predictions=Predictions(
            sha256=hash_file(run / "predictions.npz"),
            rows=len(rows["id"]),
            bytes=(run / "predictions.npz").stat().st_size,
        ),
        cost=Cost(**_cost(done), best_step=done.get("best_step"), eval_seconds=round(eval_seconds, 3)),
    )


def _final(s, run: Path, done: dict) -> Final:
    backends = set(done.get("backends", {}).values())
    return Final(
        trained_on=TrainedOn(**_trained_on(s)), **_facts(s, run, done, backends), cost=TrainingCost(**_cost(done))
    )


def _trained_on(s) -> dict:
    return {
        "dataset": s.dataset.key,
        "version": s.dataset.version,
        "task": s.task.rows,
        "split": s.dataset.split_name,
        "split_version": s.dataset.split_version,
        "sample": s.dataset.is_sample,
    }


def _facts(s, run: Path, done: dict, backends: set[str]) -> dict:
    """What is true of a run whether it has a score or not."""
    return {
        "data": Data(
            manifest_sha256=hash_json(s.dataset.manifest()),
            split_sha256=[s.dataset.split_hash()],
            group=s.dataset.group,
            n={name: len(part) for name, part in s.dataset.parts.items()},
            facts=s.dataset.facts(),
        ),
        "model": ModelFacts(
            name=Path(s.recipe.model["name"]).name,
            parameters=parameter_count(s.task.model),
            macs=macs(s),
            weights_sha256=hash_file(run / "model.safetensors"),
            prep_sha256=hash_folder(run / "prep"),
            pretrained=s.config.init_from and Path(s.config.init_from).name,
        ),
        "recipe": RecipeFacts(
            id=s.recipe.id,
            scientific=s.recipe.scientific(),
            sha256=s.recipe.hash(),
            code={Path(file).name: sha256 for file, sha256 in s.recipe.code.items()} or None,
        ),
        "seed": s.seed,
        "code": Code(**head.read(run)["code"]),
        "environment": Environment(
            python=platform.python_version(),
            torch=torch.__version__,
            device=device_name(done["device"]),
            precision=s.config.precision,
            threads=torch.get_num_threads(),
            mixer_backend=", ".join(sorted(backends)) or None,
            world_size=done["world"],
            deterministic=done.get("deterministic"),
        ),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cost(done: dict) -> dict:
    seconds, samples = done["seconds"], done["samples"]
    return {
        "train_seconds": round(seconds, 3),
        "train_steps": done["steps"],
        "peak_memory_bytes": peak_memory(done["device"]),
        "train_samples_per_second": round(samples / seconds, 1) if seconds and samples else None,
    }


def macs(s) -> int | None:
    """Multiply-accumulates of one forward pass; None where the model is no network."""
    if s.fitted:
        return None
    from torch.utils.flop_counter import FlopCounterMode

    batch = s.given.batch(torch.arange(1).numpy())
    inputs = [torch.from_numpy(batch[name]) for name in s.task.model.inputs]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        s.task.model.eval()(*inputs)
    return counter.get_total_flops() // 2


def device_name(device) -> str:
    """The hardware in words: the GPU's name, or processor and cores."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu: {processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's model in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return model


def peak_memory(device) -> int:
    """Bytes: the most a CUDA device had allocated, or the most that this process held in memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _shown(metric: Metric) -> tuple[str, str]:
    bounds = "" if metric.low is None else f"[{metric.low:.4f}, {metric.high:.4f}]"
    return "undefined" if metric.value is None else f"{metric.value:.4f}", bounds


def summary(record: Record, run: Path, words: str) -> list[str]:
    """The table that a run ends with, where it lies, and what to try next; `words` are those of its recipe."""
    what = "SYNTHETIC SAMPLE of " if record.benchmark.sample else ""
    lines = [
        "",
        f"{record.model.name} on {what}{record.benchmark.name}, test n = {record.data.n['test']}, seed {record.seed}",
        f"{'metric':<20}{'value':>10}   {'95 % interval':<20}{'floor':>10}",
    ]
    for name, metric in record.metrics.items():
        value, bounds = _shown(metric)
        floor = record.floor.get(name)
        star = " *" if name == record.primary else ""
        lines.append(f"{name + star:<20}{value:>10}   {bounds:<20}{'' if floor is None else f'{floor:.4f}':>10}")
    for name, values in record.slices.items():
        lines.append(" ".join([f"{name}: {record.primary}", *_shown(values[record.primary])]).rstrip())
    lines += [
        "",
        f"run: {run}",
        f"next: zoo eval {run} | zoo leaderboard --runs | zoo train {words} seed={record.seed + 1}",
    ]
    return lines


def unscored_summary(s, run: Path) -> list[str]:
    """What a run ends with that has no score."""
    what = "SYNTHETIC SAMPLE of " if s.dataset.is_sample else ""
    return [
        "",
        f"{Path(s.recipe.model['name']).name} on all of {what}{s.dataset.key}, seed {s.seed}: nothing was held out, so "
        "that there is no score",
        f"run: {run}",
        f"next: zoo predict {run} FILE",
    ]
