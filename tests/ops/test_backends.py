"""Choosing backends: by predicates, by force, under torch.compile and torch.export, and the reasons that are told."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from statezoo.zoo.errors import ZooError
from statezoo.zoo.ops import backends, selective_scan
from statezoo.zoo.ops.backends import NAMES, Call, call_of, choose, explain, full_precision, ops, register, use_backend

OP = "test_op"


@pytest.fixture
def toy(monkeypatch):
    """An op with a compiled backend for short float32 calls, a plain one, and a reference."""
    monkeypatch.setitem(backends._BACKENDS, OP, [])
    register(
        OP, "cpp", lambda: "cpp",
        objection=lambda call: None if call.dtype == torch.float32 else f"float32 only, got {call.dtype}",
        automatic=lambda call: None if call.steps < 100 else "slower from 100 steps on",
    )  # fmt: skip
    register(OP, "torch", lambda: "torch", objection=lambda call: "no options" if call.options else None)
    register(OP, "reference", lambda: "reference", automatic=backends.only_by_force)
    return OP


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.setattr(backends, "_forced", None)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(), "torch"),
        (Call(steps=99), "cpp"),
        (Call(steps=100), "torch"),
        (Call(steps=99, dtype=torch.float64), "torch"),
        (Call(steps=99, options=("initial",)), "cpp"),
    ],
)
def test_the_first_without_an_objection_serves(toy, call, name):
    assert choose(toy, call)() == name
    told = explain(toy, call)
    assert told[name] == "chosen" and list(told.values()).count("chosen") == 1


def test_reasons(toy):
    assert explain(toy, Call()) == {
        "reference": "slow; forced in tests", "torch": "chosen", "inductor": "not available",
        "cpp": "slower from 100 steps on", "triton": "not available", "mamba-ssm": "not available",
    }  # fmt: skip
    assert explain(toy, Call(steps=5))["torch"] == "could serve"
    with use_backend("reference"):
        told = explain(toy, Call(steps=5, dtype=torch.float64))
        assert told["reference"] == "chosen" and told["torch"] == "'reference' is forced"
        assert told["cpp"] == "float32 only, got torch.float64"


def test_nothing_serves(toy):
    with pytest.raises(ValueError, match="test_op: no backend serves .*float64.*`zoo doctor`"):
        choose(toy, Call(dtype=torch.float64, options=("initial",)))


def test_force_overrides_preference_but_no_objection(toy):
    with use_backend("cpp"):
        assert choose(toy, Call(steps=1000))() == "cpp"
        with pytest.raises(
            ValueError, match="'cpp' cannot serve test_op: float32 only, got torch.float64; force anoth"
        ):
            choose(toy, Call(dtype=torch.float64))


def test_forcing_what_does_not_exist_names_it(toy):
    with use_backend("triton"):
        with pytest.raises(ValueError, match="'triton' does not exist for test_op; it has cpp, torch, reference"):
            choose(toy, Call())
        assert "chosen" not in explain(toy).values()


def test_forcing_nests_and_ends(toy):
    with use_backend("reference"):
        with use_backend("cpp"):
            assert choose(toy, Call())() == "cpp"
            with use_backend(None):
                assert choose(toy, Call())() == "torch"
            assert choose(toy, Call())() == "cpp"
        assert choose(toy, Call())() == "reference"
        with pytest.raises(KeyError), use_backend("torch"):
            raise KeyError
        assert choose(toy, Call())() == "reference"
    assert choose(toy, Call())() == "torch"


def test_unknown_names():
    with (
        pytest.raises(ValueError, match="unknown backend 'refrence'; did you mean 'reference'"),
        use_backend("refrence"),
    ):
        pass
    with pytest.raises(ZooError, match="unknown backend 'trition'; did you mean 'triton'"):
        register(OP, "trition", print)
    assert OP not in ops()
    with pytest.raises(ZooError, match="unknown op 'selectiv_scan'; did you mean 'selective_scan'"):
        explain("selectiv_scan")


def test_the_call_of_an_op():
    x = torch.zeros(2, 5, 3, dtype=torch.bfloat16)
    call = call_of(x, 5, initial=None, segments=x, reverse=False, doubled=True)
    assert call == Call("cpu", torch.bfloat16, 5, ("segments", "doubled"))


# the ops of the zoo ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ops())
def test_every_op_tells_about_every_name(op):
    told = explain(op)
    assert tuple(told) == NAMES and all(told.values())
    assert list(told.values()).count("chosen") == 1
    assert told["torch"] in ("chosen", "could serve"), "an exported program needs plain torch ops"
    assert told["reference"] == "slow; forced in tests"
    for name in NAMES:
        with use_backend(name):
            forced = explain(op)[name]
        if name in ("torch", "reference"):
            assert forced == "chosen"
        if told[name] == "not available":
            assert forced == "not available"


@pytest.mark.parametrize("op", ops())
def test_a_backend_that_is_not_there_is_a_value_error(op):
    missing = [name for name, reason in explain(op).items() if reason == "not available"]
    for name in missing:
        with (
            use_backend(name),
            pytest.raises(ValueError, match=f"'{name}' does not exist for {op}; it has .*reference"),
        ):
            choose(op, Call())


SCRIPT = """
import torch
from statezoo.zoo.ops.backends import Call, explain, use_backend
from statezoo.zoo.ops.selective_scan import selective_scan
torch.set_default_dtype(torch.float64)
def scan():
    u = torch.ones(1, 3, 2)
    return selective_scan(u, u, -torch.ones(2, 1), torch.ones(1, 3, 1), torch.ones(1, 3, 1))
