"""The sLSTM cell of xLSTM (Beck et al., 2024, arXiv:2405.04517, eq. 8 to 18): scalar memories with exponential gates.

    [i | f | z | o]_t = x_t + R h_{t-1} + b                                                per head, before the gates
    m_t = max(F_t + m_{t-1}, i_t),  F_t = log sigmoid(f_t)                                 m_t = i_t where n_{t-1} = 0
    c_t = e^{F_t + m_{t-1} - m_t} c_{t-1} + e^{i_t - m_t} tanh(z_t),  n_t likewise with 1 in the place of tanh(z_t)
    h_t = sigmoid(o_t) c_t / n_t

h_{t-1} enters the gates, so that steps cannot be computed at once. `reference` is the plain loop. `torch` is a loop of
a dozen small operations a step, in place, with its own backward: a step back is a product and five operations on
coefficients that were made for all steps at once, and the gradient of R is one product behind the loop. h is the same
whatever m is, so that m has a gradient through the final state alone. An exported program holds the plain loop.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadArgument
from .backends import call_of, choose, full_precision, no_tangents, only_by_force, register
from .checks import expect, expect_as, expect_floating, expect_segments, same_segment
from .transforms import differentiable, differentiable_once, keeps_for_backward

NAME = "slstm"
STATE = ("c", "n", "m", "h")
State = dict[str, Tensor]


def slstm(
    x: Tensor,
    R: Tensor,
    bias: Tensor,
    *,
    initial: State | None = None,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """Run the cell over `x` (B, L, 4, H, D) and return h (B, L, H, D) and the state behind the last step.

    x is what the input adds to the gates i, f, z, o, in this order; R (H, D, 4, D) the recurrent weights, by head,
    input, gate and output; bias (4, H, D). The state, and `initial` likewise, is {c, n, m, h}, each (B, H, D); n = 0
    stands for nothing yet. `segments` (B, L), whole numbers that never fall, reset it where they change; at a step
    where `valid` (B, L) is False nothing changes and h is that of the step before. `reverse` runs from the last step to
    the first. All floating tensors have one dtype, float32 or float64; everything is differentiable, once in the torch
    backend. ValueError on what does not fit.
    """
    expect(NAME, "x", x, "B", "L", 4, "H", "D")
    expect_floating(NAME, "x", x)
    batch, steps, _, heads, size = x.shape
    expect(NAME, "R", R, heads, size, 4, size)
    expect(NAME, "bias", bias, 4, heads, size)
    expect_as(NAME, "x", x, R=R, bias=bias)
    segments = expect_segments(NAME, segments, batch, steps)
    if valid is not None:
        expect(NAME, "valid", valid, batch, steps)
        if valid.dtype != torch.bool:
            raise BadArgument(f"{NAME}: valid: expected bool, got {valid.dtype}")
    if initial is None:
        state = [x.new_zeros(batch, heads, size) for _ in STATE]
    else:
        if not isinstance(initial, dict) or set(initial) != set(STATE):
            got = ", ".join(sorted(initial)) if isinstance(initial, dict) else type(initial).__name__
            raise BadArgument(f"{NAME}: initial: expected {', '.join(STATE)}, got {got}")
        for name in STATE:
            expect(NAME, f"initial['{name}']", initial[name], batch, heads, size)
            expect_as(NAME, "x", x, **{f"initial['{name}']": initial[name]})
        state = [initial[name] for name in STATE]
    if reverse:
        x, valid = x.flip(1), None if valid is None else valid.flip(1)
        segments = None if segments is None else segments.flip(1)
    keep = None if segments is None else same_segment(segments)
    run = choose(NAME, call_of(x, steps, initial=initial, segments=segments, valid=valid))
    with full_precision(x.device.type):
        h, *state = run(x + bias, R, *state, keep, valid)
    return (h.flip(1) if reverse else h), dict(zip(STATE, state, strict=True))


# the definition -------------------------------------------------------------------------------------------------------


def _reference(x, R, c, n, m, h, keep, valid):
    steps = x.shape[1]
    keeps, valids = ([None] * steps if mask is None else mask.unbind(1) for mask in (keep, valid))
    hs = []
    for x_t, keep_t, valid_t in zip(x.unbind(1), keeps, valids, strict=True):
        if keep_t is not None:
            c, n, m, h = (torch.where(keep_t[:, None, None], state, 0) for state in (c, n, m, h))
        i, f, z, o = (x_t + torch.einsum("bhd,hdge->bghe", h, R)).unbind(1)
        before = F.logsigmoid(f) + m
        after = torch.where(n == 0, i, torch.maximum(before, i))
        decay, write = torch.where(n == 0, 0, (before - after).exp()), (i - after).exp()
        new = [decay * c + write * z.tanh(), decay * n + write, after]
        new.append(o.sigmoid() * new[0] / new[1])
        if valid_t is not None:
            new = [torch.where(valid_t[:, None, None], a, b) for a, b in zip(new, (c, n, m, h), strict=True)]
        c, n, m, h = new
        hs.append(h)
    return torch.stack(hs, 1), c, n, m, h


# the loop in place: steps first, then heads, (L, H, B, ..., D), so that one batched product serves all gates of a step


def _by_step(tensor: Tensor) -> Tensor:
    """(B, L, ..., H, D) to (L, H, B, ..., D), a copy."""
    order = (1, 3, 0, 2, 4) if tensor.ndim == 5 else (1, 2, 0, 3)
    return tensor.permute(order).clone(memory_format=torch.contiguous_format)


def _by_sequence(tensor: Tensor) -> Tensor:
    """(H, B, D) to (B, H, D), a copy."""
    return tensor.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _special(keep: Tensor | None, valid: Tensor | None, steps: int) -> list[bool]:
    """Whether a step is the first, or somewhere in the batch begins a sequence, is not valid or behind such a one."""
    found = torch.zeros(steps, dtype=torch.bool)
    found[0] = True
    if keep is not None:
        found |= ~keep.all(0).cpu()
    if valid is not None:
        gaps = ~valid.all(0).cpu()
        found |= gaps
        found[1:] |= gaps[:-1]
    return found.tolist()


def _forward(x, R, c, n, m, h, keep, valid, store):
    """Gates (L, H, B, 4, D), z and o behind their nonlinearity, weights [i, f], memories [c, n] (L + 1), h (L + 1), m.

    Without `store` the weights and memories of all steps share one buffer.
    """
    steps, heads, size = x.shape[1], R.shape[0], R.shape[1]
    gates, flat, rows = _by_step(x), R.flatten(2), (heads, x.shape[0])
    buffers = [gates.new_empty(count if store else 1, *rows, 2, size) for count in (steps, steps + 1)]
    weights, memories = (t.expand(steps + at, *t.shape[1:]) for at, t in enumerate(buffers))
    hs, m, written = gates.new_empty(steps + 1, *rows, size), m.transpose(0, 1).clone(), gates.new_ones(*rows, 2, size)
    memories[0, :, :, 0], memories[0, :, :, 1], hs[0] = (t.transpose(0, 1) for t in (c, n, h))
    # views of every step, made at once
    i_, f_, z_, o_ = (gates[..., gate, :].unbind(0) for gate in range(4))
    raw_, w_, wi_, wf_ = gates.flatten(3).unbind(0), *(t.unbind(0) for t in (weights, *weights.unbind(-2)))
    by_i, by_f = weights[..., :1, :].unbind(0), weights[..., 1:, :].unbind(0)
    memory_, c_, n_, h_ = (t.unbind(0) for t in (memories, *memories.unbind(-2), hs))
    for t, special in enumerate(_special(keep, valid, steps)):
        before = h_[t]
        if special and keep is not None:
            before, m = before * keep[:, t, None], m * keep[:, t, None]
        torch.baddbmm(raw_[t], before, flat, out=raw_[t])
        torch.add(F.logsigmoid(f_[t]), m, out=wf_[t])
        if special:
            fresh = n_[t] == 0 if keep is None else (n_[t] == 0) | ~keep[:, t, None]
            wf_[t].masked_fill_(fresh, -torch.inf)
            if valid is not None:
                hold = ~valid[:, t, None]
                i_[t].masked_fill_(hold, -torch.inf)
                torch.where(hold, m, wf_[t], out=wf_[t])
        m = torch.maximum(i_[t], wf_[t])
        torch.sub(i_[t], m, out=wi_[t])
        wf_[t].sub_(m)
        w_[t].exp_()
        if special and valid is not None:
            wf_[t].masked_fill_(fresh & hold, 0)
        z_[t].tanh_()
        o_[t].sigmoid_()
        written[:, :, 0] = z_[t]
        torch.mul(memory_[t], by_f[t], out=memory_[t + 1]).addcmul_(by_i[t], written)
        torch.div(c_[t + 1], n_[t + 1], out=h_[t + 1]).mul_(o_[t])
        if special and valid is not None:
            torch.where(hold, before, h_[t + 1], out=h_[t + 1])
    return gates, weights, memories, hs, m


def _backward(R, h, keep, valid, gates, weights, memories, y, dy, dc, dn, dm, dh):
    """Gradients of x, R, c, n, m and h; the last four are given behind the last step, and wanted before the first."""
    after = _by_step(y)
    before = torch.cat([h.transpose(0, 1)[None], after[:-1]])
    (i, f), (c_before, n_before), (c, n) = weights.unbind(-2), memories[:-1].unbind(-2), memories[1:].unbind(-2)
    z, o, slope = gates[..., 2, :], gates[..., 3, :], torch.sigmoid(-gates[..., 1, :])
    ok, stay = 1, (i < 1).to(n.dtype)  # stay: m comes from the step before
    if valid is not None:
        ok = valid.t()[:, None, :, None].to(n.dtype)
        n = torch.where(n == 0, 1, n)
    if keep is not None:
        kept = keep.t()[:, None, :, None].to(n.dtype)
        before, stay = before * kept, stay * kept
    # what the gradients of c, n and h behind a step are multiplied by for those of its gates, and that of h for c and n
    by_c = torch.stack([i * z, f * c_before * slope, i * (1 - z * z)], -2)
    by_n = torch.stack([i, f * n_before * slope], -2)
    by_h, to_memory = after * (1 - o), torch.stack([o, -after], -2) / n[..., None, :]
    if valid is not None:
        by_c, by_n, by_h, to_memory = by_c * ok[..., None], by_n * ok[..., None], by_h * ok, to_memory * ok[..., None]
    # the last c and n are scaled by e^-m: a gradient that goes back, as it is, to the last gate i that set m
    dc, dn, dm, dh = (tensor.transpose(0, 1) for tensor in (dc, dn, dm, dh))
    dm = dm - dc * c[-1] - dn * memories[-1, :, :, 1]
    arrives = torch.cat([stay[1:].flip(0).cumprod(0).flip(0), torch.ones_like(stay[:1])]) * dm
    extra = torch.stack([arrives * (1 - stay) * ok, arrives * stay * slope * ok], -2) if bool(dm.any()) else None
    dm = arrives[0] * stay[0]
    draw, flat = torch.empty_like(gates), R.flatten(2).transpose(1, 2)
    draw_, draw_o = draw.flatten(3).unbind(0), draw[..., 3, :].unbind(0)
    draw_if, draw_ifz = (draw[..., :gates_of, :].unbind(0) for gates_of in (2, 3))
    dy_, by_f = _by_step(dy).unbind(0), weights[..., 1:, :].unbind(0)
    by_c, by_n, by_h, to_memory = (tensor.unbind(0) for tensor in (by_c, by_n, by_h, to_memory))
    dmemory, dh = torch.stack([dc, dn], -2), dh + dy_[-1]
    special = _special(keep, valid, len(gates))
    for t in range(len(gates) - 1, -1, -1):
        dmemory.addcmul_(to_memory[t], dh[:, :, None])
        torch.mul(dmemory[:, :, :1], by_c[t], out=draw_ifz[t])
        draw_if[t].addcmul_(dmemory[:, :, 1:], by_n[t])
        torch.mul(dh, by_h[t], out=draw_o[t])
        if extra is not None:
            draw_if[t].add_(extra[t])
        dmemory.mul_(by_f[t])
        if not special[t]:
            dh = torch.baddbmm(dy_[t - 1], draw_[t], flat)
            continue
        through = draw_[t] @ flat
        if valid is not None:
            through += dh * (1 - ok[t])
        if keep is not None:
            through *= kept[t]
        dh = through + dy_[t - 1] if t else through
    dc, dn = dmemory.unbind(-2)
    dm = dm + dc * memories[0, :, :, 0] + dn * memories[0, :, :, 1]
    dR = before.transpose(0, 1).flatten(1, 2).transpose(1, 2) @ draw.flatten(3).transpose(0, 1).flatten(1, 2)
    dx = draw.permute(2, 0, 3, 1, 4).contiguous()
    return dx, dR.unflatten(2, (4, -1)), *(_by_sequence(tensor) for tensor in (dc, dn, dm, dh))


@torch.library.custom_op("statezoo::slstm", mutates_args=())
def _scan_op(
    x: Tensor, R: Tensor, c: Tensor, n: Tensor, m: Tensor, h: Tensor, keep: Tensor | None, valid: Tensor | None,
    store: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, the last state, and, to `store`, gates, weights and memories of all steps."""
    with full_precision(x.device.type):
        gates, weights, memories, hs, m = _forward(x, R, c, n, m, h, keep, valid, store)
    ends = [_by_sequence(tensor) for tensor in (*memories[-1].unbind(-2), m, hs[-1])]
    kept = (gates, weights, memories) if store else [x.new_empty(0) for _ in range(3)]
    return hs[1:].permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format), *ends, *kept


