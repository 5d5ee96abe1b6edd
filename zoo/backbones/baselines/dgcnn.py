"""DGCNN (Wang et al., TOG 2019, arXiv:1801.07829): edge convolutions on a graph that follows the features.

    x_i <- max over the k nearest j of phi(W [x_j - x_i | x_i]),  nearest in the features of the layer

W is applied once to points and once to neighbours: W [x_j - x_i | x_i] = W_1 x_j + (W_2 - W_1) x_i, which needs no
tensor of edges times input width. Batch norm and a leaky ReLU follow; both are monotone per channel where the norm's
scale is positive, but not where it is negative, so that the maximum stays behind them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...geometry.neighbours import gather, knn
from ...nn.effective import affine
from ._points import Headed, dense

SLOPE = 0.2


class _EdgeConv(nn.Module):
    def __init__(self, dim: int, out: int, k: int):
        super().__init__()
        self.k, self.linear, self.norm = k, nn.Linear(2 * dim, out, bias=False), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Points (B, N, dim) to (B, N, out)."""
        with torch.no_grad():
            _, near = knn(x, x, self.k)
        weight, _ = affine(self.linear, x.new_empty(2 * x.shape[-1]))
        there, here = weight.chunk(2, 1)
        edges = gather(x @ there.T, near) + (x @ (here - there).T)[:, :, None]
        edges = F.leaky_relu(self.norm(edges.flatten(0, 2)).view_as(edges), SLOPE)
        return edges.amax(2)


class DGCNN(Headed):
    """DGCNN: a class for each cloud by edge convolutions."""

    serves = ("classification",)
    configs = {"dgcnn": {}}
    tiny = {"widths": (16, 32), "k": 8, "code": 64, "dropout": 0.0}

    def __init__(
        self,
        num_outputs: int,
        *,
        widths: tuple[int, ...] = (64, 64, 128, 256),
        k: int = 20,
        code: int = 1024,
        dropout: float = 0.5,
    ):
        """`widths` of the edge convolutions, `code` of the layer that sees all of them."""
        super().__init__()
        ends = (3, *widths)
        self.edges = nn.ModuleList(_EdgeConv(a, b, k) for a, b in zip(ends, ends[1:], strict=False))
        self.fuse, self.norm = nn.Linear(sum(widths), code, bias=False), nn.BatchNorm1d(code)
        self.dense = dense(2 * code, code // 2, code // 4, dropout=dropout)
        self.width = code // 4
        self.reset_head(num_outputs)

    def forward_features(self, points: Tensor) -> Tensor:
        """Points (B, N, 3) to (B, code / 4)."""
        found = [points]
        for edge in self.edges:
            found.append(edge(found[-1]))
        x = self.fuse(torch.cat(found[1:], -1))
        x = F.leaky_relu(self.norm(x.flatten(0, 1)).view_as(x), SLOPE)
        return self.dense(torch.cat([x.amax(1), x.mean(1)], -1))
