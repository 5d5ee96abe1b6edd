"""`zoo bench ops`: the core's primitives against their alternatives, as ratios within one run on one machine.

Each comparison times its candidates in turns, so that a noisy neighbour meets all of them, and reports medians; ratios
are to its first candidate. Inputs are random; the device is synchronised around every call. Other libraries take part
where they are installed (`transformers`, `xlstm` with its kernels), backends where they can serve, and are left out, by
name, where not.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor

from .errors import ZooError, unknown
from .ops.backends import NAMES, Call, explain, use_backend
from .ops.selective_scan import selective_scan
from .ops.ssd import best_chunk, ssd

#: name of a candidate -> what is timed
Candidates = dict[str, Callable[[], object]]
SLOW = 20  # seconds of a first call that is not made again


@dataclass(frozen=True)
class Comparison:
    """Candidates that do the same; `left_out` says why others cannot, `clouds` of a call give a rate."""

    title: str
    candidates: Candidates
    left_out: dict[str, str] = field(default_factory=dict)
    clouds: int = 0


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
        for comparison in make(device):
            found = _measured(comparison, rounds, device)
            facts["comparisons"][comparison.title] = found
            lines += ["", comparison.title, *_shown(found)]
    return facts, lines


def _measured(comparison: Comparison, rounds: int, device: str) -> dict:
    times, once = interleaved(comparison.candidates, rounds, device)
    base = next(iter(times.values()), None)
    found: dict = {"ms": times, "ratio": {name: base / ms for name, ms in times.items()}}
    if comparison.clouds:
        found["clouds_per_s"] = {name: comparison.clouds / ms * 1e3 for name, ms in times.items()}
    return {**found, "first_call": once, "left_out": comparison.left_out}


def _shown(found: dict) -> list[str]:
    lines = []
    for name, ms in found["ms"].items():
        rate = f"{found['clouds_per_s'][name]:10.3g} clouds/s" if "clouds_per_s" in found else ""
        once = "  (one call, the first)" if name in found["first_call"] else ""
        lines.append(f"  {name:<34}{ms:10.2f} ms {found['ratio'][name]:8.2f}x{rate}{once}")
    return lines + [f"  {name:<34}left out: {reason}" for name, reason in found["left_out"].items()]


def interleaved(candidates: Candidates, rounds: int, device: str) -> tuple[dict[str, float], list[str]]:
    """Median milliseconds of each candidate: a first call each as warm-up, then `rounds` calls each, in turns.

    A first call of more than SLOW seconds is the measurement itself; the second result names the candidates of such.
    """
    first = {name: _timed(run, device) for name, run in candidates.items()}
    once = [name for name, ms in first.items() if ms > SLOW * 1e3]
    taken: dict[str, list[float]] = {name: [ms] if name in once else [] for name, ms in first.items()}
    for _ in range(rounds):
        for name, run in candidates.items():
            if name not in once:
                taken[name].append(_timed(run, device))
    return {name: statistics.median(values) for name, values in taken.items()}, once


def _timed(run: Callable, device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return (time.perf_counter() - began) * 1e3


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


def default_backend(op: str, device: str) -> str:
    """The backend that serves float32 on this device."""
    return next(name for name, told in explain(op, Call(device)).items() if told == "chosen")


def by_backend(op: str, device: str, run: Callable) -> tuple[Candidates, dict[str, str]]:
    """`run` with each backend that can serve `op` in float32, and why the others cannot."""
    candidates, left_out, default = {}, {}, default_backend(op, device)
    for name in NAMES:
        with use_backend(name):
            told = explain(op, Call(device))[name]
        if told == "chosen":
            candidates[f"{name}, the default" if name == default else name] = _forced(name, run)
        else:
            left_out[name] = told
    return candidates, left_out


def _scan_inputs(device: str, batch: int, steps: int, channels: int, states: int) -> list[Tensor]:
    u, dt = torch.randn(batch, steps, channels), 0.1 * torch.rand(batch, steps, channels)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B, C = torch.randn(batch, steps, states), torch.randn(batch, steps, states)
    return [tensor.to(device).requires_grad_() for tensor in (u, dt, A, B, C)]


def _selective_scan(device: str) -> Iterator[Comparison]:
    """All backends against the definition, a loop over unbound steps in autograd."""
    inputs, weight = _scan_inputs(device, 8, 1024, 256, 16), torch.randn(8, 1024, 256, device=device)

    def both():
        return torch.autograd.grad((selective_scan(*inputs)[0] * weight).sum(), inputs)

    forward = _without_gradient(lambda: selective_scan(*inputs))
    for what, run in (("forward", forward), ("forward + backward", both)):
        candidates, left_out = by_backend("selective_scan", device, run)
        candidates["inductor"]()  # compiles
        yield Comparison(f"selective_scan, B8 L1024 D256 N16, float32, {what}", candidates, left_out)


def _transformers_scan(device: str) -> Iterator[Comparison]:
    """Against the torch path of transformers' Mamba, which materialises all decays and loops."""
    theirs = _library("transformers.models.mamba.modeling_mamba")
    u, dt, A, B, C = (tensor.detach() for tensor in _scan_inputs(device, 1, 1024, 1536, 16))
    x = u / dt.clamp(min=1e-3)
    candidates, left_out = {}, {}
    if theirs is None or not hasattr(theirs, "mamba_selective_scan"):
        left_out["transformers"] = "not installed, or of a version without mamba_selective_scan"
    else:
        rows = [tensor.transpose(1, 2).contiguous() for tensor in (x, dt, B, C)]
        candidates["transformers"] = _without_gradient(
            lambda: theirs.mamba_selective_scan(rows[0], rows[1], A, rows[2], rows[3])
        )
    ours = _without_gradient(lambda: selective_scan(dt * x, dt, A, B, C))
    candidates |= {"torch": _forced("torch", ours), f"{default_backend('selective_scan', device)}, the default": ours}
    yield Comparison("selective_scan, B1 L1024 D1536 N16, float32, forward", candidates, left_out)


