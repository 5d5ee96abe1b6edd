"""S4D, the mixer with a diagonal linear time-invariant system (Gu et al., 2022, arXiv:2206.11893), in the S4 block:

    x'(t) = A x(t) + B u(t),  y = 2 Re C x + D u      discretized with one step dt per channel, section 3
    out = GLU(W GELU(y) + b),  W from D to 2 D        the position-wise mixing of the released code

A full pass is one FFT convolution (`ops/s4d_kernel.py`, `ops/fft_conv.py`), with the closed form of what a given state
adds and of the state behind the last step; a single step is the recurrence, and so are packed sequences: a loop over
steps, exact and slow, because an FFT cannot cut a kernel where a sequence ends.

A = -exp(log_A_real) + i A_imag with A_imag > 0, as in the paper's listing; the released full kernel stores the
conjugate, so that its weights are not exchangeable with these. Complex numbers are stored as pairs of reals. The
system's weights stay in float32 when a model is cast to bfloat16, and everything up to GELU is in float32 (or float64).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument
from ..ops.checks import same_segment
from ..ops.fft_conv import fft_conv
from ..ops.s4d_kernel import discretize, final_state, response, s4d_scan
from .base import NOTHING, Matrix, Mixer, Out, SeqContext, State, take, zeroed

INITS = ("lin", "inv", "legs", "real")
LOOKS_AHEAD = "the second kernel looks ahead"


class Parts(NamedTuple):
    """An input projected: x (B, L, D) as it came, u (B, L, D) in float32 or float64 with padding zeroed."""

    x: Tensor
    u: Tensor
    valid: Tensor | None  #: (B, L) bool; None: all


class System(NamedTuple):
    """The discrete system: log Abar, Bbar, C and C of the direction ahead (None if causal), each (D, N / 2) complex."""

    log_abar: Tensor
    Bbar: Tensor
    C: Tensor
    ahead: Tensor | None


class S4D(Mixer):
    """The diagonal state-space mixer: a long convolution from N state numbers per channel."""

    # a rounded dt shifts the phase of every state by its error times the number of steps
    wide = frozenset({"log_dt", "log_A_real", "A_imag", "B", "C", "C_ahead", "D"})
    observed = ("in", "scan", "activated", "out")

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 64,
        init: Literal["lin", "inv", "legs", "real"] = "lin",
        discretization: Literal["zoh", "bilinear"] = "zoh",
        bidirectional: bool = False,
        n_ssm: int | None = None,
        train_B: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        rate: float = 1.0,
        dropout: float = 0.0,
    ):
        """`d_state` N counts real numbers: N / 2 states, one of each conjugate pair.

        `init`: see `diagonal`; "real" keeps A real. `n_ssm`: sets of A (and B), channel c has set c mod n_ssm; None:
        one per channel. `train_B`: otherwise B stays at its initial value, which loses nothing: the kernel depends on
        B C alone. `rate` multiplies dt and may be set later: 2 for signals sampled half as often as in training.
        """
        super().__init__(dim)
        sets = dim if n_ssm is None else n_ssm
        if d_state < 2 or d_state % 2:
            raise BadArgument(f"S4D: d_state: expected an even number from 2, got {d_state}")
        if sets < 1 or dim % sets:
            raise BadArgument(f"S4D: n_ssm: expected a divisor of dim {dim}, got {n_ssm}")
        if not 0 < dt_min <= dt_max:
            raise BadArgument(f"S4D: dt_min: expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        self.pairs, self.sets, self.discretization, self.rate = d_state // 2, sets, discretization, rate
        self.causal, self.bidirectional = not bidirectional, bidirectional
        if bidirectional:
            self.wants = frozenset()
            self.exempt = {"step": LOOKS_AHEAD, "split": LOOKS_AHEAD, "causal": LOOKS_AHEAD}
        A, B = diagonal(init, d_state)
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(dim))
        self.log_A_real = nn.Parameter(torch.log(-A.real).float().repeat(sets, 1))
        imaginary = A.imag.float().repeat(sets, 1)
        if init == "real":
            self.register_buffer("A_imag", imaginary, persistent=False)
        else:
            self.A_imag = nn.Parameter(imaginary)
        B = torch.stack([B.float(), torch.zeros(self.pairs)], -1).repeat(sets, 1, 1)
        if train_B:
            self.B = nn.Parameter(B)
        else:
            self.register_buffer("B", B, persistent=False)
        # CN(0, 1): real and imaginary part have variance 1/2 each
        self.C = nn.Parameter(torch.randn(dim, self.pairs, 2) * 0.5**0.5)
        self.C_ahead = nn.Parameter(torch.randn(dim, self.pairs, 2) * 0.5**0.5) if bidirectional else None
        self.D = nn.Parameter(torch.randn(dim))
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(dim, 2 * dim)

    def no_weight_decay(self) -> set[str]:
        """A, B, D and dt: the system is not to drift towards slow and undamped by itself."""
        return {"log_dt", "log_A_real", "A_imag", "B", "D"}

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """The state `ssm` (B, D, N / 2, 2): real and imaginary parts, in float32 or float64."""
        if self.bidirectional:
            raise BadArgument("S4D: state: expected None for a bidirectional mixer, which has no state to hand on")
        wide = torch.promote_types(dtype, torch.float32)
        return {"ssm": torch.zeros(batch, self.dim, self.pairs, 2, dtype=wide, device=device)}

    def system(self, dtype: torch.dtype) -> System:
        """The weights discretized; `dtype` float32 or float64 is that of C."""
        A, B = torch.complex(-self.log_A_real.exp(), self.A_imag), torch.view_as_complex(self.B)
        A, B = (t.repeat(self.dim // self.sets, 1) for t in (A, B))
        log_abar, Bbar = discretize(self.log_dt.exp(), A, B, discretization=self.discretization, rate=self.rate)
        C, ahead = (None if c is None else torch.view_as_complex(c.to(dtype)) for c in (self.C, self.C_ahead))
        return System(log_abar, Bbar.to(C.dtype), C, ahead)

    # phases: project, scan, finish ------------------------------------------------------------------------------------

    def project(self, x: Tensor, ctx: SeqContext = NOTHING) -> Parts:
        """Input (B, L, D) to what the convolution reads."""
        x = self.observe["in"](x)
        u, valid = x.to(torch.promote_types(x.dtype, torch.float32)), ctx.valid(x.shape[1])
        return Parts(x, zeroed(u, valid), valid)

    def scan(
        self, parts: Parts, ctx: SeqContext = NOTHING, state: State | None = None, want: frozenset[str] = frozenset()
    ) -> tuple[Tensor, Tensor | None]:
        """The mixed values (B, L, D, 1) and, where wanted, the state (B, D, N / 2, 2) behind the last valid step."""
        system, before = self.system(parts.u.dtype), None
        if state is not None:
            before = torch.view_as_complex(state["ssm"].to(parts.u.dtype).contiguous())
        by_step = ctx.segments is not None or parts.u.shape[1] == 1
        y, final = (self._recurrence if by_step else self._convolution)(parts.u, system, ctx, before, want)
        return y[..., None], None if final is None else torch.view_as_real(final)

    def _convolution(self, u, system, ctx, before, want):
        steps = u.shape[1]
        kernel, ahead = self._kernels(system, steps)
        y, final = fft_conv(u, kernel, reverse_kernel=ahead), None
        if before is not None:
            abar = system.log_abar.exp().to(before.dtype)
            y = y + response(system.C * abar * before, system.log_abar, steps).transpose(1, 2)
        if "state" in want:
            passed = steps
            if ctx.lengths is not None:  # the last valid step of each sequence to the end
                passed = ctx.lengths[:, None, None]
                place = torch.arange(steps, device=u.device) - (steps - ctx.lengths[:, None])
                u = torch.where((place >= 0)[..., None], take(u, place.clamp(min=0)), 0)
            final = final_state(u, system.log_abar, system.Bbar)
            if before is not None:
                final = final + (passed * system.log_abar).exp().to(before.dtype) * before
        return y, final

    def _recurrence(self, u, system, ctx, before, want):
        y, final = s4d_scan(u, *system[:3], initial=before, segments=ctx.segments, lengths=ctx.lengths)
        if system.ahead is not None:
            # the complement reverses an order without overflow
            falling = None if ctx.segments is None else ~ctx.segments.to(torch.int64).flip(1)
            later, _ = s4d_scan(u.flip(1), system.log_abar, system.Bbar, system.ahead, segments=falling)
            later = F.pad(later.flip(1)[:, 1:], (0, 0, 0, 1))  # the step itself is not ahead
            if ctx.segments is not None:
                goes_on = F.pad(same_segment(ctx.segments)[:, 1:], (0, 1))
                later = torch.where(goes_on[..., None], later, 0)
            y = y + later
        return y, final if "state" in want else None

    @staticmethod
    def _kernels(system: System, steps: int) -> tuple[Tensor, Tensor | None]:
        """The kernels (D, L) of both directions; one product of tables serves both."""
        if system.ahead is None:
            return response(system.C * system.Bbar, system.log_abar, steps), None
        return response(torch.stack([system.C, system.ahead]) * system.Bbar, system.log_abar, steps).unbind(0)

    def finish(self, mixed: Tensor, parts: Parts) -> Tensor:
        """Mixed values (B, L, D, 1) to the output (B, L, D): skip, GELU, projection, GLU."""
        y = mixed.squeeze(-1) + self.D.to(mixed.dtype) * parts.u
        y = self.observe["scan"](y.to(parts.x.dtype))
        y = self.observe["activated"](self.dropout(F.gelu(y)))
        return zeroed(self.observe["out"](F.glu(self.out_proj(y), dim=-1)), parts.valid)

    # the protocol -----------------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """The three phases in a row."""
        parts = self.project(x, ctx)
        mixed, final = self.scan(parts, ctx, state, want)
        return Out(self.finish(mixed, parts), None if final is None else {"ssm": final})

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The Toeplitz matrix of each channel, (B, D, L, L), cut where packed sequences meet."""
        steps = x.shape[1]
        parts = self.project(x, ctx)
        kernel, ahead = self._kernels(self.system(parts.u.dtype), steps)
        ahead = torch.zeros_like(kernel) if ahead is None else ahead
        taps = torch.cat([ahead[:, : steps - 1].flip(1), kernel], 1)
        step = torch.arange(steps, device=x.device)
        matrix = taps[:, step[:, None] - step + steps - 1].expand(x.shape[0], -1, -1, -1)
        if ctx.segments is not None:
            matrix = matrix * (ctx.segments[:, :, None] == ctx.segments[:, None])[:, None]
        return Matrix(matrix, parts.u[..., None], parts)

    def ports(self) -> dict[str, Tensor]:
        """q: C, k: B, decay: log(-Re A); out and gate: the halves of the output projection."""
        return {
            "q": self.C, "k": self.B, "decay": self.log_A_real, "out": self.out_proj.weight[: self.dim],
            "gate": self.out_proj.weight[self.dim :],
        }  # fmt: skip


