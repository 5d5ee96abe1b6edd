"""The mLSTM layer of xLSTM (Beck et al., 2024, arXiv:2405.04517, figure 11) without its norm and residual:

    [u | z] = W_up x;   c = SiLU(conv(u));   q = Q c, k = K c, v = V u (block-diagonal);   [i | f] = W_g [q | k | v] + b
    h = GroupNorm(mLSTM(q, k, v, i, f)) per head;   out = W_down ((h + alpha c) * SiLU(z))

The inner width is factor * dim, rounded to a multiple of 64: up, or down as DNA-xLSTM does. `bidirectional` is the
native form of Bio-xLSTM (Schmidinger et al., 2024, arXiv:2411.04165): one mixing matrix for both directions; the
convolution stays causal. The gates are computed in float32 (or float64), and their biases stay there when a model is
cast: rounded to bfloat16, a forget gate of 6 is off by up to 1/64, and the rate at which it forgets by 1.6 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument
from ..nn.conv import CausalConv1d, causal_conv
from ..nn.heads import HeadwiseLinear, HeadwiseNorm
from ..nn.precision import WideLinear
from ..nn.rope import rotate
from ..ops.backends import full_precision
from ..ops.checks import expect, same_segment
from ..ops.mlstm import mlstm, mlstm_matrix, mlstm_step
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, last_valid, zeroed


class Parts(NamedTuple):
    """An input projected: I inner channels in H heads of d."""

    q: Tensor  #: (B, L, H, d)
    k: Tensor  #: (B, L, H, d)
    v: Tensor  #: (B, L, H, d)
    i: Tensor  #: (B, L, H) before the exponential
    f: Tensor  #: (B, L, H) before the sigmoid
    c: Tensor  #: (B, L, I) behind the convolution
    z: Tensor  #: (B, L, I) gate
    conv: Tensor  #: (B, W - 1, I) state of the convolution
    count: Tensor | None  #: (B,) position of the next step, with rope
    valid: Tensor | None = None  #: (B, L) bool; None: all

    whole = frozenset({"conv", "count"})


class MLSTM(Mixer):
    """The matrix-memory mixer of xLSTM."""

    observed = ("in", "inner", "conv", "q", "k", "v", "i", "f", "scan", "gated", "out")

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        factor: float = 2.0,
        round_up: bool = True,
        conv: int = 4,
        qkv_block: int = 4,
        bidirectional: bool = False,
        rope: float | None = None,
        bias: bool = False,
        layers: int = 1,
        chunk: int | None = None,
    ):
        """`qkv_block`: size of the blocks of Q, K, V; `rope`: base of the angles; `bias`: of W_up, Q, K, V and W_down.

        `layers` n: W_down starts with a deviation of 2 / (n sqrt(dim)). `chunk`: of the scan, chosen by device.
        """
        super().__init__(dim)
        self.inner = max(64, (math.ceil if round_up else math.floor)(factor * dim / 64) * 64)
        if self.inner % heads or self.inner % qkv_block:
            raise BadArgument(
                f"MLSTM: expected an inner width ({self.inner}) that heads and qkv_block divide, got heads={heads}, "
                f"qkv_block={qkv_block}"
            )
        if rope and self.inner // heads % 2:
            raise BadArgument(f"MLSTM: rope: expected heads of an even size, got {self.inner // heads}")
        self.heads, self.width, self.bidirectional, self.rope, self.chunk = heads, conv, bidirectional, rope, chunk
        self.causal = not bidirectional
        if rope:
            self.uses = self.uses | {"positions"}
        if bidirectional:
            looks = "every step reads later ones"
            self.exempt = {"step": looks, "split": looks, "causal": looks}
            self.wants = frozenset()
        std = (2 / (5 * dim)) ** 0.5
        self.proj_up = nn.Linear(dim, 2 * self.inner, bias=bias)
        self.conv1d = CausalConv1d(self.inner, conv)
        self.q_proj, self.k_proj, self.v_proj = (
            HeadwiseLinear(self.inner, self.inner // qkv_block, bias=bias, std=std) for _ in range(3)
        )
        self.igate, self.fgate = (WideLinear(3 * self.inner, heads) for _ in range(2))
        self.outnorm = HeadwiseNorm(self.inner)
        self.learnable_skip = nn.Parameter(torch.ones(self.inner))
        self.proj_down = nn.Linear(self.inner, dim, bias=bias)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(self.proj_down.weight, std=2 / (layers * dim**0.5))
        for linear in (self.proj_up, self.proj_down):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for gate in (self.igate, self.fgate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)
        with torch.no_grad():
            self.fgate.bias.copy_(torch.linspace(3, 6, heads))

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, I) in `dtype`; C (B, H, d, d), n (B, H, d), m (B, H) wide; count (B,) of steps with rope."""
        wide, size = torch.promote_types(dtype, torch.float32), self.inner // self.heads
        shapes = {"C": (batch, self.heads, size, size), "n": (batch, self.heads, size), "m": (batch, self.heads)}
        state = {name: torch.zeros(shape, dtype=wide, device=device) for name, shape in shapes.items()}
        state["conv"] = torch.zeros(batch, self.width - 1, self.inner, dtype=dtype, device=device)
        if self.rope:
            state["count"] = torch.zeros(batch, dtype=torch.int64, device=device)
        return state

    # phases: project, scan, finish ------------------------------------------------------------------------------------

    def project(self, x: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to queries, keys, values and gates; the gates see q and k before they are rotated."""
        u, z = self.proj_up(self.observe["in"](x)).chunk(2, dim=-1)
        u = self.observe["inner"](u)
        initial = None if state is None else state["conv"]
        c, conv = causal_conv(self.conv1d, self.width, u, initial, ctx.segments, ctx.lengths)
        parts = self._gates(u, z, c, conv, *self._places(x, ctx, state))
        return parts._replace(valid=ctx.valid(x.shape[1]))

    def _gates(self, u: Tensor, z: Tensor, c: Tensor, conv: Tensor, places: Tensor, count: Tensor) -> Parts:
        """From the convolution's output on; the same for all steps and for one."""
        c, wide = self.observe["conv"](F.silu(c)), torch.promote_types(u.dtype, torch.float32)
        projected = (("q", self.q_proj, c), ("k", self.k_proj, c), ("v", self.v_proj, u))
        parts = [self.observe[name](linear(source)).to(wide) for name, linear, source in projected]
        together = torch.cat(parts, -1)
        with full_precision(u.device.type):  # errors of gates would become factors
            gates = (("i", self.igate), ("f", self.fgate))
            i, f = (self.observe[name](gate(together).to(wide)) for name, gate in gates)
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)) for tensor in parts)
        if self.rope:
            q, k = (rotate(tensor, places, self.rope) for tensor in (q, k))
        return Parts(q, k, v, i, f, c, z, conv, count)

    def _places(self, x: Tensor, ctx: SeqContext, state: State | None) -> tuple[Tensor | None, Tensor | None]:
        """With rope: positions (B, L), anew in each packed sequence, and that of the next step (B,)."""
        if not self.rope:
            return None, None
        if ctx.positions is not None:
            expect("MLSTM", "ctx.positions", ctx.positions, *x.shape[:2])
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        before = place.new_zeros(x.shape[0], 1) if state is None else state["count"][:, None]
        if ctx.segments is not None:
            place = place - torch.where(same_segment(ctx.segments), 0, place).cummax(1).values
            before = torch.where(ctx.segments == ctx.segments[:, :1], before, 0)
        place = place + before
        return place if ctx.positions is None else ctx.positions, last_valid(place, ctx.lengths) + 1

    def scan(self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None) -> tuple[Tensor, State]:
        """The mixed values (B, L, H, d) and the state C, n, m behind the last step (empty if bidirectional)."""
        initial = None if state is None else {name: state[name].to(parts.q.dtype) for name in ("C", "n", "m")}
        return mlstm(
            *parts[:5], initial=initial, segments=ctx.segments, valid=ctx.valid(parts.q.shape[1]), chunk=self.chunk,
            bidirectional=self.bidirectional,
        )  # fmt: skip

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, H, d) to the output: norm per head, skip, gate, projection."""
        h = self.observe["scan"](self.outnorm(mixed).to(parts.z.dtype))
        gated = self.observe["gated"]((h + self.learnable_skip * parts.c) * F.silu(parts.z))
        return zeroed(self.observe["out"](self.proj_down(gated)), parts.valid)

    # the protocol -----------------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """The three phases in a row."""
        parts = self.project(x, ctx, state)
        h, after = self.scan(parts, ctx, state)
        return Out(self.finish(h, parts), self._state(parts, after) if "state" in want else None)

    def _state(self, parts: Parts, after: State) -> State:
        return after | {"conv": parts.conv} | ({"count": parts.count} if self.rope else {})

    def _step(self, x_t: Tensor, ctx: SeqContext, state: State) -> Out:
        """One step (B, D) by the recurrence itself."""
        if self.bidirectional or ctx.given():
            return super()._step(x_t, ctx, state)
        u, z = self.proj_up(self.observe["in"](x_t)[:, None]).chunk(2, dim=-1)
        u = self.observe["inner"](u)
        c, conv = causal_conv(self.conv1d, self.width, u, state["conv"])
        parts = self._gates(u, z, c, conv, *self._places(x_t[:, None], NOTHING, state))
        h, after = mlstm_step(*(tensor[:, 0] for tensor in parts[:5]), state)
        return Out(self.finish(h[:, None], parts)[:, 0], self._state(parts, after))

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The normalised weights (B, H, L, L) of the parallel form, on v."""
        parts = self.project(x, ctx)
        i = parts.i if parts.valid is None else torch.where(parts.valid[..., None], parts.i, -torch.inf)
        matrix = mlstm_matrix(parts.q, parts.k, i, parts.f, segments=ctx.segments, bidirectional=self.bidirectional)
        return Matrix(matrix, parts.v, parts)

    def ports(self) -> dict[str, Tensor]:
        """Q, k, v: blocks (I / block, out, in); write, decay: input, forget gate; gate: rows of z in W_up; out."""
        return {
            "q": self.q_proj.weight, "k": self.k_proj.weight, "v": self.v_proj.weight, "write": self.igate.weight,
            "decay": self.fgate.weight, "gate": self.proj_up.weight[self.inner :], "out": self.proj_down.weight,
        }  # fmt: skip
