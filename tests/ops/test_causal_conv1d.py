"""The short causal convolution: against torch's own, against windows taken one by one, its state, what it refuses."""

import pytest
import torch
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.causal_conv1d import causal_conv1d
from torch.nn import functional as F

BACKENDS = ["reference", "torch"]
EXACT = {"rtol": 0.0, "atol": 1e-12}
FLOAT32 = 1e-6
close = torch.testing.assert_close


def problem(*, batch=2, steps=9, channels=3, width=4, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((batch, steps, channels), (channels, width), (channels,), (batch, width - 1, channels))
    return [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def torchs(x, weight, bias, initial=None):
    """F.conv1d, which the op calls on no CPU."""
    width = weight.shape[1]
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if initial is None else initial
    x = torch.cat([before, x], 1).transpose(1, 2)
    return F.conv1d(x, weight[:, None], bias, groups=len(weight)).transpose(1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 31, 127])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_equals_torchs_convolution_with_gradients(width, steps, backend):
    x, weight, bias, initial = leaves = problem(steps=steps, width=width)
    with use_backend(backend):
        y, state = causal_conv1d(x, weight, bias, initial=initial)
    wanted = torchs(x, weight, bias, initial)
    close(y, wanted, **EXACT)
    close(state, torch.cat([initial, x], 1)[:, steps:], **EXACT)
    w = torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad((y * w).sum(), leaves, allow_unused=width == 1),
                            torch.autograd.grad((wanted * w).sum(), leaves, allow_unused=width == 1),
                            strict=True):  # fmt: skip
        close(ours, theirs, **EXACT) if ours is not None else None


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias_and_initial(backend):
    x, weight, _, _ = problem()
    with use_backend(backend):
        close(causal_conv1d(x, weight)[0], torchs(x, weight, None), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_the_state_goes_on(cut, backend):
    x, weight, bias, initial = problem()
    with use_backend(backend):
        whole, end = causal_conv1d(x, weight, bias, initial=initial)
        first, state = causal_conv1d(x[:, :cut], weight, bias, initial=initial)
        second, last = causal_conv1d(x[:, cut:], weight, bias, initial=state)
    close(torch.cat([first, second], 1), whole, **EXACT)
    close(last, end, **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_segments_are_convolved_alone(backend):
    x, weight, bias, initial = problem(batch=1, steps=9)
    parts, numbers = (1, 2, 6), torch.tensor([[3, 5, 5, 9, 9, 9, 9, 9, 9]])
    with use_backend(backend):
        y, state = causal_conv1d(x, weight, bias, initial=initial, segments=numbers)
        # what comes before the row belongs to its first segment
        alone = [
            causal_conv1d(part, weight, bias, initial=initial if k == 0 else None)
            for k, part in enumerate(x.split(parts, 1))
        ]
    close(y, torch.cat([part for part, _ in alone], 1), **EXACT)
    close(state, alone[-1][1], **EXACT)


def test_a_short_last_segment_leaves_zeros_in_the_state():
    x, weight, _, initial = problem(batch=1, steps=9)
    numbers = torch.tensor([[0] * 8 + [1]])
    _, state = causal_conv1d(x, weight, initial=initial, segments=numbers)
    close(state, torch.cat([torch.zeros(1, 2, 3, dtype=x.dtype), x[:, 8:]], 1), **EXACT)


@pytest.mark.parametrize("segmented", [False, True])
def test_lengths_move_the_state_to_the_last_valid_step(segmented):
    x, weight, bias, initial = problem(batch=4, steps=9)
    lengths, numbers = torch.tensor([9, 1, 2, 6]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]).expand(4, -1)
    numbers = numbers if segmented else None
    _, state = causal_conv1d(x, weight, bias, initial=initial, lengths=lengths, segments=numbers)
    for row, length in enumerate(lengths.tolist()):
        short = slice(row, row + 1), slice(0, length)
        cut = None if numbers is None else numbers[short]
        _, alone = causal_conv1d(x[short], weight, bias, initial=initial[row : row + 1], segments=cut)
        close(state[row : row + 1], alone, **EXACT)


def test_a_wider_state_does_not_widen_what_goes_on_from_it():
    x, weight, bias, initial = problem(batch=2, steps=4)
    x, weight, bias = x.float(), weight.float(), bias.float()
    y, state = causal_conv1d(x, weight, bias, initial=initial)
    assert y.dtype == state.dtype == torch.float32
    close(y, causal_conv1d(x, weight, bias, initial=initial.float())[0], rtol=0, atol=0)


@pytest.mark.parametrize("segmented", [False, True])
def test_a_row_of_padding_alone_leaves_the_state_as_it_was(segmented):
    x, weight, bias, initial = problem(batch=2, steps=4)
    numbers = torch.tensor([[3, 3, 5, 5]] * 2) if segmented else None
    _, state = causal_conv1d(x, weight, bias, initial=initial, lengths=torch.tensor([0, 4]), segments=numbers)
    _, whole = causal_conv1d(x, weight, bias, initial=initial, segments=numbers)
    close(state, torch.stack([initial[0], whole[1]]), **EXACT)


@pytest.mark.parametrize("steps", [1, 127, 4097])
def test_float32_stays_within_its_bound(steps):
    exact, narrow = (problem(steps=steps, dtype=dtype) for dtype in (torch.float64, torch.float32))
    wanted, y = torchs(*exact), causal_conv1d(*narrow[:3], initial=narrow[3])[0]
    assert y.dtype == torch.float32
    assert float(((y - wanted).norm() / wanted.norm()).detach()) < FLOAT32


@pytest.mark.parametrize("segmented", [False, True])
def test_gradcheck(segmented):
    leaves = problem(batch=2, steps=5, channels=2)
    numbers = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]]) if segmented else None
    lengths = torch.tensor([5, 4])
    assert torch.autograd.gradcheck(
        lambda x, w, b, initial: causal_conv1d(x, w, b, initial=initial, segments=numbers, lengths=lengths), leaves
    )


