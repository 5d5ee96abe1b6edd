"""Neighbours in a cloud: the k nearest (`knn`), those in a ball (`ball`), interpolation from them (`interpolate`).

Ball query and interpolation by inverse distances are those of PointNet++ (Qi et al., 2017, arXiv:1706.02413, sections
3.3 and 3.4). Clouds are padded: points (B, N, D) with `lengths` (B,), queries (B, M, D) with `query_lengths`; what is
stored behind a length is ignored. Neighbours of padded queries are some points of their cloud.

Distances are squared sums of differences, in float32 (float64 where an input is), never |q|^2 - 2 q'p + |p|^2: a
point is at distance exactly 0 from itself and from its duplicates. Equal distances are in the order of indices.

No distance or index carries a gradient. Where a distance should, take it from the neighbours themselves:
`(query[:, :, None] - gather(points, index)).square().sum(-1)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadArgument
from ..ops.checks import expect, expect_integers
from ._search import chunks, distances, nearest, rows
from .checks import checked, expect_enough, expect_whole, known


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The `k` nearest of `points` (B, N, D) to each `query` (B, M, D): (squared distances, int64 indices), (B, M, k).

    Ascending by squared L2 distance, of equal ones the lower index first; so the results for a smaller k are a prefix.
    On a CPU clouds of up to three axes are searched by a k-d tree, everything else by products in chunks of queries.
    A traced program (torch.compile, torch.export) does not search again where more than 8 points lie within rounding of
    the k-th distance. Raises BadArgument where a cloud has fewer than k points or a coordinate is not finite.
    """
    with torch.no_grad():
        query, points, lengths = _checked("knn", query, points, lengths, query_lengths)
        expect_whole("knn", "k", k)
        expect_enough("knn", "k", k, points.shape[1], lengths)
        return nearest(query, points, lengths, k)


def ball(
    query: Tensor,
    points: Tensor,
    radius: float,
    k: int,
    *,
    sorted: bool = False,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Indices (B, M, k) int64 of `points` (B, N, D) less than `radius` away from each `query` (B, M, D).

    The first k of them in the order of indices, or with `sorted` the k nearest in the order of distances. Where there
    are fewer, the first one found fills the row; where there is none, the nearest point does. k may exceed N. Raises
    BadArgument where a coordinate is not finite.
    """
    if not isinstance(radius, (int, float)) or not 0 < radius < math.inf:
        raise BadArgument(f"ball: radius: expected a positive number, got {radius!r}")
    with torch.no_grad():
        query, points, lengths = _checked("ball", query, points, lengths, query_lengths)
        expect_whole("ball", "k", k)
        most = min(k, points.shape[1])
        if sorted:
            distance, index = nearest(query, points, lengths, most)
            outside = distance >= radius * radius
            outside[..., 0] = False
            index = index.masked_fill(outside, -1)
        else:
            parts = [_first(part, points, lengths, radius * radius, most) for part in chunks(query, points)]
            index = torch.cat(parts, 1)
        index = torch.cat([index, index.new_full((*index.shape[:2], k - most), -1)], -1)
        return torch.where(index < 0, index[..., :1], index)


def _first(query: Tensor, points: Tensor, lengths: Tensor | None, limit: float, k: int) -> Tensor:
    """The first k indices below `limit`, -1 where there are no more; the nearest point where there is none."""
    size = points.shape[1]
    distance = distances(query, points, lengths)
    numbers = torch.arange(size, dtype=torch.int32, device=query.device)
    index = torch.where(distance < limit, numbers, size).topk(k, largest=False).values
    index = index.masked_fill(index == size, -1).to(torch.int64)
    index[..., 0] = torch.where(index[..., 0] < 0, distance.argmin(-1), index[..., 0])
    return index


def interpolate(
    values: Tensor,
    points: Tensor,
    query: Tensor,
    k: int = 3,
    *,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Values (B, M, C) at `query` (B, M, D) from `values` (B, N, C) at `points` (B, N, D): a mean of the `k` nearest.

    Weights are 1 / (d + 1e-8), d the Euclidean (not squared) distance, divided by their sum: at a point of the cloud
    its value all but alone counts. Differentiable in `values`, whose dtype the result has; weights carry no gradient.
    Errors as in `knn`.
    """
    expect("interpolate", "values", values, *points.shape[:2], "C")
    distance, index = knn(query, points, k, lengths=lengths, query_lengths=query_lengths)
    weight = 1 / (distance.sqrt() + 1e-8)
    weight = (weight / weight.sum(-1, keepdim=True)).to(values.dtype)
    return (gather(values, index) * weight[..., None]).sum(-2)


def gather(values: Tensor, index: Tensor) -> Tensor:
    """`values` (B, N, C) at `index` (B, ...) of whole numbers from 0 to N - 1: (B, ..., C), differentiable in `values`.

    The backward pass on a CPU adds in a fixed order, which that of `values[index]` does not. That indices are in range
    is looked at on a CPU alone: elsewhere it would wait for the device.
    """
    expect("gather", "values", values, "B", "N", "C")
    expect_integers("gather", "index", index)
    if index.ndim < 1 or index.shape[0] != values.shape[0]:
        raise BadArgument(f"gather: index: expected ({values.shape[0]}, ...), got {tuple(index.shape)}")
    if index.device.type == "cpu" and known(index) and index.numel():
        low, high = (int(end) for end in index.aminmax())
        if low < 0 or high >= values.shape[1]:
            raise BadArgument(
                f"gather: index: expected 0 to {values.shape[1] - 1}, got {low if low < 0 else high}; index into the "
                f"cloud that `values` belongs to"
            )
    return rows(values, index)


def _checked(where, query, points, lengths, query_lengths):
    points, lengths = checked(where, "points", points, lengths, "D")
    query, _ = checked(where, "query", query, query_lengths, points.shape[2], "query_lengths")
    if query.shape[0] != points.shape[0]:
        raise BadArgument(f"{where}: query: expected the {points.shape[0]} clouds of points, got {query.shape[0]}")
    dtype = torch.promote_types(query.dtype, points.dtype)
    return query.to(dtype), points.to(dtype), lengths
