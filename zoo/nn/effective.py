"""Layers whose weights are needed in a form of their own (part of a matrix, channels last), or what stands in for them.

A plain layer gives its weights. What else stands in its place (LoRA, a quantised layer, a layer with hooks) is asked
for its outputs, so that it takes effect as anywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.causal_conv1d import causal_conv1d


def affine(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) of a linear layer of vectors such as `like` (..., in): y = weight x + bias."""
    if _is_plain(layer, nn.Linear):
        return layer.weight, layer.bias
    size = like.shape[-1]
    basis = torch.eye(size + 1, size, dtype=like.dtype, device=like.device)  # and, last, zero
    found = layer(basis)
    return (found[:-1] - found[-1]).T, found[-1]


def causal_conv(layer: nn.Module, width: int, x: Tensor) -> Tensor:
    """A depthwise `nn.Conv1d` of `width` taps without padding on x (B, L, C): step t reads steps t - width + 1 to t."""
    if _is_plain(layer, nn.Conv1d):
        return causal_conv1d(x, layer.weight.squeeze(1), layer.bias)[0]
    return layer(F.pad(x.transpose(1, 2), (width - 1, 0))).transpose(1, 2)


def _is_plain(layer: nn.Module, cls: type[nn.Module]) -> bool:
    return type(layer) is cls and not (layer._forward_hooks or layer._forward_pre_hooks)
