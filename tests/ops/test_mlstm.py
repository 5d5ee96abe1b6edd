"""mLSTM: every form against the definition, the definition against sums in numpy, the authors' numbers, refusals."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.ops import mlstm as module
from statezoo.zoo.ops.backends import Call, explain, use_backend
from statezoo.zoo.ops.mlstm import mlstm, mlstm_matrix, mlstm_step

ORACLES = os.environ.get("STATEZOO_ORACLES")
OPTIONS = ("initial", "segments", "valid", "reverse")
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(OPTIONS, size)]
GATES = ("q", "k", "v", "i", "f")
EXACT = {"rtol": 0.0, "atol": 1e-10}
# of float32 against float64, |error| / (1 + |h|): a normaliser near zero divides errors, too
FLOAT32 = 2e-5


def problem(options=(), *, batch=2, steps=13, heads=3, keys=5, values=4, dtype=torch.float64, seed=0, scale=1.0):
    """Arguments by name; floating ones are leaves. `scale` multiplies the gates."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape, times=1.0):
        return (times * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()

    given = {name: leaf(batch, steps, heads, size) for name, size in (("q", keys), ("k", keys), ("v", values))}
    given |= {name: leaf(batch, steps, heads, times=scale) for name in ("i", "f")}
    initial = {"C": leaf(batch, heads, keys, values), "n": leaf(batch, heads, keys), "m": leaf(batch, heads)}
    given["initial"] = initial if "initial" in options else None
    cuts, valid = (torch.rand(batch, steps, generator=draw) for _ in range(2))
    given["segments"] = (cuts < 0.3).cumsum(1) * 2 if "segments" in options else None
    given["valid"] = valid < 0.7 if "valid" in options else None
    return {**given, "reverse": "reverse" in options}


def leaves(given):
    flat = {name: given[name] for name in GATES}
    return flat | {f"initial {name}": tensor for name, tensor in (given["initial"] or {}).items()}


def solve(given, **more):
    """Outputs and the gradients of everything, from h and from the final state."""
    h, state = mlstm(**{**given, **more})
    loss = (h * h.detach().cos()).sum() + sum((t * (2 * t.detach()).cos()).sum() for t in state.values())
    gradients = torch.autograd.grad(loss, list(leaves(given).values()))
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves(given), gradients, strict=True)}
    return {"h": h.detach(), **{name: tensor.detach() for name, tensor in state.items()}, **named}


def same(ours, theirs, **tolerance):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], **{**EXACT, **tolerance}, msg=lambda text, name=name: f"{name}: {text}"
        )


def error(ours, theirs):
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())


# against the definition, and the definition itself -------------------------------------------------------------------


def closed_form(given):
    """Sums over s of the products of forget gates and e^i, without a stabiliser and without eps."""
    q, k, v, i, f = (given[name].detach().numpy() for name in GATES)
    batch, steps, heads, _ = q.shape
    numbers = np.zeros((batch, steps), int) if given["segments"] is None else given["segments"].numpy()
    valid = np.ones((batch, steps), bool) if given["valid"] is None else given["valid"].numpy()
    forget, write = 1 / (1 + np.exp(-f)), np.exp(i)
    order = list(range(steps))[::-1] if given["reverse"] else list(range(steps))
    h = np.zeros(v.shape)
    for b, a in np.ndindex(batch, heads):
        for place, t in enumerate(order):
            above, below, decay = np.zeros(v.shape[-1]), 0.0, 1.0
            for s in order[: place + 1][::-1]:
                if numbers[b, s] != numbers[b, t]:
                    break
                if valid[b, s]:
                    weight = decay * write[b, s, a] * (q[b, t, a] @ k[b, s, a]) / math.sqrt(q.shape[-1])
                    above, below = above + weight * v[b, s, a], below + weight
                    decay *= forget[b, s, a]
            if given["initial"] is not None and numbers[b, order[0]] == numbers[b, t]:
                C, n, m = (given["initial"][name].detach().numpy()[b, a] for name in ("C", "n", "m"))
                above, below = above + decay * np.exp(m) * q[b, t, a] @ C, below + decay * np.exp(m) * q[b, t, a] @ n
            h[b, t, a] = above / max(abs(below), 1)
    return h