def _ssd(device: str) -> Iterator[Comparison]:
    """Chunk sizes; the published default is 256."""
    x, g = torch.randn(1, 2048, 24, 64), -torch.rand(1, 2048, 24)
    B, C = torch.randn(1, 2048, 1, 128), torch.randn(1, 2048, 1, 128)
    inputs = [tensor.to(device) for tensor in (x, g, B, C)]
    mine = best_chunk(device, 2048, 64, 128)
    chunks = {"chunk 256": 256, **{f"chunk {c}": c for c in (32, 64, 128)}}
    candidates = {name: _without_gradient(lambda c=c: ssd(*inputs, chunk=c)) for name, c in chunks.items()}
    yield Comparison(f"ssd, L2048 H24 P64 N128, float32, forward (chosen here: {mine})", candidates)


def _mlstm(device: str) -> Iterator[Comparison]:
    """Against the native kernels of mlstm_kernels."""
    from .ops.mlstm import mlstm

    q, k, v = (torch.randn(1, 2048, 4, 128, device=device) for _ in range(3))
    i, f = torch.randn(1, 2048, 4, device=device), 3 + torch.randn(1, 2048, 4, device=device)
    candidates, left_out = {}, {}
    theirs = _library("mlstm_kernels.torch.chunkwise.native")
    if theirs is None:
        left_out["mlstm_kernels"] = "not installed"
    else:
        rows = [tensor.transpose(1, 2).contiguous() for tensor in (q, k, v, i, f)]
        for name in ("mlstm_chunkwise__native_autograd", "mlstm_chunkwise__native_custbw"):
            run = getattr(theirs, name)
            candidates[name] = _without_gradient(
                lambda run=run: run(q=rows[0], k=rows[1], v=rows[2], i=rows[3], f=rows[4], chunk_size=64)
            )
    candidates["chunkwise"] = _without_gradient(lambda: mlstm(q, k, v, i, f))
    yield Comparison("mlstm, L2048 H4 D128, float32, forward", candidates, left_out)


