"""The mLSTM cell of xLSTM (Beck et al., 2024, arXiv:2405.04517, eq. 19 to 27): a matrix memory with exponential gates.

    m_t = max(F_t + m_{t-1}, i_t),   F_t = log sigmoid(f_t)                                                 stabiliser
    C_t = e^{F_t + m_{t-1} - m_t} C_{t-1} + e^{i_t - m_t} k_t v_t' / sqrt(DK),   n_t likewise with k_t / sqrt(DK) alone
    h_t = C_t' q_t / (max(|n_t' q_t|, e^{-m_t}) + eps)

C_0 = n_0 = m_0 = 0. What is stored is scaled by e^{-m}: the memory itself is e^m C, and h does not depend on m but
through eps, which the released code adds behind the stabilisation. Three forms of the same numbers:

    recurrent    the equations, step by step: the backend `reference`
    parallel     one matrix of weights over all pairs of steps (appendix A.3 of the paper)
    chunkwise    the parallel form within a chunk, C, n and m between chunks (TFLA, Beck et al., 2025, arXiv:2503.14376)

The stabiliser is the same number in all, that of the recurrence: the largest log weight in row t, m_0 among them. Sums
of F between two steps are made anew for each, segments and padding are cut by comparison: any gate from -80 to 80 is
finite and right in float32. Chunks go through one by one, so that all of a chunk stays in cache, and backward keeps the
states between them alone. An exported program holds the same chunks in plain torch ops.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadArgument
from .backends import Call, call_of, choose, full_precision, no_tangents, only_by_force, register
from .checks import expect, expect_as, expect_floating, expect_segments, same_segment
from .transforms import differentiable, differentiable_once, keeps_for_backward, within_func

NAME = "mlstm"
FORMS = ("recurrent", "parallel", "chunkwise")
EPS = 1e-6
#: steps of a chunk by device type: on a CPU its matrices stay in cache
CHUNK = {"cpu": 64}
LARGE_CHUNK = 128
#: elements of q in one span on a CPU, on which so many matrices are worked at once as stay in the second-level cache
CACHED = 1 << 17
#: of the bidirectional stabiliser, where all steps of a sequence are padding
LOWEST = -80.0
State = dict[str, Tensor]


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    initial: State | None = None,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    reverse: bool = False,
    bidirectional: bool = False,
    chunk: int | None = None,
    form: Literal["recurrent", "parallel", "chunkwise"] | None = None,
    eps: float = EPS,
) -> tuple[Tensor, State]:
    """Read a matrix memory: h (B, L, H, DV), and the state behind the last step.

    q and k are (B, L, H, DK), k not yet divided by sqrt(DK); v (B, L, H, DV); i and f (B, L, H) are gates before the
    exponential and the sigmoid. The state, and `initial` likewise, is {C (B, H, DK, DV), n (B, H, DK), m (B, H)}.
    `segments` (B, L), whole numbers that never fall, reset it where they change; a step where `valid` (B, L) is False
    neither decays nor writes, and its h means nothing. `reverse` scans from the last step to the first.

    `bidirectional`: step t also reads s > t, with log weight sum of F over t..s-1, plus i_s; one maximum and one
    normaliser for both directions (Schmidinger et al., 2024, arXiv:2411.04165). Quadratic in L, and without a state:
    the dict is empty. `form` forces one form; None takes chunkwise, of `chunk` steps, and parallel for one chunk or
    less. All floating tensors have one dtype, float32 or float64; everything is differentiable, once in chunkwise form.
    ValueError on what does not fit.
    """
    expect(NAME, "q", q, "B", "L", "H", "DK")
    expect_floating(NAME, "q", q)
    batch, steps, heads, keys = q.shape
    expect(NAME, "k", k, batch, steps, heads, keys)
    expect(NAME, "v", v, batch, steps, heads, "DV")
    for name, tensor in (("i", i), ("f", f)):
        expect(NAME, name, tensor, batch, steps, heads)
    expect_as(NAME, "q", q, k=k, v=v, i=i, f=f)
    segments = expect_segments(NAME, segments, batch, steps)
    if valid is not None:
        expect(NAME, "valid", valid, batch, steps)
        if valid.dtype != torch.bool:
            raise BadArgument(f"{NAME}: valid: expected bool, got {valid.dtype}")
    if form not in (None, *FORMS):
        raise BadArgument(f"{NAME}: form: expected one of {', '.join(FORMS)} or None, got {form!r}")
    if chunk is not None and chunk < 1:
        raise BadArgument(f"{NAME}: chunk: expected at least 1, got {chunk}")
    if bidirectional:
        for name, given, wanted in (("initial", initial is not None, "None"), ("reverse", reverse, "False"),
                                    ("form", form not in (None, "parallel"), "parallel or None")):  # fmt: skip
            if given:
                raise BadArgument(f"{NAME}: {name}: expected {wanted} with bidirectional, got a value")
    shapes = {"C": (batch, heads, keys, v.shape[3]), "n": (batch, heads, keys), "m": (batch, heads)}
    if initial is None:
        state = [q.new_zeros(shape) for shape in shapes.values()]
    else:
        if not isinstance(initial, dict) or set(initial) != set(shapes):
            got = ", ".join(sorted(initial)) if isinstance(initial, dict) else type(initial).__name__
            raise BadArgument(f"{NAME}: initial: expected C, m, n, got {got}")
        for name, shape in shapes.items():
            expect(NAME, f"initial['{name}']", initial[name], *shape)
            expect_as(NAME, "q", q, **{f"initial['{name}']": initial[name]})
        state = [initial[name] for name in shapes]
    log_f = F.logsigmoid(f)
    if valid is not None:  # -inf is added to sums, never summed: such a weight is exactly 0
        i, log_f = torch.where(valid[..., None], i, -torch.inf), torch.where(valid[..., None], log_f, 0)
    if reverse:
        q, k, v, i, log_f = (tensor.flip(1) for tensor in (q, k, v, i, log_f))
        segments = None if segments is None else segments.flip(1)
    in_use = {} if form is None else {form: True}
    run = choose(NAME, call_of(q, steps, initial=initial, segments=segments, bidirectional=bidirectional, **in_use))
    with full_precision(q.device.type):
        h, *state = run(q, k, v, i, log_f, state, segments, bidirectional, chunk, form, eps)
    return (h.flip(1) if reverse else h), dict(zip(shapes, state, strict=True)) if state else {}


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, *, eps: float = EPS
) -> tuple[Tensor, State]:
    """One step of the recurrent form, unchecked: q and k (B, H, DK), v (B, H, DV), i and f (B, H), state as above."""
    k, (C, n, m) = k / q.shape[-1] ** 0.5, (state[name] for name in ("C", "n", "m"))
    h, *state = _step(q, k, v, i, F.logsigmoid(f), C, n, m, eps)
    return h, dict(zip(("C", "n", "m"), state, strict=True))


def mlstm_matrix(
    q: Tensor,
    k: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    segments: Tensor | None = None,
    bidirectional: bool = False,
    eps: float = EPS,
) -> Tensor:
    """The weights (B, H, L, L) of the parallel form, divided by the normaliser: on v they give h, without a state."""
    expect(NAME, "q", q, "B", "L", "H", "DK")
    expect(NAME, "k", k, *q.shape)
    for name, tensor in (("i", i), ("f", f)):
        expect(NAME, name, tensor, *q.shape[:3])
    segments = expect_segments(NAME, segments, *q.shape[:2])
    q, k, i, f = _alike(segments, q, k, i, f)
    i, log_f = (_by_chunk(tensor, q.shape[1]) for tensor in (i, F.logsigmoid(f)))
    masks = _masks(i, segments, bidirectional)
    gates = _both_ways(i, log_f, masks) if bidirectional else _gates(i, log_f, torch.zeros_like(i[0, ..., 0]), masks)
    scores = torch.einsum("bthd,bshd->bhts", q, k / q.shape[-1] ** 0.5) * gates.weight[0]
    return scores / _normaliser(scores.sum(-1), (-gates.m[0]).exp(), eps)[..., None]


# the definition -------------------------------------------------------------------------------------------------------


def _reference(q, k, v, i, log_f, state, segments, bidirectional, chunk, form, eps):
    k = k / q.shape[-1] ** 0.5
    if bidirectional:
        return (_rows(q, k, v, i, log_f, segments, eps),)
    C, n, m = state
    keeps = [None] * q.shape[1] if segments is None else same_segment(segments).unbind(1)
    hs = []
    for q_t, k_t, v_t, i_t, f_t, keep in zip(*(t.unbind(1) for t in (q, k, v, i, log_f)), keeps, strict=True):
        if keep is not None:
            C, n, m = (torch.where(keep.view(-1, *(1,) * (s.ndim - 1)), s, 0) for s in (C, n, m))
        h, C, n, m = _step(q_t, k_t, v_t, i_t, f_t, C, n, m, eps)
        hs.append(h)
    return torch.stack(hs, 1), C, n, m


def _step(q, k, v, i, log_f, C, n, m, eps):
    before, m = log_f + m, torch.maximum(log_f + m, i)
    decay, write = (before - m).exp()[..., None], (i - m).exp()[..., None] * k
    n = decay * n + write
    C = decay[..., None] * C + write[..., None] * v[..., None, :]
    normaliser = torch.maximum((n * q).sum(-1).abs(), (-m).exp()) + eps
    return (q[..., None, :] @ C).squeeze(-2) / normaliser[..., None], C, n, m


def _rows(q, k, v, i, log_f, segments, eps):
    """Both directions, each row by running sums outwards from its diagonal."""
    steps, hs = q.shape[1], []
    fs, is_ = log_f.unbind(1), i.unbind(1)
    for t in range(steps):
        ahead, behind = [0 * fs[t]], [0 * fs[t]]
        for s in range(t + 1, steps):
            ahead.append(ahead[-1] + fs[s - 1])
        for s in range(t - 1, -1, -1):
            behind.append(behind[-1] + fs[s + 1])
        row = torch.stack([d + i_s for d, i_s in zip(behind[:0:-1] + ahead, is_, strict=True)], 1)  # (B, L, H)
        if segments is not None:
            row = torch.where((segments == segments[:, t : t + 1])[..., None], row, -torch.inf)
        m = row.amax(1).clamp(min=LOWEST)
        weight = (row - m[:, None]).exp() * (k * q[:, t, None]).sum(-1)
        normaliser = torch.maximum(weight.sum(1).abs(), (-m).exp()) + eps
        hs.append((weight[..., None] * v).sum(1) / normaliser[..., None])
    return torch.stack(hs, 1)


# gates, of all K chunks of c steps at once: i and log_f (K, B, H, c), m (B, H) before the first -----------------------


class _Masks(NamedTuple):
    """What the steps of a chunk read, of each other and from before."""

    later: Tensor  #: (c, c) 1 where t > s, else 0
    hidden: Tensor  #: (c, c), or (K, B, 1, c, c) with segments: -inf where t does not read s, else 0
    carried: Tensor | None  #: (K, B, 1, c) 1 where t is in the segment of the step before the chunk; None: all are


class _Gates(NamedTuple):
    """Weights of s for t and of the state before for t, their logs before m is taken off, and m at every step."""

    weight: Tensor  #: (K, B, H, c, c)
    carry: Tensor  #: (K, B, H, c)
    log_weight: Tensor
    log_carry: Tensor
    m: Tensor  #: (K, B, H, c)


def _by_chunk(tensor: Tensor, chunk: int, fill: float = 0) -> Tensor:
    """(B, L, ...) to (K, B, ..., c); steps that the last chunk lacks are `fill`."""
    lack = -tensor.shape[1] % chunk
    if lack:
        tensor = torch.cat([tensor, tensor.new_full((tensor.shape[0], lack, *tensor.shape[2:]), fill)], 1)
    return tensor.unflatten(1, (-1, chunk)).movedim(1, 0).movedim(2, -1).contiguous()


def _masks(like: Tensor, segments: Tensor | None = None, both: bool = False) -> _Masks:
    """Masks of chunks as in `like` (K, B, H, c)."""
    ones = like.new_ones(like.shape[-1], like.shape[-1])
    hidden = torch.zeros_like(ones) if both else torch.full_like(ones, -torch.inf).triu(1)
    if segments is None:
        return _Masks(ones.tril(-1), hidden, None)
    lack = len(like) * like.shape[-1] - segments.shape[1]
    numbers = _by_chunk(torch.cat([segments, segments[:, -1:].expand(-1, lack)], 1), like.shape[-1])[:, :, None]
    before = torch.cat([segments[None, :, None, :1], numbers[:-1, ..., -1:]])
    hidden = torch.where(numbers[..., :, None] == numbers[..., None, :], hidden, -torch.inf)
    return _Masks(ones.tril(-1), hidden, (numbers == before).to(like.dtype))


def _exp(x: Tensor) -> Tensor:
    """e^x, exactly 0 below e^-87: numbers too small to be normal cost a CPU fifty times the others."""
    return F.threshold(x.clamp(min=-87).exp(), 1.7e-38, 0)


def _between(log_f: Tensor, later: Tensor) -> Tensor:
    """Sums over the steps s+1..t, as (..., t, s), each made anew: a difference of two sums would lose small ones."""
    return (log_f[..., None] * later).cumsum(-2)


def _gates(i: Tensor, log_f: Tensor, m: Tensor, masks: _Masks) -> _Gates:
    log_weight, carried = _between(log_f, masks.later).add_(i[..., None, :]).add_(masks.hidden), masks.carried
    log_carry = log_f.cumsum(-1) if carried is None else (log_f[..., None, :] * (masks.hidden == 0)).sum(-1)
    largest, before = log_weight.amax(-1), []
    passed = [1] * len(i) if carried is None else carried[..., -1].unbind(0)
    for total, most, p in zip(log_carry[..., -1].unbind(0), largest[..., -1].unbind(0), passed, strict=True):
        before.append(m)
        m = torch.maximum(total + p * m, most)
    before = torch.stack(before)[..., None]
    log_carry = log_carry + (before if carried is None else before * carried)
    m = torch.maximum(largest, log_carry)
    carry = _exp(log_carry - m)
    carry = carry if carried is None else carry * carried
    return _Gates(_exp(log_weight - m[..., None]), carry, log_weight, log_carry, m)


def _gates_backward(gates: _Gates, masks: _Masks, dlog_weight, dlog_carry, dm_t, dm):
    """Gradients of i, log_f and the first m.

    From those of the logs of both weights, of m by itself at every step, and of the last m.
    """
    carried = 1 if masks.carried is None else masks.carried
    from_before = gates.log_carry >= gates.m  # where m is that of the state before, and the largest weight otherwise
    dm_t = dm_t - dlog_weight.sum(-1) - dlog_carry
    base = ((dlog_carry + dm_t * from_before) * carried).sum(-1)
    passed, lasts = (from_before * carried)[..., -1], []
    for at in range(len(base) - 1, -1, -1):
        lasts.append(dm)
        dm = base[at] + passed[at] * dm
    dm_t[..., -1] += torch.stack(lasts[::-1])
    dlog_weight = dlog_weight + (dm_t * ~from_before)[..., None] * (gates.log_weight == gates.m[..., None])
    dlog_carry = dlog_carry + dm_t * from_before
    # log_f_r lies between all s < r <= t, and in the sums from the chunk's or the segment's start to all t >= r
    dlog_f = ((1 - masks.later) @ dlog_weight * masks.later).sum(-1)
    dlog_f += (dlog_carry[..., None, :] @ (masks.hidden == 0).to(dlog_f.dtype)).squeeze(-2)
    return dlog_weight.sum(-2), dlog_f, dm


def _both_ways(i: Tensor, log_f: Tensor, masks: _Masks) -> _Gates:
    there, back = _between(log_f, masks.later), _between(log_f.flip(-1), masks.later).flip(-1, -2)
    log_weight = there + back + i[..., None, :] + masks.hidden  # each is 0 where the other one counts
    m = log_weight.amax(-1).clamp(min=LOWEST)
    return _Gates(_exp(log_weight - m[..., None]), torch.zeros_like(m), log_weight, torch.full_like(m, -torch.inf), m)


# S chunks of N = B H heads, M = S N: q, k / sqrt(DK) (M, c, DK), v (M, c, DV), weight (M, c, c), carry and e^-m (M, c)


def _by_head(tensor: Tensor, chunk: int) -> Tensor:
    """(B, S c, H, ...) to (S B H, c, ...), a copy, in which products are faster than in a view."""
    parts = tensor.unflatten(1, (-1, chunk)).movedim(1, 0).transpose(2, 3)
    return parts.clone(memory_format=torch.contiguous_format).flatten(0, 2)


def _by_step(tensor: Tensor, batch: int, heads: int) -> Tensor:
    """(S B H, c, ...) back to (B, S c, H, ...)."""
    return tensor.unflatten(0, (-1, batch, heads)).transpose(2, 3).movedim(0, 1).flatten(1, 2)


def _normaliser(product, floor, eps):
    return torch.maximum(product.abs(), floor) + eps


def _recur(start, through, updates, reverse=False):
    """`start` (N, ...) times `through` plus `updates` (both S N), again and again: what each met, and the last.

    In place: `updates` become the states.
    """
    states, last = updates.unflatten(0, (-1, start.shape[0])), start
    through = through.reshape(*states.shape[:2], *(1,) * (start.ndim - 1))
    for at in reversed(range(len(states))) if reverse else range(len(states)):
        last = states[at].addcmul_(through[at], last)  # no unbind: autograd forbids writing to what it returns
    if len(states) == 1:
        return start, last
    met = [states[1:], start[None]] if reverse else [start[None], states[:-1]]
    return torch.cat(met).flatten(0, 1), last


def _read(q, k, v, weight, carry, floor, C, n, eps):
    """The outputs h (M, c, DV), and C and n before each chunk (M, ...) and behind the last (N, ...)."""
    written, through = k * weight[:, -1, :, None], carry[:, -1]
    C, C_end = _recur(C, through, written.transpose(1, 2) @ v)
    n, n_end = _recur(n, through, written.sum(1))
    scores = (q @ k.transpose(1, 2)).mul_(weight)
    normaliser = _normaliser(scores.sum(-1) + carry * (q * n[:, None]).sum(-1), floor, eps)
    h = ((q * (carry / normaliser)[..., None]) @ C).baddbmm_(scores.div_(normaliser[..., None]), v)
    return h, C, n, C_end, n_end


def _read_backward(q, k, v, weight, carry, floor, C, n, eps, h, dh, dC, dn):
    """Gradients of q, k, v, log weight, log carry, m (through the floor), and C and n before the first chunk.

    C and n are those before each chunk (M, ...), dC and dn the gradients behind the last one (N, ...).
    """
    scores = (q @ k.transpose(1, 2)).mul_(weight)
    product = scores.sum(-1) + carry * (q * n[:, None]).sum(-1)
    # of the quotient
    g = dh / _normaliser(product, floor, eps)[..., None]
    dnormaliser, free = -(g * h).sum(-1), product.abs() > floor
    dproduct = torch.where(free, product.sign() * dnormaliser, 0)
    # of the states behind each chunk
    last, through, gated = weight[:, -1, :, None], carry[:, -1], q * carry[..., None]
    dC, dC_start = _recur(dC, through, gated.transpose(1, 2) @ g, reverse=True)
    dn, dn_start = _recur(dn, through, (dproduct[:, None] @ gated).squeeze(1), reverse=True)
    # of the products: within the chunk, from the state before it, into the state behind it
    dscores = torch.baddbmm(dproduct[..., None], g, v.transpose(1, 2))
    dread = torch.baddbmm(dproduct[..., None] * n[:, None], g, C.transpose(1, 2))
    dwritten = torch.baddbmm(dn[:, None], v, dC.transpose(1, 2))
    written, inner = k * last, dscores * weight
    dq = (carry[..., None] * dread).baddbmm_(inner, k)
    dk = (last * dwritten).baddbmm_(inner.transpose(1, 2), q).div_(q.shape[-1] ** 0.5)
    dv = (written @ dC).baddbmm_(scores.transpose(1, 2), g)
    dlog_weight, dlog_carry = dscores * scores, (gated * dread).sum(-1)
    dlog_weight[:, -1] += (written * dwritten).sum(-1)
    dlog_carry[:, -1] += through * ((dC * C).sum((1, 2)) + (dn * n).sum(-1))
    return dq, dk, dv, dlog_weight, dlog_carry, torch.where(free, 0, -dnormaliser * floor), dC_start, dn_start


# span after span ------------------------------------------------------------------------------------------------------


class _Spans:
    """Gates of all chunks, and the sequences in groups, cut into spans of chunks whose matrices stay in cache."""

    def __init__(self, q, k, v, i, log_f, m, segments, chunk):
        self.tensors, (batch, steps, self.heads, keys), self.chunk = (q, k, v), q.shape, min(chunk, q.shape[1])
        whole = steps // self.chunk
        self.groups, count = [slice(None)], whole
        if q.is_cpu and not torch.compiler.is_exporting():
            room = max(1, CACHED // (self.heads * self.chunk * max(keys, v.shape[3])))
            size = min(batch, room)
            self.groups, count = [slice(at, at + size) for at in range(0, batch, size)], room // size
        self.parts = [slice(at, min(at + count, whole)) for at in range(0, whole, count)]
        if steps % self.chunk:
            self.parts.append(slice(whole, whole + 1))
        i, log_f = _by_chunk(i, self.chunk, -torch.inf), _by_chunk(log_f, self.chunk)
        self.masks = _masks(i, segments)
        self.gates = _gates(i, log_f, m, self.masks)
        self.by_step = (self.gates.weight, self.gates.carry, (-self.gates.m).exp())

    def steps(self, part: slice) -> slice:
        """The steps of some chunks."""
        return slice(part.start * self.chunk, min(part.stop * self.chunk, self.tensors[0].shape[1]))

    def cut(self, group: slice, part: slice, *tensors: Tensor) -> list[Tensor]:
        """Tensors (B, L, H, ...) of a span by head."""
        steps = self.steps(part)
        return [_by_head(t[group, steps], min(self.chunk, steps.stop - steps.start)) for t in tensors]

    def at(self, group: slice, part: slice) -> list[Tensor]:
        """Arguments of a span, up to C."""
        q, k, v = self.cut(group, part, *self.tensors)
        weight, carry, floor = (tensor[part, group].flatten(0, 2) for tensor in self.by_step)
        c = q.shape[1]
        return [q, k.div_(k.shape[2] ** 0.5), v, weight[:, :c, :c], carry[:, :c], floor[:, :c]]


def _forward(q, k, v, i, log_f, C, n, m, segments, chunk, eps, keep):
    """H, the last state, and, to `keep`, C and n before each chunk (K, B, H, ...)."""
    spans = _Spans(q, k, v, i, log_f, m, segments, chunk)
    h, ends = q.new_empty(*q.shape[:3], v.shape[3]), [state.new_empty(state.shape) for state in (C, n)]
    met = [state.new_empty(spans.parts[-1].stop if keep else 0, *state.shape) for state in (C, n)]
    for group in spans.groups:
        shape, state = (-1, q[group].shape[0], spans.heads), [tensor[group].flatten(0, 1) for tensor in (C, n)]
        for part in spans.parts:
            out, *before, C_end, n_end = _read(*spans.at(group, part), *state, eps)
            state = [C_end, n_end]
            h[group, spans.steps(part)] = _by_step(out, *shape[1:])
            for whole, found in zip(met if keep else [], before, strict=keep):
                whole[part, group] = found.unflatten(0, shape)
        for whole, found in zip(ends, state, strict=True):
            whole[group] = found.unflatten(0, shape[1:])
    return h, *ends, spans.gates.m[-1, ..., -1].clone(), *met


def _backward(q, k, v, i, log_f, C, n, m, segments, h, dh, dC, dn, dm, chunk, eps):
    """Gradients of q, k, v, i, log_f, and of the first C, n and m; C and n are those before each chunk."""
    spans = _Spans(q, k, v, i, log_f, m, segments, chunk)
    by_step = [tensor.new_empty(tensor.shape) for tensor in (q, k, v)]
    gates = [torch.zeros_like(tensor) for tensor in spans.by_step]
    starts = [tensor.new_empty(tensor.shape) for tensor in (dC, dn)]
    for group in spans.groups:
        shape, state = (-1, q[group].shape[0], spans.heads), [tensor[group].flatten(0, 1) for tensor in (dC, dn)]
        for part in spans.parts[::-1]:
            before = [tensor[part, group].flatten(0, 2) for tensor in (C, n)]
            *found, dC_at, dn_at = _read_backward(
                *spans.at(group, part), *before, eps, *spans.cut(group, part, h, dh), *state
            )
            state = [dC_at, dn_at]
            for whole, grad in zip(by_step, found[:3], strict=True):
                whole[group, spans.steps(part)] = _by_step(grad, *shape[1:])
            for whole, grad in zip(gates, found[3:], strict=True):
                whole[part, group][(..., *(slice(c) for c in grad.shape[1:]))] = grad.unflatten(0, shape)
        for whole, grad in zip(starts, state, strict=True):
            whole[group] = grad.unflatten(0, shape[1:])
    *found, dm = _gates_backward(spans.gates, spans.masks, *gates, dm)
    gates = [tensor.movedim(-1, 2).movedim(0, 1).flatten(1, 2)[:, : q.shape[1]].contiguous() for tensor in found]
    return *by_step, *gates, *starts, dm


@torch.library.custom_op("statezoo::mlstm", mutates_args=())
def _scan_op(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, C: Tensor, n: Tensor, m: Tensor,
    segments: Tensor | None, chunk: int, eps: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with full_precision(q.device.type):
        return _forward(q, k, v, i, log_f, C, n, m, segments, chunk, eps, keep)


@_scan_op.register_fake
def _(q, k, v, i, log_f, C, n, m, segments, chunk, eps, keep):
    count = -(-q.shape[1] // min(chunk, q.shape[1])) if keep else 0
    ends = [state.new_empty(state.shape) for state in (C, n, m)]
    return v.new_empty(v.shape), *ends, *(state.new_empty(count, *state.shape) for state in (C, n))


@torch.library.custom_op("statezoo::mlstm_backward", mutates_args=())
def _backward_op(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, C: Tensor, n: Tensor, m: Tensor,
    segments: Tensor | None, h: Tensor, dh: Tensor, dC: Tensor, dn: Tensor, dm: Tensor, chunk: int, eps: float,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, i, log_f, C, n, m; C and n are those before each chunk."""
    with full_precision(q.device.type):
        return list(_backward(q, k, v, i, log_f, C, n, m, segments, h, dh, dC, dn, dm, chunk, eps))


