"""The S4D kernel, its states and the FFT convolution against their definitions, scipy and the matrix exponential."""

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.fft_conv import fast_size, fft_conv
from statezoo.zoo.ops.s4d_kernel import discretize, final_state, response, s4d_kernel, s4d_scan

LENGTHS = (1, 2, 3, 7, 64, 127, 4097)
EXACT = {"rtol": 0.0, "atol": 1e-11}
both = pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
close = torch.testing.assert_close


def system(channels=3, pairs=4, dtype=torch.float64):
    """dt, A, B, C of a stable system with slow and fast states."""
    rng = torch.Generator().manual_seed(0)
    dt = torch.logspace(-3, -1, channels, dtype=torch.float64)
    A = torch.complex(-0.1 - torch.rand(channels, pairs, generator=rng, dtype=torch.float64),
                      torch.linspace(0, 200, pairs, dtype=torch.float64).expand(channels, -1))  # fmt: skip
    B, C = torch.randn(2, channels, pairs, generator=rng, dtype=torch.complex128)
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return dt.to(dtype), *(t.to(complex_dtype).clone() for t in (A, B, C))


def dense(A, B, C):
    """The real system of twice the size: states (Re h, Im h), output 2 Re C h."""
    A, B, C = (t.numpy() for t in (A, B, C))
    matrix = np.block([[np.diag(A.real), -np.diag(A.imag)], [np.diag(A.imag), np.diag(A.real)]])
    return matrix, np.concatenate([B.real, B.imag])[:, None], 2 * np.concatenate([C.real, -C.imag])[None]


