"""Point SSM against the authors' outputs and counts, and what must not change its output."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones import _point_layers
from statezoo.zoo.backbones._point_layers import Along
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.backbones.point_ssm import PointCompleter, PointSegmenter, PointSSM, _order
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.train.run import train

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
    with pytest.raises(ZooError, match=r"A_log is .*, not .*check the configuration") as told:
        PointSSM.from_original(weights, num_outputs=0, encoder={**TINY, "d_state": 4})
    assert "\n" not in str(told.value)


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
    assert parameter_count(model) - parameter_count(model.encoder) == 96_350


def test_widths_of_the_published_decoder():
    with torch.device("meta"):
        decoder = create_model("point_ssm_seg", num_outputs=46).decoder
    widths = [(pair.first.mixer.dim, pair.second.mixer.dim, pair.width) for pair in decoder]
    assert widths == [
        (1536, 1024, 1024), (1280, 640, 512), (640, 512, 512), (576, 288, 256), (320, 256, 256), (320, 160, 128),
    ]  # fmt: skip


#: our names of parameters as the authors', piece by piece
THEIRS = (
    (r"^head\.", "HEAD."),
    (r"^embed(\d)\.", r"en_cemb.dense\1.linear."),
    (r"^attention\.", "decoder.ca."),
    (r"^folds\.(\d)\.out\.", r"decoder.fold.\1.mlp.2.linear."),
    (r"^folds\.(\d)\.first\.", r"decoder.fold.\1.mlp.0."),
    (r"^folds\.(\d)\.second\.", r"decoder.fold.\1.mlp.1."),
    (r"^decoder\.(\d)\.(first|second)\.linear\.", r"decoder.fp.\1.bb.building_blocks.\2.dense."),
    (r"^decoder\.(\d)\.(first|second)\.", r"decoder.fp.\1.bb.building_blocks.\2."),
    (r"^encoder\.embed\.", "encoder.point_proj."),
    (r"^encoder\.place\.", "encoder.pos_embed."),
    (r"^encoder\.attention\.", "encoder.ca."),
    (r"^encoder\.fuse\.first\.", "encoder.final_concat.mlp.mlp.0."),
    (r"^encoder\.fuse\.second\.", "encoder.final_concat.mlp.mlp.1."),
    (r"^encoder\.local\.(\d)\.(\d)\.(first|second)\.linear\.", r"encoder.msg.\1.bb.\2.building_blocks.\3.bb.dense."),
    (r"^encoder\.local\.(\d)\.(\d)\.(first|second)\.", r"encoder.msg.\1.bb.\2.building_blocks.\3.bb."),
    (r"^encoder\.along\.(\d)\.(\d)\.", r"encoder.lrm.\1.building_blocks.\2."),
    (r"building_blocks\.first", "building_blocks.0"),
    (r"building_blocks\.second", "building_blocks.1"),
    (r"\.mixer\.", ".mamba."),
    (r"(lrm\..*)\.conv1d\.", r"\1.conv."),
    (r"(lrm\..*)\.x_proj$", r"\1.x_proj_weight"),
    (r"(lrm\..*)\.dt_proj$", r"\1.dt_projs_weight"),
    (r"(lrm\..*)\.dt_bias$", r"\1.dt_projs_bias"),
    (r"(lrm\..*)\.A_log$", r"\1.A_logs"),
    (r"(lrm\..*)\.D$", r"\1.Ds"),
    (r"\.finish\.norm\.", ".norm."),
    (r"\.finish\.gate\.", ".cinj.cond.hyper_gate."),
    (r"\.finish\.shift\.", ".cinj.cond.hyper_bias."),
)


def original(name, head):
    for pattern, theirs in THEIRS:
        name = re.sub(pattern, theirs, name)
    return name.replace("HEAD.", head)


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
@pytest.mark.parametrize(
    ("case", "made", "prefix"),
    [
        ("classifier_encoder", lambda: PointSSM(0, encoder=TINY), "encoder."),
        ("completion", lambda: PointCompleter(46, **PointCompleter.tiny), ""),
    ],
)
def test_the_authors_names_are_those_of_their_weights(case, made, prefix):
    """So that the names in the test below are theirs."""
    theirs = {name for name in saved(case)[0] if not name.startswith("de_cemb.")}
    assert {original(name, "").removeprefix(prefix) for name in made().state_dict()} == theirs


@pytest.mark.parametrize(
    ("cls", "head"),
    [  # the authors' segmenter ends in a perceptron of one linear layer, in earlier releases in the layer itself
        (PointSSM, "classifier."),
        (PointSegmenter, "decoder.final.mlp.0.linear."),
        (PointSegmenter, "decoder.final."),
        (PointCompleter, ""),
    ],
)
def test_whole_models_load_under_the_authors_names(cls, head):
    """Heads and decoders too, whose weights no recorded case holds."""
    torch.manual_seed(0)
    one = cls(5, **cls.tiny)
    loaded = cls.from_original({original(n, head): t for n, t in one.state_dict().items()}, **cls.tiny, **given(cls))
    for name, tensor in one.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def given(cls):
    return {"num_categories" if cls is PointCompleter else "num_outputs": 5}


def cloud(points=64, batch=2, seed=0):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(name="point_ssm", **config):
    torch.manual_seed(0)
    cls = {"point_ssm": PointSSM, "point_ssm_seg": PointSegmenter}[name]
    return cls(5, **{**cls.tiny, **config}).double().eval()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"query": "xyz"},
        {"query": "embedding"},
        {"query": "ball", "radii": (1e-3, 1e-3)},  # of balls with more than k points the first are taken
        {"orders": ("hilbert",), "flips": False},
        {"orders": ("given",)},
    ],
)
def test_the_order_of_the_points_behind_the_first_does_not_matter(change):
    x, shuffled = cloud(), torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(63)])
    m = model(encoder={**TINY, **change})
    with torch.no_grad():
        y = m(x)
        assert torch.allclose(m(x[:, shuffled]), y, atol=1e-12)
        swapped = torch.cat([x[:, 5:6], x[:, 1:5], x[:, :1], x[:, 6:]], 1)
        assert float((m(swapped) - y).abs().max()) > 1e-6  # sampling starts elsewhere


def test_a_cloud_does_not_see_its_batch():
    x, m = cloud(batch=3), model()
    with torch.no_grad():
        assert torch.allclose(m(x)[1:2], m(x[1:2]), atol=1e-12)


def test_the_decoder_step_by_step():
    """The code beside the last level, then level by level three neighbours by inverse distances beside the skip."""
    x, m = cloud(), model("point_ssm_seg")
    with torch.no_grad():
        code, features, clouds = m.encoder(x)
        y = m.decoder[0](torch.cat([code[:, None].expand(-1, features[-1].shape[1], -1), features[-1]], -1))
        for step, level in ((1, 1), (2, 0)):
            far = torch.linalg.vector_norm(clouds[level][:, :, None] - clouds[level + 1][:, None], dim=-1)
            spread = torch.zeros(*far.shape[:2], y.shape[-1], dtype=y.dtype)
            for b in range(len(x)):
                for i, row in enumerate(far[b]):
                    near = row.argsort()[:3]
                    weight = 1 / (row[near] + 1e-8)
                    spread[b, i] = (weight / weight.sum()) @ y[b, near]
            y = m.decoder[step](torch.cat([spread, features[level]], -1))
        assert torch.allclose(m(x), y @ m.head.weight.T + m.head.bias, atol=1e-9)
        assert m(x).shape == (2, 64, 5)


def test_points_of_a_ball_are_the_first_in_order_of_distance():
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.2, 0, 0], [0.9, 0, 0], [0.1, 0, 0]])[None]
    make = {"query": "ball", "radii": (0.6, 1.2)}
    first = model(encoder={**TINY, **make}).encoder.in_ball(points[:, :1], points, 0.6, 3)
    assert first.tolist() == [[[0, 2, 1]]], "point 4 is nearer than 1, but comes after the first three"
    as_found = model(encoder={**TINY, **make, "sorted_query": False}).encoder.in_ball(points[:, :1], points, 0.6, 3)
    assert as_found.tolist() == [[[0, 1, 2]]]


def test_hilbert_cells_are_those_of_the_cube():
    """A point more, far away, moves no cell: these are of the cube from -1 to 1, not of the cloud's own box."""
    points = cloud(points=20, batch=1).clamp(-0.4, 0.4)
    alone = _order("hilbert", points).order[0].tolist()
    beside = _order("hilbert", torch.cat([points, torch.full((1, 1, 3), 0.99)], 1)).order[0].tolist()
    assert [i for i in beside if i != 20] == alone