@_backward_op.register_fake
def _(q, k, v, i, log_f, C, n, m, segments, h, dh, dC, dn, dm, chunk, eps):
    return [tensor.new_empty(tensor.shape) for tensor in (q, k, v, i, log_f, dC, dn, dm)]


_scan_backward = differentiable_once(_backward_op, NAME)


def _setup(ctx, inputs, output):
    q, k, v, i, log_f, _, _, m, segments, ctx.chunk, ctx.eps, _ = inputs
    ctx.save_for_backward(q, k, v, i, log_f, *output[4:], m, segments, output[0])
    ctx.set_materialize_grads(False)  # those of the states between chunks, which nothing reads


def _gradients(ctx, dh, dC, dn, dm, *_):
    *_, C, n, m, _, h = saved = ctx.saved_tensors
    given = [torch.zeros_like(like) if d is None else d for d, like in ((dh, h), (dC, C[0]), (dn, n[0]), (dm, m))]
    return *_scan_backward(*saved, *given, ctx.chunk, ctx.eps), None, None, None, None


_scan = differentiable(_scan_op, _setup, _gradients)


def _torch(q, k, v, i, log_f, state, segments, bidirectional, chunk, form, eps):
    steps = q.shape[1]
    chunk = chunk or CHUNK.get(q.device.type, LARGE_CHUNK)
    if bidirectional or form == "parallel" or (form is None and steps <= chunk):
        return _parallel(q, k, v, i, log_f, state, segments, bidirectional, eps)
    if torch.compiler.is_exporting():
        return _forward(q, k, v, i, log_f, *state, segments, chunk, eps, False)[:4]
    return _scan(q, k, v, i, log_f, *state, segments, chunk, eps, keeps_for_backward(q, k, v, i, log_f, *state))[:4]


