"""The short causal depthwise convolution as a layer, and how a mixer runs it: with what came before, and its state."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.causal_conv1d import behind, convolve, convolve_step, state_after
from ..ops.checks import expect


class CausalConv1d(nn.Conv1d):
    """A depthwise convolution (B, W - 1 + L, D) to (B, L, D), channels last, of inputs that stand behind W - 1 others.

    Weight (D, 1, W) and bias (D,) as in torch's layer. What stands in front, and the state behind the last step, are
    the caller's (`causal_conv`), so that the layer is one tensor to one tensor and may be wrapped, hooked and replaced.
    """

    def __init__(self, channels: int, width: int, bias: bool = True):
        super().__init__(channels, channels, width, groups=channels, bias=bias)

    def forward(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """Convolve `x`; `segments` (B, L) cut the taps that would look into another packed sequence."""
        expect("CausalConv1d", "x", x, "B", "W - 1 + L", self.in_channels)
        weight = self.weight.squeeze(1)
        if x.shape[1] == self.kernel_size[0]:
            return convolve_step(x, weight, self.bias)
        return convolve(x, weight, self.bias, segments)


def causal_conv(
    conv: nn.Module,
    width: int,
    x: Tensor,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`conv`, a CausalConv1d or what stands in its place, on x (B, L, D): y (B, L, D) and the state (B, W - 1, D).

    `initial` (B, W - 1, D), `segments` (B, L) and `lengths` (B,) as for `causal_conv1d`. `conv` is called with the
    padded input, and with `segments` only where there are some.
    """
    padded = behind(x, width, initial, segments, lengths)
    y = conv(padded) if segments is None else conv(padded, segments=segments)
    return y, state_after(padded, width, segments, lengths)
