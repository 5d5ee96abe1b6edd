"""The procedural anatomy is what its docstrings state: areas, proportions, patients; its classes are not too plain."""

import csv

import numpy as np
import pytest
from scipy.spatial import cKDTree
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.cloud_sample import FEWEST, MOST, write_bones, write_medpoints
from statezoo.zoo.data.cloud_shapes import (
    BONES,
    NOISE,
    ORGANS,
    Patient,
    Varied,
    bent_body,
    curve,
    draw_points,
    lobe,
    long_bone,
    mirrored,
    rib_pair,
    tree,
    tube,
    vertebra,
)
from statezoo.zoo.registry import entries


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(key, **options):
    return entries("dataset")[key].load().sample(**options)


# surfaces -------------------------------------------------------------------------------------------------------------


def test_a_tube_is_a_cylinder():
    surface = tube([[0, 0, 0], [0, 0, 10]], 2.0)
    assert surface.area == pytest.approx(2 * np.pi * 2 * 10)
    xyz = surface.draw(rng(), 8000)
    np.testing.assert_allclose(np.hypot(xyz[:, 0], xyz[:, 1]), 2)
    assert xyz[:, 2].min() > 0 and xyz[:, 2].max() < 10 and xyz[:, 2].var() == pytest.approx(100 / 12, rel=0.05)
    angle = np.arctan2(xyz[:, 1], xyz[:, 0])
    assert np.abs(np.bincount(((angle + np.pi) / (2 * np.pi) * 8).astype(int), minlength=9)[:8] / 1000 - 1).max() < 0.15
    # a long thick piece has more points than a short thin one, in the ratio of their areas
    two = tube([[0, 0, 0], [0, 0, 3], [0, 0, 4]], [2, 2, 0])
    assert two.area == pytest.approx(2 * np.pi * 2 * 3 + np.pi * 2 * 1)
    assert (two.draw(rng(), 8000)[:, 2] > 3).mean() == pytest.approx(1 / 7, abs=0.015)


def test_a_lobe_is_an_ellipsoid_with_bumps():
    xyz = lobe([1, 2, 3], [1, 2, 4]).draw(rng(), 2000)
    np.testing.assert_allclose(np.square((xyz - [1, 2, 3]) / [1, 2, 4]).sum(1), 1)
    assert lobe([0, 0, 0], [3, 3, 3]).area == pytest.approx(4 * np.pi * 9)
    raised = lobe([0, 0, 0], [1, 1, 1], np.array([[0, 0, 1.0]]), 0.5, 6.0).draw(rng(), 4000)
    size = np.linalg.norm(raised, axis=1)
    assert size.max() == pytest.approx(1.5, abs=0.02) and size[raised[:, 2] < 0].max() < 1.01
    assert raised[size.argmax(), 2] > 1.4


def test_mirrors_curves_and_shares():
    surface = lobe([5, 0, 0], [1, 1, 1])
    np.testing.assert_array_equal(mirrored(surface).draw(rng(), 9), surface.draw(rng(), 9) * [-1, 1, 1])
    knots = [[0, 0, 0], [1, 5, 2], [3, 4, 9], [4, 4, 4]]
    path = curve(*knots, points=31)
    np.testing.assert_allclose(path[::10], knots, atol=1e-9)
    assert np.abs(np.diff(path, 4, axis=0)).max() < 1e-9 < np.abs(np.diff(path, 3, axis=0)).max(), "one cubic"
    xyz = draw_points([lobe([0, 0, 0], [1, 1, 1]), lobe([9, 0, 0], [2, 2, 2])], 5000, rng())
    assert (xyz[:, 0] > 4).mean() == pytest.approx(0.8, abs=0.02), "as many points as area"
    assert abs((xyz[:2500, 0] > 4).mean() - 0.8) < 0.04, "in random order"


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_vessels_fork_and_thin_out(levels):
    pieces = tree(Varied(rng(), 0.0), [0, 0, 0], [0, 0, 1], 60, 7, levels, 0.6)
    assert len(pieces) == 2 ** (levels + 1) - 1
    area = sum(piece.area for piece in pieces)
    # two children of 0.75 of the length and 0.79 of the radius: each generation has 2 * 0.75 * 0.79 of the area before
    ratio = 2 * 0.75 * 0.79
    assert area == pytest.approx(pieces[0].area * sum(ratio**level for level in range(levels + 1)), rel=1e-6)
    assert 2 * 0.79**3 == pytest.approx(1, abs=0.02), "Murray: the cubes of the radii add up"


# patients -------------------------------------------------------------------------------------------------------------


def test_a_patient_is_a_function_of_seed_and_name():
    one, same, other = Patient(0, "a"), Patient(0, "a"), Patient(0, "b")
    assert np.array_equal(one.cloud("liver", 200), same.cloud("liver", 200))
    assert not np.array_equal(one.cloud("liver", 200), other.cloud("liver", 200))
    one.cloud("femur", 30)
    assert np.array_equal(one.cloud("liver", 200), same.cloud("liver", 200)), "whatever was drawn before"
    assert not np.array_equal(one.cloud("liver", 200), Patient(1, "a").cloud("liver", 200))