try:
    scan()
    told = explain("selective_scan", Call(dtype=torch.float64))
    print([name for name, reason in told.items() if reason == "chosen"])
except ValueError as error:
    print(error)
with use_backend("torch"):
    scan()
"""


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("", "['torch']"),
        ("reference", "['reference']"),
        ("mamba-ssm", "backend 'mamba-ssm' does not exist for selective_scan; it has "),
        ("refrence", "unknown backend 'refrence'; did you mean 'reference'?"),
    ],
)
def test_forced_by_the_environment(value, printed):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "STATEZOO_BACKEND": value}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(printed)


# under torch.compile and torch.export ---------------------------------------------------------------------------------


def arguments(steps):
    """In float64, for which there is no kernel in C++."""
    draw = partial(torch.randn, dtype=torch.float64)
    u, shared = draw(1, steps, 2), draw(1, steps, 3)
    return u, u.abs(), -draw(2, 3).abs(), shared, shared


def watched():
    """The scan under torch.compile, and the backend in every graph that dynamo makes of it."""
    seen = []

    def look(graph, inputs):
        for node in graph.graph.nodes:
            if "statezoo.selective_scan" in str(node.target):
                *tensors, backend, last, kept = node.args
                seen.append(backend)
                node.args = (*tensors, "torch", last, kept)  # so that nothing is compiled here
        graph.recompile()
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(selective_scan.selective_scan, fullgraph=True, backend=look, dynamic=False), seen


def compiled_with(steps):
    (function, seen), given = watched(), arguments(steps)
    for ours, theirs in zip(function(*given), selective_scan.selective_scan(*given), strict=True):
        torch.testing.assert_close(ours, theirs)
    return seen


@pytest.mark.parametrize(("steps", "inductor"), [(255, "torch"), (256, "inductor"), (1000, "inductor")])
def test_inductor_serves_long_scans_under_compile(steps, inductor):
    assert compiled_with(steps) == [inductor]


def test_torch_can_be_forced_under_compile():
    with use_backend("torch"):
        assert compiled_with(1000) == ["torch"]


def test_a_compiled_function_heeds_a_later_force():
    (function, seen), given = watched(), arguments(300)
    function(*given)
    with use_backend("torch"):
        function(*given)
    function(*given)
    assert seen == ["inductor", "torch"]  # the third call finds the first program again


def test_inductor_says_why_it_does_not_serve(monkeypatch):
    def told(steps):
        return explain("selective_scan", Call(dtype=torch.float64, steps=steps))

    assert told(256)["inductor"] == "taken under torch.compile, or when forced"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert told(20)["inductor"] == "20 steps are too few to pay for compiling a block"
    assert told(256)["inductor"] == "chosen"
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert told(256)["torch"] == "chosen"


def test_an_exported_scan_holds_no_op_of_the_zoo():
    class Scan(torch.nn.Module):
        def forward(self, *given):
            return selective_scan.selective_scan(*given)

    program = torch.export.export(Scan(), arguments(300))
    assert not [node for node in program.graph.nodes if "statezoo" in str(node.target)]


def test_what_serves_is_noted():
    with backends.serving() as noted:
        selective_scan.selective_scan(*arguments(4))
        with use_backend("reference"), backends.serving() as within:
            selective_scan.selective_scan(*arguments(4))
    selective_scan.selective_scan(*arguments(4))
    assert len(noted) == 1 and "reference" not in noted and within == {"reference"}


def test_full_precision_stops_autocast():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision("cpu"):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with full_precision("cpu"):
        assert not torch.is_autocast_enabled("cpu")
