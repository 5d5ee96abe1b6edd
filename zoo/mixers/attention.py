"""Multi-head softmax attention (Vaswani et al., 2017, arXiv:1706.03762, eq. 1) through torch's SDPA.

    y = softmax(q k' / sqrt(d)) v, then the output projection

With grouped keys and values (Ainslie et al., 2023, arXiv:2305.13245), a sliding window, rotary positions in one or two
dimensions (Su et al., 2021, arXiv:2104.09864), causal or not.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import BadArgument
from ..nn.rope import rotate
from ..ops.checks import expect, expect_segments
from ..ops.transforms import within_forward_mode
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, zeroed


class Parts(NamedTuple):
    """Queries (B, L, H, d), keys and values (B, T, K, d) of past and present, and which keys each query sees."""

    q: Tensor
    k: Tensor
    v: Tensor
    seen: Tensor | None  #: (B or 1, 1, L, T) bool, None: all, or all up to the own step where `plain`
    plain: bool  #: causal with nothing else to mask
    valid: Tensor  #: (B, T) bool
    count: Tensor  #: (B,) valid steps so far
    own: Tensor | None  #: (B, L) bool: which of the present steps are valid; None: all

    whole = frozenset({"seen", "plain", "count"})


class Attention(Mixer):
    """Attention over `heads` heads of size dim / heads, with `kv_heads` heads of keys and values."""

    uses = frozenset({"segments", "positions"})
    observed = ("in", "q", "k", "v", "scan", "out")

    def __init__(
        self,
        dim: int,
        heads: int = 2,
        *,
        kv_heads: int | None = None,
        causal: bool = True,
        window: int | None = None,
        rope: float | None = None,
        rope_axes: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        """`window`: a step sees itself and `window` - 1 before (and after, if not causal); `rope`: base of angles."""
        super().__init__(dim)
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if dim % heads or self.heads % self.kv_heads:
            raise BadArgument(
                "Attention: expected dim a multiple of heads and heads a multiple of kv_heads (heads must divide), got "
                f"dim={dim}, heads={heads}, kv_heads={self.kv_heads}"
            )
        if rope and (dim // heads) % (2 * rope_axes):
            raise BadArgument(
                f"Attention: rope over {rope_axes} axes: expected head sizes in multiples of {2 * rope_axes}, "
                f"got {dim // heads}"
            )
        if window is not None and window < 1:
            raise BadArgument(f"Attention: window: expected at least 1, got {window}")
        self.size, self.causal, self.window, self.dropout = dim // heads, causal, window, dropout
        self.rope, self.rope_axes = rope, rope_axes
        self.uses = self.uses if rope else self.uses - {"positions"}
        if not causal:
            looks = "every step looks at later ones"
            self.exempt = {"step": looks, "split": looks, "causal": looks}
        self.qkv = nn.Linear(dim, (self.heads + 2 * self.kv_heads) * self.size, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Keys and values of the steps so far (B, T, K, d), which of them are valid (B, T), and their number (B,).

        The cache grows with the steps; with a causal window it holds no more than the window.
        """
        empty = torch.zeros(batch, 0, self.kv_heads, self.size, dtype=dtype, device=device)
        return {
            "k": empty, "v": empty.clone(), "valid": torch.zeros(batch, 0, dtype=torch.bool, device=device),
            "count": torch.zeros(batch, dtype=torch.int64, device=device),
        }  # fmt: skip

    # phases -----------------------------------------------------------------------------------------------------------

    def project(self, x: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to queries, keys, values and the mask."""
        batch, steps, _ = x.shape
        expect_segments("Attention", ctx.segments, batch, steps)
        heads = self.qkv(self.observe["in"](x)).view(batch, steps, self.heads + 2 * self.kv_heads, self.size)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 2)
        q, k, v = self.observe["q"](q), self.observe["k"](k), self.observe["v"](v)
        valid = own = ctx.valid(steps)
        valid = torch.ones(batch, steps, dtype=torch.bool, device=x.device) if valid is None else valid
        before = torch.zeros(batch, dtype=torch.int64, device=x.device) if state is None else state["count"]
        if self.rope:
            if ctx.positions is not None or self.rope_axes > 1:
                axes = (self.rope_axes,) if self.rope_axes > 1 else ()
                expect("Attention", "ctx.positions", ctx.positions, batch, steps, *axes)
            places = before[:, None] + torch.arange(steps, device=x.device) if ctx.positions is None else ctx.positions
            q, k = (rotate(t, places, self.rope) for t in (q, k))
        past = 0
        count = before + valid.sum(1)
        if state is not None:
            if ctx.segments is not None:
                raise BadArgument(
                    "Attention: state: expected None beside ctx.segments, got a cache; start each segment anew"
                )
            past = state["k"].shape[1]
            k, v = torch.cat([state["k"].to(k.dtype), k], 1), torch.cat([state["v"].to(v.dtype), v], 1)
            valid = torch.cat([state["valid"], valid], 1)
        if not (past or own is not None or self.window or ctx.segments is not None):
            return Parts(q, k, v, None, self.causal, valid, count, None)
        return Parts(q, k, v, self._seen(ctx, valid, steps, past), False, valid, count, own)

    def _seen(self, ctx: SeqContext, valid: Tensor, steps: int, past: int) -> Tensor:
        # distance counted in valid steps, so that padding between them does not widen it
        place = valid.cumsum(1)
        distance = place[:, past:, None] - place[:, None, :]
        seen = valid[:, None, :]
        if self.causal:
            seen = seen & torch.ones(steps, past + steps, dtype=torch.bool, device=valid.device).tril(past)
        if self.window:
            seen = seen & (distance.abs() < self.window)
        if ctx.segments is not None:
            seen = seen & (ctx.segments[:, :, None] == ctx.segments[:, None, :])
        # a padded query sees itself: a softmax over nothing would be NaN
        itself = torch.eye(steps, dtype=torch.bool, device=valid.device)
        return (seen | F.pad(itself, (past, 0)))[:, None]

    def scan(self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None) -> tuple[Tensor, State]:
        """The mixed values (B, L, H, d) and the cache."""
        q, k, v = (t.transpose(1, 2) for t in parts[:3])
        # the fused kernels carry no tangents
        with sdpa_kernel(SDPBackend.MATH) if within_forward_mode() else nullcontext():
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=parts.seen, is_causal=parts.plain, enable_gqa=self.heads != self.kv_heads,
                dropout_p=self.dropout if self.training else 0.0,
            )  # fmt: skip
        cache = {"k": parts.k, "v": parts.v, "valid": parts.valid}
        if self.window and self.causal and parts.k.shape[1] >= self.window:
            cache = self._window(cache)
        return y.transpose(1, 2), cache | {"count": parts.count}

    def _window(self, cache: State) -> State:
        """What the next step can still see: the last window - 1 valid steps, moved to the end of the cache."""
        order = cache["valid"].to(torch.int8).argsort(dim=1, stable=True)
        order = order[:, order.shape[1] - self.window + 1 :]
        index = order[..., None, None].expand(-1, -1, self.kv_heads, self.size)
        return {
            "k": cache["k"].gather(1, index),
            "v": cache["v"].gather(1, index),
            "valid": cache["valid"].gather(1, order),
        }

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, H, d) through the output projection."""
        return zeroed(self.observe["out"](self.out(self.observe["scan"](mixed.flatten(2)))), parts.own)

    # the protocol -----------------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """The three phases in a row."""
        parts = self.project(x, ctx, state)
        mixed, cache = self.scan(parts, ctx, state)
        return Out(self.finish(mixed, parts), cache if "state" in want else None)

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The attention maps (B, H, L, L) on the values repeated for their group."""
        parts = self.project(x, ctx)
        spread = self.heads // self.kv_heads
        k, v = (t.repeat_interleave(spread, 2) for t in (parts.k, parts.v))
        scores = torch.einsum("bthd,bshd->bhts", parts.q, k) / self.size**0.5
        seen = parts.seen
        if parts.plain:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
        return Matrix(scores.softmax(-1), v, parts)

    def ports(self) -> dict[str, Tensor]:
        """Q (H d, D), k and v (K d, D), out."""
        kv = self.kv_heads * self.size
        q, k, v = self.qkv.weight.split([self.heads * self.size, kv, kv])
        return {"q": q, "k": k, "v": v, "out": self.out.weight}
