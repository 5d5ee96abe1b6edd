"""S4D: the laws in every option, initial systems, packed and padded sequences, compiling, exporting, low precision."""

import functools
import math

import numpy as np
import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers import laws
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.s4d import S4D, diagonal
from statezoo.zoo.ops.s4d_kernel import s4d_scan
from statezoo.zoo.train.optim import parameter_groups

CASES = {
    "plain": {},
    "bilinear-inv": {"init": "inv", "discretization": "bilinear"},
    "legs-shared": {"init": "legs", "n_ssm": 2, "train_B": True},
    "real": {"init": "real", "dt_max": 0.5},
    "bidirectional": {"bidirectional": True, "n_ssm": 1},
    "rate": {"rate": 3.0, "d_state": 2},
}
DIM = 6
STATE = frozenset({"state"})
EXACT = {"rtol": 0.0, "atol": 1e-10}
close = torch.testing.assert_close


def build(case, **more):
    torch.manual_seed(7)
    return S4D(DIM, **{"d_state": 8, **CASES[case], **more}).double().eval()


def example(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("law", list(laws.LAWS))
def test_law(law, case):
    mixer = build(case)
    if law in mixer.exempt or not laws.applies(law, mixer):
        with pytest.raises((AssertionError, ValueError)):
            laws.LAWS[law](functools.partial(build, case))
    else:
        assert laws.LAWS[law](functools.partial(build, case)) is None


@pytest.mark.parametrize("steps", [1, 23])
@pytest.mark.parametrize("case", list(CASES))
def test_torch_backend_equals_reference(case, steps):
    laws.agree(functools.partial(build, case), "torch", steps=steps)


# initial systems ------------------------------------------------------------------------------------------------------


def test_initial_frequencies():
    legs, inv = (diagonal(init, 64)[0].imag[:4].round().tolist() for init in ("legs", "inv"))
    assert legs == [1303, 433, 258, 183] and inv == [1283, 414, 240, 166]
    assert torch.equal(diagonal("lin", 6)[0].imag, math.pi * torch.arange(3, dtype=torch.float64))
    assert diagonal("real", 6)[0].tolist() == [-1, -2, -3]
    for init in ("legs", "inv", "lin"):
        A = diagonal(init, 64)[0]
        assert torch.equal(A.real, torch.full_like(A.real, -0.5)) and bool((A.imag >= 0).all())


def test_legs_is_the_normal_part_of_hippo():
    n = np.arange(16)
    hippo = -np.tril(np.sqrt((2 * n[:, None] + 1) * (2 * n + 1)), -1) - np.diag(n + 1)
    p = np.sqrt(n + 0.5)
    values, vectors = np.linalg.eig(hippo + np.outer(p, p))
    B = np.abs(np.linalg.solve(vectors / np.linalg.norm(vectors, axis=0), np.sqrt(2 * n + 1)))
    upper = [i for i in np.argsort(-values.imag) if values[i].imag > 0]
    A, ours = diagonal("legs", 16)
    np.testing.assert_allclose(A.numpy(), values[upper], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.numpy(), B[upper], rtol=0, atol=1e-9)


def test_parameters_of_the_options():
    sizes = {case: {name: tuple(p.shape) for name, p in build(case).named_parameters()} for case in CASES}
    proj = {"D": (6,), "log_dt": (6,), "out_proj.weight": (12, 6), "out_proj.bias": (12,), "C": (6, 4, 2)}
    assert sizes["plain"] == {**proj, "log_A_real": (6, 4), "A_imag": (6, 4)}
    assert sizes["legs-shared"] == {**proj, "log_A_real": (2, 4), "A_imag": (2, 4), "B": (2, 4, 2)}
    assert sizes["real"] == {**proj, "log_A_real": (6, 4)}
    assert sizes["bidirectional"] == {**proj, "log_A_real": (1, 4), "A_imag": (1, 4), "C_ahead": (6, 4, 2)}
    torch.manual_seed(0)
    mixer = S4D(4096, dt_min=1e-2, dt_max=0.5, d_state=2).requires_grad_(False)
    assert mixer.log_dt.exp().min() >= 0.00999 and mixer.log_dt.exp().max() <= 0.501
    assert abs(float(mixer.log_dt.mean()) - math.log(0.01 * 0.5) / 2) < 0.1  # uniform in the logarithm
    assert abs(float(mixer.C.square().sum(-1).mean()) - 1) < 0.05  # CN(0, 1)
    assert abs(float(mixer.D.std()) - 1) < 0.05


def test_the_system_has_no_weight_decay():
    mixer = build("legs-shared", bidirectional=True)
    decayed, free = (group["params"] for group in parameter_groups(mixer, 0.1))
    assert {id(p) for p in decayed} == {id(p) for p in (mixer.C, mixer.C_ahead, mixer.out_proj.weight)}
    assert {id(p) for p in free} >= {id(p) for p in (mixer.log_dt, mixer.log_A_real, mixer.A_imag, mixer.B, mixer.D)}


def test_shared_systems_are_copies():
    shared, own = build("plain", n_ssm=2), build("plain")
    copies = {name: getattr(shared, name).repeat(3, 1) for name in ("log_A_real", "A_imag")}
    own.load_state_dict(shared.state_dict() | copies)
    with torch.no_grad():
        for mixer, repeats in ((shared, 1), (own, 3)):
            mixer.A_imag.copy_(torch.arange(8.0).reshape(2, 4).repeat(repeats, 1))
    x = example(2, 9)
    close(shared(x).y, own(x).y, **EXACT)


# sequences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 127, 1000, 4097])
@pytest.mark.parametrize("case", ["plain", "legs-shared", "real"])
def test_convolution_equals_the_recurrence(case, steps):
    mixer = build(case)
    parts, system = mixer.project(example(2, steps)), mixer.system(torch.float64)
    with torch.no_grad():
        mixed, state = mixer.scan(parts, want=STATE)
        y, h = s4d_scan(parts.u, *system[:3])
    scale = float(y.abs().max())
    close(mixed[..., 0], y, rtol=0, atol=1e-12 * scale)
    close(state, torch.view_as_real(h), rtol=0, atol=1e-12 * scale)


def test_uneven_lengths_with_a_state_are_each_alone():
    mixer, x = build("plain"), example(3, 12)
    before = mixer(example(3, 5, seed=2), want=STATE).state
    lengths = torch.tensor([12, 1, 7])
    out = mixer(x, SeqContext(lengths=lengths), before, STATE)
    for row, length in enumerate(lengths.tolist()):
        alone = mixer(x[row : row + 1, :length], None, {"ssm": before["ssm"][row : row + 1]}, STATE)
        close(out.y[row : row + 1, :length], alone.y, **EXACT)
        close(out.state["ssm"][row : row + 1], alone.state["ssm"], **EXACT)


def test_packed_sequences_with_a_state_and_padding():
    mixer, x = build("plain"), example(2, 10)
    before = mixer(example(2, 5, seed=2), want=STATE).state
    segments = torch.tensor([[0] * 4 + [1] * 6] * 2)
    out = mixer(x, SeqContext(segments=segments, lengths=torch.tensor([10, 7])), before, STATE)
    first = mixer(x[:, :4], None, before)
    close(out.y[:, :4], first.y, **EXACT)
    for row, length in enumerate((10, 7)):
        second = mixer(x[row : row + 1, 4:length], want=STATE)
        close(out.y[row : row + 1, 4:length], second.y, **EXACT)
        close(out.state["ssm"][row : row + 1], second.state["ssm"], **EXACT)


@pytest.mark.parametrize("case", ["plain", "bidirectional"])
def test_matrix_of_packed_sequences(case):
    mixer, x = build(case), example(2, 10)
    ctx = SeqContext(segments=torch.tensor([[0, 0, 0, 2, 3, 3, 3, 3, 3, 3], [1] * 10]))
    found = mixer.materialize(x, ctx)
    mixed = torch.einsum("bhts,bshp->bthp", found.matrix, found.values)
    close(mixer.finish(mixed, found.parts), mixer(x, ctx).y, **EXACT)


def test_bidirectional_looks_both_ways_and_counts_the_step_once():
    mixer = build("bidirectional", n_ssm=None)
    matrix = mixer.materialize(example(1, 8)).matrix[0]
    kernel, later = mixer._kernels(mixer.system(torch.float64), 8)
    for t in range(8):
        for s in range(8):
            close(matrix[:, t, s], kernel[:, t - s] if t >= s else later[:, s - t - 1], **EXACT)
    assert not mixer.causal and mixer.wants == frozenset() and build("plain").causal
    with pytest.raises(BadArgument, match="no state to hand on"):
        mixer.init_state(2)
    with pytest.raises(BadArgument, match="state"):
        mixer(example(1, 8), want=STATE)


def test_a_rate_of_two_hears_a_signal_sampled_half_as_often():
    # slow signals: sampled at 0, 1, 2, ... and at 0, 2, 4, ...; the scan is compared where both have a sample
    mixer = build("plain", dt_min=1e-3, dt_max=1e-2).requires_grad_(False)
    t = torch.arange(2000, dtype=torch.float64)[:, None]
    x = torch.sin(t * torch.linspace(0.003, 0.02, DIM, dtype=torch.float64))[None]
    fine = mixer.scan(mixer.project(x))[0][:, ::2, :, 0]
    plain = mixer.scan(mixer.project(x[:, ::2]))[0][..., 0]
    mixer.rate = 2.0
    coarse = mixer.scan(mixer.project(x[:, ::2]))[0][..., 0]
    scale = fine.square().mean((0, 1)).sqrt()
    assert float(((coarse - fine).square().mean((0, 1)).sqrt() / scale).max()) < 0.05
    assert float(((plain - fine).square().mean((0, 1)).sqrt() / scale).min()) > 0.2


def test_dropout_is_for_training_alone():
    mixer, x = build("plain", dropout=0.5), example(2, 9)
    assert torch.equal(mixer(x).y, build("plain")(x).y)
    mixer.train()
    assert not torch.allclose(mixer(x).y, build("plain")(x).y)


# machines -------------------------------------------------------------------------------------------------------------


class Pair(torch.nn.Module):
    """Output and state as a tuple, which an exported program may return."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x, ctx=None, state=None):
        out = self.mixer(x, ctx, state, self.mixer.wants)
        return out.y, out.state


CALLS = {"plain": False, "legs-shared": True, "bidirectional": False}


@pytest.mark.parametrize("case", list(CALLS))
def test_compiles_in_one_graph_with_gradients(case):
    model = Pair(build(case).float())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, ctx = example(2, 47, dtype=torch.float32).requires_grad_(), SeqContext(lengths=torch.tensor([47, 5]))
    state = model.mixer.init_state(2) if CALLS[case] else None
    found = []
    for run in (model, compiled):
        y, final = run(x, ctx, state)
        loss = y.square().sum() + (0 if final is None else final["ssm"].square().sum())
        found.append([y, *torch.autograd.grad(loss, [x, *model.parameters()])])
    for plain, ours in zip(*found, strict=True):
        close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", list(CALLS))
def test_exports_without_an_op_of_the_zoo(case):
    model = Pair(build(case).float())
    arguments = (example(2, 47, dtype=torch.float32), SeqContext(lengths=torch.tensor([47, 5])))
    if CALLS[case]:
        arguments += (model.mixer(arguments[0], want=STATE).state,)
    program = torch.export.export(model, arguments)
    assert not [node for node in program.graph.nodes if "statezoo" in str(node.target)]
    (y, state), (wanted, wanted_state) = program.module()(*arguments), model(*arguments)
    close(y, wanted, rtol=0, atol=1e-5)
    if state is not None:
        close(state, wanted_state, rtol=0, atol=1e-5)


# relative error of the whole output, ||y - y64|| / ||y64||
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("steps", [1, 127, 4097])
@pytest.mark.parametrize("case", list(CASES))
def test_low_precision_stays_within_its_bound(case, steps, dtype, bound):
    exact, mixer, x = build(case), build(case).to(dtype), example(1, steps)
    with torch.no_grad():
        wanted, y = exact(x).y, mixer(x.to(dtype)).y
    assert y.dtype == dtype
    assert float((y.double() - wanted).norm() / wanted.norm()) < bound


def test_casting_leaves_the_system_in_float32():
    mixer = build("legs-shared").to(torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in mixer.named_parameters()}
    assert {name for name, dtype in kinds.items() if dtype == torch.bfloat16} == {"out_proj.weight", "out_proj.bias"}
    # from float64 the weights come as they were, not rounded to bfloat16 and back
    assert torch.equal(mixer.float().log_dt, build("legs-shared").float().log_dt)
    assert mixer.to("meta").log_dt.is_meta


def test_autocast_convolves_in_float32():
    mixer, x = build("plain").float(), example(2, 65, dtype=torch.float32)
    seen = []
    mixer.points()["scan"].register_forward_hook(lambda _, inputs, output: seen.append(output))
    plain = mixer(x).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x).y
    assert y.dtype == torch.bfloat16 and torch.equal(*seen)
    assert float((y - plain).norm() / plain.norm()) < 1e-2


def test_errors_name_argument_expected_and_got():
    with pytest.raises(BadArgument, match="d_state: expected an even number from 2, got 3"):
        S4D(4, d_state=3)
    with pytest.raises(BadArgument, match="n_ssm: expected a divisor of dim 4, got 3"):
        S4D(4, n_ssm=3)
    with pytest.raises(BadArgument, match="init: expected one of lin, inv, legs, real, got 'hippo'"):
        S4D(4, init="hippo")
    with pytest.raises(BadArgument, match="dt_min: expected 0 < dt_min <= dt_max, got 0.1 and 0.01"):
        S4D(4, dt_min=0.1, dt_max=0.01)
    with pytest.raises(BadArgument, match=r"state\['ssm'\]: expected \(2, 6, 4, 2\), got \(2, 6, 4\)"):
        build("plain")(example(2, 5), state={"ssm": torch.zeros(2, 6, 4)})
    with pytest.raises(BadArgument, match="discretization"):
        S4D(4, discretization="euler")(torch.randn(1, 3, 4))
