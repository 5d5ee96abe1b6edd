"""BERT4Rec: bidirectional attention trained by filling gaps (Sun et al., CIKM 2019, arXiv:1904.06690).

    x_t = E[item_t] + P[t];   x <- LN(x + Dropout(Attn(x)));   x <- LN(x + Dropout(FFN(x)));   score(i) = <x_t, E[i]> +
    b_i

Training replaces a share of the items by a mask and predicts them from both sides (eq. 7); to recommend, the mask
stands behind the last item. So it is not causal, and needs no per-prefix samples either: `fill_gaps` makes its training
pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..mixers.attention import Attention
from ..mixers.base import SeqContext
from ..nn.feedforward import FeedForward
from ._recommender import Recommender


class BERT4Rec(Recommender):
    """Bidirectional self-attention over a user's items with a mask in the next one's place."""

    configs = {"bert4rec": {}}
    accepts = ("log",)
    inputs = ("items", "length")
    given = ("num_items", "max_len")
    tiny = {"dim": 32, "hidden": 64, "layers": 1, "dropout": 0.1}

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        hidden: int = 256,
        dropout: float = 0.2,
        masked: float = 0.2,
        norm_eps: float = 1e-12,
        init_std: float = 0.02,
    ):
        """`masked`: share of the items hidden in training."""
        super().__init__()
        self.masked, self.mask_item = masked, num_items + 1
        self.item = nn.Embedding(num_items + 2, dim, padding_idx=0)
        self.position = nn.Embedding(max_len + 1, dim)
        self.bias = nn.Parameter(torch.zeros(num_items + 1))
        self.norm, self.dropout = nn.LayerNorm(dim, norm_eps), nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(dim, heads, hidden, dropout, norm_eps) for _ in range(layers))
        self.reset(init_std)

    def forward_features(self, items: Tensor, length: Tensor) -> Tensor:
        """Items (B, L) int64, 0 = padding at the right, length (B,); returns (B, L, dim).

        The mask is appended behind the last item; features move one step to the front, so that those at step t - 1
        of a sequence of t items are the mask's, where every other model has them.
        """
        wide = F.pad(items, (0, 1))
        wide = wide.scatter(1, length[:, None], self.mask_item)
        return self.encode(wide, length + 1)[:, 1:]

    def encode(self, items: Tensor, length: Tensor) -> Tensor:
        """Items with masks among them to features of the same places."""
        place = torch.arange(items.shape[1], device=items.device)
        x, ctx = self.dropout(self.norm(self.item(items) + self.position(place))), SeqContext(lengths=length)
        for layer in self.layers:
            x = layer(x, ctx)
        return x

    def item_scorer(self) -> tuple[Tensor, Tensor]:
        """All rows but the mask's, and a bias per item."""
        return self.item.weight[:-1], self.bias

    def fill_gaps(self, items: Tensor, targets: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, L + 1, dim) of a window with gaps, and the hidden items (B, L + 1), 0 where none is hidden.

        A window is its items and the target of its last step. Each of them is hidden with probability `masked`, and
        with the same probability the last one alone, as when recommending.
        """
        last = targets.gather(1, (length - 1)[:, None])
        whole = F.pad(items, (0, 1)).scatter(1, length[:, None], last)
        real = whole != 0
        draw = torch.rand(whole.shape, device=whole.device)
        hidden = (draw < self.masked) & real
        ends = torch.zeros_like(hidden).scatter(1, length[:, None], True)
        alone = torch.rand(len(whole), 1, device=whole.device) < self.masked
        hidden = torch.where(alone | ~hidden.any(1, keepdim=True), ends, hidden)
        features = self.encode(torch.where(hidden, self.mask_item, whole), length + 1)
        return features, torch.where(hidden, whole, 0)


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, eps: float):
        super().__init__()
        self.mixer = Attention(dim, heads, causal=False, dropout=dropout)
        self.feedforward = FeedForward(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, ctx: SeqContext) -> Tensor:
        x = self.norm1(x + self.dropout(self.mixer(x, ctx).y))
        return self.norm2(x + self.dropout(self.feedforward(x)))
