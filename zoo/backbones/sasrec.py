"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, arXiv:1808.09781).

    x_t = E[item_t] + P[t];   x <- LN(x + Dropout(Attn(x)));   x <- LN(x + Dropout(FFN(x)));   score(i) = <x_t, E[i]>

Attention is causal (eq. 5 with the future masked), items are scored by the shared embedding (eq. 6). Of the paper's
choices this file takes RecBole's form, which later papers compare with: post-norm, GELU in the FFN, sequences padded
at the right so that position 0 is the first event of the window, cross entropy over all items in place of sampled
negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..mixers.attention import Attention
from ..nn.feedforward import FeedForward
from ._recommender import Recommender


class SASRec(Recommender):
    """Causal self-attention over a user's last items."""

    configs = {"sasrec": {}}
    accepts = ("log",)
    inputs = ("items",)
    given = ("num_items", "max_len")
    tiny = {"dim": 32, "hidden": 64, "layers": 1, "dropout": 0.1}
    causal = True

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        hidden: int = 256,
        dropout: float = 0.5,
        attention_dropout: float | None = None,
        norm_eps: float = 1e-12,
        init_std: float = 0.02,
    ):
        """`num_items` without padding; `max_len` learned positions; `attention_dropout` None takes `dropout`."""
        super().__init__()
        self.item = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.position = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)
        inner = dropout if attention_dropout is None else attention_dropout
        self.layers = nn.ModuleList(_Layer(dim, heads, hidden, dropout, inner, norm_eps) for _ in range(layers))
        self.reset(init_std)

    def forward_features(self, items: Tensor) -> Tensor:
        """Items (B, L) int64, 0 = padding at the right; returns (B, L, dim)."""
        place = torch.arange(items.shape[1], device=items.device)
        x = self.dropout(self.norm(self.item(items) + self.position(place)))
        for layer in self.layers:
            x = layer(x)
        return x


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, attention_dropout: float, eps: float):
        super().__init__()
        self.mixer = Attention(dim, heads, causal=True, dropout=attention_dropout)
        self.feedforward = FeedForward(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.mixer(x).y))
        return self.norm2(x + self.dropout(self.feedforward(x)))
