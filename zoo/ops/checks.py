"""Argument checks of ops and mixers: every error names the argument, what was expected and what came.

What depends on values (segments that rise, masks with a valid step) is looked at only where it is readable: a traced
program, or one within `torch.func.vmap`, cannot branch on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadArgument


def expect(where: str, name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise unless `tensor` has this shape; names stand for any size of at least 1."""
    if not isinstance(tensor, Tensor):
        raise BadArgument(f"{where}: {name}: expected a tensor {_shown(shape)}, got {type(tensor).__name__}")
    fits = tensor.ndim == len(shape) and all(
        have == size if isinstance(size, int) else have >= 1 for size, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        why = "; no size may be 0" if 0 in tensor.shape else ""
        raise BadArgument(f"{where}: {name}: expected {_shown(shape)}, got {_shown(tuple(tensor.shape))}{why}")


def _shown(shape) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def expect_floating(where: str, name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` has a dtype in which scans work: float32, float64, bfloat16, and float16 on a GPU."""
    if not tensor.is_floating_point():
        raise BadArgument(f"{where}: {name}: expected a floating dtype, got {tensor.dtype}")
    if tensor.dtype == torch.float16 and tensor.device.type == "cpu":
        raise BadArgument(f"{where}: {name}: expected float32, bfloat16 or float64 on the CPU, got float16")


def expect_integers(where: str, name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` holds whole numbers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise BadArgument(f"{where}: {name}: expected integers, got {tensor.dtype}")


def expect_as(where: str, leading: str, like: Tensor, **tensors: Tensor | None) -> None:
    """Raise unless all `tensors` have the dtype of `like`: backends would promote or cast, each in its own way."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != like.dtype:
            raise BadArgument(f"{where}: {name}: expected {like.dtype} as {leading}, got {tensor.dtype}")


def expect_groups(where: str, groups: int, parts: int, of: str) -> None:
    """Raise unless the `groups` of B divide the `parts` (channels, heads)."""
    if parts % groups:
        raise BadArgument(f"{where}: B: expected a number of groups that divides {parts} {of}, got {groups} groups")


def expect_segments(where: str, segments: Tensor | None, batch: int, steps: int) -> Tensor | None:
    """`segments`, (B, L) of integers of any dtype that never fall along a row, as int64; raise unless they are that."""
    if segments is None:
        return None
    expect(where, "segments", segments, batch, steps)
    expect_integers(where, "segments", segments)
    numbers = segments.to(torch.int64)  # others wrap around, or cannot be compared
    if readable(numbers):
        falls = (numbers[:, 1:] < numbers[:, :-1]).any(1)
        if bool(falls.any()):
            row = int(falls.nonzero()[0])
            raise BadArgument(
                f"{where}: segments: expected numbers that never fall along a row, got a fall in row {row}"
            )
        if segments.dtype == torch.uint64 and bool((numbers < 0).any()):
            raise BadArgument(f"{where}: segments: expected numbers below 2^63, got larger ones in uint64")
    return numbers


def expect_lengths(where: str, lengths: Tensor | None, batch: int, steps: int) -> Tensor | None:
    """`lengths`, (B,) of integers of any dtype from 0 to `steps`, as int64; raise unless they are that."""
    if lengths is None:
        return None
    expect(where, "lengths", lengths, batch)
    expect_integers(where, "lengths", lengths)
    lengths = lengths.to(torch.int64)
    if readable(lengths) and bool(((lengths < 0) | (lengths > steps)).any()):
        raise BadArgument(f"{where}: lengths: expected 0 to {steps}, got {lengths.tolist()[:8]}")
    return lengths


def readable(tensor: Tensor) -> bool:
    """Whether a program can branch on values of `tensor`: not where it is traced, nor within `torch.func.vmap`."""
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return True


def same_segment(segments: Tensor) -> Tensor:
    """(B, L) bool: True where a step belongs to the segment of the step before (the first step: True)."""
    return torch.nn.functional.pad(segments[:, 1:] == segments[:, :-1], (1, 0), value=True)
