"""The diagonal linear system of S4D (Gu et al., 2022, arXiv:2206.11893) as a convolution kernel, and its states.

    h_t = Abar h_{t-1} + Bbar u_t,   y_t = 2 Re sum_n C_n h_tn          N2 states, one of each conjugate pair
    K_l = 2 Re sum_n C_n Bbar_n Abar_n^l                                 (section 3 of the paper)

    zoh:       Abar = e^{dt A},   Bbar = (e^{dt A} - 1) / A B
    bilinear:  Abar = (1 + dt A / 2) / (1 - dt A / 2),   Bbar = dt / (1 - dt A / 2) B

`reference` sums over all powers of Abar, H N2 L numbers. `torch` writes l = R q + r with R about sqrt(L), so that the
sum over states is one real matrix product of the tables Abar^{Rq} and Abar^r, H N2 (Q + R) numbers.

Powers are exponentials of l log Abar. Discretization and exponents are in float64 where the device has it, whatever the
dtype: in float32 the phase l dt Im A of a fast state (Im A = 1300 in LegS) would lose up to four digits. H N2 numbers
are discretized, so that this costs nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadArgument
from .backends import call_of, choose, full_precision, only_by_force, register
from .checks import expect, expect_lengths, expect_segments, same_segment

NAME, FINAL = "s4d_kernel", "s4d_final_state"
DISCRETIZATIONS = ("zoh", "bilinear")
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def discretize(
    dt: Tensor, A: Tensor, B: Tensor | None = None, *, discretization: str = "zoh", rate: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log of Abar, and Bbar, (H, N2) complex128 (complex64 on devices without float64), of time steps dt (H,).

    A and B (H, N2) are complex, A not 0; B None: ones. `rate` multiplies dt: 2 for a signal sampled half as often.
    """
    expect(NAME, "dt", dt, "H")
    expect(NAME, "A", A, dt.shape[0], "N2")
    if not A.is_complex():
        raise BadArgument(f"{NAME}: A: expected a complex dtype, got {A.dtype}")
    if B is not None:
        expect(NAME, "B", B, *A.shape)
    if discretization not in DISCRETIZATIONS:
        raise BadArgument(f"{NAME}: discretization: expected {' or '.join(DISCRETIZATIONS)}, got {discretization!r}")
    wide = torch.float32 if dt.device.type == "mps" else torch.float64
    dt, A = dt.to(wide)[:, None] * rate, A.to(COMPLEX[wide])
    z = dt * A
    if discretization == "zoh":
        log_abar, write = z, (z.exp() - 1) / A
    else:
        abar = (1 + z / 2) / (1 - z / 2)
        # a state that forgets all at once has no logarithm; its powers are 0 to any precision all the same
        log_abar, write = torch.where(abar == 0, 1e-30, abar).log(), dt / (1 - z / 2)
    return log_abar, write if B is None else write * B


def s4d_kernel(
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    length: int,
    *,
    B: Tensor | None = None,
    discretization: str = "zoh",
    rate: float = 1.0,
) -> Tensor:
    """The kernel (H, L) of `length` L, in the dtype of dt (float32 or float64), differentiable in dt, A, B and C.

    dt (H,) time steps; A, B, C (H, N2) complex, B None for ones; `rate` multiplies dt.
    """
    if dt.dtype not in COMPLEX:
        raise BadArgument(f"{NAME}: dt: expected float32 or float64, got {dt.dtype}")
    log_abar, Bbar = discretize(dt, A, B, discretization=discretization, rate=rate)
    expect(NAME, "C", C, *A.shape)
    return response((C * Bbar).to(COMPLEX[dt.dtype]), log_abar, length)


def response(c: Tensor, log_abar: Tensor, length: int) -> Tensor:
    """2 Re sum_n c_n Abar_n^l for l < `length`: (..., H, L) real from c (..., H, N2) complex and log Abar (H, N2)."""
    if length < 1:
        raise BadArgument(f"{NAME}: length: expected at least 1, got {length}")
    with full_precision(c.device.type):
        return choose(NAME, call_of(c, length))(c, log_abar, length)


def final_state(u: Tensor, log_abar: Tensor, Bbar: Tensor) -> Tensor:
    """The state (B, H, N2) behind `u` (B, L, H), from a zero state: sum_l Abar^{L-1-l} Bbar u_l."""
    expect(FINAL, "u", u, "B", "L", log_abar.shape[0])
    with full_precision(u.device.type):
        states = choose(FINAL, call_of(u, u.shape[1]))(u, log_abar)
    return states * Bbar.to(states.dtype)


