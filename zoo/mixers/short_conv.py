"""The gated short convolution of LFM2 and StripedHyena-like hybrids: y = W_out (C o conv(B o x)), [B | C | x] = W_in u.

A causal depthwise convolution of a few taps between two gates; a mixer with a finite window, whose state is its last
inputs (Poli et al., 2023, arXiv:2302.10866, section 3; in the form of Liquid's LFM2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BadArgument
from ..nn.conv import CausalConv1d, causal_conv
from ..ops.causal_conv1d import convolve
from ..ops.checks import readable
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, reach, zeroed


class Parts(NamedTuple):
    """Gated values (B, L, D) that are convolved, the gate C of the read-out, and which steps are valid (None: all)."""

    u: Tensor
    C: Tensor
    valid: Tensor | None


class _Conv(CausalConv1d):
    """A convolution whose bias is added behind the sum, where `finish` adds it to a product with the matrix."""

    def forward(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """Inputs (B, W - 1 + L, D) to (B, L, D)."""
        y = convolve(x, self.weight.squeeze(1), None, segments)
        return y if self.bias is None else y + self.bias


class ShortConv(Mixer):
    """A gated causal convolution of `width` taps."""

    observed = ("in", "conv", "gated", "out")

    def __init__(self, dim: int, *, width: int = 3, bias: bool = False):
        """`bias`: of the projections and the convolution."""
        super().__init__(dim)
        self.width = width
        self.in_proj = nn.Linear(dim, 3 * dim, bias=bias)
        self.conv = _Conv(dim, width, bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, D): the last gated inputs."""
        return {"conv": torch.zeros(batch, self.width - 1, self.dim, dtype=dtype, device=device)}

    def project(self, x: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to what is convolved and the output gate."""
        B, C, value = self.in_proj(self.observe["in"](x)).chunk(3, dim=-1)
        return Parts(B * value, C, ctx.valid(x.shape[1]))

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, D, 1), without the convolution's bias, to the output."""
        return self._gate(mixed.squeeze(-1) + self._constant(mixed), parts)

    def _gate(self, y: Tensor, parts: Parts) -> Tensor:
        gated = self.observe["gated"](parts.C * self.observe["conv"](y))
        return zeroed(self.observe["out"](self.out_proj(gated)), parts.valid)

    def _constant(self, like: Tensor) -> Tensor:
        """What the convolution gives for zeros, (1, 1, D): its bias."""
        return self.conv(like.new_zeros(1, self.width, self.dim))

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Project, convolve, gate."""
        parts, initial = self.project(x, ctx, state), None if state is None else state["conv"]
        y, conv = causal_conv(self.conv, self.width, parts.u, initial, ctx.segments, ctx.lengths)
        return Out(self._gate(y, parts), {"conv": conv} if "state" in want else None)

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The Toeplitz matrix of each channel, (B, D, L, L), from the convolution's answer to an impulse.

        ValueError where something stands in the convolution's place that no such matrix describes.
        """
        steps = x.shape[1]
        parts = self.project(x, ctx)
        constant = self._constant(parts.u)
        impulse = parts.u.new_zeros(1, 2 * self.width - 1, self.dim)
        impulse[:, self.width - 1] = 1
        taps = (self.conv(impulse) - constant)[0].t()  # (D, W), by lag
        lag = torch.arange(steps, device=x.device)[:, None] - torch.arange(steps, device=x.device)
        inside = (lag >= 0) & (lag < self.width) & reach(ctx, steps, x.device)
        matrix = torch.where(inside, taps[:, lag.clamp(0, self.width - 1)], 0).expand(x.shape[0], -1, -1, -1)
        self._expect_linear(matrix, constant, parts.u, ctx)
        return Matrix(matrix, parts.u[..., None], parts)

    def _expect_linear(self, matrix: Tensor, constant: Tensor, u: Tensor, ctx: SeqContext) -> None:
        with torch.no_grad():
            y = causal_conv(self.conv, self.width, u, None, ctx.segments)[0]
            error = torch.einsum("bdts,bsd->btd", matrix, u) + constant - y
            if readable(error) and bool((error.abs() > torch.finfo(y.dtype).eps ** 0.5 * (1 + y.abs().max())).any()):
                raise BadArgument(
                    "ShortConv.materialize: conv: expected a depthwise convolution or a multiple of one, got a module "
                    "that no matrix per channel describes; take it out first"
                )

    def ports(self) -> dict[str, Tensor]:
        """K (the gate B of the values), q (the gate C of the read-out), v and out."""
        return dict(zip(("k", "q", "v"), self.in_proj.weight.chunk(3), strict=True)) | {"out": self.out_proj.weight}
