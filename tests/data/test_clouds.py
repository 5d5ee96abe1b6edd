"""Samples of clouds are what the files hold: drawn, cut, carried back, split and counted; bad folders are refused."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from statezoo.datasets.points.medpoints import CLOUDS, FINE, PARTS
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data import clouds
from statezoo.zoo.data.cloud_pack import Item, frame, is_colinear, normalise, pack
from statezoo.zoo.data.cloud_part import draw, farthest, rotation, without_nearest
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.ply import write_ply
from statezoo.zoo.errors import BadArgument, ZooError
from statezoo.zoo.geometry.fps import farthest_points
from statezoo.zoo.registry import entries

DATA = Path(os.environ.get("STATEZOO_DATA", ""), "points")
real = pytest.mark.skipif("STATEZOO_DATA" not in os.environ, reason="STATEZOO_DATA is not set: no real point clouds")
TOP = "classification/fold{fold}/{kind}/{name}.ply"


def sample(key, **options):
    return entries("dataset")[key].load().sample(**options)


def copied(key, folder, **options):
    """The adapter on a copy of its sample that a test may spoil; real data as far as `check` is concerned."""
    made = sample(key, **options)
    root = folder / key
    if not root.is_dir():
        shutil.copytree(made.folder, root)
    return type(made)(**options, root=root)


def cloud(seed=0, n=40):
    return np.random.default_rng(seed).normal(size=(n, 3))


def write(root, name, xyz, **columns):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_ply(file, xyz, **columns)


def rows_of(xyz):
    return Counter(map(tuple, np.asarray(xyz).tolist()))


# pieces ---------------------------------------------------------------------------------------------------------------


def test_a_frame_fills_the_unit_cube():
    xyz = cloud() * [1, 30, 2] + [1e4, -5, 0]
    points, centre, scale = normalise("a.ply", xyz)
    assert points.dtype == np.float32 and np.abs(points).max() == 1
    np.testing.assert_allclose(points.max(0), -points.min(0), atol=1e-6)
    np.testing.assert_allclose(points.astype(float) * scale + centre, xyz, atol=2e-6 * scale)
    assert frame(points.astype(float))[1] == pytest.approx(1)
    with pytest.raises(ZooError, match="a.ply: its 9 points coincide, so that the cloud has no size; drop the file"):
        normalise("a.ply", np.full((9, 3), 4.25))


def test_colinear_clouds_are_told():
    along = np.linspace(0, 1, 20)[:, None] * [1.0, 2, -3]
    assert is_colinear(along.astype(np.float32)) and not is_colinear(cloud())
    assert not is_colinear(along + 1e-3 * cloud(n=20)) and not is_colinear(cloud() * [1, 1, 0])


def test_drawing():
    rng = np.random.default_rng(0)
    assert len(set(draw(rng, 1000, 300).tolist())) == 300
    assert sorted(draw(rng, 1000, 1000).tolist()) == list(range(1000)), "all of them, in another order"
    few = draw(rng, 30, 100)
    assert set(few[:30].tolist()) == set(range(30)) and few.max() < 30 and len(few) == 100
    again = draw(rng, 4096, 2048, again=True)
    assert len(set(again.tolist())) / 2048 == pytest.approx(2 * (1 - np.exp(-0.5)), abs=0.02), "with replacement"
    # every point has the same chance, and every place
    counts = sum(np.bincount(draw(np.random.default_rng(i), 20, 5), minlength=20) for i in range(4000))
    assert np.abs(counts / 1000 - 1).max() < 0.15
    first = np.bincount([draw(np.random.default_rng(i), 20, 5)[0] for i in range(4000)], minlength=20)
    assert np.abs(first / 200 - 1).max() < 0.3


def test_what_is_cut_is_a_ball_of_a_fifth():
    for seed, n in ((0, 500), (1, 7), (2, 2)):
        xyz = cloud(seed, n)
        left = without_nearest(xyz, np.random.default_rng(seed))
        gone = np.setdiff1d(np.arange(n), left)
        assert len(gone) == max(n // 5, 1) and (np.diff(left) > 0).all()
        anchor = xyz[np.random.default_rng(seed).integers(n)]
        distance = np.linalg.norm(xyz - anchor, axis=1)
        assert distance[gone].max() <= distance[left].min()
    same = without_nearest(np.ones((10, 3)), np.random.default_rng(0))
    assert len(same) == 8


@pytest.mark.parametrize("kind", ["z", "so3"])
def test_rotations(kind):
    turns = np.stack([rotation(np.random.default_rng(i), kind) for i in range(2000)]).astype(float)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)
    fixed = np.eye(3)[2] if kind == "z" else np.zeros(3)
    np.testing.assert_allclose(turns.mean(0), np.outer(fixed, fixed), atol=0.06)
    if kind == "so3":  # the trace is 1 + 2 cos(angle), of mean 0 and variance 1 under the uniform measure
        assert np.trace(turns, axis1=1, axis2=2).var() == pytest.approx(1, abs=0.1)


# samples --------------------------------------------------------------------------------------------------------------


def test_points_are_those_of_the_file():
    data = sample("medpoints", points=300)
    part, spec = data.part("test"), data.prepare()
    batch = part.batch(np.arange(12))
    assert batch["points"].dtype == np.float32 and batch["label"].dtype == np.int64
    for i in range(12):
        kind, patient = part.ids[i].split("/")
        assert spec.outputs.classes[batch["label"][i]] == kind and part.groups[i] == patient
        xyz = read_cloud(data.folder / TOP.format(fold=5, kind=kind, name=patient)).xyz
        points, drawn = normalise("", xyz)[0], rows_of(batch["points"][i])
        assert not drawn - rows_of(np.repeat(points, 300, 0))
        if len(xyz) >= 300:
            assert max(drawn.values()) == 1, "without replacement"
        else:
            assert set(drawn) == set(rows_of(points)), "every point at least once"
        np.testing.assert_allclose(part.cloud(i), xyz, atol=1e-4)
    assert {len(part.cloud(i)) < 300 for i in range(12)} == {True, False}


def test_training_draws_anew_and_evaluation_does_not():
    part = sample("medpoints", points=100).part("train")
    index = np.arange(4)
    one, same, other = (part.batch(index, seeds)["points"] for seeds in (index, index, index + 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(part.batch(index)["points"], part.batch(index)["points"])
    assert all(np.array_equal(part.batch(index)["points"][i], part.batch(index[i : i + 1])["points"][0]) for i in index)


def test_drawing_with_replacement():
    part = sample("medpoints", points=200, replace=True).part("train")
    assert all(len(np.unique(cloud, axis=0)) < 195 for cloud in part.batch(np.arange(8), np.arange(8))["points"])


def test_the_farthest_points_cover_a_cloud():
    options = {"points": 60, "farthest": True}
    part, plain = sample("medpoints", **options).part("train"), sample("medpoints", points=60).part("train")
    index = np.arange(6)
    one, same, other = (part.batch(index, seeds)["points"] for seeds in (index, index, index + 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    for i in index:
        whole = part.cloud(i)
        wanted = farthest_points(torch.from_numpy(whole.astype(np.float32))[None], 60)[0]
        np.testing.assert_allclose(part.to_file_units(i, part.batch(index)["points"][i]), whole[wanted], atol=1e-3)
        gaps = [
            cKDTree(p.to_file_units(i, p.batch(index, index)["points"][i])).query(whole)[0].max() for p in (part, plain)
        ]
        assert gaps[0] < gaps[1]
    with pytest.raises(BadArgument, match="choose one"):
        sample("medpoints", farthest=True, replace=True)


def test_fewer_points_than_farthest_asks_for():
    plain, part = (sample("medpoints", points=2000, farthest=far).part("test") for far in (False, True))
    few = part.batch(np.arange(6))["points"]
    assert np.array_equal(few, plain.batch(np.arange(6))["points"]), "each, and some again, as without it"
    assert all(len(rows_of(few[i])) == len(rows_of(part.cloud(i))) < 2000 for i in range(6))


def test_farthest_draws_no_point_twice():
    whole = cloud(3, 50)
    for xyz, distinct in ((np.repeat(whole, 4, 0), 50), (np.ones((60, 3)), 1), (np.linspace(0, 1, 60)[:, None], 60)):
        for first in (0, 7):
            picks = farthest(xyz * np.ones(3), 60, first)
            assert picks[0] == first and len(set(picks.tolist())) == 60, "places"
            assert len(rows_of(xyz[picks[:distinct]])) == distinct, "all that differ come first"


def test_farthest_of_a_million_points():
    xyz = np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32)
    picks = farthest(xyz, 2048, 999_999)
    assert picks[0] == 999_999 and len(set(picks.tolist())) == 2048
    for k in (1, 2, 20):
        gap = np.square(xyz - xyz[picks[:k], None]).sum(2).min(0)
        assert gap[picks[k]] == pytest.approx(gap.max(), rel=1e-6)


def test_workers_draw_the_farthest_points_alike():
    data = sample("medpoints", points=50, farthest=True)
    alone, helped = (data.datamodule(batch_size=16, workers=workers).train_dataloader() for workers in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["points"], other["points"])


def test_only_training_clouds_are_turned():
    plain, turned = (sample("medpoints", points=200, rotate=rotate) for rotate in ("none", "so3"))
    index, seeds = np.arange(6), np.arange(6)
    assert np.array_equal(plain.part("test").batch(index)["points"], turned.part("test").batch(index)["points"])
    assert np.array_equal(plain.part("train").batch(index)["points"], turned.part("train").batch(index)["points"])
    points = turned.part("train").batch(index, seeds)["points"]
    assert not np.array_equal(points, plain.part("train").batch(index, seeds)["points"])
    np.testing.assert_allclose(np.abs(points).max((1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_turned_clouds_are_the_same_points_in_another_pose(task):
    adapter = sample("medpoints", task=task, points=50)
    plain, turned = adapter.part("test"), adapter.slices()["turned"]
    here, there = (part.batch(np.arange(3)) for part in (plain, turned))
    assert np.array_equal(here["label"], there["label"])
    for one, other in zip(here["points"], there["points"], strict=True):
        gaps = [np.linalg.norm(xyz[:, None] - xyz[None], axis=2) for xyz in (one, other)]
        scale = gaps[1].max() / gaps[0].max()  # the box of another pose has another size
        assert np.allclose(gaps[1], scale * gaps[0], atol=1e-4) and not np.allclose(one, other, atol=0.1)
    assert np.array_equal(turned.batch(np.arange(3))["points"], there["points"])
    assert sample("medpoints", task="completion").slices() == {}


@pytest.mark.parametrize("key", ["medpoints", "anatomy-bones"])
def test_partial_and_whole_share_a_frame(key):
    data = sample(key, task="completion", points=700)  # more than there are, so that every point is in the batch
    part = data.part("test")
    batch = part.batch(np.arange(10))
    for points, target, category, name in zip(
        batch["points"], batch["target"], batch["category"], part.ids[:10], strict=True
    ):
        assert data.prepare().outputs.classes[category] == name.split("/")[0]
        few, whole = np.unique(points, axis=0), np.unique(target, axis=0)
        assert len(few) == len(whole) - max(len(whole) // 5, 1)
        gap = np.abs(few[:, None] - whole).max(2).min(1)
        assert gap.max() < 1e-6, "every point of the part is one of the whole"
        np.testing.assert_allclose(few.max(0), -few.min(0), atol=1e-6)
        assert np.abs(few).max() == pytest.approx(1, abs=1e-6)


def test_completion_cuts_anew_in_training_alone():
    part = sample("anatomy-bones", task="completion", points=150).part("train")
    index = np.arange(5)
    one, other = (part.batch(index, seeds) for seeds in (index, index + 9))
    assert not np.array_equal(one["points"], other["points"])
    assert np.array_equal(part.batch(index)["points"], part.batch(index)["points"])
    turned = sample("anatomy-bones", task="completion", points=700, rotate="so3").part("train").batch(index, index)
    few, whole = turned["points"], turned["target"]
    assert max(np.abs(a[:, None] - b).max(2).min(1).max() for a, b in zip(few, whole, strict=True)) < 1e-5


def test_what_is_drawn_of_a_cloud_may_coincide(tmp_path):
    for i in range(20):
        write(tmp_path, f"a/{i}.ply", np.concatenate([np.ones((97, 3)), cloud(i, 3)]))
    for task in ("classification", "completion"):
        data = create_dataset("cloud-folder", root=tmp_path, task=task, points=4, rotate="so3")
        index = np.arange(len(data.part("train")))
        for seed in range(5):
            batch = data.part("train").batch(index, index + seed)
            assert all(np.isfinite(batch[name]).all() for name in batch)


def test_frames_of_their_own_are_a_quirk():
    batch = sample("medpoints", task="completion", points=700, own_frames=True).part("test").batch(np.arange(40))
    np.testing.assert_allclose(np.abs(batch["target"]).max((1, 2)), 1, atol=1e-6)
    with pytest.raises(BadArgument, match="data.own_frames is for completion, not for segmentation; leave it out"):
        sample("medpoints", task="segmentation", own_frames=True)
    gap = [np.abs(a[:, None] - b).max(2).min(1).max() for a, b in zip(batch["points"], batch["target"], strict=True)]
    assert max(gap) > 0.01


@pytest.mark.parametrize("key", ["medpoints", "msd-hippocampus-parts"])
def test_labels_come_back_to_every_point(key):
    data = sample(key, task="segmentation", points=120)
    part = data.part("test")
    batch = part.batch(np.arange(5))
    for i in range(5):
        xyz = normalise("", part.cloud(i))[0]
        nearest = np.square(xyz[:, None].astype(float) - batch["points"][i]).sum(2)
        mine = nearest[np.arange(len(xyz)), batch["nearest"][i]]
        assert (mine <= nearest.min(1) + 1e-9).all()
        (file,) = data.folder.glob(f"segmentation/*/coarse_label/{part.ids[i]}.seg")
        raw = np.loadtxt(file).astype(int) - data.label_values[0]
        assert np.array_equal(batch["all_label"][i], raw)
        at = np.abs(xyz[None] - batch["points"][i][:, None]).max(2).argmin(1)
        assert np.array_equal(batch["label"][i], raw[at])
    assert {"nearest", "all_label"} & set(data.part("train").batch(np.arange(2))) == set()
    assert batch["nearest"].dtype == np.int32 and batch["all_label"].dtype == np.int16


def test_clouds_of_several_sizes_are_padded(tmp_path):
    for i in range(30):
        write(tmp_path, f"p{i}.ply", cloud(i, 20 + i % 3), label=np.arange(20 + i % 3) % 2 * 7)
    data = create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=16)
    assert data.prepare().outputs.classes == ("0", "7")
    part = data.part("test")
    whole = part.batch(np.arange(len(part)))
    size = [len(part.cloud(i)) for i in range(len(part))]
    assert len(set(size)) > 1 and whole["all_label"].shape == (len(part), max(size))
    for i, n in enumerate(size):
        assert (whole["all_label"][i, n:] == -1).all() and (whole["nearest"][i, n:] == 0).all()
        alone = part.batch(np.array([i]))
        assert np.array_equal(whole["all_label"][i, :n], alone["all_label"][0])


def test_features_are_standardised_by_the_training_part(tmp_path):
    data = sample("cloud-folder", features=True, points=700)
    spec, part = data.prepare(), data.part("train")
    assert spec.sizes["num_features"] == 1 and spec.inputs.tensors["features"].shape == (700, 1)
    values = []
    for i in range(len(part)):
        n = len(part.cloud(i))
        values.append(part.batch(np.array([i]))["features"][0, :n])  # each point once, then some again
    values = np.concatenate(values).astype(float)
    assert abs(values.mean()) < 1e-5 and values.std() == pytest.approx(1, abs=1e-5)
    data.save_prep(tmp_path)
    spec.save(tmp_path)
    other = data.inference(data.folder / "liver", tmp_path)
    trained = data.part("test").batch(np.arange(len(data.part("test"))))
    place = {name: i for i, name in enumerate(data.part("test").ids)}
    found = [(i, place[f"liver/{name}"]) for i, name in enumerate(other.ids) if f"liver/{name}" in place]
    assert found
    for mine, theirs in found:
        n = len(other.cloud(mine))
        one, two = (
            np.sort(b["features"][i][:n, 0]) for b, i in ((other.batch(np.array([mine])), 0), (trained, theirs))
        )
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("name", ["pointnet", "pointnet_seg"])
def test_features_reach_the_networks_that_take_them(name):
    task = "segmentation" if name.endswith("seg") else "classification"
    data = sample("cloud-folder", task=task, features=True, points=100)
    model = entries("model")[name].load().from_spec(data.prepare(), widths=(8, 16, 32)).eval()
    batch = data.part("train").batch(np.arange(2))
    points, features = (torch.from_numpy(batch[tensor]) for tensor in model.inputs)
    assert model.inputs == ("points", "features")
    assert not torch.equal(model(points, features), model(points, features + 1))


def test_features_are_refused_where_they_would_be_ignored():
    tasks = ("classification", "segmentation", "completion")
    specs = {task: sample("cloud-folder", task=task, features=True).prepare() for task in tasks}
    taking = set()
    for name, entry in entries("model").items():
        cls = entry.load()
        if "points" not in cls.accepts:
            continue
        if "features" in (*cls.inputs, *cls.optional):
            taking.add(name)
            continue
        with pytest.raises(ZooError, match=f"{cls.__name__} reads .* ignore the features; leave data.features out, or"):
            cls.from_spec(specs[(*cls.serves, "classification")[0]], **cls.configs[name])
    assert taking == {"pointnet", "pointnet_seg"}


def test_fine_labels_of_medpoints():
    options = {"task": "segmentation", "points": 300}
    coarse, fine = (sample("medpoints", labels=labels, **options) for labels in ("coarse", "fine"))
    assert (len(coarse.prepare().outputs.classes), len(fine.prepare().outputs.classes)) == (46, 145)
    index = np.arange(4)
    one, other = (data.part("test").batch(index)["label"] for data in (coarse, fine))
    names = fine.prepare().outputs.classes
    assert all(
        names[other[place]] in PARTS.get(kind, [kind])
        for place, kind in np.ndenumerate(np.array(coarse.prepare().outputs.classes)[one])
    )
    assert len(np.unique(other)) > len(np.unique(one))
    assert (coarse.split_name, fine.split_name) == ("official", "official-fine"), "boards of their own"
    with pytest.raises(ZooError, match="unknown labels 'finest'"):
        sample("medpoints", labels="finest")
    with pytest.raises(BadArgument, match="data.labels=fine is for segmentation, not for completion; leave it out"):
        sample("medpoints", labels="fine", task="completion")


def test_fine_labels_are_numbered_as_published():
    assert len(FINE) == len(set(FINE)) == 145
    known = {1: "adrenalglandleft", 17: "costa10left", 23: "costa1left", 50: "gluteusmediusleft", 54: "gonads"}
    known |= {58: "hearttissue", 77: "lungmiddleloberight", 92: "vertebraeC1", 105: "vertebraeT10", 115: "vertebraeT9"}
    known |= {116: "sacrum", 117: "claviculaleft", 119: "pulmonaryartery", 121: "ribleft10", 132: "ribright1"}
    known |= {143: "ribright9", 145: "scapularight"}
    assert {number: FINE[number - 1] for number in known} == known
    assert Counter(part for name in CLOUDS for part in PARTS.get(name, [name])) == Counter(FINE)


def test_a_million_points(tmp_path):
    xyz = np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32)
    write(tmp_path, "big.ply", xyz)
    arrays, facts = pack(tmp_path, [Item("big", "big", "big.ply")])
    assert arrays["xyz"].shape == (1_000_000, 3) and facts["repeated_points"] < 10
    assert isinstance(arrays["xyz"], np.memmap), "not in memory"


# splits and counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["anatomy-bones", "msd-hippocampus-parts"])
def test_five_folds_test_every_sample_once(key):
    tested = []
    for k in range(1, 6):
        data = sample(key, split=f"fold{k}")
        parts = {name: set(part.ids.tolist()) for name, part in data.parts.items()}
        tested.append(parts["test"])
        assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == data.describe_counts()["clouds"]
        following = sample(key, split=f"fold{k % 5 + 1}")
        assert parts["valid"] == set(following.part("test").ids.tolist()), "the next fold validates"
    assert len(set.union(*tested)) == sum(map(len, tested)) == data.describe_counts()["clouds"]
    with pytest.raises(ZooError, match="unknown split 'fold6' in .*; did you mean 'fold"):
        sample(key, split="fold6")


def test_official_folds_of_medpoints():
    for task in ("classification", "segmentation", "completion"):
        data = sample("medpoints", task=task)
        items = data.items()
        for name, folds in (("train", "123"), ("valid", "4"), ("test", "5")):
            mine = [items[i] for i in data.places(items)[name]]
            assert {str(item.fold) for item in mine} == set(folds) and len(mine) == len(data.part(name))


def test_patients_that_cross_the_published_folds_are_refused_or_counted(tmp_path):
    data = copied("medpoints", tmp_path)
    mine = data.folder / "classification/fold5/aorta"
    file = sorted(mine.iterdir())[0]
    shutil.move(file, data.folder / "classification/fold1/aorta" / file.name)
    with pytest.raises(ZooError) as caught:
        data.prepare()
    assert "1 patient groups are both in train and test" in str(caught.value)
    assert "data.split=by-patient" in str(caught.value) and "official-crossing" in str(caught.value)
    crossing = type(data)(root=data.folder, split="official-crossing")
    crossing.prepare()
    assert crossing.describe_counts()["patients_in_several_parts"] == 1
    ours = type(data)(root=data.folder, split="by-patient")
    ours.prepare()
    assert ours.describe_counts()["patients_in_several_parts"] == 0
    patients = [set(part.groups.tolist()) for part in ours.parts.values()]
    assert [len(one) for one in patients] == [30, 10, 10]


def test_the_published_archives_have_their_folders_in_another_order(tmp_path):
    data = sample("medpoints", task="completion")
    for file in data.source_files():
        _, fold, role, kind, name = file.split("/")
        target = tmp_path / "completion" / kind / role / fold / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.folder / file, target)
    other = type(data)(root=tmp_path, task="completion")
    assert other.split_hash() == data.split_hash()
    index = np.arange(3)
    assert np.array_equal(other.part("test").batch(index)["target"], data.part("test").batch(index)["target"])


def test_duplicates_and_what_else_is_odd_are_counted(tmp_path):
    xyz = {f"{kind}/p{i:02d}.ply": cloud(hash_of(kind) + i, 30) for kind in ("a", "b") for i in range(20)}
    for name, points in xyz.items():
        write(tmp_path, name, points)
    places = create_dataset("cloud-folder", root=tmp_path, points=10)
    test, train = (places.part(name).ids[0] for name in ("test", "train"))
    # the same cloud elsewhere, in another order; a cloud with points twice; one on a line; a small one
    write(tmp_path, f"{test}.ply", xyz[f"{train}.ply"][::-1])
    write(tmp_path, f"{places.part('train').ids[1]}.ply", np.repeat(cloud(99, 15), 2, 0))
    write(tmp_path, f"{places.part('train').ids[2]}.ply", np.linspace(0, 1, 30)[:, None] * [1.0, 2, 3])
    write(tmp_path, f"{places.part('train').ids[3]}.ply", cloud(98, 9))
    counts = create_dataset("cloud-folder", root=tmp_path, points=10).check()
    assert counts["exact_duplicates_across_parts"] == 1 and counts["repeated_points"] == 15
    assert counts["colinear_clouds"] == 1 and counts["clouds_of_fewer_points_than_drawn"] == 1
    assert counts["fewest_points"] == 9 and counts["clouds"] == counts["groups"] == 40
    assert counts["clouds_per_class"] == {"a": 20, "b": 20}


def hash_of(kind):
    return {"a": 0, "b": 1000}[kind]


def test_clouds_are_read_once(monkeypatch, tmp_path):
    data = copied("cloud-folder", tmp_path)
    data.prepare()
    monkeypatch.setattr(clouds, "pack", lambda *a, **k: pytest.fail("read again"))
    for options in ({"split_seed": 4}, {"points": 50}, {"task": "completion"}):
        type(data)(root=data.folder, **options).prepare()
    monkeypatch.undo()
    file = sorted((data.folder / "liver").iterdir())[0]
    write_ply(file, cloud(5, 30), distance=np.ones(30), label=np.zeros(30, int))
    changed = type(data)(root=data.folder)
    changed.prepare()
    assert changed.describe_counts()["fewest_points"] == 30, "another file is another entry of the cache"


def test_what_cannot_be_fetched_is_named(tmp_path):
    with pytest.raises(ZooError, match="classification/fold1, .* not in .*; get them from https://"):
        create_dataset("medpoints", root=tmp_path).fetch()


def test_published_counts_of_medpoints(tmp_path):
    assert len(CLOUDS) == 46 and sum(CLOUDS.values()) == 28_737
    assert (min(CLOUDS, key=CLOUDS.get), max(CLOUDS, key=CLOUDS.get)) == ("gonads", "aorta")
    assert (CLOUDS["gonads"], CLOUDS["aorta"]) == (108, 1025)
    for task, what in (("classification", "0 clouds of adrenalgland"), ("segmentation", "50 clouds of patients")):
        with pytest.raises(ZooError, match=rf"{what} for {task}, published are \d+ .*; complete the download"):
            copied("medpoints", tmp_path, task=task).check()


# inference ------------------------------------------------------------------------------------------------------------


def test_inference_on_files_without_labels(tmp_path):
    data = sample("msd-hippocampus-parts", points=200)
    data.prepare().save(tmp_path / "prep")
    write(tmp_path / "new", "deep/p1.ply", cloud(1, 500) * 30)
    (tmp_path / "new/p0.xyz").write_text("".join(f"{x} {y} {z}\n" for x, y, z in cloud(2, 150)))
    (tmp_path / "new/notes.md").write_text("no cloud")
    part = data.inference(tmp_path / "new", tmp_path / "prep")
    assert part.ids.tolist() == ["deep/p1", "p0"] and data.counts["clouds"] == 2
    batch = part.batch(np.arange(2))
    assert set(batch) == {"points", "nearest"} and batch["points"].shape == (2, 200, 3)
    np.testing.assert_allclose(part.cloud(0), cloud(1, 500) * 30, atol=1e-4)
    at = batch["nearest"][0, :500]
    back = part.to_file_units(0, batch["points"][0][at])
    same = np.isclose(back, part.cloud(0), atol=1e-3).all(1)
    assert same.sum() == 200, "the points that were drawn are carried to themselves"
    one = data.inference(tmp_path / "new/p0.xyz", tmp_path / "prep")
    assert one.ids.tolist() == ["p0"] and np.array_equal(one.batch(np.arange(1))["points"][0], batch["points"][1])
    with pytest.raises(ZooError, match="holds no file of .ply.*; check the path"):
        data.inference(tmp_path / "prep", tmp_path / "prep")
    for name in (".hidden.ply", ".git/a.ply", "metadata.csv"):
        (tmp_path / "new" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "new" / name).write_text("no cloud")
    assert data.inference(tmp_path / "new", tmp_path / "prep").ids.tolist() == ["deep/p1", "p0"]
    shutil.copy(tmp_path / "new/p0.xyz", tmp_path / "new/p0.txt")
    with pytest.raises(ZooError, match="p0.xyz: repeats the name of p0.txt; rename one of the two"):
        data.inference(tmp_path / "new", tmp_path / "prep")


def test_inference_of_completion_takes_the_class_of_the_folder(tmp_path):
    data = sample("anatomy-bones", task="completion", points=100)
    data.prepare().save(tmp_path / "prep")
    write(tmp_path / "new", "femur/a.ply", cloud(1, 500))
    batch = data.inference(tmp_path / "new", tmp_path / "prep").batch(np.arange(1))
    assert set(batch) == {"points", "category"} and data.prepare().outputs.classes[batch["category"][0]] == "femur"
    one = data.inference(tmp_path / "new" / "femur" / "a.ply", tmp_path / "prep").batch(np.arange(1))
    assert np.array_equal(one["category"], batch["category"]), "a file alone has its folder's name too"
    write(tmp_path / "new", "femurs/b.ply", cloud(2, 500))
    with pytest.raises(ZooError, match="unknown class folder 'femurs' in .*femurs/b.ply; did you mean 'femur'"):
        data.inference(tmp_path / "new", tmp_path / "prep")


# what is refused ------------------------------------------------------------------------------------------------------


def refused(data, what, remedy):
    with pytest.raises(ZooError) as caught:
        data.prepare()
    text = str(caught.value)
    assert what in text and remedy in text.partition(what)[2] and ";" in text and "\n" not in text
    return text


def move(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / old, root / new)


def first(data, pattern):
    return sorted(data.folder.glob(pattern))[0].relative_to(data.folder).as_posix()


def test_bad_folders_of_classification(tmp_path):
    data = copied("medpoints", tmp_path)
    old = first(data, "classification/fold2/liver/*")
    name = old.rpartition("/")[2]
    again = lambda: type(data)(root=data.folder)  # noqa: E731
    for new, what, remedy in (
        (f"classification/fold2/livr/{name}", "unknown class folder 'livr'", "did you mean 'liver'?"),
        (
            f"classification/liver/{name}",
            "lies in classification/liver, not in classification/fold1..5/<class>",
            "move it",
        ),
        (f"classification/fold2/{name}", "not in classification/fold1..5/<class>", "move it"),
        (f"classification/fold2/liver/{name}.bak", "is no .ply file", "take it out of the folder"),
    ):
        move(data.folder, old, new)
        assert str(data.folder) in refused(again(), what, remedy)
        move(data.folder, new, old)
    shutil.copy(data.folder / old, data.folder / f"classification/fold3/liver/{name}")
    refused(again(), f"repeats 'liver/{name[:-4]}'", "to be renamed")
    (data.folder / f"classification/fold3/liver/{name}").unlink()
    (data.folder / "classification/fold2/liver/.DS_Store").write_text("hidden")
    again().prepare()
    write_ply(data.folder / old, np.ones((20, 3)))
    assert name in refused(again(), "its 20 points coincide", "drop the file")
    shutil.rmtree(data.folder / "classification/fold3")
    refused(again(), "fold3 holds no cloud", "use cloud-folder")


def test_bad_folders_of_segmentation(tmp_path):
    data = copied("medpoints", tmp_path, task="segmentation")
    again = lambda: type(data)(root=data.folder, task="segmentation")  # noqa: E731
    label = first(data, "segmentation/fold1/coarse_label/*")
    good = (data.folder / label).read_text()
    lines = good.splitlines()
    for text, what, remedy in (
        ("\n".join(lines[:-1]), f"{len(lines) - 1} labels for a cloud of {len(lines)} points", "one label per point"),
        (good + "1\n", f"{len(lines) + 1} labels for a cloud of", "one label per point"),
        ("\n".join(["47", *lines[1:]]), "label 1 is 47, not one of 1 to 46", "mend it"),
        ("\n".join(["-1", *lines[1:]]), "label 1 is -1, not one of 1 to 46", "mend it"),
        ("\n".join([lines[0], "2.5", *lines[2:]]), "label 2 is 2.5, no whole number", "mend the row"),
        ("\n".join([lines[0], "liver", *lines[2:]]), "row 2: 'liver' is not 1 numbers", "mend the row"),
    ):
        (data.folder / label).write_text(text)
        assert label in refused(again(), what, remedy)
    # as numpy writes floats, and 0 is no label
    (data.folder / label).write_text("\n".join(["0.000000000000000000e+00", *(f"{int(x):.18e}" for x in lines[1:])]))
    whole = again()
    whole.prepare()
    place = whole.part("train").ids.tolist().index(Path(label).stem)
    assert (whole.part("train")._span("label", "start", place)[:1] == -1).all()
    (data.folder / label).unlink()
    refused(again(), "has no file of its name in coarse_label/", "add it")
    (data.folder / label).write_text(good)
    move(data.folder, label, label.replace("fold1", "fold2"))
    refused(again(), "is in fold 1, its label in 2", "move one")
    move(data.folder, label.replace("fold1", "fold2"), label)
    (data.folder / label.replace("coarse", "fine")).write_text("not read")
    again().prepare()
    (data.folder / label.replace("coarse_label", "pcd").replace(".seg", ".ply")).unlink()
    refused(again(), "has no cloud in pcd/", "complete the data")


def test_bad_folders_of_completion(tmp_path):
    data = copied("medpoints", tmp_path, task="completion")
    target = first(data, "completion/fold1/target/*/*")
    (data.folder / target).unlink()
    refused(data, "has no file of its name in target/", "add it")


def test_bad_tables_of_bones(tmp_path):
    data = copied("anatomy-bones", tmp_path)
    again = lambda: type(data)(root=data.folder)  # noqa: E731
    table = data.folder / "metadata.csv"
    good = table.read_text()
    row = good.splitlines()[1].split(",")
    table.write_text(good.replace(good.splitlines()[1] + "\n", ""))
    assert row[0] in refused(again(), "has no row in metadata.csv", "get the data again")
    table.write_text(good.replace(f"{row[0]},classification,{row[2]},", f"{row[0]},classification,5,"))
    refused(again(), f"row 2: {row[0]}, {row[3]} of fold 5, lies in fold{row[2]}/", "get the data again")
    table.write_text(good + f"model_999_femur_l,classification,1,femur,L,model_999\n{row[0]}_x,rare,1,rib,L,m\n")
    refused(again(), "model_999_femur_l, femur of fold 1, is missing", "get the data again")
    other = next(line for line in good.splitlines()[1:] if line.split(",")[2] != row[2]).split(",")
    table.write_text(good.replace(",".join(other), ",".join([*other[:5], row[5]])))
    with pytest.raises(ZooError, match="leakage: 1 source model .* groups are both in"):
        again().prepare()
    table.write_text(good)
    with pytest.raises(ZooError, match="metadata.csv: SHA-256 .* is not the published"):
        again().check()


def test_a_cloud_folder_of_every_format(tmp_path):
    for i in range(12):
        write(tmp_path, f"ball/{i}.ply", cloud(i, 80) / np.linalg.norm(cloud(i, 80), axis=1, keepdims=True))
    (tmp_path / "ball/text.xyz").write_text("".join(f"{x} {y} {z}\n" for x, y, z in cloud(50, 70)))
    for i in range(12):
        (tmp_path / "flat/deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"flat/deep/{i}.off").write_text(f"OFF\n3 1 0\n0 0 0\n{i + 1} 0 0\n0 1 0\n3 0 1 2\n")
    data = create_dataset("cloud-folder", root=tmp_path, points=64, surface_points=500)
    spec = data.prepare()
    assert spec.outputs.classes == ("ball", "flat") and data.describe_counts()["most_points"] == 500
    assert data.describe_counts()["clouds"] == 25 and sum(map(len, data.parts.values())) == 25
    assert create_dataset("cloud-folder", root=tmp_path, surface_points=90).check()["most_points"] == 90


def test_meshes_are_drawn_by_a_seed_and_copies_are_duplicates(tmp_path):
    mesh = "OFF\n3 1 0\n0 0 0\n{i} 0 0\n0 1 0\n3 0 1 2\n"
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(20):
            (tmp_path / kind / f"{i}.off").write_text(mesh.format(i=i + 1))  # a and b hold the same
    make = lambda **options: create_dataset("cloud-folder", root=tmp_path, points=8, surface_points=64, **options)  # noqa: E731
    one, again, other = make(), make(), make(surface_seed=1)
    apart = {name: part for part in one.parts for name in one.part(part).ids}
    wanted = sum(apart[f"a/{i}"] != apart[f"b/{i}"] for i in range(20))
    assert one.check()["exact_duplicates_across_parts"] == wanted > 0
    xyz = [data.part("train").cloud(0) for data in (one, again, other)]
    assert np.array_equal(xyz[0], xyz[1]) and not np.array_equal(xyz[0], xyz[2])


def test_labels_beside_clouds_in_the_root_itself(tmp_path):
    for i in range(12):
        write(tmp_path, f"p{i}.ply", cloud(i, 30))
        (tmp_path / f"p{i}.seg").write_text("".join(f"{k % 3}\n" for k in range(30)))
    data = create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=30)
    assert np.array_equal(data.part("test").batch(np.arange(1))["all_label"][0], np.arange(30) % 3)
    assert "p0.seg" in data.manifest()


def test_labels_beside_the_clouds(tmp_path):
    for i in range(12):
        write(tmp_path, f"organ/p{i}.ply", cloud(i, 30))
        (tmp_path / f"organ/p{i}.seg").write_text("".join(f"{k % 3}\n" for k in range(30)))
    data = create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=30)
    batch = data.part("test").batch(np.arange(1))
    assert np.array_equal(batch["all_label"][0], np.arange(30) % 3)
    assert create_dataset("cloud-folder", root=tmp_path, task="completion").prepare().outputs.classes == ("organ",)
    (tmp_path / "organ/p3.seg").unlink()
    refused(create_dataset("cloud-folder", root=tmp_path, task="segmentation"), "has no labels", "beside it as .seg")


def test_bad_cloud_folders(tmp_path):
    for kind in ("a", "b"):
        for i in range(10):
            write(tmp_path, f"{kind}/{i}.ply", cloud(hash_of(kind) + i))
    make = lambda **options: create_dataset("cloud-folder", root=tmp_path, **options)  # noqa: E731
    make().prepare()
    (tmp_path / "a/notes.md").write_text("x")
    refused(make(), "notes.md: no point cloud", "take it out of the folder")
    (tmp_path / "a/notes.md").unlink()
    (tmp_path / "a/lost.seg").write_text("1\n")
    refused(make(), "labels without a cloud of that name", "add it")
    (tmp_path / "a/lost.seg").unlink()
    (tmp_path / "a/3.xyz").write_text("0 0 0\n1 1 1\n")
    refused(make(), "repeats the name of a/3.ply", "rename one")
    (tmp_path / "a/3.xyz").unlink()
    write(tmp_path, "c/0.ply", cloud(77))
    seeds = [make(split_seed=seed) for seed in range(8)]
    texts = []
    for data in seeds:
        try:
            data.prepare()
        except ZooError as error:
            texts.append(str(error))
    assert texts and all("class 'c' has no cloud in the train part; give more" in text for text in texts)
    shutil.rmtree(tmp_path / "c")
    refused(make(features=True), "has the features none, not any", "data.features=false")
    write(tmp_path, "b/4.ply", cloud(4), heat=np.ones(40))
    refused(make(features=True), "has the features none, not any", "give every file the same columns")
    make().prepare()
    with pytest.raises(BadArgument, match="data.points=0; draw at least 1"):
        make(points=0)
    with pytest.raises(BadArgument, match="data.surface_points=0; draw at least 1"):
        make(surface_points=0)
    with pytest.raises(ZooError, match="unknown rotation 'x'"):
        make(rotate="x")
    with pytest.raises(ZooError, match="unknown task 'segmentation' in data set anatomy-bones; valid"):
        create_dataset("anatomy-bones", task="segmentation")


@pytest.mark.parametrize("names", [("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")])
def test_normals_turn_with_the_points(tmp_path, names):
    """A normal that points to the first point of its cloud does so in every pose."""
    for i in range(10):
        xyz = cloud(i)
        normals = (xyz[0] - xyz).astype(np.float32).T
        write(tmp_path, f"a/{i}.ply", xyz, heat=np.ones(40), **dict(zip(names, normals, strict=True)))
    data = create_dataset("cloud-folder", root=tmp_path, features=True, rotate="so3", points=40)
    index = np.arange(2)
    turned, still = data.slices()["turned"].batch(index), data.part("test").batch(index)
    trained, drawn = (data.part("train").batch(index, seeds) for seeds in (np.arange(2), None))
    for there, here in ((turned, still), (trained, drawn)):
        assert not np.allclose(np.sort(there["features"][..., 1]), np.sort(here["features"][..., 1]), atol=0.1)
        assert np.array_equal(there["features"][..., 0], here["features"][..., 0]), "a number does not turn"
        for points, features in zip(there["points"], there["features"], strict=True):
            to_first = points - points[np.linalg.norm(features[:, 1:], axis=1).argmin()]
            ratio = np.linalg.norm(to_first) / np.linalg.norm(features[:, 1:])
            np.testing.assert_allclose(to_first, -ratio * features[:, 1:], atol=1e-5)
    for i in range(10):
        write(tmp_path, f"a/{i}.ply", cloud(i), nx=np.ones(40), ny=np.ones(40))
    with pytest.raises(ZooError, match="no 'nz' beside the other components of normals; give all three"):
        create_dataset("cloud-folder", root=tmp_path, features=True).prepare()


def test_bad_groups(tmp_path):
    data = copied("cloud-folder", tmp_path)
    table = data.folder / "groups.csv"
    good = table.read_text()
    again = lambda: type(data)(root=data.folder)  # noqa: E731
    again().prepare()
    lines = good.splitlines()
    for text, what, remedy in (
        (good.replace(lines[3] + "\n", ""), f"has no row for {lines[3].split(',')[0]}", "add one"),
        (good + "femur/none.ply,p1\n", "names femur/none.ply, which is not there", "mend the row"),
        (good.replace(lines[3], lines[3].split(",")[0] + ","), "row 4: needs columns file and group", "mend the row"),
        (good.replace("file,", "name,"), "row 2: needs columns file and group", "mend the row"),
    ):
        table.write_text(text)
        assert "groups.csv" in refused(again(), what, remedy)
    table.unlink()
    again().prepare()


def test_a_split_of_your_own(tmp_path):
    data = copied("cloud-folder", tmp_path)
    table = data.folder / "groups.csv"
    lines = table.read_text().splitlines()
    groups = sorted({line.split(",")[1] for line in lines[1:]})
    part_of = {group: ("test", "valid", *["train"] * 5)[i % 7] for i, group in enumerate(groups)}
    rows = [f"{lines[0]},split", *(f"{line},{part_of[line.split(',')[1]]}" for line in lines[1:])]
    table.write_text("\n".join(rows))
    again = lambda **options: type(data)(root=data.folder, **options)  # noqa: E731
    own = again()
    own.prepare()
    assert own.split == "own" and data.split == "by-group"
    for name, part in own.parts.items():
        assert {part_of[group] for group in part.groups} == {name}
    refused(again(split_seed=3), "data.split_seed=3, but", "choose one")
    one = rows[1].rpartition(",")[0]
    other = {"train": "test", "test": "train", "valid": "train"}[rows[1].rpartition(",")[2]]
    for text, what, remedy in (
        (f"{one},{other}", "groups are both in", "a group must be"),
        (f"{one},dev", "row 2: its split is 'dev', not train, valid or test", "mend the row"),
        (f"{one},", "row 2: its split is '', not train, valid or test", "mend the row"),
    ):
        table.write_text("\n".join([rows[0], text, *rows[2:]]))
        with pytest.raises(ZooError) as caught:
            again().prepare()
        assert what in str(caught.value), remedy
    table.write_text("\n".join(row.replace(",valid", ",train") for row in rows))
    refused(again(), "its split has no file in valid", "give some to train, valid and test each")


def test_odd_labels_of_points(tmp_path):
    def written(labels):
        for i in range(12):
            write(tmp_path, f"p{i}.ply", cloud(i, 30))
            (tmp_path / f"p{i}.seg").write_text("".join(f"{labels(i, k)}\n" for k in range(30)))
        return create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=30)

    data = written(lambda i, k: (-1, 3, 8)[k % 3])
    facts = data.check()
    assert (data.prepare().outputs.classes, data.prepare().outputs.values) == (("3", "8"), (3, 8))
    assert facts["points_per_class"] == {"3": 120, "8": 120} and facts["points_without_label"] == 120
    assert np.array_equal(data.part("test").batch(np.arange(1))["all_label"][0], np.arange(30) % 3 - 1)
    refused(written(lambda i, k: 1), "every label of a point is 1", "two labels at least")
    refused(written(lambda i, k: -1), "every label of a point is missing", "two labels at least")
    refused(written(lambda i, k: -1 if i == 7 else k % 2), "p7: no point of this cloud has a label", "take it out")
    refused(written(lambda i, k: -2 if i == k == 7 else k % 2), "p7.seg: label 8 is -2", "number labels from 0")
    test = written(lambda i, k: k % 2).part("test").ids[0]
    stray = written(lambda i, k: 5 if (f"p{i}", k) == (test, 0) else k % 2)
    refused(stray, "label 5 occurs in no cloud of the train part", "another split")


# real data ------------------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("task", ["classification", "completion"])
def test_real_bones(task):
    data = create_dataset("anatomy-bones", task=task)
    facts = data.check()
    assert (facts["clouds"], facts["groups"]) == (360, 131) and facts["exact_duplicates_across_parts"] == 0
    assert facts["clouds_per_class"] == {
        **{"calcaneus": 20, "femur": 55, "fibula": 25, "hip_bone": 58, "hippocampus": 45},
        **{"patella": 22, "sacrum": 25, "skull": 59, "talus": 24, "tibia": 27},
    }
    assert facts["samples"] == {"train": 213, "valid": 74, "test": 73}
    assert facts["fewest_points"] == facts["most_points"] == 4096


@real
def test_real_hippocampi():
    data = create_dataset("msd-hippocampus-parts", split="fold4")
    facts = data.check()
    assert facts["clouds"] == facts["groups"] == 260 and facts["samples"] == {"train": 156, "valid": 52, "test": 52}
    label = np.concatenate([part._span("label", "start", i) for part in data.parts.values() for i in range(len(part))])
    assert np.bincount(label).tolist() == [503_402, 561_558]


@real
def test_real_meshes():
    artery = read_cloud(DATA / "vascular-vmtk4aneurysms/aneurysm_vascular_model.stl", surface_points=2000)
    healthy = read_cloud(DATA / "vascular-vmtk4aneurysms/aneurysm_model_healthy_vasculature.stl", surface_points=2000)
    gap = np.sqrt(np.square(artery.xyz[:, None] - healthy.xyz).sum(2).min(1))
    assert 0.05 < (gap > 0.5).mean() < 0.9, "what is far from the healthy surface is the aneurysm"
