"""The short causal depthwise convolution before a scan: y_t = sum_k w_k x_{t-W+1+k} + b, per channel.

Its state is the last W - 1 inputs. `lengths` say where right padding begins, so that the state is that behind the last
valid step; `segments` of packed sequences cut the taps that would look into another sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import call_of, choose, only_by_force, register
from .checks import expect, expect_floating, expect_segments

NAME = "causal_conv1d"


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve `x` (B, L, D) with `weight` (D, W) and return y (B, L, D) and the state (B, W - 1, D).

    `initial` (B, W - 1, D) are the inputs before the first, zeros by default; `segments` (B, L); `lengths` (B,).
    """
    expect(NAME, "x", x, "B", "L", "D")
    expect_floating(NAME, "x", x)
    batch, steps, channels = x.shape
    expect(NAME, "weight", weight, channels, "W")
    width = weight.shape[1]
    if bias is not None:
        expect(NAME, "bias", bias, channels)
    if initial is not None:
        expect(NAME, "initial", initial, batch, width - 1, channels)
    if lengths is not None:
        expect(NAME, "lengths", lengths, batch)
    expect_segments(NAME, segments, batch, steps)
    before = x.new_zeros(batch, width - 1, channels) if initial is None else initial.to(x.dtype)
    padded = torch.cat([before, x], 1)
    run = choose(NAME, call_of(x, steps, initial=initial, segments=segments))
    return run(padded, weight, bias, segments), _state(padded, segments, lengths, width - 1)


def causal_conv1d_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step x (B, 1, D) behind `state` (B, W - 1, D): y (B, 1, D) and the next state; unchecked, for `step`."""
    window = torch.cat([state.to(x.dtype), x], 1)
    y = (window * weight.t()).sum(1, keepdim=True)
    return y if bias is None else y + bias, window[:, 1:]


def _state(padded: Tensor, segments: Tensor | None, lengths: Tensor | None, keep: int) -> Tensor:
    """The inputs of the `keep` steps before the end, zero where they belong to another segment than the last step."""
    steps = padded.shape[1] - keep
    if lengths is None:
        state = padded[:, steps:]
        last = None if segments is None else segments[:, -1:]
    else:
        index = lengths[:, None] + torch.arange(keep, device=padded.device)
        state = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[2]))
        last = None if segments is None else segments.gather(1, (lengths - 1).clamp(min=0)[:, None])
    if segments is None:
        return state
    numbers = _with_before(segments, keep)
    mine = numbers[:, steps:] if lengths is None else numbers.gather(1, index)
    return torch.where((mine == last)[..., None], state, 0)


def _with_before(segments: Tensor, keep: int) -> Tensor:
    """Segment numbers of the padded input: what comes before the first step belongs to its segment."""
    return torch.cat([segments[:, :1].expand(-1, keep), segments], 1)


def _reference(padded, weight, bias, segments):
    width = weight.shape[1]
    numbers = None if segments is None else _with_before(segments, width - 1)
    y = padded.new_zeros(()) if bias is None else bias
    for k, row in enumerate(weight.t().contiguous()):  # tap k of step t is the input of step t - (width - 1 - k)
        tap = padded[:, k : padded.shape[1] - width + 1 + k]
        if numbers is not None:
            tap = torch.where((numbers[:, k : k + segments.shape[1]] == segments)[..., None], tap, 0)
        y = torch.addcmul(y, tap, row)
    return y


def _torch(padded, weight, bias, segments):
    if segments is not None or padded.device.type == "cpu":  # four products beat a CPU's grouped convolution
        return _reference(padded, weight, bias, segments)
    return F.conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)


register(NAME, "torch", _torch)
register(NAME, "reference", _reference, automatic=only_by_force)
