"""The mixer that mixes nothing: y = x. What ablations and layer-importance scores put in place of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .base import Matrix, Mixer, Out, SeqContext, State, zeroed


class Parts(NamedTuple):
    """Nothing is needed but which steps are valid, (B, L) bool; None: all."""

    valid: Tensor | None


class Identity(Mixer):
    """Every step to itself."""

    observed = ("out",)

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """No state."""
        return {}

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """X itself."""
        return Out(self.observe["out"](x), {} if "state" in want else None)

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The unit matrix."""
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return Matrix(eye.expand(x.shape[0], self.dim, -1, -1), x[..., None], Parts(ctx.valid(x.shape[1])))

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, D, 1) as they are."""
        return zeroed(mixed.squeeze(-1), parts.valid)