def _s4d(device: str) -> Iterator[Comparison]:
    """The kernel by powers of powers against the direct Vandermonde product."""
    from .ops.s4d_kernel import s4d_kernel

    dt = torch.rand(256, device=device) * 0.1 + 1e-3
    A = torch.complex(torch.full((256, 32), -0.5), torch.pi * torch.arange(32.0).expand(256, -1)).to(device)
    C = torch.randn(256, 32, dtype=torch.complex64, device=device)
    run = _without_gradient(lambda: s4d_kernel(dt, A, C, 16384))
    candidates = {"direct": _forced("reference", run), "factored": _forced("torch", run)}
    yield Comparison("s4d_kernel, H256 N32 L16384, float32", candidates)


def _step(device: str) -> Iterator[Comparison]:
    """One token of a Mamba of 130 million parameters: bfloat16 weights, float32 state."""
    from .api import create_model

    ours = create_model("mamba_130m", vocab_size=50277).to(device, torch.bfloat16).eval()
    token, states = torch.zeros(1, dtype=torch.int64, device=device), ours.init_states(1)
    candidates, left_out = {}, {}
    transformers, cache = _library("transformers"), None
    if transformers is not None:
        config = transformers.MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24)
        theirs = transformers.MambaForCausalLM(config).to(device, torch.bfloat16).eval()
        with torch.no_grad():
            cache = getattr(theirs(token[None], use_cache=True), "cache", None)
    if cache is None:  # older versions keep theirs in another form
        left_out["transformers"] = "not installed, or of a version without `cache`"
    else:
        candidates["transformers"] = _without_gradient(lambda: theirs(token[None], cache=cache, use_cache=True))
    compiled = _without_gradient(lambda: ours.step(token, states, compiled=True))
    compiled()
    candidates |= {"step": _without_gradient(lambda: ours.step(token, states)), "step, layers compiled": compiled}
    yield Comparison("one token, Mamba 130M, bfloat16 weights", candidates, left_out)


def scan_by_path(u, dt, A, B, C, *, final=False, log_decay=None, initial=None, segments=None) -> tuple[Tensor, None]:
    """The scan as a port writes it that has no op for several paths: path by path, and each step by step in Python."""
    if final or not all(option is None for option in (log_decay, initial, segments)):
        raise ZooError("scan_by_path: takes no options and gives no state")
    B, C = (tensor.unsqueeze(2) if tensor.ndim == 3 else tensor for tensor in (B, C))
    paths = B.shape[2]
    found = []
    for u_k, dt_k, A_k, B_k, C_k in zip(
        u.chunk(paths, 2), dt.chunk(paths, 2), A.chunk(paths), B.unbind(2), C.unbind(2), strict=True
    ):
        h, ys = 0, []
        for u_t, dt_t, B_t, C_t in zip(u_k.unbind(1), dt_k.unbind(1), B_k.unbind(1), C_k.unbind(1), strict=True):
            h = (dt_t[..., None] * A_k).exp() * h + u_t[..., None] * B_t[:, None]
            ys.append((h * C_t[:, None]).sum(-1))
        found.append(torch.stack(ys, 1))
    return torch.cat(found, -1), None


def point_networks(device: str, run: Callable) -> Candidates:
    """`run` of a point network as ports make its scans, with a loop over steps for all paths at once, and as it is."""
    from .backbones import _point_layers
    from .mixers import s6

    def ported():
        with (
            patch.object(s6, "selective_scan", scan_by_path),
            patch.object(_point_layers, "selective_scan", scan_by_path),
        ):
            return run()

    return {
        "a Python loop for each path": ported,
        "reference": _forced("reference", run),
        "torch": _forced("torch", run),
        f"{default_backend('selective_scan', device)}, the default": run,
    }


def _point_network(device: str, name: str, clouds: int, points: int):
    from .api import create_model

    return create_model(name, num_outputs=46).to(device), torch.randn(clouds, points, 3, device=device)


