"""The sLSTM layer of xLSTM (Beck et al., 2024, arXiv:2405.04517, figure 10) without its norm, residual and FFN:

    c = SiLU(conv(x));   i, f from c and z, o from x, by block-diagonal matrices, one block per head
    h = GroupNorm(sLSTM(i, f, z, o; R, b)) per head

R lets the heads' last outputs into their own gates, which makes the layer sequential and gives it no mixing matrix.
b stays in float32 when a model is cast, as in the released cell: rounded to bfloat16, a forget gate of 5 is off by up
to 1/64, and the rate at which it forgets by 1.6 %. R is cast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument
from ..nn.conv import CausalConv1d, causal_conv
from ..nn.heads import HeadwiseLinear, HeadwiseNorm
from ..ops.slstm import STATE, slstm
from .base import Mixer, Out, SeqContext, State


class SLSTM(Mixer):
    """The scalar-memory mixer of xLSTM, with recurrent weights per head."""

    wide = frozenset({"bias"})
    observed = ("in", "conv", "gates", "scan", "out")
    exempt = {"matrix": "its gates depend on its own outputs: what it does to a sequence is no linear map"}

    def __init__(self, dim: int, heads: int = 4, *, conv: int = 4, layer: int = 0, layers: int = 1):
        """`layer` of `layers`: the forget gate's bias falls faster in later blocks (one block: as in the first)."""
        super().__init__(dim)
        if dim % heads:
            raise BadArgument(f"SLSTM: expected dim a multiple of heads, got dim={dim}, heads={heads}")
        self.heads, self.width, size = heads, conv, dim // heads
        self.conv1d = CausalConv1d(dim, conv)
        std = (2 / (5 * dim)) ** 0.5
        self.igate, self.fgate, self.zgate, self.ogate = (HeadwiseLinear(dim, heads, std=std) for _ in range(4))
        self.R = nn.Parameter(torch.zeros(heads, size, 4, size))
        self.bias = nn.Parameter(torch.zeros(4, heads, size))
        self.group_norm = HeadwiseNorm(dim)
        place = torch.arange(size) / max(1, size - 1)
        with torch.no_grad():
            self.bias[1] = 5 - 12 * place ** (0.3 + 1.3 * (layer / (layers - 1) if layers > 1 else 0))

    def no_weight_decay(self) -> set[str]:
        """The gates' biases, which are three-dimensional."""
        return {"bias"}

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, D) in `dtype`; c, n, m, h (B, H, D / H) in float32 or float64."""
        wide, shape = torch.promote_types(dtype, torch.float32), (batch, self.heads, self.dim // self.heads)
        state = {name: torch.zeros(shape, dtype=wide, device=device) for name in STATE}
        return state | {"conv": torch.zeros(batch, self.width - 1, self.dim, dtype=dtype, device=device)}

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Gates, the cell, the norm."""
        x = self.observe["in"](x)
        initial = None if state is None else state["conv"]
        c, conv = causal_conv(self.conv1d, self.width, x, initial, ctx.segments, ctx.lengths)
        c = self.observe["conv"](F.silu(c))
        gates = torch.stack([self.igate(c), self.fgate(c), self.zgate(x), self.ogate(x)], 2)
        wide = torch.promote_types(x.dtype, torch.float32)
        gates = self.observe["gates"](gates).to(wide).unflatten(-1, (self.heads, -1))
        initial = None if state is None else {name: state[name].to(wide) for name in STATE}
        h, after = slstm(
            gates, self.R.to(wide), self.bias.to(wide), initial=initial, segments=ctx.segments,
            valid=ctx.valid(x.shape[1]),
        )  # fmt: skip
        y = self.observe["out"](self.group_norm(self.observe["scan"](h)).to(x.dtype))
        return Out(y, after | {"conv": conv} if "state" in want else None)

    def ports(self) -> dict[str, Tensor]:
        """By gate, blocks (H, out, in): q (output gate), k (input gate), v (cell input), decay (forget gate)."""
        gates = {"q": self.ogate, "k": self.igate, "v": self.zgate, "decay": self.fgate}
        return {name: gate.weight for name, gate in gates.items()}
