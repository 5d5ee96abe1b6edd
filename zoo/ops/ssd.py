"""The state-space dual scan of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060), per head with a scalar decay:

    H_t = exp(g_t) H_{t-1} + x_t B_t',    y_t = H_t C_t,    H (P x N)

which is also linear attention with decay (keys B, queries C, values x). The mixer brings x already multiplied by its
write weight dt, and the log decay g = dt A beside it.

`reference` loops over steps. `torch` is the chunked algorithm of section 6 of the paper: within a chunk the masked
matrix (C B') o exp(sums of g between two steps), between chunks a recurrence of states. Sums are masked before exp, and
chunks of packed sequences are cut by comparing segment numbers, never by a decay of -inf, so that any gate is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadArgument
from .backends import call_of, choose, full_precision, only_by_force, register
from .checks import expect, expect_as, expect_floating, expect_groups, expect_segments, same_segment

NAME = "ssd"
SMALLEST, LARGEST = 16, 256
#: by device type, how many times that chunk is best which moves the fewest numbers: a GPU wants few, large products
STRETCH = {"cpu": 1}
STRETCH_ELSEWHERE = 4


def best_chunk(device: str, steps: int, size: int, states: int) -> int:
    """Steps of a chunk: a step costs c numbers of a chunk's matrix and P N / c of its state, least at c^2 = P N.

    The power of two below that, stretched by device; then chunks of equal length, so that little is padded.
    """
    c = (1 << (int((size * states) ** 0.5).bit_length() - 1)) * STRETCH.get(device, STRETCH_ELSEWHERE)
    c = min(LARGEST, max(SMALLEST, c))
    return -(-steps // -(-steps // c))


def ssd(
    x: Tensor,
    g: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    reverse: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan `x` (B, L, H, P) and return y (B, L, H, P) and the state behind the last step (B, H, P, N).

    g (B, L, H) is the log decay, at most 0 where the state is to stay bounded; B and C are (B, L, G, N) with heads in G
    equal groups; `initial` (B, H, P, N). `segments` (B, L) reset the state where they change; `reverse` scans from the
    last step to the first. `chunk`: steps of a chunk (None: `best_chunk`). All floating tensors have one dtype and are
    differentiable.
    """
    expect(NAME, "x", x, "B", "L", "H", "P")
    expect_floating(NAME, "x", x)
    (batch, steps, heads, size) = x.shape
    expect(NAME, "g", g, batch, steps, heads)
    expect(NAME, "B", B, batch, steps, "G", "N")
    groups, states = B.shape[2:]
    expect_groups(NAME, groups, heads, "heads")
    expect(NAME, "C", C, batch, steps, groups, states)
    if initial is not None:
        expect(NAME, "initial", initial, batch, heads, size, states)
    expect_as(NAME, "x", x, g=g, B=B, C=C, initial=initial)
    segments = expect_segments(NAME, segments, batch, steps)
    if chunk is not None and chunk < 1:
        raise BadArgument(f"{NAME}: chunk: expected at least 1, or None, got {chunk}")
    if reverse:
        x, g, B, C = (tensor.flip(1) for tensor in (x, g, B, C))
        segments = None if segments is None else segments.flip(1)
    run = choose(NAME, call_of(x, steps, initial=initial, segments=segments))
    with full_precision(x.device.type):
        y, final = run(x, g, B, C, initial, segments, chunk)
    return (y.flip(1) if reverse else y), final


def _reference(x, g, B, C, initial, segments, chunk):
    batch, _, heads, size = x.shape
    spread = heads // B.shape[2]
    h = x.new_zeros(batch, heads, size, B.shape[3]) if initial is None else initial
    ys = []
    keeps = [None] * x.shape[1] if segments is None else same_segment(segments).unbind(1)
    for x_t, g_t, B_t, C_t, keep in zip(x.unbind(1), g.unbind(1), B.unbind(1), C.unbind(1), keeps, strict=True):
        B_t, C_t = (tensor.repeat_interleave(spread, 1) if spread > 1 else tensor for tensor in (B_t, C_t))
        if keep is not None:
            h = torch.where(keep[:, None, None, None], h, 0)
        h = g_t.exp()[..., None, None] * h + x_t[..., None] * B_t[:, :, None]
        ys.append((h @ C_t[..., None]).squeeze(-1))
    return torch.stack(ys, 1), h


