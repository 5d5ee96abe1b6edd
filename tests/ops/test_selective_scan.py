"""The selective scan: backends against the definition, the definition against a closed form, memory, refusals."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from statezoo.zoo.ops import selective_scan as module
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.selective_scan import selective_scan

from ._scan import EXACT, FLOAT32, OPTIONS, SUBSETS, extreme, op_arguments, problem, same, solve, worst

# 1.3 covers allocator slack and what autograd holds besides; all states of this problem would be 16 times as much
SLACK = 1.3


# against the definition, and the definition itself -------------------------------------------------------------------


def closed_form(given):
    """h_t = sum over s <= t of exp(sum of exponents over s+1..t) u_s B_s, term by term in numpy."""
    u, dt, A, B, C, e, h0 = (
        None if given[name] is None else given[name].detach().numpy()
        for name in ("u", "dt", "A", "B", "C", "log_decay", "initial")
    )
    batch, steps, channels = u.shape
    B, C = (t[:, :, None] if t.ndim == 3 else t for t in (B, C))
    spread, states = channels // B.shape[2], A.shape[1]
    numbers = np.zeros((batch, steps), int) if given["segments"] is None else given["segments"].numpy()
    order = range(steps)[::-1] if given["reverse"] else range(steps)
    y, final = np.zeros_like(u), np.zeros((batch, channels, states))
    for b, d, n in np.ndindex(batch, channels, states):
        exponent = [dt[b, t, d] * A[d, n] + (0 if e is None else e[b, t, d]) for t in order]
        places = list(order)
        for i, t in enumerate(places):
            h = sum(
                np.exp(sum(exponent[j + 1 : i + 1])) * u[b, s, d] * B[b, s, d // spread, n]
                for j, s in enumerate(places[: i + 1])
                if numbers[b, s] == numbers[b, t]
            )
            if h0 is not None and numbers[b, places[0]] == numbers[b, t]:
                h += np.exp(sum(exponent[: i + 1])) * h0[b, d, n]
            y[b, t, d] += C[b, t, d // spread, n] * h
        final[b, d, n] = h
    return y, final


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_equals_the_closed_form(options, backend):
    given = problem(options, steps=6, channels=4, states=2, groups=2)
    with use_backend(backend):
        y, final = selective_scan(**given)
    for ours, theirs in zip((y, final), closed_form(given), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_torch_equals_the_reference(options, groups):
    given = problem(options, groups=groups)
    same(solve(given, "torch"), solve(given, "reference"))


def test_a_group_axis_of_one_is_none():
    given = problem(OPTIONS)
    wide = {**given, "B": given["B"].detach()[:, :, None], "C": given["C"].detach()[:, :, None]}
    for one, other in zip(selective_scan(**given), selective_scan(**wide), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("together", "block"), [(2, 1), (1, 2), (2, 5), (1, 13), (2, 64)])
def test_blocks_of_any_size_agree(together, block, monkeypatch):
    given = problem(OPTIONS, groups=2)
    monkeypatch.setattr(module.blocks, "plan", lambda *shape: (together, block))
    same(solve(given, "torch"), solve(given, "reference"))


def test_a_block_fits_the_cache_and_is_never_empty():
    assert module.blocks.plan(1, 1, 1, False) == (1, 64)
    assert module.blocks.plan(64, 4096, 64, False) == (1, 4)
    for batch, channels, states in ((2, 64, 16), (8, 256, 16), (1, 1024, 16), (2048, 256, 64)):
        together, block = module.blocks.plan(batch, channels, states, False)
        assert 1 <= together <= batch and block * together * channels * states <= 1 << 20


def test_a_block_of_a_gpu_is_large():
    """A launch costs more than the elements of a block that would stay in a CPU's cache."""
    assert module.blocks.plan(16, 1024, 64, False, "cuda") == (16, 64)
    assert module.blocks.plan(8192, 256, 64, False, "cuda") == (256, 16)
    assert module._kernel("torch", "cuda").length(64, 4096, 64) == 16
    assert module._kernel("torch", "cpu").length(64, 4096, 64) == 4


@pytest.mark.parametrize("steps", [1, 2, 3, 31, 127])
def test_lengths(steps):
    given = problem(OPTIONS, steps=steps)
    same(solve(given, "torch"), solve(given, "reference"))


