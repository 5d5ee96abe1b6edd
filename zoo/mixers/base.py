"""The mixer protocol: what goes into a layer that mixes along the sequence, and what comes out.

`mixer(x, ctx, state, want) -> Out(y, state, aux)`. Side information travels in one frozen `SeqContext`; nothing in it
is changed. A mixer knows no domain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SeqContext:
    """Side information of a batch of sequences; a field that is None does not apply."""

    lengths: Tensor | None = None
    """(B,) int64, number of valid steps from the left."""

    def valid(self, steps: int) -> Tensor | None:
        """(B, L) bool, True where a step is real; None where all are."""
        if self.lengths is None:
            return None
        return torch.arange(steps, device=self.lengths.device) < self.lengths[:, None]


@dataclass(frozen=True)
class Out:
    """Result of a mixer: y (B, L, D), the state behind the last step (or None), and what `want` asked for."""

    y: Tensor
    state: dict[str, Tensor] | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)


class Mixer(nn.Module):
    """Base of all mixers."""

    def forward(
        self,
        x: Tensor,
        ctx: SeqContext | None = None,
        state: dict[str, Tensor] | None = None,
        want: frozenset[str] = frozenset(),
    ) -> Out:
        """Mix x (B, L, D) along L."""
        raise TypeError(f"{type(self).__name__} does not implement forward()")