def test_without_variation_all_patients_are_one():
    clouds = [Patient(0, name, 0.0).cloud("kidney", 4000) for name in ("a", "b")]
    gap = cKDTree(clouds[0]).query(clouds[1])[0] / np.ptp(clouds[0])
    varied = [Patient(0, name, 2.0).cloud("kidney", 4000) for name in ("a", "b")]
    apart = cKDTree(varied[0]).query(varied[1])[0] / np.ptp(varied[0])
    assert gap.mean() < 2 * NOISE and apart.mean() > 3 * gap.mean()


def test_a_body_has_every_organ_in_its_place():
    names = list(ORGANS)
    xyz, organ = Patient(0, "a", 0.0).body(names, 20_000)
    assert xyz.shape == (20_000, 3) and set(organ.tolist()) == set(range(len(names)))
    middle = {name: xyz[organ == number].mean(0) for number, name in enumerate(names)}
    high = {name: at[2] for name, at in middle.items()}
    assert high["femur"] < high["iliacartery"] < high["kidney"] < high["liver"] < high["lung"] < high["clavicula"]
    assert middle["liver"][0] < -20 < 0 < 20 < middle["spleen"][0], "liver to the right, spleen to the left"
    assert middle["vertebrae"][1] > middle["heart"][1], "the spine behind the heart"
    for name in ("femur", "lung", "kidney", "rib"):
        side = np.sign(xyz[organ == names.index(name), 0]).mean()
        assert abs(side) < 0.15, f"{name} on both sides"


def test_poses_bend_the_upper_body_more():
    straight, bent = Patient(0, "a", 0.0), Patient(0, "a", 0.0)
    bent.bend = 0.5
    low, high = np.array([[80.0, 0, 600]]), np.array([[20.0, -40, 1380]])
    moved = [np.linalg.norm(bent.posed(x) - straight.posed(x)) for x in (low, high)]
    assert moved[1] > 3 * moved[0] and bent.posed(high)[0, 1] < straight.posed(high)[0, 1], "forwards"


def test_hippocampi_have_their_head_in_front():
    path, radius, head = bent_body(Varied(rng(), 0.0))
    assert path.shape == (24, 3) and radius.shape == (24,) and head == pytest.approx(0.42)
    assert radius[3:8].mean() > 1.5 * radius[16:21].mean() and (np.diff(path[:, 1]) > 0).all()


def plain(build, *arguments, points=6000):
    return draw_points(build(Varied(rng(), 0.0), *arguments), points, rng())


def test_a_vertebra_has_a_canal_and_three_processes():
    xyz = plain(vertebra, (0, 0, 0), 1.0)
    x, y, z = xyz.T
    far = np.hypot(x, y - 1)
    assert far[np.abs(z) < 0.5].min() > 0.2, "the canal is empty"
    around = np.arctan2(y - 1, x)[(np.abs(z) < 0.2) & (far < 0.7)]
    assert np.histogram(around, 12, (-np.pi, np.pi))[0].min() > 10, "closed on all sides"
    assert (y > 1.9).sum() > 20 and np.abs(x[y > 1.9]).max() < 0.3, "the spinous process, behind and in the middle"
    wings = np.abs(x) > 1.1
    assert min((x[wings] > 0).sum(), (x[wings] < 0).sum()) > 20 and y[wings].min() > 0.5, "a process on either side"
    assert np.abs(np.linalg.norm(xyz[y < 0] / [1, 0.75, 0.5], axis=1) - 1).max() < 1e-6, "the body in front"


def test_ribs_are_falling_arcs_in_pairs():
    xyz = plain(rib_pair, 0.0, 100.0, 60.0, 4.0)
    x, y, z = xyz.T
    assert np.abs(np.hypot(x / 100, y / 60) - 1).max() < 4.5 / 60, "on an ellipse"
    assert min((x > 0).sum(), (x < 0).sum()) > 2500
    right, left = xyz[x > 0], xyz[x < 0] * [-1, 1, 1]
    assert np.percentile(cKDTree(right).query(left)[0], 99) < 3, "left is right, mirrored"
    heights = [z[(y > low) & (y <= low + 20)].mean() for low in (40, 20, 0, -20, -40)]
    assert (np.diff(heights) < 0).all(), "from the spine to the front they fall"
    assert np.abs(x[y < -40]).min() > 30, "open in front"


