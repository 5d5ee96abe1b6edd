"""Point Transformer (Zhao et al., ICCV 2021, arXiv:2012.09164): vector attention among the nearest neighbours.

    y_i = sum_j softmax_j(gamma(q_i - k_j + d_ij)) * (v_j + d_ij),  d_ij = theta(x_i - x_j),  j over the k nearest of i

Levels begin with fewer centres, the maximum of a shared layer over the k nearest points of the level before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...geometry.fps import farthest_points
from ...geometry.neighbours import gather, knn
from ._points import Headed


class _Attention(nn.Module):
    """x + W_out(attention(W_in x)), each with batch norm and ReLU as the paper's block."""

    def __init__(self, dim: int):
        super().__init__()
        self.enter, self.leave = _Layer(dim, dim), nn.Linear(dim, dim, bias=False)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.place = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, dim))
        self.weigh = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm, self.out = nn.BatchNorm1d(dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, points: Tensor, near: Tensor) -> Tensor:
        """Features (B, N, dim), points (B, N, 3), neighbours (B, N, k)."""
        h = self.enter(x)
        place = self.place(points[:, :, None] - gather(points, near))
        weight = self.weigh(self.q(h)[:, :, None] - gather(self.k(h), near) + place).softmax(2)
        h = (weight * (gather(self.v(h), near) + place)).sum(2)
        h = torch.relu(_normed(self.norm, h))
        return torch.relu(x + _normed(self.out, self.leave(h)))


class _Layer(nn.Module):
    """Linear, batch norm, ReLU for every point."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., dim) to (..., out)."""
        return torch.relu(_normed(self.norm, self.linear(x)))


def _normed(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return norm(x.flatten(0, -2)).view_as(x)


class PointTransformer(Headed):
    """Point Transformer: a class for each cloud by vector attention among neighbours."""

    serves = ("classification",)
    configs = {"point_transformer": {}}
    tiny = {"widths": (16, 32), "shrink": 4, "k": 8}

    def __init__(
        self,
        num_outputs: int,
        *,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        shrink: int = 4,
        k: int = 16,
        dropout: float = 0.5,
    ):
        """`widths` of the levels, each with 1 / `shrink` of the points before it, the first with all."""
        super().__init__()
        self.shrink, self.k = shrink, k
        self.embed = _Layer(3, widths[0])
        self.down = nn.ModuleList(_Layer(a + 3, b) for a, b in zip(widths, widths[1:], strict=False))
        self.blocks = nn.ModuleList(_Attention(width) for width in widths)
        c = widths[-1]
        self.dense = nn.Sequential(
            nn.Linear(c, c // 2), nn.ReLU(), nn.Dropout(dropout), nn.Linear(c // 2, c // 4), nn.ReLU()
        )
        self.width = c // 4
        self.reset_head(num_outputs)

    def forward_features(self, points: Tensor) -> Tensor:
        """Points (B, N, 3) to (B, widths[-1] / 4)."""
        x = self.embed(points)
        x = self.blocks[0](x, points, self._near(points, points))
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            with torch.no_grad():
                centres = gather(points, farthest_points(points, max(1, points.shape[1] // self.shrink)))
            near = self._near(centres, points)
            edges = torch.cat([gather(points, near) - centres[:, :, None], gather(x, near)], -1)
            x, points = down(edges).amax(2), centres
            x = block(x, points, self._near(points, points))
        return self.dense(x.mean(1))

    @torch.no_grad()
    def _near(self, query: Tensor, points: Tensor) -> Tensor:
        return knn(query, points, min(self.k, points.shape[1]))[1]
