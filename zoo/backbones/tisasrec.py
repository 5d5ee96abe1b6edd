"""TiSASRec: time-interval-aware self-attention (Li, Wang and McAuley, WSDM 2020, doi:10.1145/3336191.3371786).

    r_ij = min(k, floor(|T_i - T_j| / r_min)),  r_min the smallest gap of the user above zero (eq. 4, 5)
    e_ij = q_i (E[item_j] W_K + R^K[r_ij] + P^K[j]) / sqrt(d)
    z_i = sum_j softmax(e)_ij (E[item_j] W_V + R^V[r_ij] + P^V[j])

Gaps are taken as int64 and scaled per user before anything is rounded. In the paper r_min is that of the user's whole
sequence, which lets early steps know of later gaps: `scale="window"`, trained per prefix. By default it is the smallest
gap up to the later of the two events (`scale="past"`). A reproduction that feeds raw seconds as float32 (64 apart near
1e9) and clips at 256 sees five different values; that is what `scale="seconds"` does, for comparison.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ZooError
from ..nn.feedforward import FeedForward
from ._recommender import Recommender

CLIP_SECONDS = 256


class TiSASRec(Recommender):
    """Self-attention over a user's last items that looks at the time between each two of them."""

    configs = {"tisasrec": {}}
    accepts = ("log",)
    inputs = ("items", "times", "length")
    given = ("num_items", "max_len")
    tiny = {"dim": 32, "hidden": 64, "layers": 1, "dropout": 0.1, "intervals": 64}

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        hidden: int = 256,
        intervals: int = 256,
        scale: Literal["past", "window", "seconds"] = "past",
        dropout: float = 0.2,
        norm_eps: float = 1e-12,
        init_std: float = 0.02,
    ):
        """`intervals` is k, the largest scaled gap that is told apart."""
        super().__init__()
        if dim % heads:
            raise ZooError(f"tisasrec: dim {dim} is no multiple of heads {heads}; change one of them")
        self.intervals, self.scale, self.causal = intervals, scale, scale != "window"
        self.item = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.place_k, self.place_v = nn.Embedding(max_len, dim), nn.Embedding(max_len, dim)
        self.gap_k, self.gap_v = nn.Embedding(intervals + 1, dim), nn.Embedding(intervals + 1, dim)
        self.layers = nn.ModuleList(_Layer(dim, heads, hidden, dropout, norm_eps) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.reset(init_std)

    def gaps(self, times: Tensor, length: Tensor) -> Tensor:
        """Interval numbers (B, L, L) of times (B, L) int64, 0 where a step is padding."""
        real = torch.arange(times.shape[1], device=times.device) < length[:, None]
        if self.scale == "seconds":
            rounded = times.to(torch.float32)
            apart = (rounded[:, :, None] - rounded[:, None]).abs().long().clamp(max=min(CLIP_SECONDS, self.intervals))
        else:
            step = (times[:, 1:] - times[:, :-1]).abs()
            large = torch.iinfo(torch.int64).max
            step = torch.where((step > 0) & real[:, 1:], step, large)
            step = torch.cat([torch.full_like(times[:, :1], large), step], 1)
            seen = torch.ones(2 * times.shape[1:], dtype=torch.bool, device=times.device).tril()
            so_far = torch.where(seen | (self.scale == "window"), step[:, None], large).amin(2)
            smallest = torch.minimum(so_far[:, :, None], so_far[:, None])  # it never rises: that of the later event
            smallest = torch.where(smallest == large, 1, smallest)
            apart = ((times[:, :, None] - times[:, None]).abs() // smallest).clamp(max=self.intervals)
        return torch.where(real[:, :, None] & real[:, None], apart, 0)

    def forward_features(self, items: Tensor, times: Tensor, length: Tensor) -> Tensor:
        """Items and times (B, L) int64 padded with 0 at the right, length (B,); returns (B, L, dim)."""
        place, gaps = torch.arange(items.shape[1], device=items.device), self.gaps(times, length)
        x = self.dropout(self.item(items))
        keys = self.dropout(self.place_k(place)), self.dropout(self.gap_k(gaps))
        values = self.dropout(self.place_v(place)), self.dropout(self.gap_v(gaps))
        for layer in self.layers:
            x = layer(x, keys, values)
        return self.norm(x)


class _Layer(nn.Module):
    """Attention on normed queries and FFN, with residuals, as the paper's (pre-norm)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, eps: float):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(dim, 3 * dim)
        self.feedforward = FeedForward(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.dropout(self._attend(self.norm1(x), keys, values))
        return x + self.dropout(self.feedforward(self.norm2(x)))

    def _attend(self, x: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1))

        q, k, v = (split(tensor) for tensor in self.qkv(x).chunk(3, dim=-1))
        k, v = k + split(keys[0]), v + split(values[0])
        scores = torch.einsum("bihd,bjhd->bhij", q, k) + torch.einsum("bihd,bijhd->bhij", q, split(keys[1]))
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        weight = (scores / q.shape[-1] ** 0.5).masked_fill(~causal, -torch.inf).softmax(-1)
        weight = self.dropout(weight)
        y = torch.einsum("bhij,bjhd->bihd", weight, v) + torch.einsum("bhij,bijhd->bihd", weight, split(values[1]))
        return y.flatten(2)
