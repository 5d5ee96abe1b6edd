"""The selective scan in C++: against the definition in float64, what is not finite, threads, how it is built."""

import math
import re
import subprocess
import sys

import pytest
import torch
from statezoo.zoo import native
from statezoo.zoo.ops import _selective_scan_cpp as cpp
from statezoo.zoo.ops.backends import Call, explain, use_backend
from statezoo.zoo.ops.selective_scan import selective_scan

from ._scan import FLOAT32, OPTIONS, SUBSETS, extreme, op_arguments, problem, solve, worst


@pytest.fixture
def _built():
    reason = cpp.objection()
    if reason is not None:
        pytest.skip(reason)


built = pytest.mark.usefixtures("_built")


def compare(options=(), **shape):
    """The largest relative error in norm against the definition in float64, gradients included."""
    exact, given = (problem(options, dtype=dtype, **shape) for dtype in (torch.float64, torch.float32))
    ours = solve(given, "cpp")
    assert all(t.dtype == torch.float32 for t in ours.values())
    return worst(ours, solve(exact, "reference"))


def equal(ours, theirs):
    assert set(ours) == set(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# against the definition ----------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_equals_the_reference(options, groups):
    assert compare(options, groups=groups, steps=70) < FLOAT32


@built
@pytest.mark.parametrize("states", [1, 3, 5, 64])
@pytest.mark.parametrize("channels", [1, 3, 17, 33, 64])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_tiles_that_are_not_full(options, channels, states):
    assert compare(options, channels=channels, states=states, steps=35) < FLOAT32


@built
@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 1, "channels": 2 * 300, "groups": 2},  # more channels than a chunk has
        {"batch": 70, "channels": 6, "groups": 3},  # more sequences than slots
        {"batch": 70, "channels": 300, "groups": 1},
    ],
)
def test_sums_in_parts(shape):
    assert compare(OPTIONS, states=2, steps=33, **shape) < FLOAT32


@built
@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 127, 4097])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_lengths(options, steps):
    assert compare(options, steps=steps) < FLOAT32


@built
@pytest.mark.parametrize("low", [-1e-2, -1e-4, -1e-6])
def test_long_memories_do_not_drift(low):
    """Decays next to one, thousands of times: what is wrong in exp2 near zero grows with the steps.

    So does a gradient that is rounded once more at each step. Weights are fixed, for the cosine of `solve` magnifies
    the rounding of large sums. The bound is a third of FLOAT32; errors are 2.4e-6 at most.
    """
    draw, found = torch.Generator().manual_seed(1), []
    weights = torch.randn(2, 4097, 6, generator=draw), torch.randn(2, 6, 3, generator=draw)
    for backend, dtype in (("cpp", torch.float32), ("reference", torch.float64)):
        given = problem(("initial",), steps=4097, low=low, dtype=dtype)
        leaves = [t for t in given.values() if isinstance(t, torch.Tensor)]
        with use_backend(backend):
            results = selective_scan(**given)
            loss = sum((t * w).sum() for t, w in zip(results, weights, strict=True))
            found.append(dict(enumerate([*results, *torch.autograd.grad(loss, leaves)])))
    assert worst(*found) < FLOAT32 / 3


@built
def test_extreme_time_steps_are_finite_and_right():
    torch.manual_seed(0)
    wanted = solve(extreme(torch.float64), "reference")
    torch.manual_seed(0)
    ours = solve(extreme(torch.float32), "cpp")
    assert all(t.isfinite().all() for t in ours.values())
    assert worst(ours, wanted) < FLOAT32


@built
@pytest.mark.parametrize("gone", [-1e30, -math.inf])
def test_a_decay_beyond_any_exponent_forgets(gone):
    given = problem(("log_decay", "initial"), dtype=torch.float32)
    with torch.no_grad():
        given["log_decay"][:, 4] = gone
    ours = solve(given, "cpp")
    assert all(t.isfinite().all() for t in ours.values())
    assert worst(ours, solve(given, "reference")) < FLOAT32
    with use_backend("cpp"):
        (gradient,) = torch.autograd.grad(selective_scan(**given)[1].sum(), given["initial"])
    assert not gradient.any()


@built
def test_decays_of_any_exponent():
    """exp of -200 to 200: subnormal numbers count as zero, what is too large is infinite, and 0 decays by exactly 1."""
    exponents = torch.cat([torch.linspace(-200, 200, 400_001), torch.tensor([0.0, 88.72, 88.73, -math.inf, math.inf])])
    count = len(exponents)
    nothing = torch.zeros(1, 1, count)
    with use_backend("cpp"):
        decays, _ = selective_scan(
            nothing, nothing, torch.zeros(count, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1),
            log_decay=exponents[None, None], initial=torch.ones(1, count, 1),
        )  # fmt: skip
    decays, wanted = decays.flatten(), exponents.double().exp()
    tiny, huge = wanted < 2**-125, wanted > torch.finfo(torch.float32).max
    normal = ~(tiny | huge)
    assert (decays[tiny] <= 2**-125).all() and decays[huge].isinf().all()
    # the exponent is rounded once, in base 2: half a unit in the last place of a number up to 128
    assert ((decays[normal] / wanted[normal] - 1).abs() < 128 * 2**-24).all()
    near = exponents.abs() < 1
    assert ((decays[near] / wanted[near] - 1).abs() < 2e-7).all()
    assert decays[exponents == 0].eq(1).all() and decays[exponents == -math.inf].eq(0).all()


