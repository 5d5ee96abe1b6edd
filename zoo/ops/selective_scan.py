"""The selective scan of Mamba's S6 (Gu and Dao, 2023, arXiv:2312.00752), per channel d and state n:

    h_t = exp(dt_t A + e_t) h_{t-1} + u_t B_t,    y_t = <C_t, h_t>

Decay and write are separate: the mixer passes u = dt * x (the exponential-Euler rule of the released code), and a step
may let time pass without writing or write without time passing. e is an optional extra log decay.

`reference` loops over the steps. `torch` goes block by block: within a block all decays and writes are made at once, in
step-major buffers that stay in cache, the recurrence runs in place over contiguous slices, and only the states between
blocks are kept for backward, which recomputes the rest (the idea of section 3.3.2 of the paper). Nothing is ever
divided by a decay, so that any gate is finite. `inductor` is the same with the block compiled. An exported program
holds the doubling form, log2(L) rounds of h_t = a_t h_{t-k} + b_t, which has no loop over steps.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .backends import Call, call_of, choose, full_precision, only_by_force, register
from .checks import expect, expect_as, expect_floating, expect_groups, expect_segments, same_segment

NAME = "selective_scan"
LOG2_E = 1.4426950408889634


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
) -> tuple[Tensor, Tensor]:
    """Scan `u` (B, L, D) and return y (B, L, D) and the state behind the last step (B, D, N).

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
    expect_segments(NAME, segments, batch, steps)
    keep = None if segments is None else same_segment(segments)
    if reverse:
        u, dt, B, C = (tensor.flip(1) for tensor in (u, dt, B, C))
        log_decay = None if log_decay is None else log_decay.flip(1)
        keep = None if segments is None else same_segment(segments.flip(1))
    run = choose(NAME, call_of(u, steps, log_decay=log_decay, initial=initial, segments=segments))
    y, final = run(u, dt, A, B, C, log_decay, initial, keep)
    return (y.flip(1) if reverse else y), final


# the definition -----------------------------------------------------------------------------------------------------


def _reference(u, dt, A, B, C, log_decay, initial, keep):
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
    return torch.stack(ys, 1), h


# one block of T steps: u, dt, y (T, B, G, E), B, C (T, B, G, N), A (G, N, E), h (B, G, N, E) with E = D / G innermost,
# so that every operation vectorises over channels, and sums over states are sums over rows. Exponents are taken to base
# 2, which costs a third of exp on a CPU: A and extra come multiplied by log2(e). These two are what inductor compiles.


def _block_forward(u, dt, A, B, C, extra, keep, h):
    """Y and the last state."""
    ys = []
    for t in range(u.shape[0]):
        h = _decay(dt[t], A, extra, keep, t) * h + u[t][:, :, None] * B[t][..., None]
        ys.append((h * C[t][..., None]).sum(2))
    return torch.stack(ys), h


def _block_backward(u, dt, A, B, C, extra, keep, h, dy, dh):
    """Gradients of u, dt, B, C, extra, A and h from dy and dh, the gradient of the block's last state.

    Those of dt, extra and A are of the base-2 exponent, ln(2) too small.
    """
    decays, states = [], [h]
    for t in range(u.shape[0]):
        decays.append(_decay(dt[t], A, extra, keep, t))
        states.append(decays[-1] * states[-1] + u[t][:, :, None] * B[t][..., None])
    du, ddt, dB, dC, de, dA = [], [], [], [], [], torch.zeros_like(A)
    for t in range(u.shape[0] - 1, -1, -1):
        g = dh + dy[t][:, :, None] * C[t][..., None]
        dC.append((dy[t][:, :, None] * states[t + 1]).sum(-1))
        dB.append((u[t][:, :, None] * g).sum(-1))
        du.append((g * B[t][..., None]).sum(2))
        dh = g * decays[t]
        exponent = dh * states[t]
        ddt.append((exponent * A).sum(2))
        dA = dA + (exponent * dt[t][:, :, None]).sum(0)
        de.append(exponent.sum(2) if extra is not None else ddt[-1])
    return *(torch.stack(x[::-1]) for x in (du, ddt, dB, dC, de)), dA, dh


