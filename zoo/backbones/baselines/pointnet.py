"""PointNet (Qi et al., CVPR 2017, arXiv:1612.00593): the same perceptron for every point, and their maximum.

    T = transform(x);  f_i = mlp(x_i T);  [F = transform(f)];  g = max_i mlp(f_i F)

A transform is a small PointNet of its own that predicts a matrix, started at the identity. Classification reads g;
segmentation reads [f_i F | g] point by point. Features of points stand beside x_i T, as normals do in the authors' code
for ModelNet. The paper's penalty on F F' - I is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._points import Headed, dense, shared


class _Transform(nn.Module):
    """A matrix (B, C, C) from points (B, C, N)."""

    def __init__(self, size: int, widths: tuple[int, int, int]):
        super().__init__()
        self.size, (a, b, c) = size, widths
        self.points, self.vector = shared(size, a, b, c), dense(c, c // 2, c // 4)
        self.matrix = nn.Linear(c // 4, size * size)
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        found = self.matrix(self.vector(self.points(x).amax(2))).unflatten(1, (self.size, self.size))
        return found + torch.eye(self.size, dtype=x.dtype, device=x.device)


class _Body(nn.Module):
    """Features of every point (B, w1, N) and of the cloud (B, w2)."""

    def __init__(self, num_features: int, widths: tuple[int, int, int], transforms: bool):
        super().__init__()
        a, b, c = widths
        self.input = _Transform(3, (a, b, c)) if transforms else None
        self.feature = _Transform(a, (a, b, c)) if transforms else None
        self.first, self.second = shared(3 + num_features, a, a), shared(a, a, b, c)

    def forward(self, points: Tensor, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x = points.transpose(1, 2)
        x = x if self.input is None else self.input(x).transpose(1, 2) @ x
        x = torch.cat([x, *(each.transpose(1, 2) for each in features)], 1)
        f = self.first(x)
        f = f if self.feature is None else self.feature(f).transpose(1, 2) @ f
        return f, self.second(f).amax(2)


class _Featured(Headed):
    """What both models have: features of points (B, N, num_features) may come with the points."""

    optional = ("features",)
    given = ("num_outputs", "num_features")

    def __init__(self, num_features: int, widths: tuple[int, int, int], transforms: bool):
        super().__init__()
        self.body = _Body(num_features, widths, transforms)
        if num_features:
            self.inputs = (*self.inputs, "features")


class PointNet(_Featured):
    """PointNet: a class for each cloud."""

    serves = ("classification",)
    configs = {"pointnet": {}}
    tiny = {"widths": (32, 64, 128), "dropout": 0.0, "transforms": False}

    def __init__(
        self,
        num_outputs: int,
        num_features: int = 0,
        *,
        widths: tuple[int, int, int] = (64, 128, 1024),
        transforms: bool = True,
        dropout: float = 0.3,
    ):
        """`widths` of the shared perceptrons, from points to the cloud; `transforms` of input and features."""
        super().__init__(num_features, widths, transforms)
        c = widths[-1]
        self.dense = dense(c, c // 2, c // 4, dropout=dropout)
        self.width = c // 4
        self.reset_head(num_outputs)

    def forward_features(self, points: Tensor, *features: Tensor) -> Tensor:
        """Points (B, N, 3) and, where there are any, their features to (B, widths[-1] / 4)."""
        return self.dense(self.body(points, features)[1])


class PointNetSegmenter(_Featured):
    """PointNet for segmentation: each point's features beside those of the cloud."""

    serves = ("segmentation",)
    configs = {"pointnet_seg": {}}
    tiny = {"widths": (32, 64, 128), "transforms": False}

    def __init__(
        self,
        num_outputs: int,
        num_features: int = 0,
        *,
        widths: tuple[int, int, int] = (64, 128, 1024),
        transforms: bool = True,
    ):
        """As `PointNet`."""
        super().__init__(num_features, widths, transforms)
        a, b, c = widths
        self.points = shared(a + c, c // 2, c // 4, b)
        self.width = b
        self.reset_head(num_outputs)

    def forward_features(self, points: Tensor, *features: Tensor) -> Tensor:
        """Points (B, N, 3) and, where there are any, their features to features (B, N, widths[1])."""
        f, g = self.body(points, features)
        return self.points(torch.cat([f, g[:, :, None].expand(-1, -1, f.shape[2])], 1)).transpose(1, 2)

    def pooled_features(self, points: Tensor, *features: Tensor) -> Tensor:
        """The maximum (B, widths[1]) over the points of what the head sees."""
        return self.forward_features(points, *features).amax(1)
