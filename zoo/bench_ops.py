"""`zoo bench ops`: the core's primitives against their alternatives, as ratios within one run on one machine.

Each comparison times its candidates in turns, so that a noisy neighbour meets all of them, and reports medians. Inputs
are random; the device is synchronised around every call. Other libraries take part where they are installed
(`transformers`, `xlstm` with its kernels) and are left out, by name, where not.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from .errors import ZooError, unknown
from .ops.backends import use_backend
from .ops.selective_scan import selective_scan
from .ops.ssd import best_chunk, ssd

#: name of a candidate -> what is timed
Candidates = dict[str, Callable[[], object]]


def bench_ops(only: str | None = None, rounds: int = 7) -> tuple[dict, list[str]]:
    """Facts and lines of every comparison whose name contains `only`."""
    from .train.finish import device_name

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if only is not None and not any(only in name for name in COMPARISONS):
        raise unknown("comparison", only, COMPARISONS)
    if rounds < 1:
        raise ZooError(f"--steps {rounds}: give at least 1 round")
    facts: dict = {"device": device_name(device), "torch": torch.__version__, "rounds": rounds, "comparisons": {}}
    lines = [f"{facts['device']}, torch {facts['torch']}, medians of {rounds} interleaved rounds"]
    for name, make in COMPARISONS.items():
        if only is not None and only not in name:
            continue
        torch.manual_seed(0)
        for title, candidates in make(device):
            times = interleaved(candidates, rounds, device)
            base = next(iter(times))
            facts["comparisons"][title] = {"ms": times, "ratio": {one: times[base] / times[one] for one in times}}
            lines += ["", title]
            lines += [f"  {one:<34}{ms:10.2f} ms {times[base] / ms:8.2f}x" for one, ms in times.items()]
    return facts, lines


def interleaved(candidates: Candidates, rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each candidate; one warm-up call each, then `rounds` calls each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, run in candidates.items():
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            if round_:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _forced(backend: str, run: Callable) -> Callable:
    def forced():
        with use_backend(backend):
            return run()

    return forced


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _without_gradient(run: Callable) -> Callable:
    def quiet():
        with torch.no_grad():
            return run()

    return quiet


def _scan_inputs(device: str, batch: int, steps: int, channels: int, states: int) -> list[torch.Tensor]:
    u, dt = torch.randn(batch, steps, channels), 0.1 * torch.rand(batch, steps, channels)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B, C = torch.randn(batch, steps, states), torch.randn(batch, steps, states)
    return [tensor.to(device).requires_grad_() for tensor in (u, dt, A, B, C)]


def _selective_scan(device: str) -> Iterator[tuple[str, Candidates]]:
    """The blocked scan, eager and compiled, against a loop over unbound steps in autograd."""
    inputs, weight = _scan_inputs(device, 8, 1024, 256, 16), torch.randn(8, 1024, 256, device=device)

    def both():
        torch.autograd.grad((selective_scan(*inputs)[0] * weight).sum(), inputs)

    forward = _without_gradient(lambda: selective_scan(*inputs))
    names = {"loop over steps": "reference", "blocked": "torch", "blocked, compiled": "inductor"}
    for what, run in (("forward", forward), ("forward + backward", both)):
        yield (
            f"selective_scan, B8 L1024 D256 N16, float32, {what}",
            {name: _forced(backend, run) for name, backend in names.items()},
        )


def _transformers_scan(device: str) -> Iterator[tuple[str, Candidates]]:
    """Against the torch path of transformers' Mamba, which materialises all decays and loops."""
    theirs = _library("transformers.models.mamba.modeling_mamba")
    if theirs is None or not hasattr(theirs, "mamba_selective_scan"):
        return
    u, dt, A, B, C = (tensor.detach() for tensor in _scan_inputs(device, 1, 1024, 1536, 16))
    x = u / dt.clamp(min=1e-3)
    rows = [tensor.transpose(1, 2).contiguous() for tensor in (x, dt, B, C)]
    candidates = {
        "transformers": _without_gradient(lambda: theirs.mamba_selective_scan(rows[0], rows[1], A, rows[2], rows[3])),
        "blocked": _without_gradient(lambda: selective_scan(dt * x, dt, A, B, C)),
    }
    yield "selective_scan, B1 L1024 D1536 N16, float32, forward", candidates


