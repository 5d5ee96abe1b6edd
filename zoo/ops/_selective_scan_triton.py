"""The selective scan on CUDA, in Triton: states never leave registers (`selective_scan.py` has the equations).

A program takes a tile of channels of one group and walks along its sequences block by block. Of a block it loads u and
dt once, and goes through the states one at a time: decays (T, E) = exp2(dt A_n), then an associative scan over the T
steps of pairs (a, b) -> (a' a, a' b + b'), whose first state comes from a carry in global memory that stays in cache.
Backward needs h_{t-1} and what flows back into step t: its two scans carry along the map up to the step before, so that
nothing is ever divided by a decay, and no state but those between blocks is stored. Sums over the channels of a group
are kept apart by tile and added afterwards, as those of A are by sequence: without atomics results are the same every
time.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._selective_scan_blocks import LOG2_E

STEPS = 32  # of a block
# steps x channels of a tile, with one warp: fastest of those measured on an H100
FORWARD, BACKWARD = 1024, 512
PROGRAMS = 8192  # aimed at in backward, where one program may take several sequences


@triton.jit
def _combine(a_before, b_before, a, b):
    return a * a_before, a * b_before + b


@triton.jit
def _combine_both(a_before, b_before, c_before, d_before, a, b, c, d):
    """Maps h -> a h + b over all steps of a range, h -> c h + d over all but its last."""
    return a * a_before, a * b_before + b, c * a_before, c * b_before + d


@triton.jit
def _exp2(x):
    """2^x by Taylor's polynomial about the nearest whole number, to 5e-9.

    The hardware's instruction errs by up to 2^-22, for decays near 1 always to the same side: over thousands of steps
    that adds up.
    """
    whole = tl.floor(x + 0.5)
    f = x - whole
    p = 1.5252734e-05 * f + 1.5403530e-04
    p = p * f + 1.3333558e-03
    p = p * f + 9.6181291e-03
    p = p * f + 5.5504109e-02
    p = p * f + 2.4022651e-01
    p = p * f + 6.9314718e-01
    p = p * f + 1.0
    scale = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -126.0, 0.0, tl.where(x >= 128.0, float("inf"), p * scale))


@triton.jit
def _decay(dt, rate, extra, keep, EXTRA: tl.constexpr, KEEP: tl.constexpr):
    exponent = dt * rate
    if EXTRA:
        exponent += extra
    a = _exp2(exponent)
    if KEEP:
        a = tl.where(keep[:, None] != 0, a, 0.0)
    return a


@triton.jit
def _wide(number):
    """As int64: what it counts may be more than 2^31 numbers."""
    return tl.full((), 0, tl.int64) + number


@triton.jit
def _load(pointer, steps, channels, length, wide, inside, other):
    """Rows `steps` of (L, D), 0 <= step < length, else `other`."""
    there = ((steps >= 0) & (steps < length))[:, None] & inside[None, :]
    return tl.load(pointer + steps[:, None].to(tl.int64) * wide + channels[None, :], mask=there, other=other)


@triton.jit
def _load_keep(pointer, steps, length):
    return tl.load(pointer + steps, mask=(steps >= 0) & (steps < length), other=1)


@triton.jit
def _forward(
    u, dt, A, B, C, extra, first, keep, y, carry, before,
    batch, length, groups, per_group, states,
    T: tl.constexpr, E: tl.constexpr, EXTRA: tl.constexpr, FIRST: tl.constexpr, KEEP: tl.constexpr,
    BEFORE: tl.constexpr,
):  # fmt: skip
    tile, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(per_group, E)
    group, at = tile // tiles, (tile % tiles) * E
    lane = at + tl.arange(0, E)  # within the group
    inside = lane < per_group
    wide = groups * per_group
    channel = group * per_group + lane
    row, step = sequence * length, tl.arange(0, T)
    u, dt, y, extra = u + row * wide, dt + row * wide, y + row * wide, extra + row * wide
    B, C, keep = B + (row * groups + group) * states, C + (row * groups + group) * states, keep + row
    state = (sequence * groups + group) * states * per_group + lane  # of (B, G, N, E)
    for start in range(0, length, T):
        t = start + step
        valid = t < length
        u_t, dt_t = _load(u, t, channel, length, wide, inside, 0.0), _load(dt, t, channel, length, wide, inside, 0.0)
        extra_t, keep_t = dt_t, t
        if EXTRA:
            extra_t = _load(extra, t, channel, length, wide, inside, 0.0) * 1.4426950408889634
        if KEEP:
            keep_t = _load_keep(keep, t, length)
        total = tl.zeros((T, E), tl.float32)
        for n in range(states):
            rate = tl.load(A + n * wide + channel, mask=inside, other=0.0)
            b_n = tl.load(B + t.to(tl.int64) * groups * states + n, mask=valid, other=0.0)
            c_n = tl.load(C + t.to(tl.int64) * groups * states + n, mask=valid, other=0.0)
            h = tl.zeros((E,), tl.float32)
            if start > 0:
                h = tl.load(carry + state + n * per_group, mask=inside, other=0.0)
                if BEFORE:
                    block = _wide(start // T - 1) * batch * groups * states * per_group
                    tl.store(before + block + state + n * per_group, h, mask=inside)
            elif FIRST:
                h = tl.load(first + state + n * per_group, mask=inside, other=0.0)
            a = _decay(dt_t, rate[None, :], extra_t, keep_t, EXTRA, KEEP)
            reach, h_t = tl.associative_scan((a, u_t * b_n[:, None]), 0, _combine)
            h_t += reach * h[None, :]
            total += h_t * c_n[:, None]
            last = tl.sum(tl.where((step == T - 1)[:, None], h_t, 0.0), 0)  # padding passes the state on
            tl.store(carry + state + n * per_group, last, mask=inside)
        there = valid[:, None] & inside[None, :]
        tl.store(y + t[:, None].to(tl.int64) * wide + channel[None, :], total, mask=there)
        tl.debug_barrier()  # a carry may be read by another thread than wrote it


@triton.jit
def _backward(
    u, dt, A, B, C, extra, first, keep, before, dy, du, ddt, de, dA, dB, dC, back,
    batch, length, groups, per_group, states, together,
    T: tl.constexpr, E: tl.constexpr, EXTRA: tl.constexpr, FIRST: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """`back` (B, G, N, E): at first the gradient of the final state, at the end that of the first one.

    dA (P, G, N, E) for P programs along the batch; dB, dC (tiles of a group, B, L, G, N).
    """
    tile, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(per_group, E)
    group, part = tile // tiles, tile % tiles
    lane = part * E + tl.arange(0, E)
    inside = lane < per_group
    wide = groups * per_group
    channel = group * per_group + lane
    step = tl.arange(0, T)
    whole = groups * states * per_group
    shared = _wide(part) * batch * length * groups * states
    mine = group * states * per_group + lane
    blocks = tl.cdiv(length, T)
    for one in range(together):
        sequence = place * together + one
        if sequence < batch:
            row = sequence * length
            across = (row * groups + group) * states
            state = sequence * whole + mine
            for k in range(blocks):
                block = blocks - 1 - k
                t = block * T + step
                valid = t < length
                at = row * wide
                u_t = _load(u + at, t, channel, length, wide, inside, 0.0)
                dt_t = _load(dt + at, t, channel, length, wide, inside, 0.0)
                dy_t = _load(dy + at, t, channel, length, wide, inside, 0.0)
                e_t, keep_t = dt_t, t
                if EXTRA:
                    e_t = _load(extra + at, t, channel, length, wide, inside, 0.0) * 1.4426950408889634
                if KEEP:
                    keep_t = _load_keep(keep + row, t, length)
                du_t, ddt_t = tl.zeros((T, E), tl.float32), tl.zeros((T, E), tl.float32)
                de_t = tl.zeros((T, E), tl.float32)
                head = (step == 0)[:, None]
                ones, zeros = tl.full((T, E), 1.0, tl.float32), tl.zeros((T, E), tl.float32)
                for n in range(states):
                    rate = tl.load(A + n * wide + channel, mask=inside, other=0.0)[None, :]
                    spot = across + t.to(tl.int64) * groups * states + n
                    b_n = tl.load(B + spot, mask=valid, other=0.0)[:, None]
                    c_n = tl.load(C + spot, mask=valid, other=0.0)[:, None]
                    h = tl.zeros((E,), tl.float32)
                    if block > 0:
                        h = tl.load(before + _wide(block - 1) * batch * whole + state + n * per_group,
                                    mask=inside, other=0.0)  # fmt: skip
                    elif FIRST:
                        h = tl.load(first + state + n * per_group, mask=inside, other=0.0)
                    a = _decay(dt_t, rate, e_t, keep_t, EXTRA, KEEP)
                    reach, rise, reach_b, rise_b = tl.associative_scan((a, u_t * b_n, ones, zeros), 0, _combine_both)
                    h_t, h_b = reach * h[None, :] + rise, reach_b * h[None, :] + rise_b
                    # what passes step t on its way back, a_t (C_t dy_t + what passes step t + 1), from the last step on
                    carry = tl.load(back + state + n * per_group, mask=inside, other=0.0)
                    flow = dy_t * c_n
                    reach, rise, reach_n, rise_n = tl.associative_scan(
                        (a, a * flow, ones, zeros), 0, _combine_both, reverse=True
                    )
                    passed = reach * carry[None, :] + rise
                    g = flow + reach_n * carry[None, :] + rise_n
                    exponent = passed * h_b
                    du_t += g * b_n
                    ddt_t += exponent * rate
                    if EXTRA:
                        de_t += exponent
                    tl.store(dB + shared + spot, tl.sum(g * u_t, 1), mask=valid)
                    tl.store(dC + shared + spot, tl.sum(dy_t * h_t, 1), mask=valid)
                    to = dA + place * whole + mine + n * per_group
                    add = tl.sum(exponent * dt_t, 0)
                    if (k > 0) | (one > 0):
                        add += tl.load(to, mask=inside, other=0.0)
                    tl.store(to, add, mask=inside)
                    carry = tl.sum(tl.where(head, passed, 0.0), 0)
                    tl.store(back + state + n * per_group, carry, mask=inside)
                there = valid[:, None] & inside[None, :]
                put = at + t[:, None].to(tl.int64) * wide + channel[None, :]
                tl.store(du + put, du_t, mask=there)
                tl.store(ddt + put, ddt_t * 0.6931471805599453, mask=there)
                if EXTRA:
                    tl.store(de + put, de_t, mask=there)
                tl.debug_barrier()


def length(batch: int, channels: int, states: int) -> int:
    """Steps between the states that are kept."""
    return STEPS


def _tile(per_group: int, steps: int, size: int) -> dict:
    """Shape of a tile, shorter for sequences shorter than a block, and no wider than 32 channels."""
    t = min(STEPS, max(4, triton.next_power_of_2(steps)))
    e = min(32, size // t, max(16, triton.next_power_of_2(per_group)))
    return {"T": t, "E": e, "num_warps": 1}


def _inputs(u, dt, A, B, C, log_decay, initial, keep) -> tuple:
    """Contiguous arguments in the order of the kernels; a tensor stands in for what is not there."""
    groups = B.shape[2]
    rate = (A * LOG2_E).t().contiguous()
    keep = None if keep is None else keep.to(torch.int8).contiguous()
    first = None if initial is None else _split(initial, groups).contiguous()
    whole = (u.contiguous(), dt.contiguous(), rate, B.contiguous(), C.contiguous())
    extra = None if log_decay is None else log_decay.contiguous()
    flags = {"EXTRA": extra is not None, "FIRST": first is not None, "KEEP": keep is not None}
    return (*whole, *(u if x is None else x for x in (extra, first, keep))), flags


def _split(state: Tensor, groups: int) -> Tensor:
    """(B, D, N) to (B, G, N, E)."""
    return state.unflatten(1, (groups, -1)).transpose(2, 3)


def forward(u, dt, A, B, C, log_decay, initial, keep, *, y, final, before) -> None:
    """As `_selective_scan_blocks.forward`, for float32 on CUDA."""
    (batch, steps, _), (channels, states), groups = u.shape, A.shape, B.shape[2]
    inputs, flags = _inputs(u, dt, A, B, C, log_decay, initial, keep)
    per_group = channels // groups
    carry = u.new_empty(batch, groups, states, per_group)
    shape = _tile(per_group, steps, FORWARD)
    grid = (groups * triton.cdiv(per_group, shape["E"]), batch)
    with _on(u):
        _forward[grid](
            *inputs, y, carry, carry if before is None else before, batch, steps, groups, per_group, states,
            **shape, **flags, BEFORE=before is not None,
        )  # fmt: skip
    if final is not None:
        _split(final, groups).copy_(carry)


def backward(u, dt, A, B, C, log_decay, initial, keep, before, dy, dfinal, *, grads) -> None:
    """As `_selective_scan_blocks.backward`."""
    (batch, steps, _), (channels, states), groups = u.shape, A.shape, B.shape[2]
    inputs, flags = _inputs(u, dt, A, B, C, log_decay, initial, keep)
    per_group = channels // groups
    shape = _tile(per_group, steps, BACKWARD)
    tiles = triton.cdiv(per_group, shape["E"])
    together = max(1, batch * groups * tiles // PROGRAMS)
    places = triton.cdiv(batch, together)
    du, ddt, dA, dB, dC, de, dfirst = grads
    back = u.new_zeros(batch, groups, states, per_group)
    if dfinal is not None:
        back.copy_(_split(dfinal, groups))
    dA_parts = u.new_empty(places, groups, states, per_group)
    shared = [u.new_empty(tiles, *B.shape) if tiles > 1 else grad for grad in (dB, dC)]
    with _on(u):
        _backward[(groups * tiles, places)](
            *inputs, before, dy.contiguous(), du, ddt, ddt if de is None else de, dA_parts, *shared, back,
            batch, steps, groups, per_group, states, together, **shape, **flags,
        )  # fmt: skip
    # ddt is of the exponent to base e: rate carries log2(e), the derivative of exp2 brings ln(2)
    dA.copy_(dA_parts.sum(0).transpose(1, 2).flatten(0, 1))
    if tiles > 1:
        for grad, parts in zip((dB, dC), shared, strict=True):
            torch.sum(parts, 0, out=grad)
    if dfirst is not None:
        _split(dfirst, groups).copy_(back)


def _on(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()  # the interpreter's
