"""S6, the mixer of Mamba (Gu and Dao, 2023, arXiv:2312.00752, section 3), in the form of the released code:

    [x | z] = W_in u;   x <- SiLU(conv(x));   [r | B | C] = W_x x;   dt = softplus(W_dt r + b_dt)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;   y_t = <C_t, h_t> + D x_t;   out = W_out (y * SiLU(z))

The input term is Euler's dt B, although the paper's text writes a zero-order hold for B. Parameters have the names of
the released checkpoints. A, D and the bias of dt stay in float32 when a model is cast, and the scan runs in float32 (or
float64), whatever the weights are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.conv import CausalConv1d, causal_conv
from ..nn.precision import WideBiasLinear
from ..ops.backends import full_precision
from ..ops.selective_scan import LOG2_E, selective_scan
from ..ops.ssd import between
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, at_steps, condense, reach, take, zeroed


class Parts(NamedTuple):
    """An input projected: what the scan reads and what the read-out needs. E = expand * dim channels, N states."""

    x: Tensor  #: (B, L, E) behind the convolution
    z: Tensor  #: (B, L, E) gate
    u: Tensor  #: (B, L, E) what is written: dt * x
    dt: Tensor  #: (B, L, E) time that passes
    B: Tensor  #: (B, L, N)
    C: Tensor  #: (B, L, N)
    conv: Tensor  #: (B, W - 1, E) state of the convolution
    valid: Tensor | None  #: (B, L) bool; None: all

    whole = frozenset({"conv"})


class S6(Mixer):
    """The selective state-space mixer of Mamba."""

    uses = frozenset({"segments", "dt_scale", "log_decay", "write", "kept"})
    wants = frozenset({"state", "states", "memory"})
    wide = frozenset({"A_log", "D"})
    observed = ("in", "inner", "conv", "dt", "B", "C", "scan", "gated", "out")

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
    ):
        """`dt_rank` None: ceil(dim / 16). `bias`: of the projections in and out."""
        super().__init__(dim)
        self.d_state, self.d_conv, self.inner = d_state, d_conv, expand * dim
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=bias)
        self.conv1d = CausalConv1d(self.inner, d_conv, conv_bias)
        self.x_proj = nn.Linear(self.inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = WideBiasLinear(self.dt_rank, self.inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, dim, bias=bias)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(self.inner, dt_min, dt_max, dt_floor))

    def no_weight_decay(self) -> set[str]:
        """A, D and the bias of dt; vectors are exempt anyway."""
        return {"A_log", "D", "dt_proj.bias"}

    def scales(self) -> int:
        """One decay per channel."""
        return self.inner

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, E) in `dtype`, ssm (B, E, N) in float32 or float64."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.inner, dtype=dtype, device=device),
            "ssm": torch.zeros(batch, self.inner, self.d_state, dtype=wide, device=device),
        }

    # phases: project, scan, finish ------------------------------------------------------------------------------------

    def project(self, u: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to what the scan reads; padding and masked writes are in it already."""
        inner, z = self.in_proj(self.observe["in"](u)).chunk(2, dim=-1)
        initial = None if state is None else state["conv"]
        x, conv = causal_conv(
            self.conv1d, self.d_conv, self.observe["inner"](inner), initial, ctx.segments, ctx.lengths
        )
        return self._gates(F.silu(x), z, conv, ctx)

    def _gates(self, x: Tensor, z: Tensor, conv: Tensor, ctx: SeqContext) -> Parts:
        """From the convolution's output on; the same for all steps and for one."""
        x = self.observe["conv"](x)
        r, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        raw = self.dt_proj(r).to(wide)
        if ctx.dt_scale is not None:  # of what depends on the input alone; the bias is what a zero gives
            bias = self.dt_proj(torch.zeros_like(r[:1, :1])).to(wide)
            raw = (raw - bias) * ctx.dt_scale.to(wide) + bias
        dt = self.observe["dt"](F.softplus(raw))
        B, C = self.observe["B"](B).to(wide), self.observe["C"](C).to(wide)
        u, valid = dt * x.to(wide), ctx.valid(x.shape[1])
        u, dt = zeroed(zeroed(u, valid), ctx.write), zeroed(dt, valid)
        return Parts(x, z, u, dt, B, C, conv, valid)

    def scan(
        self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None, final: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The mixed values (B, L, E, 1) and the state (B, E, N) behind the last step, None without `final`."""
        y, last = self._scan(parts, ctx, state, parts.C, final)
        return y[..., None], last

    def _scan(
        self, parts: Parts, ctx: SeqContext, state: State | None, C: Tensor, final: bool
    ) -> tuple[Tensor, Tensor | None]:
        extra = None
        if ctx.log_decay is not None:
            extra = zeroed(ctx.log_decay.to(parts.dt.dtype), ctx.valid(parts.dt.shape[1])).expand_as(parts.dt)
        return selective_scan(
            parts.u, parts.dt, -self.A_log.to(parts.dt.dtype).exp(), parts.B, C, log_decay=extra,
            initial=None if state is None else state["ssm"].to(parts.dt.dtype), segments=ctx.segments, final=final,
        )  # fmt: skip

    def states(self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None) -> Tensor:
        """The hidden state at every step, (B, L, E, N): read out one state at a time."""
        columns = torch.eye(self.d_state, dtype=parts.C.dtype, device=parts.C.device)
        return torch.stack([self._scan(parts, ctx, state, c.expand_as(parts.C), False)[0] for c in columns], -1)

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, E, 1) to the output (B, L, D): skip, gate, projection."""
        return self._gate(self.skip(mixed, parts), parts)

    def skip(self, mixed: Tensor, parts: Parts) -> Tensor:
        """The scan's output with D x, before the gate: what other layers may read as memory, (B, L, E)."""
        y = torch.addcmul(mixed.squeeze(-1), self.D.to(mixed.dtype), parts.x.to(mixed.dtype))
        return self.observe["scan"](y.to(parts.z.dtype))

    def _gate(self, y: Tensor, parts: Parts) -> Tensor:
        return zeroed(self.observe["out"](self.out_proj(self.observe["gated"](y * F.silu(parts.z)))), parts.valid)

    # the protocol -----------------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """The three phases in a row; with `ctx.kept` the scan and all after it see the kept steps alone."""
        parts, kept = self.project(x, ctx, state), ctx.kept
        if kept is not None:
            parts, ctx, state = prune(parts, ctx, state)
        mixed, final = self.scan(parts, ctx, state, "state" in want)
        aux = {"states": self.states(parts, ctx, state)} if "states" in want else {}
        if kept is not None:
            mixed, parts = mixed[:, :-1], without_last(parts)
            aux = {name: tensor[:, :-1] for name, tensor in aux.items()}
        y = self.skip(mixed, parts)
        if "memory" in want:
            aux["memory"] = y
        return Out(self._gate(y, parts), {"conv": parts.conv, "ssm": final} if "state" in want else None, aux)

    def _step(self, x_t: Tensor, ctx: SeqContext, state: State) -> Out:
        """One step (B, D) by the recurrence itself."""
        if ctx.given() - {"dt_scale"}:
            return super()._step(x_t, ctx, state)
        inner, z = self.in_proj(self.observe["in"](x_t)[:, None]).chunk(2, dim=-1)
        x, conv = causal_conv(self.conv1d, self.d_conv, self.observe["inner"](inner), state["conv"])
        p = self._gates(F.silu(x), z, conv, ctx)
        rate = self.A_log.to(p.dt.dtype).exp() * -LOG2_E  # exp2 costs a third of exp
        decay = torch.exp2(p.dt[:, 0, :, None] * rate)
        h = torch.addcmul(p.u[:, 0, :, None] * p.B, decay, state["ssm"])
        with full_precision(h.device.type):
            mixed = h @ p.C.transpose(1, 2)
        y = self.finish(mixed.transpose(1, 2)[..., None], p)
        return Out(y[:, 0], {"conv": p.conv, "ssm": h})

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """Per channel: sum_n C_tn exp(A_n sum of dt) B_sn, on the values u; (B, E, L, L)."""
        parts = self.project(x, ctx)
        if ctx.kept is not None:
            parts, ctx, _ = prune(parts, ctx, None)
            parts, ctx = without_last(parts), ctx.along(torch.arange(parts.dt.shape[1] - 1, device=x.device))
        A, gap = -self.A_log.to(parts.dt.dtype).exp(), between(parts.dt.transpose(1, 2))
        extra = 0 if ctx.log_decay is None else between(ctx.log_decay.to(gap.dtype).expand_as(parts.dt).transpose(1, 2))
        matrix = sum(
            (gap * A[:, n, None, None] + extra).exp() * (parts.C[:, :, None, n] * parts.B[:, None, :, n])[:, None]
            for n in range(self.d_state)
        )
        seen = reach(ctx, parts.dt.shape[1], x.device)
        return Matrix(matrix.masked_fill(~seen, 0), parts.u[..., None], parts)

    def ports(self) -> dict[str, Tensor]:
        """v: rows of x in W_in; k, q, decay: rows of B, C and dt in W_x (behind the convolution); gate, out."""
        r, n, e = self.dt_rank, self.d_state, self.inner
        w = self.x_proj.weight
        return {
            "v": self.in_proj.weight[:e], "gate": self.in_proj.weight[e:], "decay": w[:r], "k": w[r : r + n],
            "q": w[r + n :], "out": self.out_proj.weight,
        }  # fmt: skip


def prune(parts, ctx: SeqContext, state: State | None):
    """Kept steps of projected parts (S6's or SSD's), with the time between them, the context and state that go with it.

    One step is added that only lets the time behind the last kept one pass, for the final state; `without_last` takes
    it off again.
    """
    kept = ctx.kept
    index = torch.cat([kept, torch.full_like(kept[:, :1], parts.dt.shape[1] - 1)], 1)
    short = at_steps(parts, index)
    u = torch.cat([short.u[:, :-1], torch.zeros_like(short.u[:, :1])], 1)
    log_decay = None if ctx.log_decay is None else condense(ctx.log_decay, kept)
    segments = None if ctx.segments is None else take(ctx.segments, index)
    if state is not None and segments is not None:  # it is that of the first sequence, which may be dropped whole
        goes_on = segments[:, 0] == ctx.segments[:, 0]
        state = {**state, "ssm": zeroed(state["ssm"], goes_on)}
    ctx = replace(ctx, kept=None, write=None, segments=segments, log_decay=log_decay)
    return short._replace(u=u, dt=condense(parts.dt, kept)), ctx, state


def without_last(parts):
    """Pruned parts without the step that was added."""
    return at_steps(parts, torch.arange(parts.dt.shape[1] - 1, device=parts.dt.device))


def initial_dt_bias(size: int, low: float, high: float, floor: float) -> Tensor:
    """The inverse softplus of time steps drawn log-uniformly from [low, high], at least `floor`."""
    dt = torch.exp(torch.rand(size) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
