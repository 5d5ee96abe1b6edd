"""Evaluation: prediction rows of a part, from one process or from unpadded shards of several, merged by sample."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import torch.distributed as dist

from ..data.base import Part
from ..data.datamodule import DataModule
from ..seeding import seed_all
from .memory import fits
from .task import Rows, Task, with_ids


def collect(
    task: Task,
    data: DataModule,
    part: Part,
    *,
    device: torch.device | str = "cpu",
    precision: str = "32",
    ranks: dict | None = None,
) -> Rows:
    """Rows of `part` in its order, complete on every process; the model is left in the mode it was in."""
    ranks = ranks or {"rank": 0, "world": 1}
    was_training = task.training
    task.eval()
    found: list[Rows] = []
    size = data.eval_batch_size
    smaller = f"set train.eval_batch_size={size // 2}" if size > 1 else ""
    # what a model draws here depends on nothing that ran before, as in training
    seed_all("evaluation", ranks["rank"])
    with torch.inference_mode(), autocast(device, precision), fits(f"in evaluation at batch size {size}", smaller):
        for batch in data.eval_dataloader(part, ranks):
            found.append(
                task.batch_rows({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
            )
    task.train(was_training)
    rows = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]} if found else {}
    if ranks["world"] > 1:
        shards: list = [None] * ranks["world"]
        dist.all_gather_object(shards, rows)
        shards = [shard for shard in shards if shard]
        rows = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    order = np.argsort(rows.pop("index"), kind="stable")
    return with_ids(part, {name: column[order] for name, column in rows.items()})


def autocast(device: torch.device | str, precision: str):
    """The autocast context of a precision, nothing for "32"."""
    if precision == "32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