def test_long_bones_are_thicker_at_both_ends_and_have_a_head():
    shaft, xyz = 12.0, plain(long_bone, (0, 0, 0), (0, 0, 400), 12.0, 0.6, 0.0)
    x, y, z = xyz.T
    width = [np.hypot(x, y)[(z > low) & (z < high)].max() for low, high in ((0, 20), (180, 220))]
    assert width[1] == pytest.approx(shaft, rel=0.02) and width[0] > 1.3 * shaft
    above = xyz[(z > 380) & (x < -1.2 * 1.6 * shaft)]
    assert len(above) > 50, "a ball beside the upper end"
    assert not ((z < 100) & (x < -1.2 * 1.6 * shaft)).any(), "and none at the lower"


@pytest.mark.parametrize("name", sorted(BONES))
def test_bones_are_sound(name):
    xyz = draw_points(BONES[name](Varied(rng(), 1.4)), 500, rng())
    assert xyz.shape == (500, 3) and np.isfinite(xyz).all() and 20 < np.ptp(xyz, axis=0).max() < 700


# folders --------------------------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_medpoints(tmp_path):
    classes = sample("medpoints").classes
    write_medpoints(tmp_path, {name: [n, -n] for n, name in enumerate(classes)}, 3, patients=5)
    found = {}
    for path in tmp_path.rglob("*.ply"):
        parts = path.relative_to(tmp_path).with_suffix("").parts
        found.setdefault(parts[0], set()).add(parts[1:])
    assert len(found["classification"]) == 50 and {(p[0], p[2]) for p in found["classification"]} == {
        (f"fold{i + 1}", f"s{i:04d}") for i in range(5)
    }, "a patient in one fold"
    assert found["completion"] == {(f, r, *rest) for f, *rest in found["classification"] for r in ("partial", "target")}
    for fold, kind, name in sorted(found["classification"])[:12]:
        whole, again, part = (
            read_cloud(tmp_path / top / f"{name}.ply").xyz
            for top in (
                f"classification/{fold}/{kind}",
                f"completion/{fold}/target/{kind}",
                f"completion/{fold}/partial/{kind}",
            )
        )
        assert np.array_equal(whole, again) and FEWEST <= len(whole) < MOST
        assert len(part) == len(whole) - len(whole) // 5 and cKDTree(whole).query(part)[0].max() == 0
    label = np.loadtxt(tmp_path / "segmentation/fold2/coarse_label/s0001.seg")
    assert set(label.astype(int)) == {classes.index(name) + 1 for name in ORGANS}
    xyz = read_cloud(tmp_path / "segmentation/fold2/pcd/s0001.ply").xyz
    fine = np.loadtxt(tmp_path / "segmentation/fold2/fine_label/s0001.seg")
    assert len(label) == len(xyz) and np.array_equal(fine, (label - 1) * np.where(xyz[:, 0] > 0, -1, 1))


def test_more_patients_change_none(tmp_path):
    classes = {name: [n] for n, name in enumerate(sample("medpoints").classes)}
    for patients in (5, 6):
        write_medpoints(tmp_path / str(patients), classes, patients=patients)
    for path in (tmp_path / "5").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "6" / path.relative_to(tmp_path / "5")).read_bytes()


def test_bones_come_in_several_units_and_sides(tmp_path):
    write_bones(tmp_path, sample("anatomy-bones").classes, models=6)
    with open(tmp_path / "metadata.csv", newline="") as rows:
        table = list(csv.DictReader(rows))
    size = {}
    for row in table:
        xyz = read_cloud(tmp_path / f"classification/fold{row['fold']}/{row['cls']}/{row['id']}.ply").xyz
        size.setdefault(row["group"], []).append(np.ptp(xyz, axis=0).max())
    assert {row["side"] for row in table} == {"L", "R"} and len(table) == 30
    small = {group for group, sizes in size.items() if max(sizes) < 1}
    assert small == {"model_000", "model_003"}, "raw scale tells the source"


# difficulty -----------------------------------------------------------------------------------------------------------


def histograms(part, n=6000):
    """Distances of random pairs of points (D2, Osada et al. 2002), the same pairs for every cloud."""
    points = part.batch(np.arange(len(part)))["points"]
    a, b = np.random.default_rng(0).integers(points.shape[1], size=(2, n))
    distance = np.linalg.norm(points[:, a] - points[:, b], axis=2)
    return np.stack([np.histogram(row, 48, (0, 3))[0] for row in distance]) / n


@pytest.mark.parametrize(("key", "least", "most"), [("medpoints", 0.3, 0.8), ("anatomy-bones", 0.4, 0.9)])
def test_classes_are_neither_hopeless_nor_plain(key, least, most):
    """Balanced accuracy of 5 nearest neighbours on D2 histograms, which see no orientation."""
    data = sample(key, points=400)
    train, test = data.part("train"), data.part("test")
    near = cKDTree(histograms(train)).query(histograms(test), 5)[1]
    guess = np.array([np.bincount(row).argmax() for row in train.labels()[near]])
    truth = test.labels()
    balanced = np.mean([(guess[truth == kind] == kind).mean() for kind in np.unique(truth)])
    assert least < balanced < most
