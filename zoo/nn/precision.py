"""Parameters that keep their precision when a module is cast, and linear layers that compute with them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.backends import full_precision


class KeepsWide(nn.Module):
    """A module whose own parameters and buffers named in `wide` stay in float32 (or float64) when it is cast.

    `.bfloat16()`, `.half()` and `.to(dtype)` move them without rounding; `.float()` and `.double()` cast them.
    """

    wide: ClassVar[frozenset[str]] = frozenset()

    def _apply(self, fn, recurse=True):
        own = [self._parameters.get(name) for name in self.wide] + [self._buffers.get(name) for name in self.wide]
        own = [tensor for tensor in own if tensor is not None]
        kept = {id(tensor) for tensor in own} | {id(tensor.grad) for tensor in own if tensor.is_leaf}

        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) not in kept or moved.dtype in (torch.float32, torch.float64):
                return moved
            return tensor.to(moved.device)

        for module in self.children() if recurse else ():
            module._apply(fn)
        return super()._apply(keep_wide, recurse=False)


class WideBiasLinear(KeepsWide, nn.Linear):
    """A linear layer whose bias, always there, is kept and added in float32 (or float64), in which its output comes."""

    wide = frozenset({"bias"})

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., in) to (..., out); the product is taken in the weights' dtype."""
        y = F.linear(x, self.weight)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        return y + self.bias.to(y.dtype)


class WideLinear(KeepsWide, nn.Linear):
    """A linear layer that computes in float32 (or float64), under autocast too; its bias is kept there."""

    wide = frozenset({"bias"})

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., in) to (..., out), float32 or float64."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x.device.type):
            return F.linear(x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