@pytest.mark.parametrize("steps", [1, 2, 127, 4097])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_float32_stays_within_its_bound(options, steps):
    exact, given = (problem(options, steps=steps, dtype=dtype) for dtype in (torch.float64, torch.float32))
    ours = solve(given, "torch")
    assert all(t.dtype == torch.float32 for t in ours.values())
    assert worst(ours, solve(exact, "reference")) < FLOAT32


def test_extreme_time_steps_are_finite_and_right():
    torch.manual_seed(0)
    given = extreme(torch.float64)
    wanted = solve(given, "reference")
    same(solve(given, "torch"), wanted, atol=1e-9, rtol=1e-10)
    torch.manual_seed(0)
    ours = solve(extreme(torch.float32), "torch")
    assert all(t.isfinite().all() for t in ours.values())
    assert worst(ours, wanted) < FLOAT32


def test_a_decay_beyond_any_exponent_forgets():
    given = problem(("log_decay", "initial"))
    with torch.no_grad():
        given["log_decay"][:, 4] = -1e30
    wanted = solve(given, "reference")
    ours = solve(given, "torch")
    same(ours, wanted)
    assert all(t.isfinite().all() for t in ours.values())
    (gradient,) = torch.autograd.grad(selective_scan(**given)[1].sum(), given["initial"])
    assert not gradient.any()


def test_time_without_writing_and_writing_without_time():
    given = {name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in problem(("initial",)).items()}
    _, final = selective_scan(**{**given, "u": torch.zeros_like(given["u"])})
    passed = (given["dt"].sum(1)[..., None] * given["A"]).exp() * given["initial"]
    torch.testing.assert_close(final, passed, **EXACT)
    _, final = selective_scan(**{**given, "dt": torch.zeros_like(given["dt"])})
    written = given["initial"] + torch.einsum("bld,bln->bdn", given["u"], given["B"])
    torch.testing.assert_close(final, written, **EXACT)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_does_not_narrow_the_scan(backend):
    given = problem(OPTIONS, steps=50, dtype=torch.float32)
    wanted = solve(given, backend)
    with torch.autocast("cpu", torch.bfloat16):
        same(solve(given, backend), wanted, atol=0.0)


def test_strided_arguments_are_read_right():
    given = problem(OPTIONS, groups=2)
    wanted = solve(given, "torch")
    turned = {
        name: t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(t.is_floating_point())
        if isinstance(t, torch.Tensor) else t for name, t in given.items()
    }  # fmt: skip
    assert not turned["u"].is_contiguous()
    same(solve(turned, "torch"), wanted, atol=1e-12)


# gradients and registration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_gradcheck(options):
    given = problem(options, steps=5, channels=2, states=2, groups=2)
    names = [name for name, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    with use_backend("torch"):
        assert torch.autograd.gradcheck(
            lambda *leaves: selective_scan(**{**given, **dict(zip(names, leaves, strict=True))}),
            [given[name] for name in names],
        )


def test_gradients_reach_the_initial_state_through_the_final_one():
    given = problem(("initial",))
    _, final = selective_scan(**given)
    (gradient,) = torch.autograd.grad(final.sum(), given["initial"])
    torch.testing.assert_close(gradient, (given["dt"].sum(1)[..., None] * given["A"]).exp(), **EXACT)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_without_the_final_state_outputs_and_gradients_are_the_same(backend):
    given = problem(OPTIONS, steps=70, groups=2)
    leaves = [t for t in given.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    with use_backend(backend):
        (wanted, _), (y, final) = selective_scan(**given), selective_scan(**given, final=False)
        assert final is None and torch.equal(y, wanted)
        for one, other in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (y, wanted)), strict=True):
            torch.testing.assert_close(one, other, **EXACT)


def test_without_gradients_no_states_are_kept_and_outputs_are_the_same():
    given = problem(OPTIONS, steps=70, groups=2)
    wanted = selective_scan(**given)
    with torch.no_grad():
        for one, other in zip(selective_scan(**given), wanted, strict=True):
            assert torch.equal(one, other)
    *_, before = torch.ops.statezoo.selective_scan(*op_arguments(OPTIONS, False), "torch", True, False)
    assert not before.numel()


