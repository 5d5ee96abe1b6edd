"""Scan orders: in which order a sequence model visits the cells of a grid or the points of a cloud.

Every function returns an `Order(order, inverse)` of int64 tensors: for x (..., L), `y = x.take_along_dim(order, -1)` is
the sequence along the path (`x[order]` where x is 1-D) and `y.take_along_dim(inverse, -1)` is x again. Orders of a grid
are (L,), or (4, L) for four paths, with cell (r, c) at index r * width + c; orders of coordinates are (B, N). Sorts are
stable: equal keys keep the order of the input.

- Paths of an image: Liu et al., "VMamba", 2024, arXiv:2401.10166; Yang et al., "PlainMamba", 2024, arXiv:2403.17695.
- Space-filling curves: G. M. Morton, "A computer oriented geodetic data base", IBM, 1966 (Z-order); J. Skilling,
  "Programming the Hilbert curve", AIP Conf. Proc. 707, 381-387, 2004. Quantisation and the variants with swapped axes
  ("z-trans", "hilbert-trans"): Wu et al., "Point Transformer V3" (PTv3), 2024, arXiv:2312.10035.
- Sorted coordinates and inside-out: Point SSM (MedPointS), 2025, arXiv:2504.13015.

Clouds of unequal size are padded on the right and carry `lengths` (B,) int64: padded points stay at the end, in their
order, and what they hold is ignored. Mistakes raise ValueError; graphs of torch.compile and torch.export cannot read a
tensor, so there the values of coordinates and lengths are not checked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# (x | x << shift) & mask in turn puts d - 1 zeros between the bits of x; a step moves the bits from shift / (d - 1) up
_SPREAD = {
    2: ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333), (1, 0x5555555555555555)),
    3: ((32, 0x001F00000000FFFF), (16, 0x001F0000FF0000FF), (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)),
}  # fmt: skip
_Device = torch.device | str | None
MAX_DEPTH = {2: 31, 3: 20}  # most bits per axis, by number of axes: codes are int64


class Order(NamedTuple):
    """A permutation and its inverse, int64 (..., L) each: `order[t]` is the index visited at step t."""

    order: Tensor
    inverse: Tensor


def _wrong(argument: str, expected: str, got: object) -> ValueError:
    if isinstance(got, Tensor):
        got = f"{got.dtype} of shape {tuple(got.shape)}"
    return ValueError(f"{argument}: expected {expected}, got {got}")


def _check_count(argument: str, value: int, least: int, most: int | None = None) -> None:
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)  # SymInt: a size in torch.export
    if not whole or value < least or (most is not None and value > most):
        raise _wrong(argument, f"an integer from {least} " + (f"to {most}" if most is not None else "up"), repr(value))


def _padding(lengths: Tensor, batch: int, steps: int) -> Tensor:
    """(B, L) bool, True at the padded steps."""
    if tuple(lengths.shape) != (batch,) or lengths.dtype != torch.int64:
        raise _wrong("lengths", f"torch.int64 of shape ({batch},)", lengths)
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > steps)).any()):
        raise _wrong("lengths", f"values from 0 to {steps}", lengths.tolist())
    return torch.arange(steps, device=lengths.device) >= lengths[:, None]


def _cloud(argument: str, points: Tensor, lengths: Tensor | None, sizes: str = "d") -> tuple[Tensor, Tensor | None]:
    """Points (B, N, d) with padded ones set to 0, so that they tie in every key, and padding (B, N) or None."""
    if points.dim() != 3 or (sizes != "d" and points.shape[-1] not in MAX_DEPTH):
        raise _wrong(argument, f"shape (B, N, {sizes})", tuple(points.shape))
    if lengths is None:
        return points, None
    padding = _padding(lengths, points.shape[0], points.shape[1])
    return points.masked_fill(padding[..., None], 0), padding


def invert(order: Tensor) -> Tensor:
    """The inverse of permutations `order` (..., L) int64 along the last axis."""
    if order.dim() == 0 or order.dtype != torch.int64:
        raise _wrong("order", "torch.int64 of shape (..., L)", order)
    steps = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, steps)


def flip(length: int, lengths: Tensor | None = None, device: _Device = None) -> Order:
    """Last step first, (L,); with `lengths` (B,) only the valid prefix is reversed, the padded tail stays, (B, L)."""
    _check_count("length", length, 0)
    if lengths is None:
        order = torch.arange(length, device=device).flip(0)
        return Order(order, order)
    steps = torch.arange(length, device=lengths.device)
    order = torch.where(_padding(lengths, lengths.numel(), length), steps, lengths[:, None] - 1 - steps)
    return Order(order, order)


def reverse(path: Order, lengths: Tensor | None = None) -> Order:
    """The path backwards, (..., L); with `lengths` (B,) the padded steps, last on a path (B, L), stay last."""
    if lengths is None:
        return Order(path.order.flip(-1), path.order.shape[-1] - 1 - path.inverse)
    back = flip(path.order.shape[-1], lengths).order.expand_as(path.order)
    return Order(path.order.gather(-1, back), back.gather(-1, path.inverse))


def raster(height: int, width: int, *, transpose: bool = False, device: _Device = None) -> Order:
    """Row by row from the top-left, (L,), L = height * width; with `transpose` column by column."""
    _check_count("height", height, 1)
    _check_count("width", width, 1)
    cells = torch.arange(height * width, device=device)
    if transpose:
        return Order(cells.view(height, width).t().reshape(-1), cells.view(width, height).t().reshape(-1))
    return Order(cells, cells)


def _with_reverses(*paths: Order) -> Order:
    paths += tuple(reverse(path) for path in paths)
    return Order(torch.stack([path.order for path in paths]), torch.stack([path.inverse for path in paths]))


def cross_scan(height: int, width: int, device: _Device = None) -> Order:
    """The four paths of VMamba, (4, L): rows, columns, and these two backwards."""
    return _with_reverses(*(raster(height, width, transpose=t, device=device) for t in (False, True)))


def continuous_scan(height: int, width: int, device: _Device = None) -> Order:
    """The four paths of PlainMamba, (4, L): every step goes to a neighbouring cell.

    Row snake from the top-left (first row rightwards, second leftwards, ...), column snake from the top-left (first
    column downwards, second upwards, ...), and these two backwards.
    """
    cells = raster(height, width, device=device).order.view(height, width)
    paths = []
    for lines in (cells.clone(), cells.t().clone()):
        lines[1::2] = lines[1::2].flip(1)
        paths.append(Order(lines.reshape(-1), invert(lines.reshape(-1))))
    return _with_reverses(*paths)


def directions(order: Tensor, width: int) -> Tensor:
    """Direction codes of grid paths `order` (..., L), int64 (..., L): the move INTO the cell visited at each step.

    1 right, 2 left, 3 up, 4 down; 0 at the start and after a jump (as at the start of each row of a raster). A code is
    a row of PlainMamba's table of direction embeddings.
    """
    if order.dim() == 0 or order.dtype != torch.int64:
        raise _wrong("order", "torch.int64 of shape (..., L)", order)
    _check_count("width", width, 1)
    right, down = (order % width).diff(dim=-1), (order // width).diff(dim=-1)
    codes = torch.where(down == 0, (3 - right) // 2, (7 + down) // 2)  # right 1, -1: 1, 2; down -1, 1: 3, 4
    jump = right.abs() + down.abs() != 1
    return torch.cat([torch.zeros_like(order[..., :1]), codes.masked_fill(jump, 0)], -1)


def _axes(coords: Tensor, depth: int, transpose: bool) -> list[Tensor]:
    """The axes of checked coordinates, each (...); with `transpose` the first two are swapped."""
    whole = not (coords.is_floating_point() or coords.is_complex() or coords.dtype == torch.bool)
    if not whole or coords.dim() == 0 or coords.shape[-1] not in MAX_DEPTH:
        raise _wrong("coords", "integers of shape (..., 2) or (..., 3)", coords)
    _check_count("depth", depth, 1, MAX_DEPTH[coords.shape[-1]])
    if coords.numel() and not torch.compiler.is_compiling():
        low, high = torch.stack(coords.aminmax()).tolist()
        if low < 0 or high >= 1 << depth:
            raise _wrong("coords", f"values from 0 to {(1 << depth) - 1} (depth {depth})", low if low < 0 else high)
    x, y, *z = coords.unbind(-1)
    return [y, x, *z] if transpose else [x, y, *z]


def _interleave(axes: list[Tensor], depth: int) -> Tensor:
    """Morton codes of axes (...), int64 (...): at every level one bit of each axis, the first axis highest."""
    bits = torch.stack(axes).to(torch.int64)
    for shift, mask in _SPREAD[len(axes)]:
        if depth * (len(axes) - 1) > shift:
            bits = (bits << shift).bitwise_or_(bits).bitwise_and_(mask)
    code, *rest = bits.unbind()
    for axis in rest:
        code = (code << 1).bitwise_or_(axis)
    return code


def z_code(coords: Tensor, depth: int, *, transpose: bool = False) -> Tensor:
    """Z-order (Morton) codes of cells `coords` (..., d) of any integer dtype, int64 (...), in [0, 2^(d * depth)).

    d is 2 or 3 and 0 <= coords < 2^depth; `depth` is at most 31 (d = 2) or 20 (d = 3). Of the d bits of one level that
    of the first axis is the highest: (1, 0, 0) has code 4. With `transpose` the first two axes are swapped.
    """
    return _interleave(_axes(coords, depth, transpose), depth)


def hilbert_code(coords: Tensor, depth: int, *, transpose: bool = False) -> Tensor:
    """Hilbert codes: as `z_code`, but cells of consecutive codes are neighbours. They depend on `depth`.

    Skilling's transpose algorithm: from the highest bit 2^q down, each axis in turn inverts the lower bits of axis 0
    where its own bit q is set, and exchanges its lower bits with those of axis 0 where it is not. Branches are masks
    here. Then Gray decoding: his loops over axes and levels are one prefix XOR of the interleaved code.
    """
    # contiguous copies, changed in place below; 32 bits hold any depth and are twice as fast as 64
    axes = _axes(coords, depth, transpose)
    first, *others = [axis.to(torch.int32, copy=True, memory_format=torch.contiguous_format) for axis in axes]
    for q in range(depth - 1, 0, -1):
        lower = (1 << q) - 1
        first ^= (first >> q).bitwise_and_(1).neg_().bitwise_and_(lower)
        for axis in others:
            exchanged = (axis >> q).bitwise_and_(1).sub_(1).bitwise_and_(lower)  # all lower bits, or none
            differ = (first ^ axis).bitwise_and_(exchanged)
            axis ^= differ
            first ^= differ.bitwise_xor_(exchanged ^ lower)
    code = _interleave([first, *others], depth)
    for shift in (1, 2, 4, 8, 16, 32):
        code = (code >> shift).bitwise_xor_(code)
    return code


# octants of the curve below by 4 x + 2 y + z: their rank along it, and how the axes within look at theirs
_RANK = (0, 7, 3, 4, 1, 6, 2, 5)
_TURN = ((1, 2, 0), (1, 2, 0), (0, 1, 2), (0, 1, 2), (2, 0, 1), (2, 0, 1), (2, 0, 1), (2, 0, 1))  # which axis of ours
_BACK = ((0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 0, 0), (1, 0, 1))  # whether from its end


def hilbert_sort_code(coords: Tensor, depth: int) -> Tensor:
    """Codes of cells (..., 3) along another Hilbert curve, int64 (...): that of github.com/rz4/HilbertSort.

    Point SSM's released code sorts by it. From the highest bit down a cell lies in one of eight octants, which the
    curve visits in Gray order, and within which it is the whole curve once more, turned.
    """
    if coords.shape[-1:] != (3,):
        raise _wrong("coords", "integers of shape (..., 3)", coords)
    axes = torch.stack(_axes(coords, depth, False), -1).to(torch.int64)
    rank, turn, back = (torch.tensor(table, device=coords.device) for table in (_RANK, _TURN, _BACK))
    code = torch.zeros_like(axes[..., 0])
    for q in range(depth - 1, -1, -1):
        x, y, z = ((axes >> q) & 1).unbind(-1)
        octant = 4 * x + 2 * y + z
        code = 8 * code + rank[octant]
        axes = axes.gather(-1, turn[octant]) ^ (back[octant] * ((1 << q) - 1))
    return code


def _sort(key: Tensor, padding: Tensor | None = None) -> Order:
    """Stable ascending order of keys (..., N); padded points, which tie, come last."""
    order = key.argsort(dim=-1, stable=True)
    if padding is not None:
        # by a second sort, for no key of padding is above every real one (infinity, NaN)
        order = order.gather(-1, padding.to(torch.uint8).gather(-1, order).argsort(dim=-1, stable=True))
    return Order(order, invert(order))


def z_order(coords: Tensor, depth: int, *, transpose: bool = False, lengths: Tensor | None = None) -> Order:
    """Cells `coords` (B, N, d) along the Z-order curve, (B, N); arguments as in `z_code`."""
    coords, padding = _cloud("coords", coords, lengths, "2 or 3")
    return _sort(z_code(coords, depth, transpose=transpose), padding)


def hilbert(coords: Tensor, depth: int, *, transpose: bool = False, lengths: Tensor | None = None) -> Order:
    """Cells `coords` (B, N, d) along the Hilbert curve, (B, N); arguments as in `hilbert_code`."""
    coords, padding = _cloud("coords", coords, lengths, "2 or 3")
    return _sort(hilbert_code(coords, depth, transpose=transpose), padding)


def hilbert_sort(coords: Tensor, depth: int, *, lengths: Tensor | None = None) -> Order:
    """Cells `coords` (B, N, 3) along the curve of `hilbert_sort_code`, (B, N)."""
    coords, padding = _cloud("coords", coords, lengths, "3")
    return _sort(hilbert_sort_code(coords, depth), padding)


def grid_curve(height: int, width: int, curve: str, *, transpose: bool = False, device: _Device = None) -> Order:
    """All cells of a grid along the "z" or "hilbert" curve of axes (row, column), (L,).

    The grid is a corner of the smallest square whose side is a power of two. Cells outside it are skipped, so a Hilbert
    path may jump there.
    """
    codes = {"z": z_code, "hilbert": hilbert_code}
    if curve not in codes:
        raise _wrong("curve", "'z' or 'hilbert'", repr(curve))
    cells = raster(height, width, device=device).order
    coords = torch.stack([cells // width, cells % width], -1)
    depth = max(1, (max(height, width) - 1).bit_length())
    return _sort(codes[curve](coords, depth, transpose=transpose))


def grid_coordinates(
    points: Tensor, size: float | None = None, depth: int | None = None, *, lengths: Tensor | None = None
) -> tuple[Tensor, int]:
    """Cells of points (B, N, d), counted from each cloud's minimum: (int64 (B, N, d), depth); padding gets cell 0.

    With `size`, the edge of a cell in the unit of the points, cells are trunc((points - minimum) / size) and the depth
    is bit_length(max + 1) over the batch, as in PTv3. Hilbert orders depend on the depth, so pass `depth` too, which is
    returned, where they must not depend on the batch. With `depth` alone a cloud's longest side has 2^depth cells.
    """
    points, padding = _cloud("points", points, lengths, "2 or 3")
    if not (depth is not None if size is None else 0 < size < float("inf")):
        raise _wrong("size", "a positive number, or None beside a depth", repr(size))
    most = MAX_DEPTH[points.shape[-1]]
    if depth is not None:
        _check_count("depth", depth, 1, most)
    offset = points.to(torch.promote_types(points.dtype, torch.float32))
    if padding is None:
        offset = offset - offset.amin(1, keepdim=True)
    else:
        low = offset.masked_fill(padding[..., None], torch.inf).amin(1, keepdim=True)
        offset = (offset - low).masked_fill(padding[..., None], 0)
    if not torch.compiler.is_compiling() and not bool(offset.isfinite().all()):
        raise _wrong("points", "finite values", "NaN or infinity")
    if size is None:
        extent = offset.amax((1, 2), keepdim=True)
        cells = offset / extent.masked_fill(extent == 0, 1) * (1 << depth)
        return cells.to(torch.int64).clamp(max=(1 << depth) - 1), depth
    # clamped as floats: one beyond int64 would become an arbitrary integer
    cells = torch.div(offset, size, rounding_mode="trunc").clamp(max=1 << most).to(torch.int64)
    if depth is None:
        depth = (int(cells.amax()) + 1).bit_length()
        if depth > most:
            raise _wrong("size", f"a cell so large that depth {most} holds the cloud", repr(size))
    return cells, depth


def by_coordinate(points: Tensor, axis: int, *, lengths: Tensor | None = None) -> Order:
    """Points (B, N, d) by one coordinate, ascending, (B, N); NaN comes last among the real points."""
    points, padding = _cloud("points", points, lengths)
    _check_count("axis", axis, 0, points.shape[-1] - 1)
    return _sort(points[..., axis], padding)


def inside_out(points: Tensor, *, lengths: Tensor | None = None) -> Order:
    """Points (B, N, d) by their distance to the cloud's mean, ascending, (B, N).

    Mean and distance are taken in float64 and compared in the precision of the points (at least float32): with sums
    of another rounding, points at equal distance would change places with the batch or the padding around a cloud.
    """
    points, padding = _cloud("points", points, lengths)
    dtype = torch.promote_types(points.dtype, torch.float32)
    points = points.to(torch.float32 if points.device.type == "mps" else torch.float64)  # MPS has no float64
    count = points.shape[1] if lengths is None else lengths[:, None, None]
    distance = torch.linalg.vector_norm(points - points.sum(1, keepdim=True) / count, dim=-1)
    return _sort(distance.to(dtype), padding)