def _alike(segments: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """`tensors`, all of them mapped where one is: `vmap` cannot write what is mapped into what is not."""
    if not within_func():
        return list(tensors)
    zero = sum(t.new_zeros((), dtype=tensors[0].dtype) for t in (*tensors, segments) if t is not None)
    return [tensor + zero for tensor in tensors]


def _parallel(q, k, v, i, log_f, state, segments, bidirectional, eps):
    """All steps as one chunk."""
    q, k, v, i, log_f, *state = _alike(segments, q, k, v, i, log_f, *state)
    batch, steps, heads, keys = q.shape
    C, n, m = state
    i, log_f = _by_chunk(i, steps), _by_chunk(log_f, steps)
    masks = _masks(i, segments, bidirectional)
    gates = _both_ways(i, log_f, masks) if bidirectional else _gates(i, log_f, m, masks)
    q, k, v = (_by_head(tensor, steps) for tensor in (q, k, v))
    parts = (gates.weight[0], gates.carry[0], (-gates.m[0]).exp(), C, n)
    h, _, _, *ends = _read(q, k.div_(keys**0.5), v, *(t.flatten(0, 1) for t in parts), eps)
    h = _by_step(h, batch, heads)
    return (h,) if bidirectional else (h, *(t.unflatten(0, (batch, heads)) for t in ends), gates.m[0, ..., -1])


def _objection(call: Call) -> str | None:
    if "recurrent" in call.options:
        return "the recurrent form is that of the reference"
    return None if {"parallel", "bidirectional"} & set(call.options) else no_tangents(call)


def _reference_objection(call: Call) -> str | None:
    forms = {"parallel", "chunkwise"} & set(call.options)
    return f"the {forms.pop()} form is that of the torch backend" if forms else None


def _by_force_or_form(call: Call) -> str | None:
    return None if "recurrent" in call.options else only_by_force(call)


register(NAME, "torch", _torch, _objection)
register(NAME, "reference", _reference, _reference_objection, automatic=_by_force_or_form)