def test_a_second_derivative_is_refused():
    given = problem()
    y, _ = selective_scan(**given)
    (gradient,) = torch.autograd.grad(y.square().sum(), given["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_backward"):
        torch.autograd.grad(gradient.sum(), given["dt"])


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_opcheck(options, requires_grad):
    arguments = op_arguments(options, requires_grad)
    found = torch.library.opcheck(torch.ops.statezoo.selective_scan.default, (*arguments, "torch", True, requires_grad))
    assert found and set(found.values()) == {"SUCCESS"}, found


@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_opcheck_of_backward(options):
    given = op_arguments(options, False)
    y, final, before = torch.ops.statezoo.selective_scan(*given, "torch", True, True)
    arguments = (*given, before, torch.ones_like(y), torch.ones_like(final), "torch")
    found = torch.library.opcheck(torch.ops.statezoo.selective_scan_backward.default, arguments)
    assert found and set(found.values()) == {"SUCCESS"}, found


def test_the_exported_form_equals_the_reference():
    """The doubling form, which only exported programs hold."""

    class Scan(torch.nn.Module):
        def forward(self, **given):
            return selective_scan(**given, reverse=True)

    given = problem(OPTIONS, steps=11, groups=2)
    given = {name: t.detach() for name, t in given.items() if isinstance(t, torch.Tensor)}
    program = torch.export.export(Scan(), (), given)
    assert not any("statezoo" in str(node.target) for node in program.graph.nodes)
    with use_backend("reference"):
        wanted = selective_scan(**given, reverse=True)
    for ours, theirs in zip(program.module()(**given), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 37])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_inductor_equals_the_reference(options, steps):
    given = problem(options, steps=steps, groups=2)
    same(solve(given, "inductor"), solve(given, "reference"))


