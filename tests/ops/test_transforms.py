"""Every op under checkpointing, torch.func and forward mode: right numbers, or a refusal that says what to do."""

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.ops.backends import explain, ops, use_backend
from statezoo.zoo.ops.causal_conv1d import causal_conv1d
from statezoo.zoo.ops.fft_conv import fft_conv
from statezoo.zoo.ops.mlstm import mlstm
from statezoo.zoo.ops.s4d_kernel import final_state, response
from statezoo.zoo.ops.selective_scan import selective_scan
from statezoo.zoo.ops.slstm import slstm
from statezoo.zoo.ops.ssd import ssd
from torch.func import grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

B, L, H, D, N = 2, 7, 2, 3, 2


def draw(*shape, low=None):
    tensor = torch.randn(*shape, dtype=torch.float64)
    return tensor if low is None else low + (tensor.sigmoid() if low >= 0 else -tensor.sigmoid())


def scan_inputs():
    return {
        "u": draw(B, L, 2 * H), "dt": draw(B, L, 2 * H, low=0), "A": -draw(2 * H, N, low=0), "B": draw(B, L, H, N),
        "C": draw(B, L, H, N), "log_decay": -draw(B, L, 2 * H, low=0), "initial": draw(B, 2 * H, N),
    }  # fmt: skip


def xlstm_inputs():
    inputs = {name: draw(B, L, H, D) for name in "qkv"} | {name: draw(B, L, H) for name in "if"}
    return inputs | {"C": draw(B, H, D, D), "n": draw(B, H, D), "m": draw(B, H)}


def slstm_inputs():
    inputs = {"x": draw(B, L, 4, H, D), "R": draw(H, D, 4, D), "bias": draw(4, H, D)}
    return inputs | {"c": draw(B, H, D), "n": draw(B, H, D, low=1), "m": draw(B, H, D), "h": draw(B, H, D)}


def conv_inputs():
    return {"x": draw(B, L, D), "weight": draw(D, 3), "bias": draw(D), "initial": draw(B, 2, D)}


def run_mlstm(q, k, v, i, f, C, n, m, segments=None, **more):
    h, state = mlstm(q, k, v, i, f, initial={"C": C, "n": n, "m": m}, segments=segments, **more)
    return h, *state.values()


def run_slstm(x, R, bias, c, n, m, h, segments=None):
    y, state = slstm(x, R, bias, initial={"c": c, "n": n, "m": m, "h": h}, segments=segments)
    return y, *state.values()


def run_s4d(c, decay, angle):
    log_abar = torch.complex(-decay, angle)
    return response(torch.complex(c, c + 1), log_abar, L)


def run_final(u, decay, angle):
    return torch.view_as_real(final_state(u, torch.complex(-decay, angle), torch.complex(angle, decay)))


#: op -> inputs, function to a tensor or several, whether it takes segments
OPS = {
    "selective_scan": (scan_inputs, selective_scan, True),
    "ssd": (lambda: {"x": draw(B, L, H, D), "g": draw(B, L, H, low=-0.1), "B": draw(B, L, 1, N), "C": draw(B, L, 1, N),
                     "initial": draw(B, H, D, N)}, lambda **given: ssd(chunk=3, **given), True),
    "mlstm": (xlstm_inputs, run_mlstm, True),
    "mlstm-chunks": (xlstm_inputs, lambda **given: run_mlstm(chunk=3, **given), True),
    "mlstm-both-ways": (lambda: {k: v for k, v in xlstm_inputs().items() if k in "qkvif"},
                        lambda **given: mlstm(bidirectional=True, **given)[0], True),
    "slstm": (slstm_inputs, run_slstm, True),
    "causal_conv1d": (conv_inputs, causal_conv1d, True),
    "fft_conv": (lambda: {"u": draw(B, L, D), "kernel": draw(D, L), "reverse_kernel": draw(D, 3)}, fft_conv, False),
    "s4d_kernel": (lambda: {"c": draw(D, N), "decay": draw(D, N, low=0), "angle": draw(D, N)}, run_s4d, False),
    "s4d_final_state": (lambda: {"u": draw(B, L, D), "decay": draw(D, N, low=0), "angle": draw(D, N)},
                        run_final, False),
}  # fmt: skip
BY_HAND = ("selective_scan", "mlstm-chunks", "slstm")
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 4, 4, 4]])
CASES = [(op, packed) for op, (_, _, takes) in OPS.items() for packed in (False, True)[: 1 + takes]]
every = pytest.mark.parametrize(("op", "packed"), CASES)
backends = pytest.mark.parametrize("backend", [None, "reference"])


@pytest.fixture
def case(op, packed):
    """Inputs, and a scalar function of them that weighs every output."""
    torch.manual_seed(0)
    inputs, function, _ = OPS[op]
    inputs = inputs()
    more = {"segments": SEGMENTS} if packed else {}
    return inputs, lambda given: loss_of(function(**given, **more))


def loss_of(found):
    found = found if isinstance(found, tuple) else (found,)
    return sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t).cos()).sum() for t in found)


def derivatives(f, inputs):
    given = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    return dict(zip(given, torch.autograd.grad(f(given), list(given.values())), strict=True))


def close(ours, theirs, what=""):
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=1e-10, msg=lambda t, n=name: f"{what}{n}: {t}"
        )


def test_every_op_has_a_case():
    assert {op.split("-")[0] for op in OPS} == set(ops())


@every
@backends
def test_gradients_of_func_are_those_of_autograd(case, backend):
    inputs, f = case
    with use_backend(backend):
        close(grad(f)(inputs), derivatives(f, inputs))