# the kernel -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("length", LENGTHS)
def test_backends_agree_with_gradients(length, discretization):
    found = []
    for backend in ("reference", "torch"):
        dt, A, B, C = (t.requires_grad_() for t in system())
        with use_backend(backend):
            kernel = s4d_kernel(dt, A, C, length, B=B, discretization=discretization, rate=1.3)
        found.append((kernel, torch.autograd.grad((kernel * kernel.detach().cos()).sum(), (dt, A, B, C))))
    (reference, gradients), (ours, ours_gradients) = found
    close(ours, reference, **EXACT)
    for a, b in zip(ours_gradients, gradients, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


def test_equals_the_dense_system_under_the_matrix_exponential():
    dt, A, B, C = system()
    kernel = s4d_kernel(dt, A, C, 200, B=B)
    for h in range(len(dt)):
        matrix, column, row = dense(A[h], B[h], C[h])
        size = len(matrix)
        whole = scipy.linalg.expm(float(dt[h]) * np.block([[matrix, column], [np.zeros((1, size + 1))]]))
        state, expected = whole[:size, size:], []
        for _ in range(200):
            expected.append((row @ state).item())
            state = whole[:size, :size] @ state
        np.testing.assert_allclose(kernel[h].numpy(), expected, rtol=0, atol=1e-10)


@both
def test_equals_scipys_discretization_and_impulse_response(discretization):
    dt, A, B, C = system()
    log_abar, Bbar = discretize(dt, A, B, discretization=discretization)
    kernel = s4d_kernel(dt, A, C, 100, B=B, discretization=discretization)
    for h in range(len(dt)):
        matrix, column, row = dense(A[h], B[h], C[h])
        step = float(dt[h])
        found = scipy.signal.cont2discrete((matrix, column, row, np.zeros((1, 1))), step, discretization)
        ours = dense(log_abar[h].exp(), Bbar[h], C[h])
        np.testing.assert_allclose(ours[0], found[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(ours[1], found[1], rtol=0, atol=1e-10)
        # scipy's output at a step does not hold the input of that step yet
        _, (impulse,) = scipy.signal.dimpulse((found[0], found[1], row, 0, step), n=101)
        np.testing.assert_allclose(kernel[h].numpy(), impulse[1:, 0], rtol=0, atol=1e-10)


def test_rate_multiplies_the_time_step():
    dt, A, B, C = system()
    close(s4d_kernel(dt, A, C, 50, B=B, rate=2.5), s4d_kernel(2.5 * dt, A, C, 50, B=B), **EXACT)
    close(s4d_kernel(dt, A, C, 50), s4d_kernel(dt, A, C, 50, B=torch.ones_like(B)), **EXACT)


def test_a_state_that_forgets_at_once_is_finite():
    dt = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    A, C = torch.tensor([[-20 + 0j]], dtype=torch.complex128), torch.ones(1, 1, dtype=torch.complex128)
    kernel = s4d_kernel(dt, A, C, 4, discretization="bilinear")  # 1 + dt A / 2 = 0
    close(kernel, torch.tensor([[0.1, 0, 0, 0]], dtype=torch.float64), **EXACT)
    (gradient,) = torch.autograd.grad(kernel[0, 0], dt)
    assert gradient.isfinite()


def test_float32_keeps_fast_states_accurate():
    # the fastest state of LegS with 64 numbers, at the longest time step: 130 radians a step, 260,000 in all
    dt, A = torch.tensor([0.1]), torch.tensor([[-0.002 + 1303j]], dtype=torch.complex64)
    C = torch.ones(1, 1, dtype=torch.complex64)
    exact = s4d_kernel(dt.double(), A.to(torch.complex128), C.to(torch.complex128), 2000)
    scale = float(exact.abs().max())
    error = float((s4d_kernel(dt, A, C, 2000) - exact).abs().max()) / scale
    z = dt[:, None] * A
    plain = 2 * (C * (z.exp() - 1) / A * (z * torch.arange(2000)).exp()).real
    assert error < 1e-6
    assert float((plain - exact).abs().max()) / scale > 1e-3, "phases in float32 would do as well"


def test_memory_grows_with_the_square_root_of_the_length():
    channels, pairs, length = 4, 8, 4096
    saved = []
    dt, A, B, C = (t.requires_grad_() for t in system(channels, pairs, torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        s4d_kernel(dt, A, C, length, B=B)
    assert sum(saved) < 30 * channels * pairs * (64 + 64)
    assert sum(saved) < channels * pairs * length


def test_autocast_leaves_the_kernel_and_the_states_alone():
    dt, A, B, C = system(dtype=torch.float32)
    u = torch.randn(2, 64, 3)
    log_abar, Bbar = discretize(dt, A, B)
    plain = s4d_kernel(dt, A, C, 64, B=B), final_state(u, log_abar, Bbar)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = s4d_kernel(dt, A, C, 64, B=B), final_state(u, log_abar, Bbar)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


# states ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_convolution_and_final_state_equal_the_recurrence(length):
    dt, A, B, C = system()
    u, h = torch.randn(2, length, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.complex128)
    log_abar, Bbar = discretize(dt, A, B)
    y, state = s4d_scan(u, log_abar, Bbar, C, initial=h)
    ours = fft_conv(u, s4d_kernel(dt, A, C, length, B=B))
    ours = ours + response(C * log_abar.exp() * h, log_abar, length).transpose(1, 2)
    close(ours, y, rtol=0, atol=1e-12)
    passed = (length * log_abar).exp() * h
    for backend in ("reference", "torch"):
        with use_backend(backend):
            close(final_state(u, log_abar, Bbar) + passed, state, rtol=0, atol=1e-12)


def test_scan_resets_at_segments_and_freezes_behind_lengths():
    dt, A, B, C = system()
    log_abar, Bbar = discretize(dt, A, B)
    u = torch.randn(2, 9, 3, dtype=torch.float64)
    segments, lengths = torch.tensor([[0] * 4 + [3] * 5, [1] * 9]), torch.tensor([9, 6])
    y, state = s4d_scan(u, log_abar, Bbar, C, segments=segments, lengths=lengths)
    first = s4d_scan(u[:1, :4], log_abar, Bbar, C)
    second = s4d_scan(u[:1, 4:], log_abar, Bbar, C)
    short = s4d_scan(u[1:, :6], log_abar, Bbar, C)
    close(y[:1], torch.cat([first[0], second[0]], 1), **EXACT)
    close(y[1:, :6], short[0], **EXACT)
    close(state, torch.cat([second[1], short[1]]), **EXACT)


# the convolution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_fft_equals_the_sum_with_gradients(length, ahead):
    torch.manual_seed(0)
    # long kernels that do not decay: anything that wraps around shows
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True)
              for shape in ((2, length, 3), (3, length), *([(3, length)] * ahead))]  # fmt: skip
    weight = torch.randn(2, length, 3, dtype=torch.float64)
    found = []
    for backend in ("reference", "torch"):
        with use_backend(backend):
            y = fft_conv(*leaves[:2], reverse_kernel=leaves[2] if ahead else None)
        # a kernel ahead has no effect on one step alone
        found.append((y, torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True, materialize_grads=True)))
    close(found[1][0], found[0][0], rtol=0, atol=1e-10)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 40), (40, 2), (36, 36)])