# what is not finite ---------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("name", ["u", "dt", "A", "log_decay", "initial"])
def test_nan_stays_in_its_channel(name):
    given = problem(("log_decay", "initial"), channels=40, groups=2, steps=70, dtype=torch.float32)
    clean = solve(given, "cpp")
    with torch.no_grad():
        channel = (3,) if name == "A" else (0, 3) if name == "initial" else (0, 40, 3)
        given[name][channel] = math.nan
    ours = solve(given, "cpp")
    first = 40 if len(channel) == 3 else 0
    for b in range(2):
        for channel in range(40):
            hit = channel == 3 and (b == 0 or name == "A")
            y, final = ours["y"][b, :, channel], ours["final"][b, channel]
            if hit:
                assert y[first:].isnan().all() and final.isnan().any()
                y, first_ = y[:first], first
            else:
                first_ = 70
                assert torch.equal(final, clean["final"][b, channel])
            assert torch.equal(y, clean["y"][b, :first_, channel])
            if channel != 3:
                assert torch.equal(ours["gradient of u"][b, :, channel], clean["gradient of u"][b, :, channel])


@built
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["B", "C"])
def test_what_is_not_finite_is_so_in_the_reference(name, value):
    """Channels that only fill a vector take part in no sum."""
    given = problem(channels=5, steps=40, dtype=torch.float32)
    with torch.no_grad():
        given["u"].abs_()
        given["B"].abs_()
        given["C"].abs_()
        given[name][0, 20, 1] = value
    weight = torch.rand(2, 40, 5) + 0.5
    leaves = [t for t in given.values() if isinstance(t, torch.Tensor)]
    found = []
    for backend in ("cpp", "reference"):
        with use_backend(backend):
            y, final = selective_scan(**given)
        found.append([y, final, *torch.autograd.grad((y * weight).sum() + final.sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.isinf(), theirs.isinf())


@built
def test_a_segment_forgets_nan():
    given = problem(dtype=torch.float32, steps=40)
    given["segments"] = torch.arange(40).ge(20).long().expand(2, -1)
    with torch.no_grad():
        given["u"][:, 10] = math.nan
        with use_backend("cpp"):
            y, final = selective_scan(**given)
    assert y[:, 10:20].isnan().all() and y[:, :10].isfinite().all() and y[:, 20:].isfinite().all()
    assert final.isfinite().all()


# strides, threads, what is left out -----------------------------------------------------------------------------------


@built
def test_strided_arguments_are_read_right():
    given = problem(OPTIONS, groups=2, dtype=torch.float32)
    turned = {
        name: t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(t.is_floating_point())
        if isinstance(t, torch.Tensor) else t for name, t in given.items()
    }  # fmt: skip
    assert not turned["u"].is_contiguous()
    equal(solve(turned, "cpp"), solve(given, "cpp"))


@built
@pytest.mark.parametrize("team", [True, False])
@pytest.mark.parametrize("shape", [{"channels": 600, "groups": 2}, {"batch": 70}, {"channels": 300, "batch": 3}])
def test_threads_change_no_bit(shape, team, monkeypatch):
    monkeypatch.setattr(cpp, "WORK", 1)
    if not team:
        monkeypatch.setattr(cpp, "_team", lambda: None)
    given, threads, found = problem(OPTIONS, steps=40, dtype=torch.float32, **shape), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(solve(given, "cpp"))
    finally:
        torch.set_num_threads(threads)
    equal(found[1], found[0])
    equal(found[2], found[0])


@built
def test_what_is_not_asked_for_changes_nothing():
    given = problem(OPTIONS, steps=70, groups=2, dtype=torch.float32)
    leaves = [t for t in given.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    with use_backend("cpp"):
        (wanted, last), (y, final) = selective_scan(**given), selective_scan(**given, final=False)
        assert final is None and torch.equal(y, wanted)
        for one, other in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (y, wanted)), strict=True):
            assert torch.equal(one, other)
        with torch.no_grad():
            assert all(map(torch.equal, selective_scan(**given), (wanted, last)))
    *_, before = torch.ops.statezoo.selective_scan(*op_arguments(OPTIONS, False), "cpp", True, False)
    assert not before.numel()


@built
def test_backward_keeps_the_states_between_blocks_alone():
    given, saved = problem(steps=4096, channels=64, states=16, dtype=torch.float32), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), use_backend("cpp"):
        selective_scan(**given)
    inputs = sum(t.numel() for t in given.values() if isinstance(t, torch.Tensor))
    assert sum(saved.values()) == inputs + (4096 // cpp.length(2, 64, 16) - 1) * 2 * 64 * 16


# registration ---------------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_opcheck(options, requires_grad):
    arguments = op_arguments(options, requires_grad)
    found = torch.library.opcheck(torch.ops.statezoo.selective_scan.default, (*arguments, "cpp", True, requires_grad))
    assert found and set(found.values()) == {"SUCCESS"}, found


@built
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_opcheck_of_backward(options):
    given = op_arguments(options, False)
    y, final, before = torch.ops.statezoo.selective_scan(*given, "cpp", True, True)
    arguments = (*given, before, torch.ones_like(y), torch.ones_like(final), "cpp")
    found = torch.library.opcheck(torch.ops.statezoo.selective_scan_backward.default, arguments)
    assert found and set(found.values()) == {"SUCCESS"}, found


@built
def test_serves_float32_on_a_cpu_and_under_compile():
    assert explain("selective_scan")["cpp"] == "chosen"
    for call in (Call("cuda"), Call(dtype=torch.float64)):
        assert explain("selective_scan", call)["cpp"] == "serves float32 on the CPU"
    seen = []

    def look(graph, inputs):
        seen.extend(node.args[8] for node in graph.graph.nodes if "statezoo.selective_scan" in str(node.target))
        return graph.forward

    given = {name: t for name, t in problem(steps=300, dtype=torch.float32).items() if isinstance(t, torch.Tensor)}
    torch._dynamo.reset()
    compiled = torch.compile(lambda **given: selective_scan(**given), fullgraph=True, backend=look)
    assert all(map(torch.equal, compiled(**given), selective_scan(**given)))
    assert seen == ["cpp"]


def test_an_exported_program_holds_plain_torch():
    class Scan(torch.nn.Module):
        def forward(self, **given):
            return selective_scan(**given)

    given = {name: t.detach() for name, t in problem(dtype=torch.float32).items() if isinstance(t, torch.Tensor)}
    for strict in (False, True):
        program = torch.export.export(Scan(), (), given, strict=strict)
        assert not any("statezoo" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        ("no-such-compiler", "its kernel cannot be built or loaded .*no-such-compiler"),
        ("sh -c 'echo broken >&2; exit 1'", "cannot build its kernel .broken"),
        (None, "no C\\+\\+ compiler found"),
    ],
)
def test_without_a_compiler_torch_serves_and_explain_says_why(compiler, told, monkeypatch, tmp_path, recwarn):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    given = problem(OPTIONS, dtype=torch.float32)
    wanted = solve(given, "torch")
    cpp._built.cache_clear()
    try:
        equal(solve(given, None), wanted)
        answers = explain("selective_scan")
        assert answers["torch"] == "chosen" and re.search(told, answers["cpp"])
        with use_backend("cpp"), pytest.raises(ValueError, match=f"'cpp' cannot serve selective_scan: .*{told}"):
            selective_scan(**given)
        with pytest.raises(native.Unavailable, match=f"selective_scan: .*{told}"):  # a compiled program comes this way
            torch.ops.statezoo.selective_scan(*op_arguments((), False), "cpp", True, False)
    finally:
        cpp._built.cache_clear()
    assert not list(tmp_path.rglob("*.so")) and not recwarn.list


