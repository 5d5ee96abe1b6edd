"""Blocks of the point state-space networks (point_ssm.py): local, along scan orders, and pointwise.

With GN a group norm whose statistics run over (channels / groups x steps) of *one* sequence, and phi a leaky ReLU:

    local      y = phi(GN(W (x + S6(x))))                     a neighbourhood in order of distance is one sequence
    along      [a | z] = W_in x;  a <- phi(conv(a));  y_o = S6 scan of a along order o, with parameters of its own
               y = phi(GN(x + W_out(phi(z) * sum_o unpermute(y_o))))
    pointwise  y = phi(GN(W x))

Each may end in an injection of a condition c: y * (1 + G c) + B c.

The paths of an "along" block share projections, convolution and gate, and differ from the scan's inputs on; the core's
`MultiPath` runs whole mixers, one for each path. So it is one call of the core's scan, whose groups the paths are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..mixers.base import take
from ..mixers.s6 import S6, initial_dt_bias
from ..nn.effective import causal_conv
from ..nn.precision import KeepsWide
from ..ops.selective_scan import selective_scan

GROUPS = 8
PART = 1 << 18  # elements for each thread that a pair takes at a time on a CPU


class Finish(nn.Module):
    """phi(GN(x)), then the injection where there is a condition: how every block ends."""

    def __init__(self, dim: int, condition: int | None):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim)
        self.gate = nn.Linear(condition, dim) if condition else None
        self.shift = nn.Linear(condition, dim, bias=False) if condition else None

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Sequences (M, L, C) or vectors (M, C); c (M, condition)."""
        y = self.norm(x) if x.ndim == 2 else self.norm(x.transpose(1, 2)).transpose(1, 2)
        y = F.leaky_relu(y)
        if self.gate is None:
            return y
        gate, shift = self.gate(c), self.shift(c)
        return y * (1 + gate) + shift if y.ndim == 2 else y * (1 + gate[:, None]) + shift[:, None]


class Pointwise(nn.Module):
    """phi(GN(W x))."""

    def __init__(self, dim: int, out: int, condition: int | None = None):
        super().__init__()
        self.linear, self.finish = nn.Linear(dim, out), Finish(out, condition)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Sequences (M, L, dim) or vectors (M, dim)."""
        return self.finish(self.linear(x), c)


class Local(nn.Module):
    """phi(GN(W (x + S6(x)))): the plain state-space block."""

    def __init__(self, dim: int, out: int, d_state: int, condition: int | None = None):
        super().__init__()
        self.mixer = S6(dim, d_state=d_state)
        self.linear = nn.Linear(dim, out) if out != dim else None
        self.finish = Finish(out, condition)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Sequences (M, L, dim) to (M, L, out)."""
        x = x + self.mixer(x).y
        return self.finish(x if self.linear is None else self.linear(x), c)


class Along(KeepsWide):
    """The block that scans all points of a level along several orders, one S6 recurrence for each."""

    wide = frozenset({"A_log", "D", "dt_bias"})

    def __init__(self, dim: int, paths: int, d_state: int, condition: int | None = None, d_conv: int = 4):
        super().__init__()
        inner, self.rank, self.d_state, self.paths, self.d_conv = 2 * dim, -(-dim // 16), d_state, paths, d_conv
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(paths, self.rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(paths, inner, self.rank).uniform_(-1, 1) * self.rank**-0.5)
        self.dt_bias = nn.Parameter(initial_dt_bias(paths * inner, 1e-3, 0.1, 1e-4).view(paths, inner))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(paths * inner, 1))
        self.D = nn.Parameter(torch.ones(paths * inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.finish = Finish(dim, condition)
        nn.init.uniform_(self.x_proj, -(inner**-0.5), inner**-0.5)

    def no_weight_decay(self) -> set[str]:
        """What steers the recurrence."""
        return {"A_log", "D", "dt_bias"}

    def forward(self, x: Tensor, orders: Tensor, inverses: Tensor, c: Tensor | None = None) -> Tensor:
        """Points (B, L, dim); orders and inverses (B, paths, L)."""
        a, z = self.in_proj(x).chunk(2, dim=-1)
        a = F.leaky_relu(causal_conv(self.conv1d, self.d_conv, a))
        along = torch.stack([take(a, order) for order in orders.unbind(1)], 2)  # (B, L, K, E)
        r, B, C = torch.einsum("blke,kfe->blkf", along, self.x_proj).split([self.rank, *2 * [self.d_state]], -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(torch.einsum("blkr,ker->blke", r, self.dt_proj).to(wide) + self.dt_bias.to(wide)).flatten(2)
        values = along.flatten(2).to(wide)
        y, _ = selective_scan(dt * values, dt, -self.A_log.to(wide).exp(), B.to(wide), C.to(wide), final=False)
        y = torch.addcmul(y, self.D.to(wide), values).unflatten(2, (self.paths, -1)).to(x.dtype)
        y = sum(take(y[:, :, k], inverse) for k, inverse in enumerate(inverses.unbind(1)))
        return self.finish(x + self.out_proj(y * F.leaky_relu(z)), c)


class ChannelAttention(nn.Module):
    """f * sigmoid(conv over channels of the mean over points) (ECA-Net, Wang et al., 2020, arXiv:1910.03151)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Points (B, N, C)."""
        return x * torch.sigmoid(self.conv(x.mean(1, keepdim=True)))


def hidden_width(dim: int, out: int) -> int:
    """Width between two blocks: the larger of the lesser end and half of the greater, up to a multiple of 16."""
    return 16 * -(-max(max(dim, out) // 2, min(dim, out)) // 16)


class Pair(nn.Module):
    """Two blocks, dim to out by `hidden_width`.

    On a CPU they take some sequences at a time, so that what lies between input and output stays in cache; as whole
    tensors it goes through main memory, and pages for it are asked of the system anew at each operation.
    """

    def __init__(self, block: type[Local] | type[Pointwise], dim: int, out: int, *arguments):
        super().__init__()
        between, self.width = hidden_width(dim, out), out
        self.first, self.second = block(dim, between, *arguments), block(between, out, *arguments)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Sequences (M, L, dim) to (M, L, out)."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.second(self.first(x, c), c)
        size = max(1, PART * torch.get_num_threads() // math.prod(x.shape[1:]))
        conditions = [None] * len(x) if c is None else c.split(size)
        return torch.cat([self.second(self.first(x, c), c) for x, c in zip(x.split(size), conditions, strict=False)])
