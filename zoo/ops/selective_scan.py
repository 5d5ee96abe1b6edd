"""The selective scan of Mamba's S6 (Gu and Dao, 2023, arXiv:2312.00752), per channel d and state n:

    h_t = exp(dt_t A + e_t) h_{t-1} + u_t B_t,    y_t = <C_t, h_t>

Decay and write are separate: the mixer passes u = dt * x (the exponential-Euler rule of the released code), and a step
may let time pass without writing or write without time passing. e is an optional extra log decay.

`reference` loops over the steps. The others go block by block and keep only the states between blocks for backward,
which recomputes the rest (the idea of section 3.3.2 of the paper): `torch` in buffers that stay in cache, `inductor`
the same with the block compiled (`_selective_scan_blocks.py`), `triton` with states in registers, for float32 on CUDA
(`_selective_scan_triton.py`), `cpp` the same for float32 on a CPU with a C++ compiler (`_selective_scan_cpp.py`). An
exported program holds the doubling form, log2(L) rounds of h_t = a_t h_{t-k} + b_t, which has no loop over steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from . import _selective_scan_blocks as blocks
from .backends import Call, call_of, choose, full_precision, no_tangents, only_by_force, register
from .checks import expect, expect_as, expect_floating, expect_groups, expect_segments, same_segment
from .transforms import differentiable, differentiable_once, keeps_for_backward

NAME = "selective_scan"
LOG2_E = blocks.LOG2_E
HAS_TRITON = find_spec("triton") is not None


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    log_decay: Tensor | None = None,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    reverse: bool = False,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Scan `u` (B, L, D) and return y (B, L, D) and the state behind the last step (B, D, N), None without `final`.

    dt (B, L, D) is the time that passes at a step, A (D, N) is negative, B and C are (B, L, N) or (B, L, G, N) with
    channels in G equal groups; `log_decay` (B, L, D) is added to the exponent; `initial` (B, D, N). `segments` (B, L),
    whole numbers that never fall, reset the state where they change; `reverse` scans from the last step to the first.
    All floating tensors have one dtype, float32 or float64; everything is differentiable.
    """
    if B.ndim == 3:
        B = B.unsqueeze(2)
    if C.ndim == 3:
        C = C.unsqueeze(2)
    expect(NAME, "u", u, "B", "L", "D")
    expect_floating(NAME, "u", u)
    batch, steps, channels = u.shape
    expect(NAME, "A", A, channels, "N")
    states = A.shape[1]
    for name, tensor in (("dt", dt), ("log_decay", log_decay)):
        if tensor is not None:
            expect(NAME, name, tensor, batch, steps, channels)
    expect(NAME, "B", B, batch, steps, "G", states)
    expect_groups(NAME, B.shape[2], channels, "channels")
    expect(NAME, "C", C, batch, steps, B.shape[2], states)
    if initial is not None:
        expect(NAME, "initial", initial, batch, channels, states)
    expect_as(NAME, "u", u, dt=dt, A=A, B=B, C=C, log_decay=log_decay, initial=initial)
    segments = expect_segments(NAME, segments, batch, steps)
    keep = None if segments is None else same_segment(segments)
    if reverse:
        u, dt, B, C = (tensor.flip(1) for tensor in (u, dt, B, C))
        log_decay = None if log_decay is None else log_decay.flip(1)
        keep = None if segments is None else same_segment(segments.flip(1))
    run = choose(NAME, call_of(u, steps, log_decay=log_decay, initial=initial, segments=segments))
    y, last = run(u, dt, A, B, C, log_decay, initial, keep, final)
    return (y.flip(1) if reverse else y), last


# the definition -----------------------------------------------------------------------------------------------------


def _reference(u, dt, A, B, C, log_decay, initial, keep, final):
    batch, _, channels = u.shape
    groups, states = B.shape[2], A.shape[1]
    h = u.new_zeros(batch, channels, states) if initial is None else initial
    spread = channels // groups
    ys = []
    # unbind, not indexing: the gradient of each x[:, t] would fill a tensor of the whole length
    extra = [None] * u.shape[1] if log_decay is None else log_decay.unbind(1)
    keeps = [None] * u.shape[1] if keep is None else keep.unbind(1)
    for u_t, dt_t, B_t, C_t, e_t, k_t in zip(
        u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), extra, keeps, strict=True
    ):
        exponent = dt_t[..., None] * A if e_t is None else dt_t[..., None] * A + e_t[..., None]
        B_t, C_t = (t.repeat_interleave(spread, 1) if groups > 1 else t for t in (B_t, C_t))
        if k_t is not None:
            h = torch.where(k_t[:, None, None], h, 0)
        h = exponent.exp() * h + u_t[..., None] * B_t
        ys.append((h * C_t).sum(-1))
    return torch.stack(ys, 1), h if final else None


# the op ---------------------------------------------------------------------------------------------------------------


class _Kernel(NamedTuple):
    """A blocked implementation; `_selective_scan_blocks.py` says what the three take and give."""

    length: Callable
    forward: Callable
    backward: Callable


@cache
def _kernel(backend: str, device: str) -> _Kernel:
    if backend == "triton":
        from . import _selective_scan_triton as triton

        return _Kernel(triton.length, triton.forward, triton.backward)
    if backend == "cpp":
        from . import _selective_scan_cpp as cpp

        return _Kernel(cpp.length, cpp.forward, cpp.backward)
    compiled = backend == "inductor"
    length = partial(blocks.length, compiled=compiled, device=device)
    return _Kernel(length, *(partial(f, compiled=compiled) for f in (blocks.forward, blocks.backward)))