@pytest.mark.parametrize("form", module.FORMS)
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_equals_the_closed_form(options, form):
    given = problem(options, steps=7)
    h, _ = mlstm(**given, form=form, chunk=3, eps=0)
    np.testing.assert_allclose(h.detach().numpy(), closed_form(given), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "chunk"), [("parallel", None), *(("chunkwise", c) for c in (1, 2, 5, 12, 13, 64)), (None, None), (None, 4)]
)
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_every_form_is_the_recurrent_one(options, form, chunk):
    given = problem(options)
    same(solve(given, form=form, chunk=chunk), solve(given, form="recurrent"))


@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_lengths(options, steps):
    given = problem(options, steps=steps)
    ours = solve(given)
    with use_backend("reference"):
        same(ours, solve(given))


@pytest.mark.parametrize("cached", [1, 150, 700, 1 << 30])
def test_spans_and_groups_of_any_size_agree(cached, monkeypatch):
    given = problem(OPTIONS, batch=5, steps=23)
    wanted = solve(given, form="recurrent")
    monkeypatch.setattr(module, "CACHED", cached)
    same(solve(given, form="chunkwise", chunk=3), wanted)


def test_short_sequences_are_parallel_and_long_ones_chunkwise(monkeypatch):
    called = []
    for name in ("_parallel", "_scan"):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, run=run, name=name: called.append(name) or run(*a))
    for steps in (64, 65):
        mlstm(**problem(steps=steps))
    assert called == ["_parallel", "_scan"]


@pytest.mark.parametrize("options", [(), ("segments",), ("valid",), ("segments", "valid")], ids="-".join)
def test_bidirectional_is_the_reference(options):
    given = problem(options)
    if given["valid"] is not None:
        given["valid"][0] = False  # a sequence of padding alone
    ours = solve(given, bidirectional=True)
    assert set(ours) == {"h", *(f"gradient of {name}" for name in GATES)}
    with use_backend("reference"):
        same(ours, solve(given, bidirectional=True))