def _decay(dt, A, extra, keep, t):
    exponent = dt[:, :, None] * A
    if extra is not None:
        exponent = exponent + extra[t][:, :, None]
    a = torch.exp2(exponent)
    return a if keep is None else a * keep[t][:, None, None, None]


@functools.cache
def _compiled(which: str):
    function = {"forward": _block_forward, "backward": _block_backward}[which]
    return torch.compile(function, dynamic=False, fullgraph=True)


# the same in place, for eager mode ------------------------------------------------------------------------------------


def _fill(u, dt, A, B, extra, keep, decay, states, h):
    """Decays and states of a block into their buffers (T, B, G, N, E)."""
    torch.mul(dt[..., None, :], A, out=decay)
    if extra is not None:
        decay.add_(extra[..., None, :])
    decay.exp2_()
    if keep is not None:
        decay.mul_(keep[:, :, None, None, None])
    torch.mul(u[..., None, :], B[..., None], out=states)
    for a, state in zip(decay.unbind(0), states.unbind(0), strict=True):
        state.addcmul_(a, h)
        h = state


def _eager_forward(u, dt, A, B, C, extra, keep, h, buffers):
    decay, states = buffers
    _fill(u, dt, A, B, extra, keep, decay, states, h)
    return torch.matmul(C[..., None, :], states).squeeze(-2), states[-1].clone()


def _eager_backward(u, dt, A, B, C, extra, keep, h, dy, dh, buffers):
    decay, states, g = buffers
    _fill(u, dt, A, B, extra, keep, decay, states, h)
    torch.mul(dy[..., None, :], C[..., None], out=g)
    a, gs = decay.unbind(0), g.unbind(0)
    gs[-1].add_(dh)
    for t in range(len(gs) - 2, -1, -1):
        gs[t].addcmul_(a[t + 1], gs[t + 1])
    dC = torch.matmul(dy[..., None, :], states.transpose(-1, -2)).squeeze(-2)
    dB = torch.matmul(u[..., None, :], g.transpose(-1, -2)).squeeze(-2)
    du = torch.matmul(B[..., None, :], g).squeeze(-2)
    exponent = decay.mul_(g)
    dh = exponent[0].clone()
    exponent[0].mul_(h)
    exponent[1:].mul_(states[:-1])
    de = exponent.sum(-2) if extra is not None else dh
    dA = torch.mul(exponent, dt[..., None, :], out=g).sum((0, 1))
    ddt = exponent.mul_(A).sum(-2)
    return du, ddt, dB, dC, de, dA, dh


# the op ---------------------------------------------------------------------------------------------------------------


