"""Point SSM against the authors' outputs and counts, and what must not change its output."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones import _point_layers
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.backbones.point_ssm import PointCompleter, PointSegmenter, PointSSM
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.ops.backends import use_backend

ORACLES = os.environ.get("STATEZOO_ORACLES")
TINY = PointSSM.tiny["encoder"]


def saved(case):
    found = np.load(Path(ORACLES) / f"point_ssm_{case}.npz")
    tensors = {name: torch.from_numpy(found[name]) for name in found.files}
    weights = {name.removeprefix("param/"): tensor for name, tensor in tensors.items() if name.startswith("param/")}
    return weights, tensors


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
def test_encoder_equals_the_authors():
    weights, case = saved("classifier_encoder")
    model = PointSSM.from_original(weights, num_outputs=0, encoder=TINY)
    with torch.no_grad():
        assert float((model(case["x"]) - case["y"]).abs().max()) <= 2e-5
    assert parameter_count(model) == 113_622


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
def test_completion_equals_the_authors():
    weights, case = saved("completion")
    model = PointCompleter.from_original(weights, num_categories=46, **PointCompleter.tiny)
    with torch.no_grad():
        y = model(case["x"], case["class_onehot"].argmax(1))
    assert float((y - case["y"]).abs().max()) <= 1e-4


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
def test_weights_that_do_not_fit_are_refused():
    weights, _ = saved("classifier_encoder")
    with pytest.raises(ZooError, match=r"has encoder.attention.0.conv.weight.* too many; check the configuration"):
        PointSSM.from_original(weights, num_outputs=0, encoder={**TINY, "channel_attention": False})


@pytest.mark.parametrize(
    ("name", "given", "count"),
    [  # the authors' models for MedPointS
        ("point_ssm", {"num_outputs": 46}, 19_593_373),
        ("point_ssm_seg", {"num_outputs": 46}, 68_130_287),
        ("point_ssm_cpl", {"num_categories": 46}, 22_666_325),
        ("point_ssm_hilbert", {"num_outputs": 46}, 11_924_526),
    ],
)
def test_published_sizes(name, given, count):
    with torch.device("meta"):
        assert parameter_count(create_model(name, **given)) == count


def test_the_small_segmenter_has_the_authors_decoder():
    model = create_model("point_ssm_seg", num_outputs=46, **PointSegmenter.tiny, idle_attention=False)
    assert parameter_count(model.encoder) == 113_622


def cloud(points=64, batch=2, seed=0):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(name="point_ssm", **config):
    torch.manual_seed(0)
    cls = {"point_ssm": PointSSM, "point_ssm_seg": PointSegmenter}[name]
    return cls(5, **{**cls.tiny, **config}).double().eval()


def test_the_order_of_the_points_behind_the_first_does_not_matter():
    x, shuffled = cloud(), torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(63)])
    m = model()
    with torch.no_grad():
        y = m(x)
        assert torch.allclose(m(x[:, shuffled]), y, atol=1e-12)
        swapped = torch.cat([x[:, 5:6], x[:, 1:5], x[:, :1], x[:, 6:]], 1)
        assert float((m(swapped) - y).abs().max()) > 1e-6  # sampling starts elsewhere


def test_a_cloud_does_not_see_its_batch():
    x, m = cloud(batch=3), model()
    with torch.no_grad():
        assert torch.allclose(m(x)[1:2], m(x[1:2]), atol=1e-12)


def test_the_segmenter_moves_with_its_points():
    """Labels go along with the points, except at the input's own scan, which is in their order."""
    x, m = cloud(), model("point_ssm_seg")
    with torch.no_grad():
        assert m(x).shape == (2, 64, 5)
        code = m.encoder(x)[0]
        moved = torch.cat([x[:, :1], x[:, 1:].flip(1)], 1)
        assert torch.allclose(m.encoder(moved)[0], code, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"query": "xyz"},
        {"query": "ball", "radii": (0.6, 1.2)},
        {"orders": ("hilbert",), "flips": False},
        {"orders": ("z",), "channel_attention": False, "concat_levels": False},
        {"scales": 3, "widths": (32, 32)},
        {"scales": 1},
    ],
)
def test_options_change_the_output_and_train(change):
    x, m = cloud(), model(encoder={**TINY, **change})
    y = m(x)
    grads = torch.autograd.grad(y.square().sum(), list(m.parameters()))
    assert all(bool(grad.abs().sum() > 0) for grad in grads)
    assert float((y - model()(x)).detach().abs().max()) > 1e-6
    with use_backend("reference"):
        assert torch.allclose(m(x), y, atol=1e-9)


@pytest.mark.parametrize("cls", [PointSSM, PointSegmenter, PointCompleter])
def test_parts_change_neither_output_nor_gradients(cls, monkeypatch):
    torch.manual_seed(0)
    m, given = cls(5, **cls.tiny).double(), [cloud(batch=3)]
    if cls is PointCompleter:
        given.append(torch.tensor([0, 3, 1]))
    parameters = [tensor for name, tensor in m.named_parameters() if not name.startswith("attention.")]

    def run(part):
        monkeypatch.setattr(_point_layers, "PART", part)
        y = m(*given)
        return [y, *torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)]

    whole = run(1 << 40)
    for part in (1, 1000):
        for ours, theirs in zip(run(part), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_what_no_weight_decay_touches():
    m = model()
    assert {name.rpartition(".")[2] for name in m.no_weight_decay()} == {"A_log", "D", "dt_bias"}
    assert sum(isinstance(part, S6) for part in m.modules()) == 8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"widths": (16,)}, "expected a width"),
        ({"query": "ball", "radii": (0.1,)}, "expected a width"),
        ({"orders": ("inside-out",)}, "did you mean 'inside_out'"),
    ],
)
def test_impossible_hierarchies_are_refused(change, text):
    with pytest.raises(ZooError, match=text):
        PointSSM(5, encoder={**TINY, **change})


def test_clouds_with_too_few_points_are_refused():
    with pytest.raises(ZooError, match="32"):
        model()(cloud(points=20))
