"""The selective scan block by block, in torch: what serves on any machine (`selective_scan.py` has the equations).

Within a block all decays and writes are made at once, in step-major buffers that stay in cache, and the recurrence runs
in place over contiguous slices. Only the states between blocks are kept for backward, which recomputes the rest.
Nothing is ever divided by a decay, so that any gate is finite. Exponents are taken to base 2, which costs a third of
exp on a CPU: A and extra come multiplied by log2(e).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634


# one block of T steps: u, dt, y (T, B, G, E), B, C (T, B, G, N), A (G, N, E), h (B, G, N, E) with E = D / G innermost,
# so that every operation vectorises over channels, and sums over states are sums over rows. These two are what inductor
# compiles.


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


# all blocks -----------------------------------------------------------------------------------------------------------


def plan(batch: int, channels: int, states: int, compiled: bool, device: str = "cpu") -> tuple[int, int]:
    """Sequences scanned together and steps of a block.

    On a CPU its buffers stay in the cache that the cores share. Elsewhere every operation is a launch, and pays with
    many elements: buffers are large (256 MiB in float32).
    """
    if compiled:
        return batch, 16
    at_once, room = (1 << 16, 1 << 20) if device == "cpu" else (1 << 22, 1 << 26)
    together = min(batch, max(1, at_once // (channels * states)))
    return together, max(4, min(64, room // (together * channels * states)))


class _Blocks:
    """The arguments step-major and in groups, cut into blocks."""

    def __init__(self, u, dt, A, B, C, log_decay, keep, compiled, length):
        self.wide, (self.batch, self.steps) = (B.shape[2], A.shape[-1]), u.shape[:2]
        self.A, self.u, self.dt = A, self.split(u), self.split(dt)
        self.B, self.C = B.transpose(0, 1), C.transpose(0, 1)
        self.extra = None if log_decay is None else self.split(log_decay * LOG2_E)
        self.keep = None if keep is None else keep.t().to(u.dtype)
        self.compiled, self.length = compiled, length

    def split(self, tensor: Tensor) -> Tensor:
        """(B, L, D) to (L, B, G, E)."""
        return tensor.unflatten(2, self.wide).transpose(0, 1)

    def state(self, tensor: Tensor | None) -> Tensor:
        """(B, D, N), or None for zeros, to (B, G, N, E)."""
        if tensor is None or not tensor.numel():
            return self.u.new_zeros(self.batch, *self.A.shape)
        return tensor.unflatten(1, self.wide).transpose(2, 3).contiguous()

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


def length(batch: int, channels: int, states: int, compiled: bool = False, device: str = "cpu") -> int:
    """Steps between the states that are kept."""
    return plan(batch, channels, states, compiled, device)[1]


def forward(u, dt, A, B, C, log_decay, initial, keep, *, y, final, before, compiled=False) -> None:
    """Fill y (B, L, D) and, unless None, final (B, D, N) and before (K - 1, B, G, N, E): the states between blocks."""
    together, steps = plan(u.shape[0], *A.shape, compiled, u.device.type)
    rate, buffers = _grouped(A, B), None
    for part in _parts(u.shape[0], together):
        blocks = _Blocks(*_rows(part, u, dt), rate, *_rows(part, B, C, log_decay, keep), compiled, steps)
        h, target = blocks.state(None if initial is None else initial[part]), blocks.split(y[part])
        if buffers is None and not compiled:
            buffers = [u.new_empty(steps, *h.shape) for _ in range(2)]
        for k, at in enumerate(blocks.spans()):
            if before is not None and k:
                before[k - 1, part] = h
            target[at], h = blocks.run("forward", at, h, buffers=buffers)
        if final is not None:
            final[part] = _flat(h)


def backward(u, dt, A, B, C, log_decay, initial, keep, before, dy, dfinal, *, grads, compiled=False) -> None:
    """Fill `grads`: those of u, dt, A, B, C, log_decay and initial, the last two None where these are."""
    together, steps = plan(u.shape[0], *A.shape, compiled, u.device.type)
    du, ddt, dA_out, dB, dC, de, dfirst = grads
    rate, buffers = _grouped(A, B), None
    dA = torch.zeros_like(rate)
    for part in _parts(u.shape[0], together):
        blocks = _Blocks(*_rows(part, u, dt), rate, *_rows(part, B, C, log_decay, keep), compiled, steps)
        views = [blocks.split(x[part]) for x in (du, ddt)] + [x[part].transpose(0, 1) for x in (dB, dC)]
        dh, dy_steps = blocks.state(None if dfinal is None else dfinal[part]), blocks.split(dy[part])
        if buffers is None and not compiled:
            buffers = [u.new_empty(steps, *dh.shape) for _ in range(3)]
        for k, at in reversed(list(enumerate(blocks.spans()))):
            h = before[k - 1, part] if k else blocks.state(None if initial is None else initial[part])
            *found, de_at, dA_at, dh = blocks.run("backward", at, h, dy_steps[at], dh, buffers=buffers)
            for whole, some in zip(views, found, strict=True):
                whole[at] = some
            if de is not None:
                blocks.split(de[part])[at] = de_at
            dA += dA_at
        if dfirst is not None:
            dfirst[part] = _flat(dh)
    ddt /= LOG2_E  # A carries log2(e) already; the derivative of exp2 brings ln(2), which cancels for A alone
    dA_out.copy_(_flat(dA))


def _grouped(A: Tensor, B: Tensor) -> Tensor:
    """A (D, N) to (G, N, E), of base 2."""
    return (A * LOG2_E).unflatten(0, (B.shape[2], -1)).transpose(1, 2).contiguous()


def _flat(tensor: Tensor) -> Tensor:
    """(..., G, N, E) to (..., D, N)."""
    return tensor.transpose(-1, -2).flatten(-3, -2)


def _parts(batch: int, together: int) -> list[slice]:
    return [slice(at, min(at + together, batch)) for at in range(0, batch, together)]


def _rows(part: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor[part] for tensor in tensors]
