"""SSD, the mixer of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060, section 7), in the form of the released code:

    [z | x | B | C | dt] = W_in u;   [x | B | C] <- SiLU(conv([x | B | C]));   dt = softplus(dt + b_dt), A = -exp(A_log)
    H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t';   y_t = H_t C_t + D x_t;   out = W_out RMSNorm(y * SiLU(z))

A and dt are scalars per head, B and C are shared by the heads of a group. With `d_ssm` below expand * dim the rest of
the width is a gated MLP, [z0 | x0] in front of the projection. Parameters have the names of the released checkpoints.
A, D and the bias of dt stay in float32 when a model is cast, and the scan runs in float32 (or float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument, unknown
from ..nn.conv import CausalConv1d, causal_conv
from ..nn.norm import GatedRMSNorm
from ..ops.backends import full_precision
from ..ops.ssd import between, ssd
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, at_steps, reach, zeroed
from .s6 import initial_dt_bias, prune, without_last

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "hardswish": F.hardswish, "identity": lambda x: x}


class Parts(NamedTuple):
    """An input projected. H heads of P channels, G groups of N states, E = H P."""

    x: Tensor  #: (B, L, H, P) behind the convolution
    z: Tensor  #: (B, L, E) gate
    rest: Tensor | None  #: (B, L, expand * dim - E) of the gated MLP beside the scan
    u: Tensor  #: (B, L, H, P) what is written: dt * x
    dt: Tensor  #: (B, L, H) time that passes
    B: Tensor  #: (B, L, G, N)
    C: Tensor  #: (B, L, G, N)
    conv: Tensor  #: (B, W - 1, E + 2 G N) state of the convolution
    valid: Tensor | None  #: (B, L) bool; None: all

    whole = frozenset({"conv"})


class SSD(Mixer):
    """The state-space dual mixer of Mamba-2."""

    uses = frozenset({"segments", "dt_scale", "log_decay", "write", "kept"})
    wants = frozenset({"state", "memory"})
    wide = frozenset({"A_log", "D", "dt_bias"})
    observed = ("in", "inner", "conv", "dt", "B", "C", "scan", "gated", "out")

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        d_ssm: int | None = None,
        A_range: tuple[float, float] = (1.0, 16.0),
        D_per_channel: bool = False,
        norm: bool = True,
        norm_eps: float = 1e-5,
        norm_before_gate: bool = False,
        activation: str = "silu",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk: int | None = None,
    ):
        """`d_ssm` None: expand * dim. `chunk`: steps of a chunk of the scan (None: `best_chunk`)."""
        super().__init__(dim)
        self.d_state, self.d_conv, self.groups, self.head_dim, self.chunk = d_state, d_conv, groups, head_dim, chunk
        self.d_ssm = expand * dim if d_ssm is None else d_ssm
        self.d_mlp = expand * dim - self.d_ssm
        self.heads = self.d_ssm // head_dim
        if self.d_ssm % head_dim or self.heads % groups or self.d_mlp < 0:
            raise BadArgument(
                f"SSD: expected d_ssm <= {expand * dim}, a multiple of head_dim, and heads a multiple of groups, "
                f"got d_ssm={self.d_ssm}, head_dim={head_dim}, groups={groups}"
            )
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS, where="SSD")
        self.activation, self.dt_limit = activation, tuple(dt_limit)
        self.conv_dim = self.d_ssm + 2 * groups * d_state
        self.in_proj = nn.Linear(dim, 2 * self.d_mlp + self.d_ssm + self.conv_dim + self.heads, bias=bias)
        self.conv1d = CausalConv1d(self.conv_dim, d_conv, conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads, dt_min, dt_max, dt_floor))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*A_range).log())
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_per_channel else self.heads))
        self.norm = GatedRMSNorm(self.d_ssm, norm_eps, groups, norm_before_gate) if norm else None
        self.out_proj = nn.Linear(expand * dim, dim, bias=bias)

    def no_weight_decay(self) -> set[str]:
        """All vectors, which are exempt anyway."""
        return {"A_log", "D", "dt_bias"}

    def scales(self) -> int:
        """One decay per head."""
        return self.heads

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """Conv (B, W - 1, E + 2 G N) in `dtype`, ssm (B, H, P, N) in float32 or float64."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.conv_dim, dtype=dtype, device=device),
            "ssm": torch.zeros(batch, self.heads, self.head_dim, self.d_state, dtype=wide, device=device),
        }

    # phases -----------------------------------------------------------------------------------------------------------

    def project(self, u: Tensor, ctx: SeqContext = NOTHING, state: State | None = None) -> Parts:
        """Input (B, L, D) to what the scan reads; padding and masked writes are in it already."""
        front, z, inner, dt = self._split(u)
        initial = None if state is None else state["conv"]
        inner, conv = causal_conv(self.conv1d, self.d_conv, inner, initial, ctx.segments, ctx.lengths)
        return self._gates(front, z, ACTIVATIONS[self.activation](inner), dt, conv, ctx)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = [2 * self.d_mlp, self.d_ssm, self.conv_dim, self.heads]
        front, z, inner, dt = self.in_proj(self.observe["in"](u)).split(sizes, dim=-1)
        return front, z, self.observe["inner"](inner), dt

    def _gates(self, front: Tensor, z: Tensor, inner: Tensor, dt: Tensor, conv: Tensor, ctx: SeqContext) -> Parts:
        """From the convolution's output on; the same for all steps and for one."""
        size = self.groups * self.d_state
        x, B, C = self.observe["conv"](inner).split([self.d_ssm, size, size], dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        raw = dt.to(wide) if ctx.dt_scale is None else dt.to(wide) * ctx.dt_scale.to(wide)
        dt = F.softplus(raw + self.dt_bias.to(wide))
        if self.dt_limit != (0.0, float("inf")):
            dt = dt.clamp(*self.dt_limit)
        dt, shape = self.observe["dt"](dt), (self.groups, self.d_state)
        B, C = (self.observe[name](t).to(wide).unflatten(-1, shape) for name, t in (("B", B), ("C", C)))
        x = x.unflatten(-1, (self.heads, self.head_dim))
        u, valid = dt[..., None] * x.to(wide), ctx.valid(x.shape[1])
        u, dt = zeroed(zeroed(u, valid), ctx.write), zeroed(dt, valid)
        rest = None
        if self.d_mlp:
            z0, x0 = front.chunk(2, dim=-1)
            rest = F.silu(z0) * x0
        return Parts(x, z, rest, u, dt, B, C, conv, valid)

    def decay(self, parts: Parts, ctx: SeqContext) -> Tensor:
        """Log decay (B, L, H): dt A, and what the context adds."""
        g = parts.dt * -self.A_log.to(parts.dt.dtype).exp()
        if ctx.log_decay is None:
            return g
        return g + zeroed(ctx.log_decay.to(g.dtype), ctx.valid(g.shape[1]))

    def scan(self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None) -> tuple[Tensor, Tensor]:
        """The mixed values (B, L, H, P) and the state (B, H, P, N) behind the last step."""
        return ssd(
            parts.u, self.decay(parts, ctx), parts.B, parts.C, segments=ctx.segments, chunk=self.chunk,
            initial=None if state is None else state["ssm"].to(parts.u.dtype),
        )  # fmt: skip

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, H, P) to the output (B, L, D): skip, gate and norm, projection."""
        return self._gate(self.skip(mixed, parts), parts)

    def skip(self, mixed: Tensor, parts: Parts) -> Tensor:
        """The scan's output with D x, before the gate: what other layers may read as memory, (B, L, E)."""
        D = self.D.to(mixed.dtype)
        D = D.unflatten(0, (self.heads, self.head_dim)) if len(D) > self.heads else D[:, None]
        y = mixed + D * parts.x.to(mixed.dtype)
        return self.observe["scan"](y.flatten(-2).to(parts.z.dtype))

    def _gate(self, y: Tensor, parts: Parts) -> Tensor:
        y = y * F.silu(parts.z) if self.norm is None else self.norm(y, parts.z)
        y = y if parts.rest is None else torch.cat([parts.rest, y], -1)
        return zeroed(self.observe["out"](self.out_proj(self.observe["gated"](y))), parts.valid)

    # the protocol -----------------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """The three phases in a row; with `ctx.kept` the scan and all after it see the kept steps alone."""
        parts, kept = self.project(x, ctx, state), ctx.kept
        if kept is not None:
            parts, ctx, state = prune(parts, ctx, state)
        mixed, final = self.scan(parts, ctx, state)
        if kept is not None:
            mixed, parts = mixed[:, :-1], without_last(parts)
        y = self.skip(mixed, parts)
        aux = {"memory": y} if "memory" in want else {}
        return Out(self._gate(y, parts), {"conv": parts.conv, "ssm": final} if "state" in want else None, aux)

    def last(self, x: Tensor, ctx: SeqContext | None = None) -> Tensor:
        """The output (B, D) at the last valid step alone: y = sum_s <C, B_s> exp(sum of g behind s) u_s, no scan."""
        ctx = ctx or NOTHING
        self.check(x, ctx, None, frozenset())
        if wrong := ctx.given() - {"lengths", "dt_scale", "log_decay", "write"}:
            raise BadArgument(
                f"SSD.last: expected sequences padded at the right, by ctx.lengths; got {sorted(wrong)[0]}"
            )
        x, ctx = self._ready(x, ctx)
        parts = self.project(x, ctx)
        length = x.new_full((len(x),), x.shape[1], dtype=torch.int64) if ctx.lengths is None else ctx.lengths
        at = length[:, None] - 1
        end = at_steps(parts, at)
        with full_precision(x.device.type):
            g = self.decay(parts, ctx)
            later = F.pad(g[:, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1)  # a sum less g_s would lose what is behind
            scores = (parts.B * end.C).sum(-1).repeat_interleave(self.heads // self.groups, 2)
            mixed = torch.einsum("blh,blhp->bhp", scores * later.exp(), parts.u)
        return self.finish(mixed[:, None], end)[:, 0]

    def _step(self, x_t: Tensor, ctx: SeqContext, state: State) -> Out:
        """One step (B, D) by the recurrence itself."""
        if ctx.given() - {"dt_scale"}:
            return super()._step(x_t, ctx, state)
        front, z, inner, dt = self._split(x_t[:, None])
        inner, conv = causal_conv(self.conv1d, self.d_conv, inner, state["conv"])
        p = self._gates(front, z, ACTIVATIONS[self.activation](inner), dt, conv, ctx)
        B, C = (t[:, 0].repeat_interleave(self.heads // self.groups, 1) for t in (p.B, p.C))
        h = self.decay(p, NOTHING)[:, 0, :, None, None].exp() * state["ssm"] + p.u[:, 0, ..., None] * B[:, :, None]
        with full_precision(h.device.type):
            mixed = h @ C[..., None]
        y = self.finish(mixed.squeeze(-1)[:, None], p)
        return Out(y[:, 0], {"conv": p.conv, "ssm": h})

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """Per head: <C_t, B_s> exp(sum of dt A over s+1..t), on the values u; (B, H, L, L)."""
        parts = self.project(x, ctx)
        if ctx.kept is not None:
            parts, ctx, _ = prune(parts, ctx, None)
            parts, ctx = without_last(parts), ctx.along(torch.arange(parts.dt.shape[1] - 1, device=x.device))
        decay = between(self.decay(parts, ctx).transpose(1, 2)).exp()
        decay = decay.masked_fill(~reach(ctx, parts.dt.shape[1], x.device), 0)
        scores = torch.einsum("btgn,bsgn->bgts", parts.C, parts.B).repeat_interleave(self.heads // self.groups, 1)
        return Matrix(scores * decay, parts.u, parts)

    def ports(self) -> dict[str, Tensor]:
        """Rows of W_in: gate, v, k (B), q (C), decay (dt); and the output projection's columns behind the scan."""
        size = self.groups * self.d_state
        names = ("gate", "v", "k", "q", "decay")
        rows = self.in_proj.weight[2 * self.d_mlp :].split([self.d_ssm, self.d_ssm, size, size, self.heads])
        return dict(zip(names, rows, strict=True)) | {"out": self.out_proj.weight[:, self.d_mlp :]}
