"""Multi-head softmax attention (Vaswani et al., 2017, arXiv:1706.03762, eq. 1), causal or not, through torch's SDPA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ZooError
from .base import Mixer, Out, SeqContext


class Attention(Mixer):
    """Attention over `heads` heads of size dim / heads: y = softmax(q k' / sqrt(d)) v, then the output projection."""

    def __init__(self, dim: int, heads: int = 2, *, causal: bool = True, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        if dim % heads:
            raise ZooError(f"attention: dim {dim} is no multiple of heads {heads}; change one of them")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        ctx: SeqContext | None = None,
        state: dict[str, Tensor] | None = None,
        want: frozenset[str] = frozenset(),
    ) -> Out:
        """X (B, L, D). Padded steps (beyond `ctx.lengths`) are not attended to; their own output has no meaning.

        `state` holds the keys and values of earlier steps, (B, H, T, d) each; `want={"state"}` returns it extended.
        """
        batch, steps, dim = x.shape
        q, k, v = self.qkv(x).view(batch, steps, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        past = 0
        if state is not None:
            past = state["k"].shape[2]
            k, v = torch.cat([state["k"], k], 2), torch.cat([state["v"], v], 2)
        mask, causal = self._mask(ctx, steps, past, x.device)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=self.dropout if self.training else 0.0
        )
        y = self.out(y.transpose(1, 2).reshape(batch, steps, dim))
        return Out(y, {"k": k, "v": v} if "state" in want else None)

    def _mask(self, ctx: SeqContext | None, steps: int, past: int, device) -> tuple[Tensor | None, bool]:
        """Right padding needs no mask under causality: no real step looks to the right."""
        if self.causal:
            if not past:
                return None, True
            ahead = torch.ones(steps, past + steps, dtype=torch.bool, device=device).tril(past)
            return ahead, False
        valid = None if ctx is None else ctx.valid(steps)
        if valid is None:
            return None, False
        if past:
            raise ZooError("attention: a state beside lengths needs causal=True; pass one of them")
        return valid[:, None, None, :], False
