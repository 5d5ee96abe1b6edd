"""PointNet++ with single-scale grouping (Qi et al., NeurIPS 2017, arXiv:1706.02413), on PyG's PointNetConv.

A level takes centres by farthest point sampling, and for each the maximum of mlp([f_j | x_j - x_i]) over the points of
a ball (the first found; fewer than k repeat them). The last level is one PointNet over all centres.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...geometry.fps import farthest_points
from ...geometry.neighbours import ball, gather
from ._points import Headed, dense


class PointNet2(Headed):
    """PointNet++: a class for each cloud by PointNets over nested balls."""

    serves = ("classification",)
    configs = {"pointnet2": {}}
    tiny = {"sizes": (64, 16), "widths": (16, 32, 64), "k": 8, "dropout": 0.0}

    def __init__(
        self,
        num_outputs: int,
        *,
        sizes: tuple[int, ...] = (512, 128),
        radii: tuple[float, ...] = (0.2, 0.4),
        widths: tuple[int, ...] = (128, 256, 1024),
        k: int = 64,
        dropout: float = 0.4,
    ):
        """`sizes` and `radii` of the levels, `widths` of the levels and of the cloud."""
        super().__init__()
        from torch_geometric.nn import PointNetConv

        self.sizes, self.radii, self.k = tuple(sizes), tuple(radii), k
        self.levels, before = nn.ModuleList(), 0
        for width in widths[:-1]:
            mlp = dense(before + 3, width // 2, width // 2, width)
            self.levels.append(PointNetConv(mlp, add_self_loops=False))
            before = width
        c = widths[-1]
        self.cloud = dense(before + 3, before, c // 2, c)
        self.dense = dense(c, c // 2, c // 4, dropout=dropout)
        self.width = c // 4
        self.reset_head(num_outputs)

    def forward_features(self, points: Tensor) -> Tensor:
        """Points (B, N, 3) to (B, widths[-1] / 4)."""
        batch, features = points.shape[0], None
        for conv, size, radius in zip(self.levels, self.sizes, self.radii, strict=True):
            with torch.no_grad():
                centres = gather(points, farthest_points(points, size))
                near = ball(centres, points, radius, self.k)
                cloud = torch.arange(batch, device=points.device)
                source = (near + cloud[:, None, None] * points.shape[1]).flatten()
                target = torch.arange(batch * size, device=points.device).repeat_interleave(self.k)
            x = None if features is None else (features.flatten(0, 1), None)
            made = conv(x, (points.flatten(0, 1), centres.flatten(0, 1)), torch.stack([source, target]))
            points, features = centres, made.unflatten(0, (batch, size))
        x = torch.cat([features, points], -1)
        return self.dense(self.cloud(x.flatten(0, 1)).unflatten(0, (batch, -1)).amax(1))
