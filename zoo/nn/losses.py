"""Losses: cross entropy over a large vocabulary without its table of logits; soft Dice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def chunked_cross_entropy(
    features: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, chunk: int = 8192
) -> Tensor:
    """Mean cross entropy of `features @ weight.T + bias` (N, V) against `target` (N,), V taken `chunk` at a time.

    Equal to `F.cross_entropy` of the whole table up to rounding, gradients to features, weight and bias included, with
    O(N * chunk) memory besides the gradients: the running maximum and sum of exponentials forward, the logits of each
    chunk once more backward (as the online softmax of Milakov and Gimelshein, 2018, arXiv:1805.02867).
    """
    return _Chunked.apply(features, weight, target, bias, chunk)


def soft_dice(scores: Tensor, label: Tensor, ignore: int = -1) -> Tensor:
    """1 - mean over samples and classes of 2 sum(p y) / (sum p^2 + sum y^2), p the softmax of scores (B, N, C).

    Labels (B, N); `ignore` marks units that do not count. The squares in the denominator are those of V-Net (Milletari
    et al., 2016, arXiv:1606.04797).
    """
    known = (label != ignore)[..., None]
    p = scores.softmax(-1) * known
    y = F.one_hot(label.clamp(min=0), scores.shape[-1]).to(p.dtype) * known
    overlap, size = 2 * (p * y).sum(1), p.square().sum(1) + y.sum(1)
    return 1 - (overlap / size.clamp(min=1e-8)).mean()


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, target, bias, chunk):
        highest = features.new_full((len(features),), -torch.inf)
        total = features.new_zeros(len(features))
        for at in range(0, len(weight), chunk):
            logits = _logits(features, weight, bias, at, chunk)
            now = torch.maximum(highest, logits.amax(1))
            total = total * (highest - now).exp() + (logits - now[:, None]).exp_().sum(1)
            highest = now
        norm = highest + total.log()
        own = (features * weight.index_select(0, target)).sum(1)
        own = own if bias is None else own + bias.index_select(0, target)
        ctx.save_for_backward(features, weight, target, bias, norm)
        ctx.chunk = chunk
        return (norm - own).mean()

    @staticmethod
    def backward(ctx, gradient):
        features, weight, target, bias, norm = ctx.saved_tensors
        scale = gradient / len(features)
        d_features, d_weight = torch.zeros_like(features), torch.empty_like(weight)
        d_bias = None if bias is None else torch.empty_like(bias)
        for at in range(0, len(weight), ctx.chunk):
            part = _logits(features, weight, bias, at, ctx.chunk).sub_(norm[:, None]).exp_().mul_(scale)
            d_features.addmm_(part, weight[at : at + ctx.chunk])
            torch.mm(part.t(), features, out=d_weight[at : at + ctx.chunk])
            if d_bias is not None:
                torch.sum(part, 0, out=d_bias[at : at + ctx.chunk])
        d_features -= scale * weight.index_select(0, target)
        d_weight.index_add_(0, target, features * -scale)
        if d_bias is not None:
            d_bias.index_add_(0, target, (-scale).expand(len(target)))
        return d_features, d_weight, None, d_bias, None


def _logits(features: Tensor, weight: Tensor, bias: Tensor | None, at: int, chunk: int) -> Tensor:
    return F.linear(features, weight[at : at + chunk], None if bias is None else bias[at : at + chunk])
