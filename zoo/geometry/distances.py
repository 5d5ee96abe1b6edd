"""Distances between point clouds.

With d(x, Y) the Euclidean distance of a point to the nearest of a cloud:

    CD-L1 = (mean_x d(x, Y) + mean_y d(y, X)) / 2                        CD-L2 = mean_x d(x, Y)^2 + mean_y d(y, X)^2
    DCD(X, Y) = (1 - mean_y w_y exp(-alpha d(y, X)^2) + 1 - mean_x w_x exp(-alpha d(x, Y)^2)) / 2
    EMD = min over bijections f of mean_x |x - f(x)|

CD as in PCN (Yuan et al., 2018, arXiv:1808.00671). DCD is Wu et al., 2021, arXiv:2111.12702, with weights
w_y = min(1, |Y| / |X|) / n^lambda for a point whose nearest is that of n points of its cloud, and w_x likewise: many
points on one do not count in full.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument


def chamfer(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """CD-L1 and CD-L2 (B,) each of clouds (B, N, 3) and (B, M, 3); O(N M) memory."""
    distance = _pairs(one, other)
    there, back = distance.amin(2), distance.amin(1)
    return (there.mean(1) + back.mean(1)) / 2, there.square().mean(1) + back.square().mean(1)


def density_aware_chamfer(one: Tensor, other: Tensor, *, alpha: float = 40.0, power: float = 0.5) -> Tensor:
    """DCD (B,) of clouds (B, N, 3) and (B, M, 3); `power` is lambda. Counts carry no gradient."""
    distance = _pairs(one, other)
    return (
        _one_way(*distance.min(2), other.shape[1], alpha, power)
        + _one_way(*distance.min(1), one.shape[1], alpha, power)
    ) / 2


def _one_way(nearest: Tensor, index: Tensor, size: int, alpha: float, power: float) -> Tensor:
    """1 - mean w exp(-alpha d^2) over the points (B, N) whose nearest of `size` others is `index`."""
    count = torch.zeros(len(index), size, dtype=nearest.dtype, device=index.device)
    count.scatter_add_(1, index, torch.ones_like(nearest))
    weight = count.gather(1, index).pow(-power) * min(1.0, index.shape[1] / size)
    return 1 - (weight * (-alpha * nearest.square()).exp()).mean(1)


def earth_mover(one: Tensor, other: Tensor) -> Tensor:
    """Exact EMD (B,) of clouds (B, N, 3) of one size, by assignment; no gradient, O(N^3): for a few hundred points."""
    from scipy.optimize import linear_sum_assignment

    if one.shape != other.shape:
        raise BadArgument(f"earth_mover: other: expected {tuple(one.shape)}, got {tuple(other.shape)}")
    with torch.no_grad():
        cost = _pairs(one.double(), other.double()).cpu().numpy()
    means = [pairs[linear_sum_assignment(pairs)].mean() for pairs in cost]
    return torch.from_numpy(np.array(means)).to(one.device)


def _pairs(one: Tensor, other: Tensor) -> Tensor:
    # the differences themselves: the expanded square loses half of the digits of small distances
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
