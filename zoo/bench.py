"""`zoo bench`: what a recipe costs on this machine in parameters, MACs, step time, throughput and memory.

Times are medians over steps after a warm-up, with the device synchronised; ratios are taken within one run. The
loader-bound ratio is the time of a training step with batches from the real loader over that with one cached batch.
"""

from __future__ import annotations

import statistics
import time

import torch

from .backbones.base import parameter_count
from .errors import ZooError
from .recipe import load
from .seeding import derive
from .train.evaluate import autocast
from .train.finish import device_name, macs, peak_memory
from .train.optim import make_optimizer
from .train.run import quiet_lightning, session


def bench_recipe(source: str, overrides, *, sample: bool, steps: int) -> tuple[dict, list[str]]:
    """Facts and lines; `steps` timed steps each with the loader and with a cached batch, interleaved."""
    if steps < 1:
        raise ZooError(f"--steps {steps}: give at least 1 step")
    with quiet_lightning():
        recipe = load(source, overrides, sample=sample)
        s = session(recipe, sample)
    if s.fitted:
        raise ZooError(f"{recipe.model['name']} is no network, it has no steps to time; `zoo train` reports its cost")
    if s.config.threads:
        torch.set_num_threads(s.config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and s.config.accelerator != "cpu" else "cpu")
    s.task.to(device)
    loss = torch.compile(s.task.loss, dynamic=False) if s.config.compile else s.task.loss
    optimizer = make_optimizer(s.task.model, s.config, steps)["optimizer"]
    data = s.datamodule()
    warmup = 3
    loader = iter(data.train_steps(0, 10**9))
    cached = _move(next(loader), device)
    loaded, fixed = [], []
    for step in range(warmup + steps):
        torch.manual_seed(derive(s.seed, "step", step))
        for times, fetch in ((loaded, True), (fixed, False)):
            _synchronize(device)
            began = time.perf_counter()
            batch = _move(next(loader), device) if fetch else cached
            optimizer.zero_grad()
            with autocast(device, s.config.precision):
                value = loss(batch)
            value.backward()
            optimizer.step()
            _synchronize(device)
            times.append(time.perf_counter() - began)
    evaluated = next(iter(data.eval_dataloader(s.given)))
    s.task.eval()
    forward = []
    with torch.inference_mode(), autocast(device, s.config.precision):
        batch = _move(evaluated, device)
        for _ in range(warmup + steps):
            _synchronize(device)
            began = time.perf_counter()
            s.task.outputs(batch)
            _synchronize(device)
            forward.append(time.perf_counter() - began)
    step_time, cached_time = statistics.median(loaded[warmup:]), statistics.median(fixed[warmup:])
    per_epoch = len(data.train_steps(ranks={"rank": 0, "world": 1}).batch_sampler)
    size, eval_size = len(cached["index"]), len(evaluated["index"])
    eval_time = statistics.median(forward[warmup:])
    facts = {
        "recipe": recipe.id, "sample": sample, "device": device_name(device), "torch": torch.__version__,
        "parameters": parameter_count(s.task.model), "macs_per_sample": macs(s), "batch_size": size,
        "step_ms": step_time * 1e3, "cached_step_ms": cached_time * 1e3, "loader_bound_ratio": step_time / cached_time,
        "train_samples_per_s": size / step_time, "steps_per_epoch": per_epoch, "epoch_s": per_epoch * step_time,
        "inference_ms": eval_time * 1e3, "inference_samples_per_s": eval_size / eval_time,
        "peak_memory_bytes": peak_memory(device),
    }  # fmt: skip
    return facts, [
        f"{name:<26}{value:.4g}" if isinstance(value, float) else f"{name:<26}{value}" for name, value in facts.items()
    ]


def _move(batch: dict, device: torch.device) -> dict:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