@pytest.mark.parametrize(
    "change",
    [
        {"query": "xyz"},
        {"query": "embedding"},
        {"query": "ball", "radii": (0.6, 1.2)},
        {"query": "ball", "radii": (0.6, 1.2), "sorted_query": False},
        {"orders": ("hilbert",), "flips": False},
        {"orders": ("given",)},
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


def test_clouds_with_too_few_points_are_refused_before_training(tmp_path):
    told = (
        r"first level samples 32 centres of clouds of 20 points; set data.points=32 or more, or smaller model.encoder"
    )
    with pytest.raises(ZooError, match=told):
        train("point_ssm_small/anatomy-bones", ["data.points=20"], sample=True, folder=tmp_path / "run", quiet=True)


def test_paths_are_recurrences_of_the_core_one_by_one():
    """The block along two orders, against a loop over steps for each with the parameters of that path."""
    torch.manual_seed(0)
    m, x = Along(8, 2, 4).double(), torch.randn(2, 11, 8, dtype=torch.float64)
    orders = torch.stack([torch.stack([torch.randperm(11) for _ in range(2)]) for _ in range(2)])
    with torch.no_grad():
        a, z = m.in_proj(x).chunk(2, -1)
        a = torch.nn.functional.leaky_relu(m.conv1d(torch.nn.functional.pad(a.transpose(1, 2), (3, 0)))).transpose(1, 2)
        y = torch.zeros_like(a)
        A, D = -m.A_log.view(2, 16, 4).exp(), m.D.view(2, 16)
        for b, p in itertools.product(range(2), range(2)):
            h = torch.zeros(16, 4, dtype=torch.float64)
            for t in orders[b, p]:
                r, B, C = (m.x_proj[p] @ a[b, t]).split([1, 4, 4])
                dt = torch.nn.functional.softplus(m.dt_proj[p] @ r + m.dt_bias[p])
                h = (dt[:, None] * A[p]).exp() * h + (dt * a[b, t])[:, None] * B
                y[b, t] += h @ C + D[p] * a[b, t]
        wanted = m.finish(x + m.out_proj(y * torch.nn.functional.leaky_relu(z)), None)
        assert torch.allclose(m(x, orders, orders.argsort(-1)), wanted, atol=1e-10)


def test_the_dynamics_of_paths_stay_wide_in_a_cast_model():
    """A rounded A, D or bias of dt is a change of every step; casting moves them as they are."""
    from statezoo.zoo.backbones._point_layers import Along

    torch.manual_seed(0)
    block = Along(8, 2, 4)
    kept = {name: getattr(block, name).detach().clone() for name in ("A_log", "D", "dt_bias")}
    block.bfloat16()
    assert block.in_proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(getattr(block, name), value) for name, value in kept.items())
