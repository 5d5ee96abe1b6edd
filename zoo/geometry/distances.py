"""Distances between point clouds.

With d(x, Y) the Euclidean distance of a point to the nearest of a cloud:

    CD-L1 = (mean_x d(x, Y) + mean_y d(y, X)) / 2                        CD-L2 = mean_x d(x, Y)^2 + mean_y d(y, X)^2
    DCD(X, Y) = (1 - mean_y w_y exp(-alpha d(y, X)^2) + 1 - mean_x w_x exp(-alpha d(x, Y)^2)) / 2
    EMD = min over bijections f of mean_x |x - f(x)|

CD as in PCN (Yuan et al., 2018, arXiv:1808.00671). DCD is Wu et al., 2021, arXiv:2111.12702, with weights
w_y = |Y| / |X| / n^lambda for a point whose nearest is that of n points of its cloud, and w_x likewise: many points on
one do not count in full. For clouds of unequal size, as in the authors' loss of Point SSM, it need not be positive.

Which point is the nearest carries no gradient; only the N + M distances to those are taken with one. All pairs with a
gradient would be a matrix to keep for each, and torch's cdist is slow for three coordinates on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import BadArgument
from ._search import closest, distances, rows


def chamfer(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """CD-L1 and CD-L2 (B,) each of clouds (B, N, 3) and (B, M, 3)."""
    (there, _), (back, _) = _nearest(one, other), _nearest(other, one)
    return (there.mean(1) + back.mean(1)) / 2, there.square().mean(1) + back.square().mean(1)


def density_aware_chamfer(one: Tensor, other: Tensor, *, alpha: float = 40.0, power: float = 0.5) -> Tensor:
    """DCD (B,) of clouds (B, N, 3) and (B, M, 3); `power` is lambda. Counts carry no gradient."""
    return (_one_way(one, other, alpha, power) + _one_way(other, one, alpha, power)) / 2


def _one_way(one: Tensor, other: Tensor, alpha: float, power: float) -> Tensor:
    """1 - mean w exp(-alpha d^2) over the points of `one`."""
    distance, index = _nearest(one, other)
    count = torch.zeros(other.shape[:2], dtype=distance.dtype, device=index.device)
    count.scatter_add_(1, index, torch.ones_like(distance))
    weight = count.gather(1, index).pow(-power) * (one.shape[1] / other.shape[1])
    return 1 - (weight * (-alpha * distance.square()).exp()).mean(1)


def _nearest(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point of `one` the distance (B, N) to the nearest of `other`, and its index."""
    with torch.no_grad():
        # what is not finite has no nearest: any will do for a distance that is not finite either
        searched = (cloud.nan_to_num(0, 0, 0) for cloud in (one, other))
        index = closest(*searched)
    # the norm, not a root of squares: its gradient is 0 at distance 0
    return torch.linalg.vector_norm(one - rows(other, index), dim=-1), index


def earth_mover(one: Tensor, other: Tensor) -> Tensor:
    """Exact EMD (B,) of clouds (B, N, 3) of one size, by assignment; no gradient, O(N^3): for a few hundred points."""
    from scipy.optimize import linear_sum_assignment

    if one.shape != other.shape:
        raise BadArgument(f"earth_mover: other: expected {tuple(one.shape)}, got {tuple(other.shape)}")
    with torch.no_grad():
        cost = distances(one.double(), other.double(), None).sqrt().cpu().numpy()
    means = [pairs[linear_sum_assignment(pairs)].mean() for pairs in cost]
    return torch.from_numpy(np.array(means)).to(one.device)
