"""The short causal depthwise convolution before a scan: y_t = sum_k w_k x_{t-W+1+k} + b, per channel.

Its state is the last W - 1 inputs. `lengths` say where right padding begins, so that the state is that behind the last
valid step; `segments` of packed sequences cut the taps that would look into another sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import call_of, choose, only_by_force, register
from .checks import expect, expect_floating, expect_lengths, expect_segments

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
    expect(NAME, "weight", weight, x.shape[2], "W")
    if bias is not None:
        expect(NAME, "bias", bias, x.shape[2])
    segments, lengths = expect_segments(NAME, segments, *x.shape[:2]), expect_lengths(NAME, lengths, *x.shape[:2])
    padded = behind(x, weight.shape[1], initial, segments, lengths)
    return convolve(padded, weight, bias, segments), state_after(padded, weight.shape[1], segments, lengths)


def behind(
    x: Tensor,
    width: int,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """`x` (B, L, D) behind the `width` - 1 inputs before it, (B, W - 1 + L, D), after a look at all arguments."""
    expect(NAME, "x", x, "B", "L", "D")
    expect_floating(NAME, "x", x)
    batch, steps, channels = x.shape
    if initial is not None:
        expect(NAME, "initial", initial, batch, width - 1, channels)
    if lengths is not None:
        expect(NAME, "lengths", lengths, batch)
    expect_segments(NAME, segments, batch, steps)
    before = x.new_zeros(batch, width - 1, channels) if initial is None else initial.to(x.dtype)
    return torch.cat([before, x], 1)


def convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, segments: Tensor | None = None) -> Tensor:
    """The convolution alone, of inputs (B, W - 1 + L, D) that come with those before; (B, L, D)."""
    run = choose(NAME, call_of(padded, padded.shape[1] - weight.shape[1] + 1, segments=segments))
    return run(padded, weight, bias, segments)


def convolve_step(window: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One step: the last inputs (B, W, D) to (B, 1, D), in fewer operations than `convolve`."""
    y = (window * weight.t()).sum(1, keepdim=True)
    return y if bias is None else y + bias


def state_after(padded: Tensor, width: int, segments: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """The inputs of the `width` - 1 steps before the end, zero where they are of another segment than the last step."""
    keep = width - 1
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