@built
def test_is_compiled_once_and_for_each_kind_of_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    commands, run = [], native.subprocess.run

    def count(command, **options):
        if "-shared" in command:
            commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(native.subprocess, "run", count)
    source = 'extern "C" int seven() { return 7; }'
    for machine, native_, compiled in (("one", True, 1), ("one", True, 1), ("two", True, 2), (None, True, 3),
                                       ("one", False, 3)):  # fmt: skip
        monkeypatch.setattr(native, "_machine", lambda compiler, machine=machine: machine)
        assert native.build("seven", source, ("-shared", "-fPIC"), native=native_).seven() == 7
        assert len(commands) == compiled == len(list(tmp_path.rglob("seven-*.so")))
    assert [native.NATIVE in command for command in commands] == [True, True, False]


@built
def test_without_this_machines_vectors_the_results_are_as_good(monkeypatch):
    """The four lanes that every machine has."""
    monkeypatch.setattr(native, "_machine", lambda compiler: None)
    cpp._built.cache_clear()
    try:
        for options in ((), OPTIONS):
            assert compare(options, channels=45, groups=3, states=19, steps=70) < FLOAT32
            assert compare(options, channels=300, batch=70, states=2, steps=33) < FLOAT32
    finally:
        cpp._built.cache_clear()


IMPORTED = """
from statezoo.zoo.ops import _selective_scan_cpp as cpp, selective_scan
from statezoo.zoo.registry import entries
assert entries("model") and cpp.length(2, 64, 16) and not cpp._built.cache_info().misses
"""


def test_nothing_is_compiled_by_an_import():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