def _between(backend: str, u: Tensor, A: Tensor, B: Tensor, kept: bool) -> Tensor:
    """Room for the states between blocks, (K - 1, B, G, N, E)."""
    groups, (channels, states) = B.shape[2], A.shape
    length = _kernel(backend, u.device.type).length(u.shape[0], channels, states)
    count = -(-u.shape[1] // length) - 1 if kept else 0
    return u.new_empty(count, u.shape[0], groups, states, channels // groups)


def _plain(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@torch.library.custom_op("statezoo::selective_scan", mutates_args=())
def _scan_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, log_decay: Tensor | None, initial: Tensor | None,
    keep: Tensor | None, backend: str, last: bool, kept: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Y, the final state (empty without `last`), and the states between blocks for backward (none without `kept`)."""
    y, before = _plain(u), _between(backend, u, A, B, kept)
    final = u.new_empty(u.shape[0], *A.shape) if last else u.new_empty(0)
    with full_precision(u.device.type):
        _kernel(backend, u.device.type).forward(
            u, dt, A, B, C, log_decay, initial, keep,
            y=y, final=final if last else None, before=before if len(before) else None,
        )  # fmt: skip
    return y, final, before


@_scan_op.register_fake
def _(u, dt, A, B, C, log_decay, initial, keep, backend, last, kept):
    final = u.new_empty(u.shape[0], *A.shape) if last else u.new_empty(0)
    return _plain(u), final, _between(backend, u, A, B, kept)


@torch.library.custom_op("statezoo::selective_scan_backward", mutates_args=())
def _backward_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, log_decay: Tensor | None, initial: Tensor | None,
    keep: Tensor | None, before: Tensor, dy: Tensor, dfinal: Tensor, backend: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, dt, A, B, C, log_decay and the initial state, the last two empty where these are None."""
    grads = [None if tensor is None else _plain(tensor) for tensor in (u, dt, A, B, C, log_decay, initial)]
    with full_precision(u.device.type):
        _kernel(backend, u.device.type).backward(
            u, dt, A, B, C, log_decay, initial, keep, before, dy, dfinal if dfinal.numel() else None, grads=grads
        )
    return [u.new_empty(0) if grad is None else grad for grad in grads]


@_backward_op.register_fake
def _(u, dt, A, B, C, log_decay, initial, keep, before, dy, dfinal, backend):
    tensors = (u, dt, A, B, C, log_decay, initial)
    return [u.new_empty(0) if tensor is None else _plain(tensor) for tensor in tensors]


_scan_backward = differentiable_once(_backward_op, NAME)


def _setup(ctx, inputs, output):
    *tensors, ctx.backend, _, kept = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.kept = kept


def _gradients(ctx, dy, dfinal, _):
    *tensors, before = ctx.saved_tensors
    if not ctx.kept:
        raise RuntimeError("selective_scan: the states for backward were not kept; call it with gradients on")
    found = _scan_backward(*tensors, before, dy, dfinal, ctx.backend)
    found = [grad if given is not None else None for grad, given in zip(found, tensors, strict=False)]
    return *found, None, None, None, None


_scan = differentiable(_scan_op, _setup, _gradients)


def _doubling(u, dt, A, B, C, log_decay, initial, keep):
    """Hillis and Steele's scan: after round r each (a, b) spans the last 2^r steps."""
    spread = A.shape[0] // B.shape[2]
    B, C = B.repeat_interleave(spread, 2), C.repeat_interleave(spread, 2)
    exponent = dt[..., None] * A
    a = (exponent if log_decay is None else exponent + log_decay[..., None]).exp()
    if keep is not None:
        a = a * keep[:, :, None, None]
    b = u[..., None] * B
    if initial is not None:
        b = torch.cat([b[:, :1] + a[:, :1] * initial[:, None], b[:, 1:]], 1)
    reach = 1
    while reach < u.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return (b * C).sum(-1), b[:, -1]


def _blocked(u, dt, A, B, C, log_decay, initial, keep, final, backend):
    if torch.compiler.is_exporting():
        y, last = _doubling(u, dt, A, B, C, log_decay, initial, keep)
        return y, last if final else None
    kept = keeps_for_backward(u, dt, A, B, C, log_decay, initial)
    y, last, _ = _scan(u, dt, A, B, C, log_decay, initial, keep, backend, final, kept)
    return y, last if final else None


def _only_when_compiling(call: Call) -> str | None:
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return "taken under torch.compile, or when forced"
    return None if call.steps >= 256 else f"{call.steps} steps are too few to pay for compiling a block"


def _only_float32_on_a_cpu(call: Call) -> str | None:
    if call.device != "cpu" or call.dtype != torch.float32:
        return "serves float32 on the CPU"
    if torch.compiler.is_exporting():
        return "an exported program loads without statezoo"
    return no_tangents(call) or _cannot_compile()


@torch.compiler.assume_constant_result
def _cannot_compile() -> str | None:
    """Why there is no C++ kernel on this machine; not to be traced, for it runs the compiler."""
    from . import _selective_scan_cpp as cpp

    return cpp.objection()


def _only_float32_on_cuda(call: Call) -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    if call.device != "cuda" or call.dtype != torch.float32:
        return "serves float32 on CUDA"
    return "an exported program loads without statezoo" if torch.compiler.is_exporting() else no_tangents(call)


register(NAME, "triton", partial(_blocked, backend="triton"), objection=_only_float32_on_cuda)
register(NAME, "cpp", partial(_blocked, backend="cpp"), objection=_only_float32_on_a_cpu)
register(NAME, "inductor", partial(_blocked, backend="inductor"), no_tangents, automatic=_only_when_compiling)
register(NAME, "torch", partial(_blocked, backend="torch"), no_tangents)
register(NAME, "reference", _reference, automatic=only_by_force)
