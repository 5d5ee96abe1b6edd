"""The mixer that mixes nothing: y = x. What ablations and layer-importance scores put in place of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.checks import expect_segments
from .base import Matrix, Mixer, Out, SeqContext, State


class Parts(NamedTuple):
    """Nothing is needed."""


class Identity(Mixer):
    """Every step to itself."""

    observed = ("out",)

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """No state."""
        return {}

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """X itself."""
        expect_segments("Identity", ctx.segments, *x.shape[:2])
        return Out(self.observe["out"](x), {} if "state" in want else None)

    def materialize(self, x: Tensor, ctx: SeqContext | None = None) -> Matrix:
        """The unit matrix."""
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return Matrix(eye.expand(x.shape[0], self.dim, -1, -1), x[..., None], Parts())

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, D, 1) as they are."""
        return mixed.squeeze(-1)
