"""What every function here asks of a cloud: its shape, its lengths, finite coordinates; errors name cloud and point.

Values are looked at in eager mode alone: a traced program cannot branch on them, and the meta device has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadArgument
from ..ops.checks import expect, expect_integers


def known(tensor: Tensor) -> bool:
    """True where the values of `tensor` can be read."""
    return tensor.device.type != "meta" and not torch.compiler.is_compiling()


def expect_whole(where: str, name: str, value: int, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or value < least:
        raise BadArgument(f"{where}: {name}: expected a whole number from {least} up, got {value!r}")


def expect_lengths(where: str, name: str, lengths: Tensor, batch: int, most: int | None = None) -> Tensor:
    """`lengths` (B,) as int64; every cloud has a point and at most `most`."""
    expect(where, name, lengths, batch)
    expect_integers(where, name, lengths)
    if known(lengths):
        wrong = lengths < 1 if most is None else (lengths < 1) | (lengths > most)
        if bool(wrong.any()):
            cloud, upper = int(wrong.nonzero()[0]), "" if most is None else f" to {most}"
            raise BadArgument(
                f"{where}: {name}: expected 1{upper or ' or more'} points in every cloud, got {int(lengths[cloud])} in "
                f"cloud {cloud}; leave out clouds without points and state no more than are stored"
            )
    return lengths.to(torch.int64)


def padding(lengths: Tensor, size: int) -> Tensor:
    """(B, N) bool, True at the points behind each cloud's length."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]


def checked(
    where: str, name: str, points: Tensor, lengths: Tensor | None, width: int | str = 3, lengths_name: str = "lengths"
) -> tuple[Tensor, Tensor | None]:
    """Points (B, N, `width`) in float32 or float64, zero where padded, and int64 lengths (B,) or None."""
    expect(where, name, points, "B", "N", width)
    if not points.is_floating_point():
        raise BadArgument(f"{where}: {name}: expected a floating dtype, got {points.dtype}; convert with .float()")
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    if lengths is not None:
        lengths = expect_lengths(where, lengths_name, lengths, points.shape[0], points.shape[1]).to(points.device)
        points = points.masked_fill(padding(lengths, points.shape[1])[..., None], 0)
    expect_finite(where, name, points)
    return points, lengths


def expect_finite(where: str, name: str, points: Tensor) -> None:
    """Raise where a coordinate of `points` (B, N, D) is NaN or infinite."""
    if known(points) and not bool(points.isfinite().all()):
        cloud, point, axis = (~points.isfinite()).nonzero()[0].tolist()
        raise BadArgument(
            f"{where}: {name}: expected finite coordinates, got {float(points[cloud, point, axis])} in cloud {cloud}, "
            f"point {point}; remove or mend that point"
        )


def expect_enough(where: str, name: str, asked: int, size: int, lengths: Tensor | None) -> None:
    """Raise where `asked` points are more than a cloud has."""
    have, cloud = size, 0
    if lengths is not None and known(lengths):
        least, at = lengths.min(0)
        have, cloud = int(least), int(at)
    if asked > have:
        raise BadArgument(
            f"{where}: {name}: expected at most the {have} points of cloud {cloud}, got {asked}; ask for fewer or "
            f"give more points"
        )