@every
@backends
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(case, backend, reentrant):
    inputs, f = case
    names = list(inputs)

    def recomputed(given):
        return checkpoint(
            lambda *tensors: f(dict(zip(names, tensors, strict=True))), *given.values(), use_reentrant=reentrant
        )

    with use_backend(backend):
        given = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        recomputed(given).backward()
        close({name: tensor.grad for name, tensor in given.items()}, derivatives(f, inputs))


@every
@backends
def test_vmap_over_any_input_is_the_loop(case, backend):
    inputs, f = case
    with use_backend(backend):
        for names in [*((name,) for name in inputs), tuple(inputs)]:
            two = {n: torch.stack([t, t * 0.9 + 0.01]) if n in names else t for n, t in inputs.items()}
            dims = {n: 0 if n in names else None for n in inputs}
            each = [{n: t[at] if n in names else t for n, t in two.items()} for at in range(2)]
            where = f"vmap over {', '.join(names)}: "
            close({"y": vmap(f, in_dims=(dims,))(two)}, {"y": torch.stack([f(one) for one in each])}, where)
            loops = [derivatives(f, one) for one in each]
            wanted = {n: torch.stack([loop[n] for loop in loops]) for n in inputs}
            close(vmap(grad(f), in_dims=(dims,))(two), wanted, f"gradients, {where}")
            # grad of vmap: inputs that are shared get the sum
            found = grad(lambda given, dims=dims: vmap(f, in_dims=(dims,))(given).sum())(two)
            close(found, {n: t if n in names else t.sum(0) for n, t in wanted.items()}, f"grad of {where}")


@every
@backends
def test_tangents_are_those_of_the_gradient(case, backend):
    inputs, f = case
    tangents = {name: torch.randn_like(tensor) for name, tensor in inputs.items()}
    wanted = sum((tangents[name] * g).sum() for name, g in derivatives(f, inputs).items())
    with use_backend(backend):
        y, tangent = jvp(f, (inputs,), (tangents,))
        close({"y": y, "tangent": tangent}, {"y": f(inputs), "tangent": wanted})
        duals = {}
        with torch.autograd.forward_ad.dual_level():
            for name, tensor in inputs.items():
                duals[name] = torch.autograd.forward_ad.make_dual(tensor, tangents[name])
            close({"tangent": torch.autograd.forward_ad.unpack_dual(f(duals)).tangent}, {"tangent": wanted})


@every
def test_a_derivative_of_the_gradient_is_right_or_refused(case, op):
    inputs, f = case

    def squares(given):
        return sum(g.square().sum() for g in grad(f)(given).values())

    def of_autograd():
        given = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        first = torch.autograd.grad(f(given), list(given.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(given.values()), allow_unused=True)

    with use_backend("reference"):
        wanted = grad(squares)(inputs)
    if op in BY_HAND:
        for run in (lambda: grad(squares)(inputs), of_autograd):
            with pytest.raises(BadArgument, match=rf"{op.split('-')[0]}_backward: .* use_backend\('reference'\)"):
                run()
    else:
        close(grad(squares)(inputs), wanted)


@pytest.mark.parametrize("op", BY_HAND)
def test_a_forced_backend_without_tangents_says_so(op):
    torch.manual_seed(0)
    inputs, function, _ = OPS[op]
    inputs = inputs()
    f = lambda given: loss_of(function(**given))  # noqa: E731
    with use_backend("torch"), pytest.raises(BadArgument, match="cannot serve .*forward-mode differentiation"):
        jvp(f, (inputs,), (inputs,))
    assert explain(op.split("-")[0])["reference"] == "slow; forced in tests"


def test_vmap_over_segments_is_the_loop():
    torch.manual_seed(0)
    several = torch.stack([SEGMENTS, SEGMENTS.flip(0), torch.zeros_like(SEGMENTS)])
    for op, (inputs, function, takes) in OPS.items():
        if takes:
            given = inputs()
            found = vmap(lambda s, function=function, given=given: loss_of(function(**given, segments=s)))(several)
            wanted = torch.stack([loss_of(function(**given, segments=s)) for s in several])
            close({op: found}, {op: wanted})


@pytest.mark.parametrize("op", ["selective_scan"])
def test_the_kernel_of_float32_too(op):
    """`cpp` where there is a compiler."""
    if explain(op)["cpp"] != "chosen":
        pytest.skip(explain(op)["cpp"])
    torch.manual_seed(0)
    inputs = {name: tensor.float() for name, tensor in scan_inputs().items()}
    f = lambda given: loss_of(selective_scan(**given))  # noqa: E731
    wanted = derivatives(f, inputs)
    two = {name: torch.stack([tensor, 0.5 * tensor]) for name, tensor in inputs.items()}
    loops = [derivatives(f, {name: tensor[at] for name, tensor in two.items()}) for at in range(2)]
    for name in inputs:
        assert torch.equal(grad(f)(inputs)[name], wanted[name])
        assert torch.equal(vmap(grad(f))(two)[name], torch.stack([loop[name] for loop in loops]))
    given = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    checkpoint(lambda *t: f(dict(zip(given, t, strict=True))), *given.values(), use_reentrant=False).backward()
    assert all(torch.equal(tensor.grad, wanted[name]) for name, tensor in given.items())


def test_a_jacobian_of_outputs():
    torch.manual_seed(0)
    given = {
        name: tensor[:1, :3] if name not in ("A", "initial") else tensor[:1] for name, tensor in scan_inputs().items()
    }
    given["A"] = scan_inputs()["A"]
    y = lambda u: selective_scan(**{**given, "u": u})[0]  # noqa: E731
    with use_backend("reference"):
        wanted = torch.autograd.functional.jacobian(y, given["u"])
    torch.testing.assert_close(jacrev(y)(given["u"]), wanted, rtol=0, atol=1e-12)