def diagonal(init: str, d_state: int) -> tuple[Tensor, Tensor]:
    """A (complex128) and B (float64, real) of N = `d_state` for one set, each (N / 2,); section 4 of the paper.

    lin: -1/2 + i pi n. inv: -1/2 + i N / pi (N / (2 n + 1) - 1). real: -(n + 1). legs: the eigenvalues of the normal
    part of HiPPO-LegS, with B of HiPPO in that basis (not halved, as in the released code). Eigenvectors are fixed up
    to a phase, chosen such that B is positive. B is 1 for the others.
    """
    n = torch.arange(d_state // 2, dtype=torch.float64)
    half = torch.full_like(n, -0.5)
    if init == "lin":
        return torch.complex(half, math.pi * n), torch.ones_like(n)
    if init == "inv":
        return torch.complex(half, d_state / math.pi * (d_state / (2 * n + 1) - 1)), torch.ones_like(n)
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n)), torch.ones_like(n)
    if init != "legs":
        raise BadArgument(f"S4D: init: expected one of {', '.join(INITS)}, got {init!r}")
    # HiPPO-LegS plus the rank-one term sqrt(n + 1/2) sqrt(k + 1/2) is -1/2 plus a skew-symmetric matrix
    root = (2 * torch.arange(d_state, dtype=torch.float64) + 1).sqrt()
    outer = root[:, None] * root
    skew = (outer.triu(1) - outer.tril(-1)) / 2
    frequency, vectors = torch.linalg.eigh(-1j * skew)  # ascending, in pairs of opposite sign
    B = (vectors.mH @ root.to(vectors.dtype)).abs()
    positive = slice(d_state // 2, None)
    return torch.complex(half, frequency[positive].flip(0)), B[positive].flip(0)