def test_off_the_cpu_it_is_one_convolution(monkeypatch):
    """Shapes alone, on the meta device: what a GPU computes is compared in `test_on_a_gpu`."""
    calls, real = [], F.conv1d
    monkeypatch.setattr(F, "conv1d", lambda *arguments, **more: calls.append(1) or real(*arguments, **more))
    x, weight, bias, initial = (t.detach().to("meta") for t in problem())
    y, state = causal_conv1d(x, weight, bias, initial=initial)
    assert calls == [1] and y.shape == x.shape and state.shape == initial.shape
    assert y.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("segmented", [False, True])
def test_on_a_gpu(segmented):
    tensors = problem(steps=33)
    numbers = torch.arange(33).div(5, rounding_mode="floor").expand(2, -1) if segmented else None
    wanted = causal_conv1d(*tensors[:3], initial=tensors[3], segments=numbers)
    moved = [t.detach().cuda() for t in tensors]
    found = causal_conv1d(*moved[:3], initial=moved[3], segments=None if numbers is None else numbers.cuda())
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours.cpu(), theirs, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("x", (2, 9), r"x: expected \(B, L, D\), got \(2, 9\)"),
        ("x", (2, 0, 3), r"x: expected \(B, L, D\), got \(2, 0, 3\)"),
        ("weight", (1, 4), r"weight: expected \(3, W\), got \(1, 4\)"),
        ("weight", (3, 0), r"weight: expected \(3, W\), got \(3, 0\)"),
        ("weight", (3, 1, 4), r"weight: expected \(3, W\), got \(3, 1, 4\)"),
        ("bias", (1,), r"bias: expected \(3,\), got \(1,\)"),
        ("initial", (1, 3, 3), r"initial: expected \(2, 3, 3\), got \(1, 3, 3\)"),
        ("initial", (2, 4, 3), r"initial: expected \(2, 3, 3\), got \(2, 4, 3\)"),
        ("lengths", (1,), r"lengths: expected \(2,\), got \(1,\)"),
        ("segments", (1, 9), r"segments: expected \(2, 9\), got \(1, 9\)"),
    ],
)
def test_nothing_is_broadcast(name, shape, text, backend):
    given = dict(zip(("x", "weight", "bias", "initial"), problem(), strict=True))
    kind = torch.int64 if name in ("lengths", "segments") else torch.float64
    with use_backend(backend), pytest.raises(ValueError, match=f"causal_conv1d: {text}"):
        causal_conv1d(**{**given, name: torch.zeros(shape, dtype=kind)})


def test_a_state_where_there_is_none_is_checked_too():
    x, weight, bias, _ = problem(width=1)
    with pytest.raises(ValueError, match=r"initial: expected \(2, 0, 3\), got \(2, 1, 3\)"):
        causal_conv1d(x, weight, bias, initial=torch.zeros(2, 1, 3, dtype=torch.float64))


def test_float16_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="x: expected float32, bfloat16 or float64 on the CPU, got float16"):
        causal_conv1d(*problem(dtype=torch.float16)[:3])


def test_falling_segments_are_refused():
    x, weight, _, _ = problem()
    numbers = torch.tensor([[0] * 9, [1] * 4 + [0] * 5])
    with pytest.raises(ValueError, match="segments: .* never fall along a row, got a fall in row 1"):
        causal_conv1d(x, weight, segments=numbers)