@pytest.mark.slow
def test_inductor_in_float32_stays_within_its_bound():
    exact, given = (problem(OPTIONS, steps=4097, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert worst(solve(given, "inductor"), solve(exact, "reference")) < FLOAT32


@pytest.mark.slow
def test_a_compiled_function_takes_inductor_and_equals_eager():
    given = problem(OPTIONS, steps=300)
    leaves = {name: t for name, t in given.items() if isinstance(t, torch.Tensor)}
    compiled = torch.compile(lambda **leaves: selective_scan(**leaves, reverse=True), fullgraph=True)
    ours, theirs = compiled(**leaves), selective_scan(**leaves, reverse=True)
    floats = [t for t in leaves.values() if t.requires_grad]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    for one, other in zip(
        torch.autograd.grad(sum(t.sum() for t in ours), floats),
        torch.autograd.grad(sum(t.sum() for t in theirs), floats),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)


INTERPRETED = """
import torch
from statezoo.zoo.ops import _selective_scan_triton as kernel
from statezoo.zoo.ops.selective_scan import _reference

draw = torch.Generator().manual_seed(0)
kernel.CHANNELS, kernel.PROGRAMS = 16, 2  # two tiles a group, two sequences a program
for batch, steps, channels, groups, states, options in ((2, 37, 18, 1, 2, True), (2, 5, 6, 3, 2, False)):
    def normal(*shape):
        return torch.randn(*shape, generator=draw).requires_grad_()

    wide, shared = (batch, steps, channels), (batch, steps, groups, states)
    given = [normal(*wide), normal(*wide).detach().abs().requires_grad_(), normal(channels, states), *(
        normal(*shared) for _ in range(2))]
    given[2] = (-given[2].detach().abs()).requires_grad_()
    extra = normal(*wide).detach().abs().neg().requires_grad_()
    given += [extra, normal(batch, channels, states)] if options else [None, None]
    keep = torch.rand(batch, steps, generator=draw) < 0.8 if options else None
    ours = torch.ops.statezoo.selective_scan(*given, keep, "triton", True, True)[:2]
    theirs = _reference(*(None if t is None else t.double() for t in given), keep, True)
    weights, leaves = [torch.randn(t.shape, generator=draw) for t in ours], [t for t in given if t is not None]
    both = []
    for found in (ours, theirs):
        loss = sum((t * w).sum() for t, w in zip(found, weights))
        both.append([*found, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*both, strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert error < 1e-5, error
"""


def test_the_triton_kernels_interpreted():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def on_gpu(given):
    return {
        name: t.detach().cuda().requires_grad_(t.is_floating_point()) if isinstance(t, torch.Tensor) else t
        for name, t in given.items()
    }


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(2, 13, 6, 3, 1), (1, 1, 1, 1, 1), (3, 300, 140, 5, 2), (70, 33, 96, 64, 3)], ids=str
)
@pytest.mark.parametrize("options", [(), *((one,) for one in OPTIONS), OPTIONS], ids="-".join)
def test_triton_on_a_gpu(options, shape):
    shape = dict(zip(("batch", "steps", "channels", "states", "groups"), shape, strict=True))
    exact, given = (problem(options, **shape, dtype=dtype) for dtype in (torch.float64, torch.float32))
    found = [solve(on_gpu(given), "triton") for _ in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert worst({name: t.cpu() for name, t in found[0].items()}, solve(exact, "torch")) < FLOAT32


@pytest.mark.gpu
def test_extreme_time_steps_in_triton():
    torch.manual_seed(0)
    wanted = solve(extreme(torch.float64), "reference")
    torch.manual_seed(0)
    ours = {name: t.cpu() for name, t in solve(on_gpu(extreme(torch.float32)), "triton").items()}
    assert all(t.isfinite().all() for t in ours.values()) and worst(ours, wanted) < FLOAT32


def test_triton_objects_to_what_it_does_not_serve():
    from statezoo.zoo.ops.backends import Call, explain

    assert explain("selective_scan")["triton"] in ("serves float32 on CUDA", "Triton is not installed")
    assert explain("selective_scan", Call("cuda", torch.float64))["triton"] == explain("selective_scan")["triton"]


# memory ---------------------------------------------------------------------------------------------------------------


def sizes(batch, steps, channels, states):
    """Bytes in float32 of the inputs, the outputs, the states between blocks, and of all states."""
    wide, shared, state = batch * steps * channels, batch * steps * states, batch * channels * states
    between = -(-steps // module.blocks.plan(batch, channels, states, False)[1]) * state
    inputs, outputs = 2 * wide + 2 * shared + channels * states + state, wide + state
    return {"inputs": 4 * inputs, "outputs": 4 * outputs, "between": 4 * between, "all": 4 * steps * state}


@pytest.mark.parametrize("options", [(), ("initial", "log_decay", "segments")], ids="-".join)
def test_backward_keeps_the_states_between_blocks_alone(options):
    shape = {"batch": 2, "steps": 4096, "channels": 64, "states": 16}
    given, saved = problem(options, **shape, dtype=torch.float32), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), use_backend("torch"):
        y, _ = selective_scan(**given)
    assert y.requires_grad and saved
    bytes_ = sizes(**shape)
    extra = 2 * 4096 * 64 * 4 if "log_decay" in options else 0
    limit = SLACK * (bytes_["inputs"] + bytes_["outputs"] + bytes_["between"] + extra)
    assert sum(saved.values()) <= limit < bytes_["all"]


WORKER = """
import json, sys
import torch
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.selective_scan import selective_scan

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

def arguments(batch, steps, channels, states):
    shapes = ((batch, steps, channels),) * 2 + ((channels, states),) + ((batch, steps, states),) * 2
    u, dt, A, B, C = (torch.rand(shape) for shape in shapes)
    initial = torch.zeros(batch, channels, states)
    return [t.requires_grad_() for t in (u, dt, A.neg_(), B, C)], initial.requires_grad_()

backend, *shape = sys.argv[1], *map(int, sys.argv[2:])
with use_backend(backend):
    tensors, initial = arguments(1, 32, 8, 2)
    y, final = selective_scan(*tensors, initial=initial)
    (y.sum() + final.sum()).backward()
    before = anonymous()
    tensors, initial = arguments(*shape)
    y, final = selective_scan(*tensors, initial=initial)
    held = anonymous() - before
    (y.sum() + final.sum()).backward()
    print(json.dumps({"held": held, "after": anonymous() - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="RssAnon is read from Linux's /proc")
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_resident_memory_is_that_of_the_states_between_blocks(backend, record_property):
    shape = (1, 4096, 1024, 16)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, backend, *map(str, shape)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts, bytes_ = json.loads(done.stdout), sizes(*shape)
    record_property("facts", facts)
    limit = SLACK * (bytes_["inputs"] + bytes_["outputs"] + bytes_["between"])
    if backend == "reference":  # which keeps every state: the measure tells the two apart
        assert facts["held"] > bytes_["all"] > limit
    else:
        assert facts["held"] <= limit, (facts, limit)
        assert facts["after"] <= limit + SLACK * bytes_["inputs"], (facts, limit)  # with gradients


# what it refuses ------------------------------------------------------------------------------------------------------


def test_float16_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="u: expected float32, bfloat16 or float64 on the CPU, got float16"):
        selective_scan(**problem(dtype=torch.float16))


def test_no_steps_are_refused():
    given = problem(steps=0)
    with pytest.raises(ValueError, match=r"u: expected \(B, L, D\), got \(2, 0, 6\)"):
        selective_scan(**given)


def test_another_dtype_beside_u_is_refused():
    given = problem(OPTIONS, dtype=torch.float32)
    for name in ("dt", "A", "B", "C", "log_decay", "initial"):
        with pytest.raises(ValueError, match=f"{name}: expected torch.float32 as u, got torch.float64"):
            selective_scan(**{**given, name: given[name].double()})


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("u", (2, 13), r"u: expected \(B, L, D\), got \(2, 13\)"),
        ("dt", (2, 13, 1), r"dt: expected \(2, 13, 6\), got \(2, 13, 1\)"),
        ("dt", (1, 13, 6), r"dt: expected \(2, 13, 6\), got \(1, 13, 6\)"),
        ("A", (1, 3), r"A: expected \(6, N\), got \(1, 3\)"),
        ("A", (6,), r"A: expected \(6, N\), got \(6,\)"),
        ("A", (6, 0), r"A: expected \(6, N\), got \(6, 0\)"),
        ("B", (1, 13, 3), r"B: expected \(2, 13, G, 3\), got \(1, 13, 1, 3\)"),
        ("B", (2, 1, 3), r"B: expected \(2, 13, G, 3\), got \(2, 1, 1, 3\)"),
        ("B", (2, 13, 1), r"B: expected \(2, 13, G, 3\), got \(2, 13, 1, 1\)"),
        ("B", (2, 13), r"B: expected \(2, 13, G, 3\), got \(2, 13\)"),
        ("B", (2, 13, 2, 3), r"C: expected \(2, 13, 2, 3\), got \(2, 13, 1, 3\)"),
        ("C", (1, 13, 3), r"C: expected \(2, 13, 1, 3\), got \(1, 13, 1, 3\)"),
        ("C", (2, 13, 1), r"C: expected \(2, 13, 1, 3\), got \(2, 13, 1, 1\)"),
        ("initial", (1, 6, 3), r"initial: expected \(2, 6, 3\), got \(1, 6, 3\)"),
        ("initial", (2, 1, 3), r"initial: expected \(2, 6, 3\), got \(2, 1, 3\)"),
        ("log_decay", (2, 13, 1), r"log_decay: expected \(2, 13, 6\), got \(2, 13, 1\)"),
    ],
)
def test_nothing_is_broadcast(name, shape, text, backend):
    given = problem(OPTIONS)
    with use_backend(backend), pytest.raises(ValueError, match=f"selective_scan: {text}"):
        selective_scan(**{**given, name: torch.zeros(shape, dtype=torch.float64)})


def test_groups_that_do_not_divide_the_channels_are_refused():
    given = problem(groups=4, channels=6)
    with pytest.raises(ValueError, match="B: expected a number of groups that divides 6 channels, got 4 groups"):
        selective_scan(**given)


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        (torch.zeros(1, 13, dtype=torch.int64), r"segments: expected \(2, 13\), got \(1, 13\)"),
        (torch.zeros(2, 13), "segments: expected integers, got torch.float32"),
        (torch.zeros(2, 13, dtype=torch.bool), "segments: expected integers, got torch.bool"),
        (torch.tensor([[0] * 13, [1] * 6 + [0] * 7]), "segments: .* never fall along a row, got a fall in row 1"),
    ],
)
def test_segments_are_checked(segments, text):
    with pytest.raises(ValueError, match=text):
        selective_scan(**{**problem(), "segments": segments})