def _ssd(device: str) -> Iterator[tuple[str, Candidates]]:
    """Chunk sizes; the published default is 256."""
    x, g = torch.randn(1, 2048, 24, 64), -torch.rand(1, 2048, 24)
    B, C = torch.randn(1, 2048, 1, 128), torch.randn(1, 2048, 1, 128)
    inputs = [tensor.to(device) for tensor in (x, g, B, C)]
    mine = best_chunk(device, 2048, 64, 128)
    chunks = {"chunk 256": 256, **{f"chunk {c}": c for c in (32, 64, 128)}}
    candidates = {name: _without_gradient(lambda c=c: ssd(*inputs, chunk=c)) for name, c in chunks.items()}
    yield f"ssd, L2048 H24 P64 N128, float32, forward (chosen here: {mine})", candidates


def _mlstm(device: str) -> Iterator[tuple[str, Candidates]]:
    """Against the native kernels of mlstm_kernels."""
    from .ops.mlstm import mlstm

    q, k, v = (torch.randn(1, 2048, 4, 128, device=device) for _ in range(3))
    i, f = torch.randn(1, 2048, 4, device=device), 3 + torch.randn(1, 2048, 4, device=device)
    candidates: Candidates = {}
    theirs = _library("mlstm_kernels.torch.chunkwise.native")
    if theirs is not None:
        rows = [tensor.transpose(1, 2).contiguous() for tensor in (q, k, v, i, f)]
        for name in ("mlstm_chunkwise__native_autograd", "mlstm_chunkwise__native_custbw"):
            run = getattr(theirs, name)
            candidates[name] = _without_gradient(
                lambda run=run: run(q=rows[0], k=rows[1], v=rows[2], i=rows[3], f=rows[4], chunk_size=64)
            )
    candidates["chunkwise"] = _without_gradient(lambda: mlstm(q, k, v, i, f))
    yield "mlstm, L2048 H4 D128, float32, forward", candidates


def _s4d(device: str) -> Iterator[tuple[str, Candidates]]:
    """The kernel by powers of powers against the direct Vandermonde product."""
    from .ops.s4d_kernel import s4d_kernel

    dt = torch.rand(256, device=device) * 0.1 + 1e-3
    A = torch.complex(torch.full((256, 32), -0.5), torch.pi * torch.arange(32.0).expand(256, -1)).to(device)
    C = torch.randn(256, 32, dtype=torch.complex64, device=device)
    run = _without_gradient(lambda: s4d_kernel(dt, A, C, 16384))
    candidates = {"direct": _forced("reference", run), "factored": _forced("torch", run)}
    yield "s4d_kernel, H256 N32 L16384, float32", candidates


def _step(device: str) -> Iterator[tuple[str, Candidates]]:
    """One token of a Mamba of 130 million parameters: bfloat16 weights, float32 state."""
    from .api import create_model

    ours = create_model("mamba_130m", vocab_size=50277).to(device, torch.bfloat16).eval()
    token, states = torch.zeros(1, dtype=torch.int64, device=device), ours.init_states(1)
    candidates: Candidates = {}
    transformers = _library("transformers")
    if transformers is not None:
        config = transformers.MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24)
        theirs = transformers.MambaForCausalLM(config).to(device, torch.bfloat16).eval()
        with torch.no_grad():
            cache = getattr(theirs(token[None], use_cache=True), "cache", None)
        if cache is not None:  # older versions keep theirs in another form
            candidates["transformers"] = _without_gradient(lambda: theirs(token[None], cache=cache, use_cache=True))
    candidates["step"] = _without_gradient(lambda: ours.step(token, states))
    candidates["step, layers compiled"] = _without_gradient(lambda: ours.step(token, states, compiled=True))
    yield "one token, Mamba 130M, bfloat16 weights", candidates


COMPARISONS: dict[str, Callable[[str], Iterator[tuple[str, Candidates]]]] = {
    "selective_scan": _selective_scan,
    "selective_scan/transformers": _transformers_scan,
    "ssd": _ssd,
    "mlstm": _mlstm,
    "s4d_kernel": _s4d,
    "step": _step,
}
