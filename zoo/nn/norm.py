"""RMS norms, computed in float32 whatever the dtype that comes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        """X (..., dim), any floating dtype."""
        return _rms(x, self.eps, x.dtype) * self.weight.to(x.dtype)


class GatedRMSNorm(nn.Module):
    """Mamba-2's output norm: RMS norm of y * SiLU(z) in `groups` of channels (or of y, then gated: `before_gate`)."""

    def __init__(self, dim: int, eps: float = 1e-5, groups: int = 1, before_gate: bool = False):
        super().__init__()
        self.weight, self.eps, self.groups, self.before_gate = nn.Parameter(torch.ones(dim)), eps, groups, before_gate

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Y and z (..., dim)."""
        wide = torch.promote_types(y.dtype, torch.float32)
        gate = F.silu(z.to(wide))
        y = y.to(wide) if self.before_gate else y.to(wide) * gate
        y = _rms(y.unflatten(-1, (self.groups, -1)), self.eps, wide).flatten(-2) * self.weight
        return (y * gate if self.before_gate else y).to(z.dtype)


def _rms(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(dtype)
