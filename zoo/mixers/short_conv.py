"""The gated short convolution of LFM2 and StripedHyena-like hybrids: y = W_out (C o conv(B o x)), [B | C | x] = W_in u.

A causal depthwise convolution of a few taps between two gates; a mixer with a finite window, whose state is its last
inputs (Poli et al., 2023, arXiv:2302.10866, section 3; in the form of Liquid's LFM2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.causal_conv1d import causal_conv1d
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, reach


class Parts(NamedTuple):
    """Gated values (B, L, D) that are convolved, and the gate C of the read-out."""

    u: Tensor
    C: Tensor


class ShortConv(Mixer):
    """A gated causal convolution of `width` taps."""

    observed = ("in", "conv", "gated", "out")

    def __init__(self, dim: int, *, width: int = 3, bias: bool = False):
        """`bias`: of the projections and the convolution."""
        super().__init__(dim)
        self.width = width
        self.in_proj = nn.Linear(dim, 3 * dim, bias=bias)
        self.conv = nn.Conv1d(dim, dim, width, groups=dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, D): the last gated inputs."""
        return {"conv": torch.zeros(batch, self.width - 1, self.dim, dtype=dtype, device=device)}

    def project(self, x: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to what is convolved and the output gate."""
        B, C, value = self.in_proj(self.observe["in"](x)).chunk(3, dim=-1)
        return Parts(B * value, C)

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, D, 1), without the convolution's bias, to the output."""
        y = mixed.squeeze(-1) if self.conv.bias is None else mixed.squeeze(-1) + self.conv.bias
        gated = self.observe["gated"](parts.C * self.observe["conv"](y))
        return self.observe["out"](self.out_proj(gated))

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Project, convolve, gate."""
        parts = self.project(x, ctx, state)
        y, conv = causal_conv1d(
            parts.u, self.conv.weight.squeeze(1), initial=None if state is None else state["conv"],
            segments=ctx.segments, lengths=ctx.lengths,
        )  # fmt: skip
        return Out(self.finish(y[..., None], parts), {"conv": conv} if "state" in want else None)

    def materialize(self, x: Tensor, ctx: SeqContext | None = None) -> Matrix:
        """The Toeplitz matrix of each channel, (B, D, L, L)."""
        ctx, steps = ctx or NOTHING, x.shape[1]
        parts = self.project(x, ctx)
        lag = torch.arange(steps, device=x.device)[:, None] - torch.arange(steps, device=x.device)
        inside = (lag >= 0) & (lag < self.width)
        taps = self.conv.weight.squeeze(1)[:, (self.width - 1 - lag).clamp(0, self.width - 1)]
        inside = inside & reach(ctx, steps, x.device)
        matrix = torch.where(inside, taps, 0).expand(x.shape[0], -1, -1, -1)
        return Matrix(matrix, parts.u[..., None], parts)

    def ports(self) -> dict[str, Tensor]:
        """K (the gate B of the values), q (the gate C of the read-out), v and out."""
        return dict(zip(("k", "q", "v"), self.in_proj.weight.chunk(3), strict=True)) | {"out": self.out_proj.weight}
