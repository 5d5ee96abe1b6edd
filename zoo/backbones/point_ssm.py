"""Point SSM: state-space networks for medical point clouds (MedPointS, MICCAI 2025, arXiv:2504.13015).

    f_0 = W x,  p_0 = W' x for points x (B, N, 3)
    level l: centres by farthest point sampling from point 0; for each scale the k nearest of f_{l-1} (in feature
    space), tokens [p_j - p_i | f_j] in order of distance, two local blocks, maximum over the neighbourhood; scales side
    by side; two blocks along the scan orders; channel attention: f_l
    code: all f_l at the last centres, two pointwise layers, [max | mean] over points, dense layers

A class per task: a linear head on the code; a decoder that carries features back level by level (three nearest,
inverse distances) with local blocks over all points; two foldings of a grid, conditioned on the class of the cloud
(FoldingNet, Yang et al., 2018, arXiv:1712.07262). Farthest point sampling and orders depend on coordinates alone.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument, unknown
from ..geometry import farthest_points
from ..geometry.neighbours import ball, gather, interpolate, knn
from ..orders import by_coordinate, grid_coordinates, hilbert, inside_out, reverse
from ._point_layers import Along, ChannelAttention, Local, Pair, Pointwise
from .base import Model

ORDERS = ("x", "y", "z", "inside_out", "hilbert")
CURVE_DEPTH = 5  # 32 bins an axis, as published
SIZES = {  # centres of the levels per task, as published
    "classification": (1024, 512, 256, 128, 64),
    "dense": (2048, 1024, 512, 256, 128),
}


class PointEncoder(nn.Module):
    """The hierarchy: features of every level, and the code of the cloud."""

    def __init__(
        self,
        *,
        project: int,
        sizes: tuple[int, ...],
        widths: tuple[int, ...],
        dense: tuple[int, ...],
        k: int,
        scales: int,
        d_state: int,
        query: str,
        radii: tuple[float, ...],
        orders: tuple[str, ...],
        flips: bool,
        concat_levels: bool,
        channel_attention: bool,
        condition: int | None = None,
    ):
        super().__init__()
        if len(sizes) != len(widths) or (query == "ball" and len(radii) != len(sizes)):
            raise BadArgument(
                f"point_ssm: expected a width (and for balls a radius) per level, got {len(sizes)} sizes, "
                f"{len(widths)} widths, {len(radii)} radii"
            )
        for name in orders:
            if name not in ORDERS:
                raise unknown("scan order", name, ORDERS, where="point_ssm")
        self.sizes, self.query, self.radii = tuple(sizes), query, tuple(radii)
        self.orders, self.flips = tuple(orders), flips
        self.ks = [k // 2 ** (scales - 1 - n) for n in range(scales)]
        paths = len(orders) * (1 + flips)
        self.embed, self.place = nn.Linear(3, project), nn.Linear(3, project)
        self.local, self.along, self.attention = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = project
        for width in widths:
            self.local.append(
                nn.ModuleList(
                    Pair(Local, project + before, out, d_state, condition) for out in scale_widths(width, scales)
                )
            )
            self.along.append(nn.ModuleList(Along(width, paths, d_state, condition) for _ in range(2)))
            self.attention.append(ChannelAttention() if channel_attention else nn.Identity())
            before = width
        self.fuse = Pair(Pointwise, project + sum(widths), widths[-1], condition) if concat_levels else None
        ends = (2 * widths[-1], *dense)
        self.dense = nn.ModuleList(Pointwise(a, b, condition) for a, b in zip(ends, ends[1:], strict=False))

    def forward(self, points: Tensor, c: Tensor | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Points (B, N, 3) to the code (B, dense[-1]), features (B, N_l, C_l) and points of all levels, 0 first."""
        features, places, clouds = [self.embed(points)], self.place(points), [points]
        with torch.no_grad():
            centres = farthest_points(points, self.sizes[0])
        for level, size in enumerate(self.sizes):
            # the points of a level are in the order they were picked in: those of the next are the first of them
            index = centres if level == 0 else torch.arange(size, device=points.device).expand(len(points), -1)
            cloud, f, p = clouds[-1], features[-1], places
            clouds.append(gather(cloud, index))
            places = gather(p, index)
            near = self.neighbours(level, index, cloud, f)
            found = []
            for k, blocks in zip(self.ks, self.local[level], strict=True):
                tokens = torch.cat([gather(p, near[k]) - places[:, :, None], gather(f, near[k])], -1)
                spread = None if c is None else c.repeat_interleave(size, 0)
                found.append(blocks(tokens.flatten(0, 1), spread).amax(1).unflatten(0, (len(points), -1)))
            f, (order, inverse) = torch.cat(found, -1), self.paths(clouds[-1])
            for block in self.along[level]:
                f = block(f, order, inverse, c)
            features.append(self.attention[level](f))
        last, count = features[-1], self.sizes[-1]
        if self.fuse is not None:
            firsts = [gather(features[0], centres[:, :count]), *(f[:, :count] for f in features[1:])]
            last = self.fuse(torch.cat(firsts, -1), c)
        code = torch.cat([last.amax(1), last.mean(1)], -1)
        for layer in self.dense:
            code = layer(code, c)
        return code, features, clouds

    @torch.no_grad()
    def neighbours(self, level: int, index: Tensor, cloud: Tensor, features: Tensor) -> dict[int, Tensor]:
        """For each k the neighbours (B, N_l, k) of the centres `index`, nearest first."""
        if self.query == "ball":
            scales = len(self.ks)
            return {
                k: ball(gather(cloud, index), cloud, self.radii[level] / 2 ** (scales - 1 - n), k)
                for n, k in enumerate(self.ks)
            }
        space = features if self.query == "feature" else cloud
        _, near = knn(gather(space, index), space, self.ks[-1])
        return {k: near[..., :k] for k in self.ks}

    @torch.no_grad()
    def paths(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Orders and inverses (B, K, N) of a level's points: all orders, then all of them reversed."""
        made = [_order(name, cloud) for name in self.orders]
        if self.flips:
            made += [reverse(path) for path in made]
        return tuple(torch.stack(parts, 1) for parts in zip(*made, strict=True))


def _order(name: str, cloud: Tensor) -> tuple[Tensor, Tensor]:
    if name == "inside_out":
        return inside_out(cloud)
    if name == "hilbert":
        low, high = cloud.amin(1, keepdim=True), cloud.amax(1, keepdim=True)
        cells = ((cloud - low) / (high - low).clamp(min=1e-12) * 2**CURVE_DEPTH).long().clamp(max=2**CURVE_DEPTH - 1)
        return hilbert(cells, CURVE_DEPTH)
    return by_coordinate(cloud, "xyz".index(name))


def scale_widths(width: int, scales: int) -> list[int]:
    """A level's width shared by its scales: the largest k gets half, the next a quarter, the smallest the rest."""
    shares = [width // 2**n for n in range(1, scales)]
    return [width - sum(shares), *reversed(shares)]
