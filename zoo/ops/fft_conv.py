"""Long depthwise convolution through the FFT: y_t = sum_{s <= t} k_{t-s} u_s + sum_{s > t} r_{s-t-1} u_s, per channel.

The second sum, over later steps, is there when a kernel `r` that looks ahead is given, as for bidirectional S4 and S4D
(Gu et al., 2022, arXiv:2206.11893); the step itself belongs to the first kernel alone.

`torch` multiplies spectra, with zeros behind the steps so that nothing wraps around. `reference` is the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadArgument
from .backends import call_of, choose, only_by_force, register
from .checks import expect

NAME = "fft_conv"


def fft_conv(u: Tensor, kernel: Tensor, *, reverse_kernel: Tensor | None = None) -> Tensor:
    """Convolve `u` (B, L, H) with `kernel` (H, K), and with `reverse_kernel` (H, K') ahead; (B, L, H).

    `kernel[:, j]` weighs the input j steps before, `reverse_kernel[:, j]` that j + 1 steps ahead; what reaches beyond
    the L steps has no effect. All in one dtype, float32 or float64; differentiable.
    """
    expect(NAME, "u", u, "B", "L", "H")
    if u.dtype not in (torch.float32, torch.float64):
        raise BadArgument(f"{NAME}: u: expected float32 or float64, got {u.dtype}")
    for name, tensor in (("kernel", kernel), ("reverse_kernel", reverse_kernel)):
        if tensor is not None:
            expect(NAME, name, tensor, u.shape[2], "K")
            if tensor.dtype != u.dtype:
                raise BadArgument(f"{NAME}: {name}: expected {u.dtype} as u, got {tensor.dtype}")
    steps = u.shape[1]
    kernel = kernel[:, :steps]
    reverse_kernel = None if reverse_kernel is None or steps == 1 else reverse_kernel[:, : steps - 1]
    return choose(NAME, call_of(u, steps, reverse_kernel=reverse_kernel))(u, kernel, reverse_kernel)


def fast_size(least: int) -> int:
    """An even 2^a 3^b 5^c of at least `least`, from 36 on at most a fifth above: FFT libraries are fast in these.

    By comparisons alone, so that a traced program holds for all lengths between two of them.
    """
    power = 64
    while power < least:
        power *= 2
    for part in (36, 40, 48, 54, 60):
        if power // 64 * part >= least:
            return power // 64 * part
    return power


def _direct(u, kernel, reverse_kernel):
    steps, y = u.shape[1], torch.zeros_like(u)
    for j, k in enumerate(kernel.unbind(1)):
        y = y + F.pad(u[:, : steps - j] * k, (0, 0, j, 0))
    for j, k in enumerate(() if reverse_kernel is None else reverse_kernel.unbind(1), 1):
        y = y + F.pad(u[:, j:] * k, (0, 0, 0, j))
    return y


def _fft(u, kernel, reverse_kernel):
    steps, ahead = u.shape[1], 0 if reverse_kernel is None else reverse_kernel.shape[1]
    size = fast_size(steps + max(kernel.shape[1] - 1, ahead))
    if reverse_kernel is not None:  # ahead by j + 1 is a delay of size - j - 1 on the circle
        kernel = F.pad(kernel, (0, size - kernel.shape[1])) + F.pad(reverse_kernel.flip(1), (size - ahead, 0))
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :steps].transpose(1, 2)


register(NAME, "torch", _fft)
register(NAME, "reference", _direct, automatic=only_by_force)
