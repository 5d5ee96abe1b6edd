"""sLSTM: the loop in place against the definition, the definition against the equations in numpy, refusals."""

import itertools

import numpy as np
import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.ops import slstm as module
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.slstm import STATE, slstm

OPTIONS = ("initial", "segments", "valid", "reverse")
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(OPTIONS, size)]
EXACT = {"rtol": 0.0, "atol": 1e-10}
FLOAT32 = 5e-6


def problem(options=(), *, batch=3, steps=11, heads=2, size=4, dtype=torch.float64, seed=0):
    """Arguments by name; floating ones are leaves."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape, times=1.0):
        return (times * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()

    given = {
        "x": leaf(batch, steps, 4, heads, size),
        "R": leaf(heads, size, 4, size, times=size**-0.5),
        "bias": leaf(4, heads, size),
    }
    initial = {name: leaf(batch, heads, size) for name in STATE}
    with torch.no_grad():
        initial["n"].abs_().add_(0.1)
    given["initial"] = initial if "initial" in options else None
    cuts, valid = (torch.rand(batch, steps, generator=draw) for _ in range(2))
    given["segments"] = (cuts < 0.3).cumsum(1) * 2 if "segments" in options else None
    given["valid"] = valid < 0.6 if "valid" in options else None
    return {**given, "reverse": "reverse" in options}


def leaves(given):
    flat = {name: given[name] for name in ("x", "R", "bias")}
    return flat | {f"initial {name}": tensor for name, tensor in (given["initial"] or {}).items()}


def solve(given, backend="torch"):
    """Outputs and the gradients of everything, from h and from the final state."""
    with use_backend(backend):
        y, state = slstm(**given)
        loss = (y * y.detach().cos()).sum() + sum((t * (2 * t.detach()).cos()).sum() for t in state.values())
        gradients = torch.autograd.grad(loss, list(leaves(given).values()))
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves(given), gradients, strict=True)}
    return {"y": y.detach(), **{name: tensor.detach() for name, tensor in state.items()}, **named}


def same(ours, theirs, **tolerance):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], **{**EXACT, **tolerance}, msg=lambda text, name=name: f"{name}: {text}"
        )


def worst(ours, theirs):
    """Largest relative error of any result, in norm."""
    return max(float((ours[n].double() - t).norm() / t.norm().clamp(min=1e-300)) for n, t in theirs.items())


# against the definition, and the definition itself -------------------------------------------------------------------


def by_hand(given):
    """The equations without a stabiliser: c and n as they are, e^i and sigmoid(f) as they are."""
    x, R, bias = (given[name].detach().numpy() for name in ("x", "R", "bias"))
    batch, steps, _, heads, size = x.shape
    y = np.zeros((batch, steps, heads, size))
    numbers = np.zeros((batch, steps), int) if given["segments"] is None else given["segments"].numpy()
    valid = np.ones((batch, steps), bool) if given["valid"] is None else given["valid"].numpy()
    for b, a in np.ndindex(batch, heads):
        c, n, h = np.zeros(size), np.zeros(size), np.zeros(size)
        if given["initial"] is not None:
            c, n, m, h = (given["initial"][name].detach().numpy()[b, a] for name in STATE)
            c, n = c * np.exp(m), n * np.exp(m)
        order, last = list(range(steps))[::-1] if given["reverse"] else list(range(steps)), None
        for t in order:
            if last is not None and numbers[b, t] != last:
                c, n, h = np.zeros(size), np.zeros(size), np.zeros(size)
            last = numbers[b, t]
            if valid[b, t]:
                i, f, z, o = (x[b, t, g, a] + h @ R[a, :, g] + bias[g, a] for g in range(4))
                forget, write = 1 / (1 + np.exp(-f)), np.exp(i)
                c, n = forget * c + write * np.tanh(z), forget * n + write
                h = c / n / (1 + np.exp(-o))
            y[b, t, a] = h
    return y


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_equals_the_equations(options, backend):
    given = problem(options)
    with use_backend(backend):
        y, _ = slstm(**given)
    np.testing.assert_allclose(y.detach().numpy(), by_hand(given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_torch_equals_the_reference(options, steps):
    given = problem(options, steps=steps)
    same(solve(given), solve(given, "reference"))


@pytest.mark.parametrize(("batch", "heads", "size"), [(1, 1, 1), (1, 1, 5), (1, 3, 2), (4, 1, 1)])
def test_sizes_of_one(batch, heads, size):
    given = problem(OPTIONS, batch=batch, heads=heads, size=size)
    before = {name: tensor.detach().clone() for name, tensor in leaves(given).items()}
    same(solve(given), solve(given, "reference"))
    same({name: tensor.detach() for name, tensor in leaves(given).items()}, before, atol=0.0)


def test_without_a_gradient_nothing_is_stored_and_all_is_the_same():
    given = problem(OPTIONS)
    y, state = slstm(**given)
    with torch.no_grad():
        again, after = slstm(**given)
        x = (given["x"] + given["bias"]).detach()
        states = [tensor.detach() for tensor in given["initial"].values()]
        kept = torch.ops.statezoo.slstm(x, given["R"].detach(), *states, None, None, False)[5:]
    same({"y": again, **after}, {"y": y.detach(), **{name: t.detach() for name, t in state.items()}}, atol=0.0)
    assert not any(tensor.numel() for tensor in kept)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_first_gate_sets_the_stabiliser(backend):
    """m = i where nothing is stored yet, even far below m = 0; and again where a sequence begins."""
    given = problem(steps=3)
    with torch.no_grad():
        given["x"][:, :, 0] -= 40
    first = given["x"][:, :1]
    for segments in (None, torch.tensor([[0, 1, 2]]).expand(3, -1)):
        with use_backend(backend):
            _, state = slstm(**{**given, "x": first if segments is None else given["x"], "segments": segments})
        i = (given["x"][:, 0 if segments is None else 2] + given["bias"])[:, 0]
        torch.testing.assert_close(state["m"], i, **EXACT)
        torch.testing.assert_close(state["n"], torch.ones_like(i), **EXACT)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_two_passes_are_one(backend):
    given = problem(("initial",), steps=20)
    with use_backend(backend):
        y, state = slstm(**given)
        parts, after = [], given["initial"]
        for at in (slice(0, 1), slice(1, 7), slice(7, 20)):
            y_at, after = slstm(given["x"][:, at], given["R"], given["bias"], initial=after)
            parts.append(y_at)
    same({"y": torch.cat(parts, 1), **after}, {"y": y, **state})


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_steps_that_are_not_valid_might_as_well_not_be_there(backend):
    given = problem(("valid",), batch=1, steps=30)
    given["valid"][:, :2] = False  # before anything is stored, too
    valid = given["valid"][0]
    with torch.no_grad():
        given["x"][:, ~valid] = 1e3
    with use_backend(backend):
        y, state = slstm(**given)
        wanted, after = slstm(**{**given, "x": given["x"][:, valid], "valid": None})
    same({"y": y[:, valid], **state}, {"y": wanted, **after})
    assert not y[:, :2].any()
    (gradient,) = torch.autograd.grad(y[:, valid].square().sum() + state["c"].sum() + state["m"].sum(), given["x"])
    (other,) = torch.autograd.grad(wanted.square().sum() + after["c"].sum() + after["m"].sum(), given["x"])
    torch.testing.assert_close(gradient, other, **EXACT)
    assert not gradient[:, ~valid].any()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1, 0), repeat=2)))
def test_gates_of_fifty_are_finite_and_right(signs, backend):
    """All gates at 50 or -50, or at random among both (0), in float32 against float64."""
    torch.manual_seed(0)
    exact, given = (problem(("initial",), steps=150, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for gate, sign in enumerate(signs):
        value = 50.0 * (sign or torch.randint(0, 2, exact["x"][:, :, 0].shape) * 2 - 1) + torch.randn(3, 150, 2, 4)
        for problem_ in (exact, given):
            with torch.no_grad():
                problem_["x"][:, :, gate] = value
    wanted = solve(exact, "reference")
    ours = solve(given, backend)
    assert all(tensor.isfinite().all() for tensor in ours.values())
    parts = ("y", *STATE)
    assert worst({name: ours[name] for name in parts}, {name: wanted[name] for name in parts}) < 1e-5
    same(solve(exact, backend), wanted, rtol=1e-10)


@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_float32_stays_within_its_bound(options):
    exact, given = (problem(options, steps=300, dtype=dtype) for dtype in (torch.float64, torch.float32))
    ours = solve(given)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert worst(ours, solve(exact, "reference")) < FLOAT32


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_does_not_narrow_it(backend):
    given = problem(OPTIONS, steps=50, dtype=torch.float32)
    with use_backend(backend):
        y, state = slstm(**given)
        with torch.autocast("cpu", torch.bfloat16):
            again, after = slstm(**given)
    same({"y": again, **after}, {"y": y, **state}, atol=0.0)


def test_strided_arguments_are_read_right():
    given = problem()
    wanted = solve(given)
    turned = dict(given)
    for name in ("x", "R", "bias"):
        turned[name] = given[name].detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    same(solve(turned), wanted, atol=1e-12)


# gradients and registration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("initial",), OPTIONS], ids="-".join)
def test_gradcheck(options):
    given = problem(options, batch=2, steps=5, size=2)

    def run(*flat):
        parts = dict(zip(leaves(given), flat, strict=True))
        initial = {name: parts[f"initial {name}"] for name in given["initial"] or {}} or None
        rest = {name: given[name] for name in ("segments", "valid", "reverse")}
        y, state = slstm(*flat[:3], initial=initial, **rest)
        return y, *state.values()

    with use_backend("torch"):
        assert torch.autograd.gradcheck(run, list(leaves(given).values()), fast_mode=True)


def test_the_output_alone_has_the_same_gradient_without_the_state():
    given, found = problem(("initial",)), []
    for backend in ("torch", "reference"):
        with use_backend(backend):
            found.append(torch.autograd.grad(slstm(**given)[0].cos().sum(), list(leaves(given).values())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_second_derivative_is_refused():
    given = problem()
    y, _ = slstm(**given)
    (gradient,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="slstm_backward"):
        torch.autograd.grad(gradient.sum(), given["R"])


def op_arguments(options, requires_grad=True):
    given = problem(("initial", *options), dtype=torch.float32)
    tensors = (given["x"], given["R"], *given["initial"].values())
    keep = None if given["segments"] is None else module.same_segment(given["segments"])
    tensors = [tensor.detach().requires_grad_(requires_grad) for tensor in tensors]
    return (*tensors, keep, given["valid"], requires_grad)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("options", [(), ("segments", "valid")], ids="-".join)
def test_opcheck(options, requires_grad):
    found = torch.library.opcheck(torch.ops.statezoo.slstm.default, op_arguments(options, requires_grad))
    assert found and set(found.values()) == {"SUCCESS"}, found


@pytest.mark.parametrize("options", [(), ("segments", "valid")], ids="-".join)
def test_opcheck_of_backward(options):
    arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in op_arguments(options)]
    _, R, *_, h, keep, valid, _ = arguments
    y, c, n, m, h_end, *kept = torch.ops.statezoo.slstm(*arguments)
    rest = (torch.rand_like(tensor) for tensor in (y, c, n, m, h_end))
    found = torch.library.opcheck(torch.ops.statezoo.slstm_backward.default, (R, h, keep, valid, *kept, y, *rest))
    assert found and set(found.values()) == {"SUCCESS"}, found


class Forward(torch.nn.Module):
    def forward(self, x, R, bias, segments, valid):
        return slstm(x, R, bias, segments=segments, valid=valid)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_exported_form_holds_plain_ops_for_any_batch(batch):
    def arguments(batch):
        given = problem(("segments", "valid"), batch=batch, steps=7)
        return {name: given[name] if given[name].dtype.is_floating_point is False else given[name].detach()
                for name in ("x", "R", "bias", "segments", "valid")}  # fmt: skip

    sizes = {name: {0: torch.export.Dim("batch")} for name in ("x", "segments", "valid")}
    program = torch.export.export(Forward(), (), arguments(3), dynamic_shapes={**sizes, "R": None, "bias": None})
    assert not any("statezoo" in str(node.target) for node in program.graph.nodes)
    y, state = program.module()(**arguments(batch))
    wanted, after = slstm(**arguments(batch))
    same({"y": y, **state}, {"y": wanted, **after})


def test_compiles_as_one_graph():
    given = problem(OPTIONS)
    torch._dynamo.reset()
    results = []
    for function in (slstm, torch.compile(slstm, fullgraph=True, backend="aot_eager")):
        y, state = function(**given)
        loss = y.square().sum() + sum(t.sum() for t in state.values())
        results.append([y, *state.values(), *torch.autograd.grad(loss, list(leaves(given).values()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


# what it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("x", torch.zeros(3, 11, 3, 2, 4), r"x: expected \(B, L, 4, H, D\), got \(3, 11, 3, 2, 4\)"),
        ("x", torch.zeros(3, 0, 4, 2, 4), r"x: expected \(B, L, 4, H, D\), got \(3, 0, 4, 2, 4\)"),
        ("R", torch.zeros(2, 4, 4, 1), r"R: expected \(2, 4, 4, 4\), got \(2, 4, 4, 1\)"),
        ("bias", torch.zeros(4, 1, 4), r"bias: expected \(4, 2, 4\), got \(4, 1, 4\)"),
        ("R", torch.zeros(2, 4, 4, 4), "R: expected torch.float64 as x, got torch.float32"),
        ("valid", torch.zeros(3, 11), "valid: expected bool, got torch.float32"),
        ("valid", torch.zeros(1, 11, dtype=torch.bool), r"valid: expected \(3, 11\), got \(1, 11\)"),
        ("segments", torch.zeros(3, 11), "segments: expected integers, got torch.float32"),
        ("initial", {"c": torch.zeros(1)}, "initial: expected c, n, m, h, got c"),
        ("initial", torch.zeros(1), "initial: expected c, n, m, h, got Tensor"),
    ],
)
def test_arguments_are_checked(name, value, text):
    with pytest.raises(BadArgument, match=f"slstm: {text}"):
        slstm(**{**problem(), name: value})


@pytest.mark.parametrize("name", STATE)
def test_initial_states_are_checked(name):
    given = problem(("initial",))
    for value, text in (
        (torch.zeros(3, 2, 1), r"expected \(3, 2, 4\)"),
        (torch.zeros(3, 2, 4), "expected torch.float64"),
    ):
        with pytest.raises(BadArgument, match=rf"slstm: initial\['{name}'\]: {text}"):
            slstm(**{**given, "initial": {**given["initial"], name: value}})
