"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864, eq. 15 and 34), in one or more dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadArgument
from ..ops.checks import expect


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate pairs (2i, 2i + 1) of x (B, L, H, d) by position * base^(-2i / d).

    `positions` (B, L), or (B, L, A) for A axes, each of which turns d / A of the channels; integers or floating.
    """
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        expect("rotate", "positions", positions, *x.shape[:2])
    else:
        expect("rotate", "positions", positions, *x.shape[:2], "A")
    if positions.is_complex() or positions.dtype == torch.bool:
        raise BadArgument(f"rotate: positions: expected integers or a floating dtype, got {positions.dtype}")
    if x.shape[-1] % (2 * (axes := positions.shape[2] if positions.ndim == 3 else 1)):
        raise BadArgument(f"rotate: x: expected a size in multiples of {2 * axes} for {axes} axes, got {x.shape[-1]}")
    positions = positions[..., None] if positions.ndim == 2 else positions
    wide = torch.promote_types(x.dtype, torch.float32)
    # at step 4,000 an angle in float32 is wrong by 1e-4; mps has no wider type
    exact, size = torch.float32 if x.device.type == "mps" else torch.float64, x.shape[-1] // axes
    frequency = base ** (-torch.arange(0, size, 2, dtype=exact, device=x.device) / size)
    angle = (positions.to(exact)[..., None] * frequency).flatten(-2)[:, :, None]  # (B, L, 1, d / 2)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)
