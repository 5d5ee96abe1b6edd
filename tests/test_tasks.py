"""Tasks: rows from outputs, losses and floors of all six, against values worked out by hand or by another library."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from statezoo.zoo import metrics
from statezoo.zoo.data.base import Part
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.spec import Inputs, Outputs, Spec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.geometry.distances import chamfer, density_aware_chamfer, earth_mover
from statezoo.zoo.nn.losses import soft_dice
from statezoo.zoo.registry import entries, find


class Echo(torch.nn.Module):
    """A model whose output is its input: what a task makes of an output can then be stated."""

    inputs = ("x",)
    causal = True

    def forward(self, x):
        return x


def make(name, kind="tokens", classes=(), targets=(), sizes=None, **options):
    spec = Spec(Inputs(kind, {}), Outputs(classes, targets), sizes or {})
    return find("task", name).load()(Echo(), spec, **options)


def part(n, **arrays):
    return Part(arrays, [f"s{i}" for i in range(n)])


def test_there_are_six_tasks_and_each_has_a_schema():
    assert list(entries("task")) == [
        "classification",
        "completion",
        "language_model",
        "next_item",
        "property",
        "segmentation",
    ]
    for entry in entries("task").values():
        assert entry.load().rows in metrics.TASKS


def test_classification_rows_and_floor():
    task = make("classification", classes=("a", "b", "c"))
    scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    batch = {"x": scores, "label": torch.tensor([0, 1]), "index": torch.arange(2)}
    rows = task.batch_rows(batch)
    assert np.allclose(rows["prob"], scores.softmax(1).numpy()) and rows["target"].tolist() == [0, 1]
    assert torch.isclose(task.loss(batch), torch.nn.functional.cross_entropy(scores, batch["label"]))
    told = task.predictions(scores, batch)
    assert told["class"].tolist() == ["a", "c"] and np.allclose(told["probability"], scores.softmax(1).amax(1))
    floor = task.trivial(part(4, label=np.array([0, 0, 0, 1])), part(2, label=np.array([0, 2])))
    assert floor["prob"].tolist() == [[0.75, 0.25, 0.0]] * 2
    assert metrics.compute("classification", floor)["accuracy"] == 0.5


def test_smoothed_labels_share_what_they_give_away():
    scores, label = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 1.0]]), torch.tensor([0, 1])
    task = make("classification", classes=("a", "b", "c"), label_smoothing=0.3)
    wanted = (torch.full((2, 3), 0.1) + 0.7 * torch.eye(3)[label]) * -scores.log_softmax(1)
    assert task.loss({"x": scores, "label": label}).item() == pytest.approx(wanted.sum(1).mean().item(), rel=1e-6)


def test_classification_needs_classes():
    with pytest.raises(ZooError, match="at least 2 classes"):
        make("classification", classes=("only",))


def test_classes_weigh_as_much_as_they_are_rare_and_one_without_a_sample_is_named():
    spec = Spec(Inputs("tokens", {}), Outputs(("a", "b", "c"), ()), {})
    for label, weights in (([0, 0, 0, 1, 2, 2], [2 / 3, 2, 1]), ([0, 0, 2], None)):
        task = find("task", "classification").load()(Echo(), spec, class_weights="balanced")
        train = part(len(label), label=np.array(label))
        data = type("Data", (), {"part": lambda self, name, train=train: train})()
        if weights is None:
            with pytest.raises(ZooError, match="class 'b' has no training sample to weigh; set task.class_weights"):
                task.accept(data)
        else:
            task.accept(data)
            assert task.class_weight.tolist() == pytest.approx(weights)


def test_segmentation_counts_are_the_confusion_matrix():
    rng = np.random.default_rng(0)
    label, guess = rng.integers(-1, 3, (5, 40)), rng.integers(0, 3, (5, 40))
    task = make("segmentation", classes=("a", "b", "c"))
    scores = torch.nn.functional.one_hot(torch.from_numpy(guess), 3).float()
    counts = task.batch_rows({"x": scores, "label": torch.from_numpy(label), "index": torch.arange(5)})["counts"]
    for i in range(5):
        known = label[i] >= 0
        assert np.array_equal(counts[i], confusion_matrix(label[i][known], guess[i][known], labels=[0, 1, 2]))
    floor = task.trivial(part(5, label=label), part(5, label=label))
    majority = np.bincount(label[label >= 0]).argmax()
    assert floor["counts"][:, :, majority].sum() == (label >= 0).sum() == floor["counts"].sum()


def test_segmentation_losses_are_weighed_and_leave_out_units_without_a_label():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 6, 3, generator=generator)
    label = torch.tensor([[0, 1, 2, -1, 2, 0], [-1, -1, 1, 1, 0, -1]])
    known = label >= 0
    entropy = -scores.log_softmax(2)[known].gather(1, label[known][:, None]).mean().item()
    batch = {"x": scores, "label": label}
    for weights in ({"cross_entropy": 0.5}, {"cross_entropy": 0.5, "dice": 2.0}):
        wanted = 0.5 * entropy + weights.get("dice", 0) * soft_dice(scores, label).item()
        loss = make("segmentation", classes=("a", "b", "c"), **weights).loss(batch)
        assert loss.item() == pytest.approx(wanted, rel=1e-6)


def test_each_point_of_a_cloud_is_counted_with_the_class_of_its_nearest_drawn_one():
    task = make("segmentation", classes=("a", "b"))
    scores = torch.nn.functional.one_hot(torch.tensor([[0, 1]]), 2).float()
    nearest, whole = np.array([[0, 0, 1, 1, 1]], np.int32), np.array([[0, 1, 1, 1, -1]], np.int8)
    batch = {"x": scores, "label": torch.tensor([[0, 1]]), "index": torch.arange(1)}
    batch |= {"nearest": torch.from_numpy(nearest), "all_label": torch.from_numpy(whole)}
    assert task.batch_rows(batch)["counts"].tolist() == [[[1, 0], [1, 2]]]
    tested = part(1, label=np.array([[0, 1]]), nearest=nearest, all_label=whole)
    floor = task.trivial(part(1, label=np.array([[0, 0, 1, -1, -1, -1]])), tested)
    assert floor["counts"].tolist() == [[[1, 0], [3, 0]]]


def test_completion_distances():
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(3, 50, 3)).astype(np.float32), rng.normal(size=(3, 70, 3)).astype(np.float32)
    task = make("completion", kind="points")
    batch = {"x": torch.from_numpy(one), "target": torch.from_numpy(other), "index": torch.arange(3)}
    rows = task.batch_rows(batch)
    for i in range(3):
        there, back = cKDTree(other[i]).query(one[i])[0], cKDTree(one[i]).query(other[i])[0]
        assert rows["cd_l1"][i] == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-5)
        assert rows["cd_l2"][i] == pytest.approx((there**2).mean() + (back**2).mean(), rel=1e-5)
    assert rows["cloud"].tolist() == [hashlib.sha256(cloud.tobytes()).hexdigest()[:16] for cloud in one]
    assert task.loss(batch).item() == pytest.approx(rows["cd_l2"].mean(), rel=1e-5)
    floor = task.trivial(part(3, points=one, target=other), part(3, points=one, target=other))
    assert np.allclose(floor["cd_l1"], rows["cd_l1"])


def test_completion_losses_add_up_and_small_clouds_have_an_exact_emd():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.normal(size=(2, 6, 3))) for _ in range(2))
    batch = {"x": one, "target": other, "index": torch.arange(2)}
    task = make("completion", kind="points", cd_l2=0.0, cd_l1=2.0, dcd=3.0, emd_points=5)
    wanted = 2 * chamfer(one, other)[0].mean() + 3 * density_aware_chamfer(one, other).mean()
    assert task.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert task.protocol()["emd_points"] == 5, "other points are another board"
    for row, a, b in zip(task.batch_rows(batch)["emd"], one, other, strict=True):
        best = [  # of the 36 pairs of five points that may have been drawn
            min(float(costs[range(5), order].mean()) for order in itertools.permutations(range(5)))
            for without_a, without_b in itertools.product(range(6), repeat=2)
            for costs in [torch.cdist(a[np.delete(range(6), without_a)], b[np.delete(range(6), without_b)])]
        ]
        assert min(abs(value - row) for value in best) < 1e-6
    whole = make("completion", kind="points", emd_points=7).batch_rows(batch)["emd"]  # more than there are: all
    assert np.allclose(whole, earth_mover(one, other).numpy(), rtol=1e-6)
    for fewer in ({"x": one[:, :1]}, {"target": other[:, :1]}):  # of either cloud: one point, and one of the other's
        uneven = batch | fewer
        made, distances = task.batch_rows(uneven)["emd"], torch.cdist(uneven["x"], uneven["target"]).flatten(1).numpy()
        assert (np.abs(distances - made[:, None]).min(1) < 1e-6).all()


def test_completed_clouds_are_written_in_the_units_of_their_files(tmp_path):
    class Scaled(Part):
        def to_file_units(self, i, points):
            return points * (i + 2) + 10

    made = torch.arange(12.0).reshape(2, 2, 3)
    clouds = Scaled({}, ["a", "b", "c"])
    make("completion", kind="points").write_files(made, {"index": torch.tensor([2, 0])}, clouds, tmp_path)
    for name, cloud, scale in (("c", made[0], 4), ("a", made[1], 2)):
        assert np.allclose(read_cloud(tmp_path / f"{name}.ply").xyz, cloud.numpy() * scale + 10)
    assert len(list(tmp_path.iterdir())) == 2


def test_emd_is_of_the_whole_shape_whatever_the_order_of_its_points():
    """A grid in rows against random points of the same square: a tenth of the points lie all over it."""
    grid = torch.cartesian_prod(*2 * [torch.linspace(-1, 1, 30)])
    flat = torch.cat([grid, torch.zeros(len(grid), 1)], 1)[None]
    drawn = torch.rand(1, 900, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn[..., 2] = 0
    batch = {"x": flat, "target": drawn, "index": torch.arange(1)}
    assert make("completion", kind="points", emd_points=90).batch_rows(batch)["emd"][0] < 0.25  # in order: above 0.8


def test_language_model_rows_leave_padding_out():
    task = make("language_model", sizes={"vocab_size": 4})
    scores = torch.randn(2, 5, 4)
    target = torch.tensor([[1, 2, 3, 0, 0], [3, 3, 1, 2, 1]])
    batch = {"x": scores, "target": target, "index": torch.arange(2)}
    rows = task.batch_rows(batch)
    logp = scores.double().log_softmax(2)
    assert rows["tokens"].tolist() == [3, 5]
    assert rows["nll"][0] == pytest.approx(-sum(logp[0, t, target[0, t]].item() for t in range(3)))
    assert task.loss(batch).item() == pytest.approx(rows["nll"].sum() / 8, rel=1e-5)
    floor = task.trivial(part(2, target=target.numpy()), part(2, target=target.numpy()))
    # counts plus one of tokens 1, 2, 3 are 4, 3, 4 of 11
    assert floor["nll"][0] == pytest.approx(-np.log(4 / 11 * 3 / 11 * 4 / 11))


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_property_leaves_unknown_targets_out(kind):
    spec = Spec(Inputs("tokens", {}), Outputs((), ("p", "q")), {})
    task = find("task", "property").load()(Echo(), spec, kind=kind)
    target = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 0.0], [0.0, np.nan]])
    train = part(4, target=target)

    class Holder:
        def part(self, name):
            return train

    task.accept(Holder())
    value = torch.tensor([[0.5, 100.0], [0.1, 0.2], [0.3, 0.4], [-0.2, 100.0]])
    batch = {"x": value, "target": torch.from_numpy(target).float(), "index": torch.arange(4)}
    known = ~np.isnan(target)
    if kind == "regression":
        mean, std = np.nanmean(target, 0), np.nanstd(target, 0)
        expected = (((value.numpy() - (target - mean) / std) ** 2)[known]).mean()
        assert np.allclose(task.batch_rows(batch)["value"], value.numpy() * std + mean)
    else:
        p = 1 / (1 + np.exp(-value.numpy().astype(np.float64)))
        expected = -np.where(target == 1, np.log(p), np.log(1 - p))[known].mean()
        assert np.allclose(task.batch_rows(batch)["value"], p)
    assert task.loss(batch).item() == pytest.approx(expected, rel=1e-4)
    floor = task.trivial(train, train)
    assert np.allclose(floor["value"], np.nanmean(target, 0)) and np.array_equal(
        floor["target"], target, equal_nan=True
    )


def test_a_target_that_does_not_vary_is_not_divided_by_its_spread():
    task = make("property", targets=("p", "q"))
    train = part(3, target=np.array([[4.0, 1.0], [4.0, 3.0], [np.nan, np.nan]]))
    task.accept(type("Data", (), {"part": lambda self, name: train})())
    assert task.mean.tolist() == [4.0, 2.0] and task.std.tolist() == [1.0, 1.0]
    batch = {"x": torch.tensor([[1.0, 0.0]]), "target": torch.tensor([[4.0, torch.nan]])}
    assert task.loss(batch).item() == 1.0


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_a_batch_without_a_known_target_costs_nothing(kind):
    spec = Spec(Inputs("tokens", {}), Outputs((), ("p", "q")), {})
    task = find("task", "property").load()(Echo(), spec, kind=kind)
    outputs = torch.ones(3, 2, requires_grad=True)
    loss = task.loss({"x": outputs, "target": torch.full((3, 2), torch.nan)})
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any()


def test_nan_outputs_are_an_error():
    task = make("classification", classes=("a", "b"))
    with pytest.raises(ZooError, match=r"NaN; lower train\.lr"):
        task.batch_rows(
            {"x": torch.full((1, 2), torch.nan), "label": torch.zeros(1, dtype=torch.int64), "index": torch.arange(1)}
        )
