"""TiM4Rec against the authors' outputs and counts; the mended time track; its companions, step by step."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.backbones.tim4rec import TiM4Rec
from statezoo.zoo.backbones.tisasrec import TiSASRec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.recipe import load

ORACLES = os.environ.get("STATEZOO_ORACLES")
DAY = 86_400


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
@pytest.mark.parametrize("case", ["time", "notime"])
def test_equals_the_authors_outputs(case):
    saved = np.load(Path(ORACLES) / f"tim4rec_beauty_{case}.npz")
    weights = {name: torch.from_numpy(saved[name]) for name in saved.files if "." in name}
    model = TiM4Rec.from_original(weights, norm_eps=1e-5)
    items, times, length = (torch.from_numpy(saved[name]) for name in ("item_seq", "timestamps", "seq_len"))
    with torch.no_grad():
        features = model.forward_features(items, times.long(), length)[torch.arange(3), length - 1]
        scores = model.forward_head(features)
    assert float((features - torch.from_numpy(saved["seq_output"])).abs().max()) <= 2e-5
    assert float((scores - torch.from_numpy(saved["scores"])).abs().max()) <= 2e-5


@pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")
def test_weights_that_do_not_fit_are_refused():
    saved = np.load(Path(ORACLES) / "tim4rec_beauty_time.npz")
    weights = {name: torch.from_numpy(saved[name]) for name in saved.files if "." in name}
    for change, told in (
        ({"strange.weight": torch.zeros(2)}, r"has strange\.weight too many"),
        ({"in_layer_norm.bias": None}, r"misses norm\.bias"),
        ({"in_layer_norm.bias": torch.zeros(3)}, r"norm\.bias is \(3,\), not \(64,\)"),
        ({"item_embedding.weight": None}, r"misses item_embedding\.weight"),
    ):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        with pytest.raises(ZooError, match=told) as error:
            TiM4Rec.from_original(changed, norm_eps=1e-5)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "rows", "config", "count"),
    [  # released configurations: item rows with padding, and the authors' counts
        ("tim4rec", 3_417, {"max_len": 200}, 508_818),
        ("tim4rec_256", 3_417, {"max_len": 200}, 2_792_736),
        ("tim4rec", 12_102, {"gate_per_step": True}, 917_856),
        ("tim4rec", 7_112, {}, 593_498),
        ("tim4rec_notime", 7_112, {}, 582_816),
        ("tim4rec", 13_048, {}, 973_402),
        ("tim4rec.reference", 13_048, {}, 973_402),
    ],
)
def test_published_sizes(name, rows, config, count):
    assert parameter_count(create_model(name, num_items=rows - 1, **config)) == count


@pytest.mark.parametrize(
    ("recipe", "rows", "count"),
    [
        ("tim4rec.reference/ml-1m", 3_417, 508_818),
        ("tim4rec_256/ml-1m", 3_417, 2_792_736),
        ("tim4rec.reference/amazon-beauty", 12_102, 917_856),
        ("tim4rec.reference/kuairand", 7_112, 582_816),
        ("tim4rec.reference/steam", 13_048, 973_402),
    ],
)
def test_recipes_with_the_released_settings(recipe, rows, count):
    found = load(recipe)
    config = {key: value for key, value in found.model.items() if key != "name"}
    model = create_model(found.model["name"], num_items=rows - 1, max_len=found.data["max_len"], **config)
    assert parameter_count(model) == count and model.pad_competes
    assert found.data["windows"] == "per-prefix" and found.train["optimizer"] == "adam"


@pytest.mark.parametrize("track", ["causal", "reference", "none"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_step_alone(track, layers):
    model = tim4rec(time_track=track, layers=layers)
    items = torch.randint(1, 31, (4, 12), generator=torch.Generator().manual_seed(0))
    length = torch.tensor([12, 1, 5, 7])
    items[torch.arange(12) >= length[:, None]] = 0
    times = torch.where(items > 0, 10**9 + torch.arange(12) ** 3 * 977, 0)
    whole = model.forward_features(items, times, length)[torch.arange(4), length - 1]
    assert torch.allclose(model.last_features(items, times, length), whole, atol=1e-11)


def tim4rec(**config):
    """A model whose time track matters."""
    torch.manual_seed(0)
    small = {"num_items": 30, "max_len": 12, "dim": 16, "d_state": 8, "head_dim": 8}
    model = create_model("tim4rec", **{**small, **config}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("track") or "ssd" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def events(steps=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(1, 31, (2, steps), generator=draw)
    gaps = torch.exp(12 * torch.rand(2, steps, generator=draw)).long()
    return items, 1_600_000_000 + gaps.cumsum(1), torch.full((2,), steps)


@pytest.mark.parametrize("gate_per_step", [True, False])
def test_the_mended_track_is_causal_and_one_pass_is_all_prefixes(gate_per_step):
    model = tim4rec(gate_per_step=gate_per_step)
    items, times, length = events()
    whole = model.forward_features(items, times, length)
    for t in range(1, 13):
        short = torch.full((2,), t)
        padded = [torch.cat([x[:, :t], torch.zeros_like(x[:, t:])], 1) for x in (items, times)]
        prefix = model.forward_features(*padded, short)
        torch.testing.assert_close(prefix[:, t - 1], whole[:, t - 1], rtol=0, atol=1e-10)
        cut = model.forward_features(items[:, :t], times[:, :t], short)
        torch.testing.assert_close(cut[:, t - 1], whole[:, t - 1], rtol=0, atol=1e-10)


def test_the_published_track_is_not_causal():
    model = tim4rec(time_track="reference", gaps="seconds", norm_eps=1e-5)
    assert not model.causal
    items, times, length = events()
    later = times.clone()
    later[:, 9:] += 40 * DAY
    before, after = (model.forward_features(items, t, length)[:, :9] for t in (times, later))
    assert float((before - after).abs().max()) > 1e-3


def test_the_published_track_sees_little_of_a_padded_sequence_but_its_length():
    """Replacing every gap: the published track barely moves unless the window is full, the mended one does."""
    items, times, _ = events()
    moved = 1_600_000_000 + torch.arange(12).mul(7 * DAY).expand(2, -1)
    change = {}
    for track, config in (("reference", {"gaps": "seconds", "norm_eps": 1e-5}), ("causal", {})):
        model = tim4rec(time_track=track, **config)
        for t in (6, 12):
            short = torch.full((2,), t)
            padded = [torch.cat([x[:, :t], torch.zeros_like(x[:, t:])], 1) for x in (items, times, moved)]
            one, other = (model.forward_features(padded[0], clock, short)[:, t - 1] for clock in padded[1:])
            change[track, t] = float((one - other).norm() / one.norm())
    assert change["reference", 6] < 1e-3 < change["reference", 12], change
    assert change["causal", 6] > 10 * change["reference", 6], change


def test_times_one_second_apart_are_told_apart():
    """int64 differences: two events a second apart near 1e9, which float32 would make simultaneous."""
    model = tim4rec()
    items, times, length = events()
    times = 1_600_000_000 + torch.arange(12).expand(2, -1)
    moved = times + torch.tensor([0] * 6 + [1] * 6)
    one, other = (model.forward_features(items, clock, length) for clock in (times, moved))
    assert float((one[:, 6] - other[:, 6]).abs().max()) > 1e-4
    assert torch.equal(one[:, :6], other[:, :6])


SERVED = {
    "tim4rec_notime": {"max_len": 12, "d_state": 8, "head_dim": 8},
    "mamba4rec": {"layers": 2},
    "ssd4rec": {"mixer": {"name": "ssd", "d_state": 8, "head_dim": 8}},
    "gru4rec": {},
}


@pytest.mark.parametrize("name", list(SERVED))
def test_updates_event_by_event_equal_recomputing(name):
    torch.manual_seed(0)
    model = create_model(name, num_items=30, dim=16, **SERVED[name]).double().eval()
    items, times, length = events(9)
    given = {"items": items, "times": times, "length": length}
    whole = model.forward_features(*(given[key] for key in model.inputs))
    states = model.init_states(2)
    for t in range(9):
        features, states = model.step(items[:, t], times[:, t], states)
        torch.testing.assert_close(features, whole[:, t], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tim4rec", "sasrec", "tisasrec", "bert4rec"])
def test_window_bound_models_refuse_updates(name):
    with pytest.raises(ZooError, match="event by event"):
        create_model(name, num_items=30).init_states(2)


def test_tisasrec_scales_gaps_by_the_user():
    model = TiSASRec(30, 4, intervals=100)
    times = torch.tensor([[1_000_000_000, 1_000_000_060, 1_000_003_600, 0], [10, 20, 20, 50]])
    length = torch.tensor([3, 4])
    gaps = model.gaps(times, length)
    assert gaps[0].tolist() == [[0, 1, 60, 0], [1, 0, 59, 0], [60, 59, 0, 0], [0, 0, 0, 0]]
    assert gaps[1, 0].tolist() == [0, 1, 1, 4]
    coarse = TiSASRec(30, 4, scale="seconds").gaps(times, length)
    assert coarse[0, 0].tolist() == [0, 64, 256, 0], "float32 seconds near 1e9 lie 64 apart"


def test_tisasrec_is_its_equations():
    torch.manual_seed(1)
    model = TiSASRec(30, 5, dim=8, layers=1, heads=2, hidden=8).double().eval()
    items, times, length = (x[:1, :5] if x.ndim > 1 else x[:1] * 0 + 5 for x in events(5))
    layer, gaps = model.layers[0], model.gaps(times, length)[0]
    x = model.item(items)[0]
    q, k, v = layer.qkv(layer.norm1(x)).chunk(3, -1)
    out = torch.zeros_like(x)
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        for i in range(5):
            keys = torch.stack([k[j] + model.place_k.weight[j] + model.gap_k.weight[gaps[i, j]] for j in range(i + 1)])
            values = torch.stack(
                [v[j] + model.place_v.weight[j] + model.gap_v.weight[gaps[i, j]] for j in range(i + 1)]
            )
            out[i, part] = (keys[:, part] @ q[i, part] / 2).softmax(0) @ values[:, part]
    x = x + out
    wanted = model.norm(x + layer.feedforward(layer.norm2(x)))
    torch.testing.assert_close(model.forward_features(items, times, length)[0], wanted, rtol=0, atol=1e-10)


def test_bert4rec_fills_gaps_and_recommends_at_the_end():
    torch.manual_seed(0)
    model = create_model("bert4rec", num_items=30, max_len=6, dim=16).eval()
    items, targets = torch.tensor([[3, 4, 5, 0, 0, 0]] * 400), torch.tensor([[4, 5, 9, 0, 0, 0]] * 400)
    length = torch.full((400,), 3)
    features, hidden = model.fill_gaps(items, targets, length)
    assert features.shape == (400, 7, 16) and hidden.any(1).all()
    assert all(set(hidden[:, t].tolist()) == {0, item} for t, item in enumerate((3, 4, 5, 9)))
    assert not hidden[:, 4:].any()
    recommended = model.forward_features(items[:1], length[:1])[0, 2]
    by_hand = model.encode(torch.tensor([[3, 4, 5, model.mask_item, 0, 0, 0]]), torch.tensor([4]))[0, 3]
    assert torch.equal(recommended, by_hand)