def between(g: Tensor) -> Tensor:
    """Sums of `g` (..., c) over the steps s+1..t, as (..., t, s); 0 above the diagonal.

    Summed anew for each s: the difference of two cumulative sums loses what lies behind one large decay.
    """
    c = g.shape[-1]
    later = torch.ones(c, c, dtype=torch.bool, device=g.device).tril(-1)
    return torch.where(later, g[..., :, None], 0).cumsum(-2)


def _chunked(x, g, B, C, initial, segments, chunk):
    """K chunks of c steps; heads as (G, E), so that B and C are never repeated."""
    batch, steps, heads, size = x.shape
    groups, states = B.shape[2:]
    c = best_chunk(x.device.type, steps, size, states) if chunk is None else min(chunk, steps)
    pad = -steps % c
    if pad:  # steps that neither decay nor write
        x, g, B, C = (torch.nn.functional.pad(t, (0, 0) * (t.ndim - 2) + (0, pad)) for t in (x, g, B, C))
        segments = None if segments is None else torch.cat([segments, segments[:, -1:].expand(-1, pad)], 1)
    # (B, K, G, E, c, .) for what belongs to heads, (B, K, G, c, N) for what belongs to groups
    x = x.unflatten(1, (-1, c)).unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2, 5)
    g = g.unflatten(1, (-1, c)).unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2)
    B, C = (t.unflatten(1, (-1, c)).permute(0, 1, 3, 2, 4) for t in (B, C))
    total = g.cumsum(-1)  # log decay from the start of the chunk to the end of step t
    causal = torch.ones(c, c, dtype=torch.bool, device=x.device).tril()
    if segments is None:
        mask, carried, written, kept = causal, None, None, None
    else:
        s = segments.unflatten(1, (-1, c))
        before = torch.cat([segments[:, :1], s[:, :-1, -1]], 1)  # of the step before each chunk
        mask = (causal & (s[..., :, None] == s[..., None, :]))[:, :, None, None]
        carried, written = (s == before[..., None])[:, :, None, None], (s == s[..., -1:])[:, :, None, None]
        kept = (before == s[..., -1])[:, :, None, None]
    decay = between(g).masked_fill(~mask, -torch.inf).exp()
    y = ((C @ B.transpose(-1, -2))[:, :, :, None] * decay) @ x
    later = torch.nn.functional.pad(g[..., 1:], (0, 1))  # of the steps after t; a sum less g_t would lose them
    to_end = later.flip(-1).cumsum(-1).flip(-1).exp()
    to_end = to_end if written is None else to_end * written
    update = (x * to_end[..., None]).transpose(-1, -2) @ B[:, :, :, None]  # (B, K, G, E, P, N)
    through = total[..., -1].exp()
    through = through if kept is None else through * kept
    h = (
        x.new_zeros(batch, groups, heads // groups, size, states)
        if initial is None
        else initial.unflatten(1, (groups, -1))
    )
    before_chunks = []
    for through_k, update_k in zip(through.unbind(1), update.unbind(1), strict=True):
        before_chunks.append(h)
        h = torch.addcmul(update_k, through_k[..., None, None], h)
    from_start = total.exp()
    from_start = from_start if carried is None else from_start * carried
    carry = torch.stack(before_chunks, 1).transpose(-1, -2)  # (B, K, G, E, N, P)
    y = y + (C[:, :, :, None] @ carry) * from_start[..., None]
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, -1, heads, size)
    return (y[:, :steps] if pad else y), h.flatten(1, 2)


register(NAME, "torch", _chunked)
register(NAME, "reference", _reference, automatic=only_by_force)