@_scan_op.register_fake
def _(x, R, c, n, m, h, keep, valid, store):
    batch, steps, _, heads, size = x.shape
    ends = [x.new_empty(batch, heads, size) for _ in STATE]
    sizes = [(steps, heads, batch, 4, size), (steps, heads, batch, 2, size), (steps + 1, heads, batch, 2, size)]
    return x.new_empty(batch, steps, heads, size), *ends, *(x.new_empty(shape if store else 0) for shape in sizes)


@torch.library.custom_op("statezoo::slstm_backward", mutates_args=())
def _backward_op(
    R: Tensor, h: Tensor, keep: Tensor | None, valid: Tensor | None, gates: Tensor, weights: Tensor, memories: Tensor,
    y: Tensor, dy: Tensor, dc: Tensor, dn: Tensor, dm: Tensor, dh: Tensor,
) -> list[Tensor]:  # fmt: skip
    with full_precision(R.device.type):
        return list(_backward(R, h, keep, valid, gates, weights, memories, y, dy, dc, dn, dm, dh))


@_backward_op.register_fake
def _(R, h, keep, valid, gates, weights, memories, y, dy, dc, dn, dm, dh):
    batch, steps, heads, size = y.shape
    return [y.new_empty(batch, steps, 4, heads, size), R.new_empty(R.shape), *(h.new_empty(h.shape) for _ in STATE)]


_scan_backward = differentiable_once(_backward_op, NAME)


def _setup(ctx, inputs, output):
    _, R, _, _, _, h, keep, valid, _ = inputs
    ctx.save_for_backward(R, h, keep, valid, *output[5:], output[0])
    ctx.set_materialize_grads(False)  # those of what is stored, which nothing reads


def _gradients(ctx, dy, dc, dn, dm, dh, *_):
    saved = ctx.saved_tensors  # read once: under checkpointing a second time would be a second recomputation
    h, y = saved[1], saved[-1]
    given = [torch.zeros_like(like) if d is None else d for d, like in ((dy, y), (dc, h), (dn, h), (dm, h), (dh, h))]
    return *_scan_backward(*saved, *given), None, None, None


_scan = differentiable(_scan_op, _setup, _gradients)


def _torch(x, R, c, n, m, h, keep, valid):
    if torch.compiler.is_exporting():
        return _reference(x, R, c, n, m, h, keep, valid)
    return _scan(x, R, c, n, m, h, keep, valid, keeps_for_backward(x, R, c, n, m, h))[:5]


register(NAME, "torch", _torch, no_tangents)
register(NAME, "reference", _reference, automatic=only_by_force)