def s4d_scan(
    u: Tensor,
    log_abar: Tensor,
    Bbar: Tensor,
    C: Tensor,
    *,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence itself, a loop over steps: y (B, L, H) and the state (B, H, N2) behind the last (valid) step.

    u (B, L, H) real; log Abar, Bbar, C (H, N2) complex; `initial` (B, H, N2). `segments` (B, L) reset the state where
    they change; steps from `lengths` (B,) on leave it as it is.
    """
    expect("s4d_scan", "u", u, "B", "L", log_abar.shape[0])
    (batch, steps, _), complex_dtype = u.shape, COMPLEX[u.dtype]
    segments = expect_segments("s4d_scan", segments, batch, steps)
    lengths = expect_lengths("s4d_scan", lengths, batch, steps)
    abar, Bbar, C = log_abar.exp().to(complex_dtype), Bbar.to(complex_dtype), C.to(complex_dtype)
    h = abar.new_zeros(batch, *abar.shape) if initial is None else initial
    keeps = [None] * steps if segments is None else same_segment(segments).unbind(1)
    ys = []
    for t, (u_t, keep) in enumerate(zip(u.unbind(1), keeps, strict=True)):
        before = h if keep is None else torch.where(keep[:, None, None], h, 0)
        after = abar * before + Bbar * u_t[..., None]
        h = after if lengths is None else torch.where((t < lengths)[:, None, None], after, h)
        ys.append(2 * (C * after).real.sum(-1))
    return torch.stack(ys, 1), h


# backends -------------------------------------------------------------------------------------------------------------


def _powers(log_abar: Tensor, count: int, dtype: torch.dtype, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of Abar^{stride k} for k < count, (H, N2, count); angles are reduced before rounding."""
    steps = torch.arange(count, dtype=log_abar.real.dtype, device=log_abar.device) * stride
    size = (log_abar.real[..., None] * steps).to(dtype).exp()
    angle = torch.remainder(log_abar.imag[..., None] * steps, 2 * math.pi).to(dtype)
    return size * angle.cos(), size * angle.sin()


def _run(steps: int) -> int:
    """R, the power of two from sqrt(L) on; by comparisons alone, so that a traced program holds for many lengths."""
    run = 1
    while run * run < steps:
        run *= 2
    return run


def _response_direct(c, log_abar, length):
    powers = torch.complex(*_powers(log_abar, length, c.real.dtype))
    return 2 * (c[..., None] * powers).sum(-2).real


def _response(c, log_abar, length):
    short = _run(length)
    long = -(-length // short)
    slow_re, slow_im = _powers(log_abar, long, c.real.dtype, short)
    re, im = c.real[..., None], c.imag[..., None]
    # Re (x z) = [Re x, -Im x] [Re z, Im z]', with x = c Abar^{Rq} and z = Abar^r
    left = torch.cat([re * slow_re - im * slow_im, -(re * slow_im + im * slow_re)], -2)
    right = torch.cat(_powers(log_abar, short, c.real.dtype), -2)
    return 2 * (left.transpose(-1, -2) @ right).flatten(-2)[..., :length]


def _final_direct(u, log_abar):
    powers = torch.complex(*_powers(log_abar, u.shape[1], u.dtype))
    return torch.einsum("blh,hnl->bhn", u.to(powers.dtype), powers.flip(-1))


def _final(u, log_abar):
    short = _run(u.shape[1])
    long = -(-u.shape[1] // short)
    u = torch.nn.functional.pad(u, (0, 0, long * short - u.shape[1], 0)).unflatten(1, (long, short)).permute(0, 3, 1, 2)
    within = torch.cat(_powers(log_abar, short, u.dtype), -2).flip(-1)
    states = (u @ within.transpose(-1, -2)).unflatten(-1, (2, -1))  # of each run of R steps, (B, H, Q, 2, N2)
    re, im = states.unbind(-2)
    slow_re, slow_im = (t.flip(-1).transpose(-1, -2) for t in _powers(log_abar, long, u.dtype, short))
    return torch.complex((re * slow_re - im * slow_im).sum(-2), (re * slow_im + im * slow_re).sum(-2))


register(NAME, "torch", _response)
register(NAME, "reference", _response_direct, automatic=only_by_force)
register(FINAL, "torch", _final)
register(FINAL, "reference", _final_direct, automatic=only_by_force)