def _point_inference(device: str) -> Iterator[Comparison]:
    """The published network at its full size; two clouds would leave a GPU idle."""
    clouds = 16 if device == "cuda" else 2
    model, points = _point_network(device, "point_ssm", clouds, 2048)
    model.eval()
    candidates = point_networks(device, _without_gradient(lambda: model(points)))
    yield Comparison(f"point_ssm, {clouds} clouds of 2048 points, float32, inference", candidates, clouds=clouds)


def _point_compiled(device: str) -> Iterator[Comparison]:
    """The same under torch.compile, which takes minutes before anything is timed."""
    model, points = _point_network(device, "point_ssm", 2, 2048)
    program = torch.compile(model.eval(), dynamic=False)
    candidates = {"eager": model, "compiled": program}
    candidates = {name: _without_gradient(lambda run=run: run(points)) for name, run in candidates.items()}
    began = time.perf_counter()
    candidates["compiled"]()
    title = f"point_ssm, 2 clouds of 2048 points, float32, inference (compiled in {time.perf_counter() - began:.0f} s)"
    yield Comparison(title, candidates, clouds=2)


def _point_training(device: str) -> Iterator[Comparison]:
    """Loops over steps keep every state for backward, tens of GB at full size: all take part at a small one."""
    full = 8 if device == "cuda" else 2
    for name, clouds, points, loops in (("point_ssm_small", 8, 1024, True), ("point_ssm", full, 2048, False)):
        model, x = _point_network(device, name, clouds, points)
        parameters = list(model.parameters())

        def both(model=model, x=x, parameters=parameters):
            return torch.autograd.grad(model(x).square().sum(), parameters)

        candidates = point_networks(device, both)
        left_out = {} if loops else {one: "keeps all states" for one in list(candidates)[:2]}
        candidates = {one: run for one, run in candidates.items() if one not in left_out}
        title = f"{name}, {clouds} clouds of {points} points, float32, forward + backward"
        yield Comparison(title, candidates, left_out, clouds)


def _farthest_points(device: str) -> Iterator[Comparison]:
    """Beside the loop of the definition: the bucket method of fpsample, on one thread of a CPU."""
    from .geometry import fps

    fpsample = _library("fpsample") if device == "cpu" else None
    for clouds, size, count in ((1, 2048, 1024), (1, 16384, 2048), (32, 2048, 256)):
        xyz = torch.randn(clouds, size, 3, device=device)
        lengths = torch.full((clouds,), size, device=device)
        candidates = {"loop": lambda xyz=xyz, lengths=lengths, count=count: fps._reference(xyz, lengths, count)}
        if fpsample is not None:
            host = xyz.numpy()
            candidates["fpsample, bucket"] = lambda host=host, count=count: [
                fpsample.bucket_fps_kdline_sampling(cloud, count, h=7 if len(cloud) > 4096 else 3) for cloud in host
            ]
        candidates["farthest_points"] = lambda xyz=xyz, count=count: fps.farthest_points(xyz, count)
        left_out = {} if fpsample is not None else {"fpsample, bucket": "for a CPU, where it is installed"}
        title = f"farthest points, {count} of {size}, {clouds} cloud{'s' * (clouds > 1)}"
        yield Comparison(title, candidates, left_out, clouds)


def _knn(device: str) -> Iterator[Comparison]:
    from .geometry.neighbours import knn

    for width in (3, 64):
        points, query = torch.randn(1, 16384, width, device=device), torch.randn(1, 4096, width, device=device)
        yield Comparison(
            f"32 nearest of 16384 points in {width} dimensions, 4096 queries",
            {
                "all distances and topk": lambda p=points, q=query: torch.cdist(q, p).topk(32, largest=False),
                "knn": lambda p=points, q=query: knn(q, p, 32),
            },
        )


COMPARISONS: dict[str, Callable[[str], Iterator[Comparison]]] = {
    "selective_scan": _selective_scan,
    "selective_scan/transformers": _transformers_scan,
    "ssd": _ssd,
    "mlstm": _mlstm,
    "s4d_kernel": _s4d,
    "step": _step,
    "point_ssm/inference": _point_inference,
    "point_ssm/training": _point_training,
    "point_ssm/compiled": _point_compiled,
    "farthest_points": _farthest_points,
    "knn": _knn,
}
