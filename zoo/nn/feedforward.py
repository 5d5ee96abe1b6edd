"""The position-wise feed-forward layer."""

from __future__ import annotations

from torch import nn


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear: (..., dim) to (..., dim) through `hidden`."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