def test_bidirectional_equals_the_closed_form():
    given = problem(("segments",), steps=7)
    q, k, v, i, f = (given[name].detach().numpy() for name in GATES)
    log_f = -np.log1p(np.exp(-f))
    h, _ = mlstm(**given, bidirectional=True, eps=0)
    for b, t, a in np.ndindex(2, 7, 3):
        inside = [s for s in range(7) if given["segments"][b, s] == given["segments"][b, t]]
        path = {s: log_f[b, s + 1 : t + 1, a] if s <= t else log_f[b, t:s, a] for s in inside}
        weight = [np.exp(path[s].sum() + i[b, s, a]) * (q[b, t, a] @ k[b, s, a]) / math.sqrt(5) for s in inside]
        wanted = sum(w * v[b, s, a] for w, s in zip(weight, inside, strict=True)) / max(abs(sum(weight)), 1)
        np.testing.assert_allclose(h[b, t, a].detach().numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", [(), ("segments",)], ids="-".join)
def test_the_matrix_on_the_values_is_the_output(options, bidirectional):
    given = problem(options)
    some = {name: given[name] for name in ("q", "k", "i", "f", "segments")}
    matrix = mlstm_matrix(**some, bidirectional=bidirectional)
    h, _ = mlstm(**given, bidirectional=bidirectional)
    torch.testing.assert_close(torch.einsum("bhts,bshd->bthd", matrix, given["v"]), h, **EXACT)


# states, padding, numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", module.FORMS)
def test_two_passes_are_one(form):
    given = problem(("initial",), steps=20)
    h, state = mlstm(**given, form=form, chunk=6)
    parts, after = [], given["initial"]
    for at in (slice(0, 7), slice(7, 20)):
        h_at, after = mlstm(*(given[name][:, at] for name in GATES), initial=after, form=form, chunk=6)
        parts.append(h_at)
    same({"h": torch.cat(parts, 1), **after}, {"h": h, **state})


def test_steps_are_the_sequence():
    given = problem(("initial",))
    h, state = mlstm(**given)
    parts, after = [], given["initial"]
    for parts_t in zip(*(given[name].unbind(1) for name in GATES), strict=True):
        h_t, after = mlstm_step(*parts_t, after)
        parts.append(h_t)
    same({"h": torch.stack(parts, 1), **after}, {"h": h, **state})


@pytest.mark.parametrize("form", module.FORMS)
def test_steps_that_are_not_valid_might_as_well_not_be_there(form):
    given = problem(("initial", "valid"), batch=1, steps=30)
    valid = given["valid"][0]
    with torch.no_grad():
        given["v"][:, ~valid] = 1e6
    h, state = mlstm(**given, form=form, chunk=4)
    gradients = torch.autograd.grad((h[:, valid].cos().sum() + state["C"].sum()), list(leaves(given).values()))
    short = {**given, "valid": None, **{name: given[name][:, valid] for name in GATES}}
    wanted, after = mlstm(**short, form=form, chunk=4)
    same({"h": h[:, valid], **state}, {"h": wanted, **after})
    other = torch.autograd.grad((wanted.cos().sum() + after["C"].sum()), list(leaves(given).values()))
    for one, two in zip(gradients, other, strict=True):
        torch.testing.assert_close(one, two, **EXACT)
    assert all(not gradient[:, ~valid].any() for gradient in gradients[:5])


@pytest.mark.parametrize("form", module.FORMS)
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1, 0), repeat=2)))
def test_gates_of_fifty_are_finite_and_right(signs, form):
    """All gates at 50 or -50, or at random among both (0); q and k positive, so that no normaliser is near zero."""
    torch.manual_seed(0)
    exact, given = (problem(("initial",), steps=150, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for name, sign in zip(("i", "f"), signs, strict=True):
        value = 50.0 * (sign or torch.randint(0, 2, exact[name].shape) * 2 - 1) + torch.randn(exact[name].shape)
        for problem_ in (exact, given):
            with torch.no_grad():
                problem_[name].copy_(value)
                for positive in (problem_["q"], problem_["k"], problem_["initial"]["n"]):
                    positive.abs_()
    ours, wanted = solve(given, form=form), solve(exact, form="recurrent")
    assert all(tensor.isfinite().all() for tensor in ours.values())
    assert all(error(ours[name], wanted[name]) < FLOAT32 for name in ("h", "C", "n", "m"))
    same(solve(exact, form=form), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [127, 4097])
@pytest.mark.parametrize("options", [(), ("initial", "segments")], ids="-".join)
def test_float32_stays_within_its_bound(options, steps):
    exact, given = (problem(options, steps=steps, keys=16, dtype=dtype) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        for problem_ in (exact, given):
            problem_["f"].add_(3)
    h, state = mlstm(**given)
    assert h.dtype == torch.float32 and all(tensor.dtype == torch.float32 for tensor in state.values())
    wanted, after = mlstm(**exact)
    assert float((h.double() - wanted).norm().detach() / wanted.norm().detach()) < FLOAT32
    assert all(error(state[name], after[name]) < FLOAT32 for name in state)


def test_a_weight_too_small_for_its_type_is_zero_and_costs_no_denormal():
    x = torch.tensor([0.0, -50.0, -86.0, -87.5, -100.0, -1e30, -torch.inf], requires_grad=True)
    y = module._exp(x)
    torch.testing.assert_close(y[:3], x[:3].exp(), rtol=1e-6, atol=0)
    assert not y[3:].any() and y.isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)


@pytest.mark.parametrize("form", module.FORMS)
def test_autocast_does_not_narrow_it(form):
    given = problem(OPTIONS, steps=50, dtype=torch.float32)
    wanted, after = mlstm(**given, form=form, chunk=16)
    with torch.autocast("cpu", torch.bfloat16):
        h, state = mlstm(**given, form=form, chunk=16)
    same({"h": h, **state}, {"h": wanted, **after}, atol=0.0)


@pytest.mark.parametrize("form", module.FORMS)
def test_strided_arguments_are_read_right_and_left_as_they_are(form):
    given = problem(steps=9)
    wanted = solve(given, form=form, chunk=4)
    turned = dict(given)
    for name in GATES:
        turned[name] = given[name].detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    before = {name: turned[name].detach().clone() for name in GATES}
    same(solve(turned, form=form, chunk=4), wanted, atol=1e-12)
    same({name: turned[name].detach() for name in GATES}, before, atol=0.0)


def test_arguments_of_one_head_and_one_sequence_are_left_as_they_are():
    given = problem(batch=1, heads=1, steps=9)
    before = {name: given[name].detach().clone() for name in GATES}
    for form in module.FORMS:
        solve(given, form=form, chunk=4)
    same({name: given[name].detach() for name in GATES}, before, atol=0.0)


# the authors' numbers -------------------------------------------------------------------------------------------------


def oracle():
    saved = np.load(Path(ORACLES) / "mlstm_cell.npz")
    saved = {name: torch.from_numpy(saved[name]) for name in saved.files}
    given = [saved[name].transpose(1, 2) for name in "qkv"]
    return saved, [*given, *(saved[name][..., 0].transpose(1, 2) for name in ("igate", "fgate"))]


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
@pytest.mark.parametrize("form", module.FORMS)
def test_equals_the_authors_cell(form):
    saved, given = oracle()
    h, state = mlstm(*given, form=form, chunk=16)
    for name in ("h_parallel", "h_chunkwise"):
        assert error(h.transpose(1, 2), saved[name]) <= FLOAT32
    for name in ("C", "n"):  # theirs is not divided by the root of the head's size
        assert error(state[name] * math.sqrt(8), saved[name]) <= FLOAT32
    assert error(state["m"], saved["m"][..., 0, 0]) <= FLOAT32


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
def test_equals_the_authors_bidirectional_cell():
    saved, given = oracle()
    h, _ = mlstm(*given, bidirectional=True)
    assert error(h.transpose(1, 2), saved["h_bidirectional"]) <= FLOAT32


def test_equals_the_native_kernels_with_gradients():
    native = pytest.importorskip("mlstm_kernels.torch.chunkwise.native")
    given = problem(("initial",), steps=128, keys=16, values=16, dtype=torch.float32)
    rows = {name: given[name].detach().transpose(1, 2).contiguous().requires_grad_() for name in GATES}
    first = {f"{name}_initial": tensor for name, tensor in zip("cnm", given["initial"].values(), strict=True)}
    first["c_initial"], first["n_initial"] = (4 * first[f"{name}_initial"] for name in "cn")  # keys are not divided
    theirs, (C, n, m) = native.mlstm_chunkwise__native_autograd(**rows, **first, return_last_states=True, chunk_size=32)
    h, state = mlstm(**given)
    assert error(h.transpose(1, 2), theirs) <= FLOAT32
    assert error(state["C"], C / 4) <= FLOAT32 and error(state["n"], n / 4) <= FLOAT32
    assert error(state["m"], m.view(2, 3)) <= FLOAT32
    weight = theirs.detach().cos()
    found = torch.autograd.grad((h.transpose(1, 2) * weight).sum(), [given[name] for name in GATES])
    wanted = torch.autograd.grad((theirs * weight).sum(), [rows[name] for name in GATES])
    for name, one, other in zip(GATES, found, wanted, strict=True):
        other = other.transpose(1, 2)
        assert float((one - other).norm() / other.norm()) < 1e-4, name


# gradients and registration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"form": "parallel"}, {"form": "chunkwise", "chunk": 2}, {"bidirectional": True}])
@pytest.mark.parametrize("options", [("initial",), OPTIONS], ids="-".join)
def test_gradcheck(options, more):
    if "bidirectional" in more:
        options = tuple(set(options) & {"segments", "valid"})
    given = problem(options, steps=5, heads=2, keys=3, values=2)

    def run(*flat):
        parts = dict(zip(leaves(given), flat, strict=True))
        initial = {name: parts[f"initial {name}"] for name in given["initial"] or {}} or None
        h, state = mlstm(*flat[:5], **{k: t for k, t in given.items() if k not in (*GATES, "initial")}, initial=initial,
                         **more)  # fmt: skip
        return h, *state.values()

    assert torch.autograd.gradcheck(run, list(leaves(given).values()), fast_mode=True)


def test_a_second_derivative_is_refused():
    given = problem()
    h, _ = mlstm(**given, form="chunkwise", chunk=4)
    (gradient,) = torch.autograd.grad(h.square().sum(), given["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="mlstm_backward"):
        torch.autograd.grad(gradient.sum(), given["k"])


def op_arguments(options, requires_grad=True, steps=9):
    given = problem(("initial", *options), steps=steps, dtype=torch.float32)
    given["f"] = torch.nn.functional.logsigmoid(given["f"]).detach()
    tensors = [given[name].detach().requires_grad_(requires_grad) for name in GATES]
    states = [tensor.detach().requires_grad_(requires_grad) for tensor in given["initial"].values()]
    return (*tensors, *states, given["segments"], 4, 1e-6, requires_grad)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("options", [(), ("segments",)], ids="-".join)
def test_opcheck(options, requires_grad):
    found = torch.library.opcheck(torch.ops.statezoo.mlstm.default, op_arguments(options, requires_grad))
    assert found and set(found.values()) == {"SUCCESS"}, found


@pytest.mark.parametrize("options", [(), ("segments",)], ids="-".join)
def test_opcheck_of_backward(options):
    *tensors, _, _, m, segments, chunk, eps, _ = (
        t.detach() if isinstance(t, torch.Tensor) else t for t in op_arguments(options)
    )
    h, C, n, m_end, Cs, ns = torch.ops.statezoo.mlstm(*tensors, C := torch.rand(2, 3, 5, 4), C[..., 0], m, segments,
                                                      chunk, eps, True)  # fmt: skip
    arguments = (*tensors, Cs, ns, m, segments, h, torch.rand_like(h), torch.rand_like(C), torch.rand_like(n),
                 torch.rand_like(m_end), chunk, eps)  # fmt: skip
    found = torch.library.opcheck(torch.ops.statezoo.mlstm_backward.default, arguments)
    assert found and set(found.values()) == {"SUCCESS"}, found


def test_without_a_gradient_no_states_are_kept():
    with torch.no_grad():
        kept = torch.ops.statezoo.mlstm(*op_arguments((), False))[4:]
    assert not any(tensor.numel() for tensor in kept)


def test_backward_keeps_inputs_outputs_and_the_states_between_chunks_alone():
    given, saved = problem(steps=2048, batch=1, heads=2, keys=16, values=16, dtype=torch.float32), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mlstm(**given)
    inputs, states = 4 * 2048 * 2 * (16 * 4 + 3), 4 * 2048 // 64 * 2 * (16 * 16 + 16)
    assert sum(saved.values()) <= 1.1 * (inputs + states) < 4 * 2048 * 2 * 16 * 16


class Forward(torch.nn.Module):
    def forward(self, q, k, v, i, f, initial=None, segments=None, valid=None):
        return mlstm(q, k, v, i, f, initial=initial, segments=segments, valid=valid, reverse=True, chunk=4)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_exported_form_holds_plain_ops_for_any_batch(batch):
    def arguments(batch):
        given = problem(("segments", "valid"), batch=batch, steps=11)
        return {name: t.detach() for name, t in given.items() if isinstance(t, torch.Tensor)}

    sizes = {name: {0: torch.export.Dim("batch")} for name in arguments(2)}
    program = torch.export.export(Forward(), (), arguments(2), dynamic_shapes=sizes)
    assert not any("statezoo" in str(node.target) for node in program.graph.nodes)
    given = arguments(batch)
    h, state = program.module()(**given)
    with use_backend("reference"):
        wanted, after = Forward()(**given)
    same({"h": h, **state}, {"h": wanted, **after})


def test_compiles_as_one_graph():
    given = problem(("initial", "segments"), steps=30)

    def run(**given):
        return mlstm(**given, chunk=8)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        h, state = function(**{name: t for name, t in given.items() if t is not None})
        loss = h.square().sum() + sum(t.sum() for t in state.values())
        results.append([h, *state.values(), *torch.autograd.grad(loss, list(leaves(given).values()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


# what it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("q", (2, 13, 3), r"q: expected \(B, L, H, DK\), got \(2, 13, 3\)"),
        ("q", (2, 0, 3, 5), r"q: expected \(B, L, H, DK\), got \(2, 0, 3, 5\)"),
        ("k", (2, 13, 1, 5), r"k: expected \(2, 13, 3, 5\), got \(2, 13, 1, 5\)"),
        ("v", (2, 12, 3, 4), r"v: expected \(2, 13, 3, DV\), got \(2, 12, 3, 4\)"),
        ("i", (2, 13, 3, 1), r"i: expected \(2, 13, 3\), got \(2, 13, 3, 1\)"),
        ("f", (2, 13, 1), r"f: expected \(2, 13, 3\), got \(2, 13, 1\)"),
        ("segments", (2, 1), "segments: expected"),
        ("valid", (1, 13), r"valid: expected \(2, 13\), got \(1, 13\)"),
    ],
)
def test_shapes_are_checked(name, shape, text):
    dtype = {"segments": torch.int64, "valid": torch.bool}.get(name, torch.float64)
    with pytest.raises(BadArgument, match=f"mlstm: {text}"):
        mlstm(**{**problem(OPTIONS), name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"form": "siging"}, "form: expected one of recurrent, parallel, chunkwise or None, got 'siging'"),
        ({"chunk": 0}, "chunk: expected at least 1, got 0"),
        ({"valid": torch.ones(2, 13)}, "valid: expected bool, got torch.float32"),
        ({"segments": torch.zeros(2, 13)}, "segments: expected integers, got torch.float32"),
        ({"segments": -torch.arange(13).expand(2, -1)}, "segments: .* never fall along a row, got a fall in row 0"),
        ({"initial": torch.zeros(2)}, "initial: expected C, m, n, got Tensor"),
        ({"initial": {"C": torch.zeros(2)}}, "initial: expected C, m, n, got C"),
        ({"v": torch.zeros(2, 13, 3, 4)}, "v: expected torch.float64 as q, got torch.float32"),
        ({"bidirectional": True, "reverse": True}, "reverse: expected False with bidirectional"),
        ({"bidirectional": True, "form": "chunkwise"}, "form: expected parallel or None with bidirectional"),
    ],
)
def test_values_are_checked(more, text):
    with pytest.raises(BadArgument, match=f"mlstm: {text}"):
        mlstm(**{**problem(), **more})


@pytest.mark.parametrize(("name", "shape"), [("C", (2, 3, 4, 5)), ("n", (2, 3, 4)), ("m", (2, 3, 1))])
def test_initial_states_are_checked(name, shape):
    given = problem(("initial",))
    with pytest.raises(BadArgument, match=rf"mlstm: initial\['{name}'\]: expected"):
        mlstm(**{**given, "initial": {**given["initial"], name: torch.zeros(shape, dtype=torch.float64)}})
    with pytest.raises(BadArgument, match=rf"initial\['{name}'\]: expected torch.float64 as q"):
        mlstm(**{**given, "initial": {**given["initial"], name: given["initial"][name].float()}})
    with pytest.raises(BadArgument, match="initial: expected None with bidirectional"):
        mlstm(**given, bidirectional=True)


def test_forms_have_their_backends():
    for backend, form in (("torch", "recurrent"), ("reference", "parallel"), ("reference", "chunkwise")):
        text = f"backend '{backend}' cannot serve mlstm: the {form} form"
        with use_backend(backend), pytest.raises(BadArgument, match=text):
            mlstm(**problem(), form=form)
    told = explain("mlstm", Call(options=("recurrent",)))
    assert told["reference"] == "chosen" and told["torch"] == "the recurrent form is that of the reference"
    assert explain("mlstm")["torch"] == "chosen" and "slow" in explain("mlstm")["reference"]
