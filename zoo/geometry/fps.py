"""Farthest point sampling (FPS): every pick is the point farthest from all picks before it.

Eldar et al., "The farthest point strategy for progressive image sampling", 1997; as in PointNet++ (Qi et al., 2017,
arXiv:1706.02413) the first pick is point 0. The rule is exact, so that every device and backend picks the same points:

- squared distances are float32, dx * dx + dy * dy + dz * dz in this order, each operation rounded (never fused);
- a point's distance is the least to any pick; the next pick has the largest, and of several the lowest index;
- where all distinct points are taken all distances are zero, and by the same rule index 0 is picked again and again.

`_reference` is the definition, plain torch for any device. On a CPU with a C++ compiler `_fps_cpp` serves, on CUDA
`_fps_triton`; neither changes a pick.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .checks import checked, expect_enough, expect_finite, expect_whole, padding

NAME = "farthest_points"


def farthest_points(xyz: Tensor, count: int, lengths: Tensor | None = None) -> Tensor:
    """Indices (B, count) int64 of `count` points of each cloud `xyz` (B, N, 3), of any floating dtype, point 0 first.

    With `lengths` (B,) the points of cloud b are the first `lengths[b]`; what is stored behind them is ignored. The
    picks nest: those of a smaller `count` are a prefix. Coordinates are compared in float32, whatever their dtype, and
    indices carry no gradient. NaN, infinity and a `count` above a cloud's points raise BadArgument.
    """
    with torch.no_grad():
        xyz, lengths = checked(NAME, "xyz", xyz, lengths)
        expect_whole(NAME, "count", count)
        expect_enough(NAME, "count", count, xyz.shape[1], lengths)
        if xyz.dtype != torch.float32:
            xyz = xyz.to(torch.float32)
            expect_finite(NAME, "xyz (as float32)", xyz)
        if lengths is None:
            lengths = torch.full((xyz.shape[0],), xyz.shape[1], device=xyz.device)
        if torch.compiler.is_exporting():
            return _reference(xyz, lengths, count)  # an exported program loads without statezoo
        return (_op if torch.compiler.is_compiling() else _serve)(xyz, lengths, count)


def _reference(xyz: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The definition, for all clouds at once; `argmax` gives the first of equal maxima."""
    x, y, z = (axis.contiguous() for axis in xyz.unbind(-1))
    distance = torch.full_like(x, torch.inf).masked_fill(padding(lengths, x.shape[1]), -1)
    pick = lengths.new_zeros(lengths.shape[0], 1)
    picks = [pick]
    for _ in range(count - 1):
        dx, dy, dz = (axis - axis.gather(1, pick) for axis in (x, y, z))
        distance = torch.minimum(distance, dx * dx + dy * dy + dz * dz)
        pick = distance.argmax(1, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, 1)


def _serve(xyz: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The fastest of the kernels that this machine has."""
    if xyz.is_cuda and find_spec("triton"):
        from ._fps_triton import run

        with torch.cuda.device(xyz.device):
            return run(xyz, lengths, count)
    kernel = _cpp() if xyz.device.type == "cpu" else None
    return (kernel or _reference)(xyz, lengths, count)


@cache
def _cpp():
    """The compiled kernel, or None where it cannot be built: told once, for the loop is some fifty times slower."""
    from .. import native
    from . import _fps_cpp

    try:
        return _fps_cpp.build()
    except native.Unavailable as reason:
        warnings.warn(f"farthest_points: {reason}; a slow loop serves, with the same picks", stacklevel=4)
        return None


@torch.library.custom_op("statezoo::farthest_points", mutates_args=())
def _op(xyz: Tensor, lengths: Tensor, count: int) -> Tensor:
    """One node in graphs of torch.compile, for the loop over picks has thousands."""
    return _serve(xyz, lengths, count)


@_op.register_fake
def _(xyz, lengths, count):
    return lengths.new_empty(xyz.shape[0], count)