def _plan(batch: int, channels: int, states: int, compiled: bool) -> tuple[int, int]:
    """Sequences scanned together and steps of a block: its buffers stay in the cache that the cores share."""
    if compiled:
        return batch, 16
    together = min(batch, max(1, (1 << 16) // (channels * states)))
    return together, max(4, min(64, (1 << 20) // (together * channels * states)))


class _Blocks:
    """The arguments step-major and in groups, cut into blocks."""

    def __init__(self, u, dt, A, B, C, log_decay, keep, compiled, length):
        groups, (channels, self.states) = B.shape[2], A.shape
        self.wide, (self.batch, self.steps) = (groups, channels // groups), u.shape[:2]
        self.shape = (self.batch, groups, self.states, channels // groups)
        self.A = (A * LOG2_E).reshape(*self.wide, self.states).transpose(1, 2).contiguous()
        self.u, self.dt = self.split(u), self.split(dt)
        self.B, self.C = B.transpose(0, 1), C.transpose(0, 1)
        self.extra = None if log_decay is None else self.split(log_decay * LOG2_E)
        self.keep = None if keep is None else keep.t().to(u.dtype)
        self.compiled, self.length = compiled, length

    def split(self, tensor: Tensor) -> Tensor:
        """(B, L, D) to (L, B, G, E)."""
        return tensor.unflatten(2, self.wide).transpose(0, 1)

    def state(self, tensor: Tensor) -> Tensor:
        """(B, D, N) to (B, G, N, E)."""
        return tensor.unflatten(1, self.wide).transpose(2, 3).contiguous()

    def back(self, tensor: Tensor) -> Tensor:
        """(..., G, N, E) to (..., D, N)."""
        return tensor.transpose(-1, -2).flatten(-3, -2).contiguous()

    def spans(self) -> list[slice]:
        return [slice(at, min(at + self.length, self.steps)) for at in range(0, self.steps, self.length)]

    def cut(self, at: slice) -> tuple:
        return tuple(None if x is None else x[at] if x is not self.A else x
                     for x in (self.u, self.dt, self.A, self.B, self.C, self.extra, self.keep))  # fmt: skip

    def run(self, which: str, at: slice, *arguments, buffers):
        steps, eager = at.stop - at.start, {"forward": _eager_forward, "backward": _eager_backward}
        if not self.compiled:
            return eager[which](*self.cut(at), *arguments, [buffer[:steps, : self.batch] for buffer in buffers])
        if steps < self.length:  # a last short block is not worth a program of its own
            return {"forward": _block_forward, "backward": _block_backward}[which](*self.cut(at), *arguments)
        return _compiled(which)(*self.cut(at), *arguments)


@torch.library.custom_op("statezoo::selective_scan", mutates_args=())
def _scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, log_decay: Tensor | None, initial: Tensor,
    keep: Tensor | None, compiled: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Y, final state, and the states before each block (K, B, G, N, E)."""
    together, length = _plan(u.shape[0], *A.shape, compiled)
    y, final = torch.empty_like(u, memory_format=torch.contiguous_format), torch.empty_like(initial)
    before, buffers = _states_between(u, A, B, length), None
    with full_precision(u.device.type):
        for part in _parts(u.shape[0], together):
            blocks = _Blocks(*_rows(part, u, dt), A, *_rows(part, B, C, log_decay, keep), compiled, length)
            h, steps = blocks.state(initial[part]), blocks.split(y[part])
            if buffers is None and not compiled:
                buffers = [u.new_empty(length, *h.shape) for _ in range(2)]
            for k, at in enumerate(blocks.spans()):
                before[k, part] = h
                steps[at], h = blocks.run("forward", at, h, buffers=buffers)
            final[part] = blocks.back(h)
    return y, final, before


def _parts(batch: int, together: int) -> list[slice]:
    return [slice(at, min(at + together, batch)) for at in range(0, batch, together)]


def _rows(part: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor[part] for tensor in tensors]


def _states_between(u: Tensor, A: Tensor, B: Tensor, length: int) -> Tensor:
    """Room for the states before each block, (K, B, G, N, E)."""
    groups, (channels, states) = B.shape[2], A.shape
    return u.new_empty(-(-u.shape[1] // length), u.shape[0], groups, states, channels // groups)


@_scan.register_fake
def _(u, dt, A, B, C, log_decay, initial, keep, compiled):
    before, plain = _states_between(u, A, B, _plan(u.shape[0], *A.shape, compiled)[1]), torch.contiguous_format
    return torch.empty_like(u, memory_format=plain), torch.empty_like(initial, memory_format=plain), before


@torch.library.custom_op("statezoo::selective_scan_backward", mutates_args=())
def _scan_backward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, log_decay: Tensor | None, keep: Tensor | None,
    before: Tensor, dy: Tensor, dfinal: Tensor, compiled: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, dt, A, B, C, log_decay (empty without one) and the initial state."""
    plain, (together, length) = torch.contiguous_format, _plan(u.shape[0], *A.shape, compiled)
    du, ddt, dB, dC = (torch.empty_like(x, memory_format=plain) for x in (u, dt, B, C))
    de = None if log_decay is None else torch.empty_like(u, memory_format=plain)
    dfirst, dA, buffers = torch.empty_like(dfinal, memory_format=plain), None, None
    with full_precision(u.device.type):
        for part in _parts(u.shape[0], together):
            blocks = _Blocks(*_rows(part, u, dt), A, *_rows(part, B, C, log_decay, keep), compiled, length)
            views = [blocks.split(x[part]) for x in (du, ddt)] + [x[part].transpose(0, 1) for x in (dB, dC)]
            dh, dy_steps = blocks.state(dfinal[part]), blocks.split(dy[part])
            dA = torch.zeros_like(blocks.A) if dA is None else dA
            if buffers is None and not compiled:
                buffers = [u.new_empty(length, *dh.shape) for _ in range(3)]
            for k, at in reversed(list(enumerate(blocks.spans()))):
                *found, de_at, dA_at, dh = blocks.run(
                    "backward", at, before[k, part], dy_steps[at], dh, buffers=buffers
                )
                for whole, some in zip(views, found, strict=True):
                    whole[at] = some
                if de is not None:
                    blocks.split(de[part])[at] = de_at
                dA += dA_at
            dfirst[part] = blocks.back(dh)
    ddt /= LOG2_E  # A carries log2(e) already; the derivative of exp2 brings ln(2), which cancels for A alone
    return [du, ddt, blocks.back(dA), dB, dC, u.new_empty(0) if de is None else de, dfirst]


@_scan_backward.register_fake
def _(u, dt, A, B, C, log_decay, keep, before, dy, dfinal, compiled):
    plain = torch.contiguous_format
    de = u.new_empty(0) if log_decay is None else torch.empty_like(log_decay, memory_format=plain)
    return [*(torch.empty_like(x, memory_format=plain) for x in (u, dt, A, B, C)), de,
            torch.empty_like(dfinal, memory_format=plain)]  # fmt: skip


def _setup(ctx, inputs, output):
    u, dt, A, B, C, log_decay, _, keep, ctx.compiled = inputs
    ctx.save_for_backward(u, dt, A, B, C, log_decay, keep, output[2])


def _gradients(ctx, dy, dfinal, _):
    u, dt, A, B, C, log_decay, keep, before = ctx.saved_tensors
    grads = _scan_backward(u, dt, A, B, C, log_decay, keep, before, dy, dfinal, ctx.compiled)
    du, ddt, dA, dB, dC, de, dh = grads
    return du, ddt, dA, dB, dC, None if log_decay is None else de, dh, None, None


_scan.register_autograd(_gradients, setup_context=_setup)


def _doubling(u, dt, A, B, C, log_decay, initial, keep):
    """Hillis and Steele's scan: after round r each (a, b) spans the last 2^r steps."""
    spread = A.shape[0] // B.shape[2]
    B, C = B.repeat_interleave(spread, 2), C.repeat_interleave(spread, 2)
    exponent = dt[..., None] * A
    a = (exponent if log_decay is None else exponent + log_decay[..., None]).exp()
    if keep is not None:
        a = a * keep[:, :, None, None]
    b = u[..., None] * B
    b = torch.cat([b[:, :1] + a[:, :1] * initial[:, None], b[:, 1:]], 1)
    reach = 1
    while reach < u.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return (b * C).sum(-1), b[:, -1]


def _torch(u, dt, A, B, C, log_decay, initial, keep, compiled=False):
    if initial is None:
        initial = u.new_zeros(u.shape[0], *A.shape)
    if torch.compiler.is_exporting():
        return _doubling(u, dt, A, B, C, log_decay, initial, keep)
    return _scan(u, dt, A, B, C, log_decay, initial, keep, compiled)[:2]


def _inductor(*arguments):
    return _torch(*arguments, compiled=True)


def _only_when_compiling(call: Call) -> str | None:
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return "taken under torch.compile, or when forced"
    return None if call.steps >= 256 else f"{call.steps} steps are too few to pay for compiling a block"


register(NAME, "inductor", _inductor, automatic=_only_when_compiling)
register(NAME, "torch", _torch)
register(NAME, "reference", _reference, automatic=only_by_force)
