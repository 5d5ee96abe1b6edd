"""Layers that treat the heads of a vector apart: block-diagonal projections and norms per head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeadwiseLinear(nn.Module):
    """A block-diagonal linear layer: `blocks` blocks of size dim / blocks, weight (blocks, out, in)."""

    def __init__(self, dim: int, blocks: int, *, bias: bool = False, std: float | None = None):
        super().__init__()
        size = dim // blocks
        self.weight = nn.Parameter(torch.empty(blocks, size, size).normal_(std=std or size**-0.5))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., dim), block by block."""
        blocks, size, _ = self.weight.shape
        y = torch.einsum("...bi,boi->...bo", x.unflatten(-1, (blocks, size)), self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias


class HeadwiseNorm(nn.Module):
    """Layer norm of each head of each step, scale 1 + weight, no bias; computed in float32 or wider."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Heads (..., H, d) to (..., H d)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return y.flatten(-2) * (1 + self.weight.to(wide.dtype))
