"""`zoo bench ops`: candidates of a comparison do the same, and what is reported of them; times are not looked at."""

import pytest
import torch
from statezoo.zoo import bench_ops
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.point_ssm import PointSSM
from statezoo.zoo.bench_ops import Comparison, by_backend, interleaved, point_networks, scan_by_path
from statezoo.zoo.errors import ZooError
from statezoo.zoo.ops.backends import NAMES, serving
from statezoo.zoo.ops.selective_scan import selective_scan

CLOSE = 1e-4


def scan_arguments(groups=1):
    draw = torch.Generator().manual_seed(0)
    u, dt = torch.randn(2, 9, 6, generator=draw), 0.1 * torch.rand(2, 9, 6, generator=draw)
    B, C = torch.randn(2, 2, 9, groups, 4, generator=draw).unbind()
    return u, dt, -torch.rand(6, 4, generator=draw), B, C


def point_ssm():
    torch.manual_seed(0)
    return create_model("point_ssm", num_outputs=5, **PointSSM.tiny), torch.randn(2, 64, 3)


def worst(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_backends_that_serve_take_part_and_agree():
    arguments = scan_arguments()
    candidates, left_out = by_backend("selective_scan", "cpu", lambda: selective_scan(*arguments))
    found = {name.removesuffix(", the default"): run for name, run in candidates.items()}
    assert list(found)[0] == "reference" and {"torch", "inductor"} < set(found)
    assert {*found, *left_out} == set(NAMES) and not set(found) & set(left_out)
    assert "triton" in left_out and all(left_out.values())
    assert sum(name.endswith(", the default") for name in candidates) == 1
    wanted = found["reference"]()
    for name in set(found) - {"reference", "inductor"}:  # inductor compiles for seconds
        with serving() as served:
            assert worst(found[name](), wanted) < CLOSE
        assert served == {name}


@pytest.mark.parametrize("groups", [1, 3])
def test_the_scan_of_a_port_is_the_scan(groups):
    arguments = scan_arguments(groups)
    wanted, _ = selective_scan(*arguments)
    assert worst([scan_by_path(*arguments)[0]], [wanted]) < CLOSE
    if groups == 1:
        u, dt, A, B, C = arguments
        assert worst([scan_by_path(u, dt, A, B[:, :, 0], C[:, :, 0])[0]], [wanted]) < CLOSE
    with pytest.raises(ZooError, match="gives no state"):
        scan_by_path(*arguments, final=True)


def test_candidates_of_the_point_network_agree():
    model, points = point_ssm()
    parameters = list(model.parameters())

    def both():
        y = model(points)
        return [y, *torch.autograd.grad(y.square().sum(), parameters)]

    candidates = point_networks("cpu", both)
    ported, reference, blocked, default = candidates
    served, results = {}, {}
    for name, run in candidates.items():
        with serving() as served[name]:
            results[name] = run()
    for name in (ported, reference, blocked):
        assert worst(results[name], results[default]) < CLOSE
    assert served[ported] == served[blocked] == {"torch"}  # what serves the ported network is a convolution
    assert served[reference] == {"reference"} and default.removesuffix(", the default") in served[default]


@pytest.mark.slow
def test_the_compiled_point_network_agrees():
    model, points = point_ssm()
    model.eval()
    with torch.no_grad():
        assert worst([torch.compile(model, dynamic=False)(points)], [model(points)]) < CLOSE


def test_a_slow_first_call_is_not_made_again(monkeypatch):
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times, once = interleaved(candidates, 2, "cpu")
    assert calls == ["a", "b"] * 3 and list(times) == ["a", "b"] and once == []
    monkeypatch.setattr(bench_ops, "SLOW", 0)
    calls.clear()
    times, once = interleaved(candidates, 2, "cpu")
    assert calls == once == ["a", "b"] and all(ms > 0 for ms in times.values())


def test_what_is_reported(monkeypatch):
    def make(device):
        yield Comparison("both", {"a": lambda: None, "b": lambda: None}, {"c": "not installed"}, clouds=2)
        yield Comparison("none", {}, {"c": "not installed"})

    monkeypatch.setattr(bench_ops, "COMPARISONS", {"x/one": make})
    facts, lines = bench_ops.bench_ops("x", rounds=1)
    found = facts["comparisons"]["both"]
    assert found["ratio"]["a"] == 1 and found["clouds_per_s"]["b"] == pytest.approx(2e3 / found["ms"]["b"])
    assert found["left_out"] == {"c": "not installed"} and found["first_call"] == []
    assert facts["comparisons"]["none"]["ms"] == {}
    assert sum("left out: not installed" in line for line in lines) == 2
    assert sum("clouds/s" in line for line in lines) == 2
    monkeypatch.setattr(bench_ops, "SLOW", 0)
    assert sum("(one call, the first)" in line for line in bench_ops.bench_ops("x", rounds=1)[1]) == 2
    with pytest.raises(ZooError, match="unknown comparison 'y'"):
        bench_ops.bench_ops("y")
    with pytest.raises(ZooError, match="at least 1 round"):
        bench_ops.bench_ops("x", rounds=0)