def test_kernels_may_be_shorter_or_longer_than_the_signal(sizes, backend):
    torch.manual_seed(0)
    u, k = torch.randn(1, 20, 2, dtype=torch.float64), torch.randn(2, sizes[0], dtype=torch.float64)
    r = torch.randn(2, sizes[1], dtype=torch.float64)
    with use_backend(backend):
        y = fft_conv(u, k, reverse_kernel=r)
    for h in range(2):
        taps = np.concatenate([r[h].numpy()[::-1], k[h].numpy()])
        whole = np.convolve(u[0, :, h].numpy(), taps)
        np.testing.assert_allclose(y[0, :, h].numpy(), whole[sizes[1] : sizes[1] + 20], rtol=0, atol=1e-12)


def test_float32_convolution_is_within_its_bound():
    torch.manual_seed(0)
    u, k = torch.randn(2, 4097, 3), torch.randn(3, 4097)
    exact = fft_conv(u.double(), k.double())
    y = fft_conv(u, k)
    assert y.dtype == torch.float32
    assert float((y - exact).norm() / exact.norm()) < 1e-6


def test_gradcheck():
    dt, A, B, C = (t.requires_grad_() for t in system(2, 2))
    u = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)

    def run(dt, A, B, C, u, discretization):
        log_abar, Bbar = discretize(dt, A, B, discretization=discretization)
        kernel = s4d_kernel(dt, A, C, 5, B=B, discretization=discretization)
        state = final_state(u, log_abar, Bbar)
        return fft_conv(u, kernel, reverse_kernel=kernel.flip(1)), state, response(C * state, log_abar, 3)

    for discretization in ("zoh", "bilinear"):
        assert torch.autograd.gradcheck(run, (dt, A, B, C, u, discretization), fast_mode=True)


def test_fast_sizes_are_fast_and_close():
    for least in range(1, 20_000, 7):
        size = fast_size(least)
        assert size >= least and size % 2 == 0 and (size <= 1.2 * least or size == 36)
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1


def test_one_program_serves_many_lengths():
    dt, A, B, C = system()
    traced = []

    def count(graph, inputs):
        traced.append(1)
        return graph

    def run(u):
        log_abar, Bbar = discretize(dt, A, B)
        return fft_conv(u, s4d_kernel(dt, A, C, u.shape[1], B=B)), final_state(u, log_abar, Bbar)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=count)
    for length in (33, 34, 35, 41, 43, 47):
        u = torch.randn(2, length, 3, dtype=torch.float64)
        for ours, plain in zip(compiled(u), run(u), strict=True):
            close(ours, plain, **EXACT)
    assert len(traced) == 2  # one for each size of the FFT


def test_errors_name_argument_expected_and_got():
    dt, A, B, C = system()
    with pytest.raises(BadArgument, match=r"s4d_kernel: A: expected \(3, N2\), got \(2, 4\)"):
        s4d_kernel(dt, A[:2], C, 5)
    with pytest.raises(BadArgument, match=r"C: expected \(3, 4\), got \(3, 3\)"):
        s4d_kernel(dt, A, C[:, :3], 5)
    with pytest.raises(BadArgument, match="A: expected a complex dtype, got torch.float64"):
        s4d_kernel(dt, A.real, C, 5)
    with pytest.raises(BadArgument, match="discretization: expected zoh or bilinear, got 'euler'"):
        s4d_kernel(dt, A, C, 5, discretization="euler")
    with pytest.raises(BadArgument, match="length: expected at least 1, got 0"):
        s4d_kernel(dt, A, C, 0)
    with pytest.raises(BadArgument, match="dt: expected float32 or float64, got torch.bfloat16"):
        s4d_kernel(dt.bfloat16(), A, C, 5)
    u, k = torch.randn(2, 5, 3), torch.randn(3, 5)
    with pytest.raises(BadArgument, match=r"fft_conv: kernel: expected \(3, K\), got \(2, 5\)"):
        fft_conv(u, k[:2])
    with pytest.raises(BadArgument, match="u: expected float32 or float64, got torch.bfloat16"):
        fft_conv(u.bfloat16(), k)
    with pytest.raises(BadArgument, match="reverse_kernel: expected torch.float32 as u, got torch.float64"):
        fft_conv(u, k, reverse_kernel=k.double())
