"""Pictures show what they say: every colour of a legend is a colour of points, every cell of a matrix its share."""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread
from statezoo.zoo import plots
from statezoo.zoo.files import read_json
from statezoo.zoo.train.run import train

SHORT = ["train.max_steps=2", "train.logger=null"]


def pixels(path):
    """How often each colour (r, g, b) occurs."""
    image = (imread(path)[..., :3] * 255).round().astype(np.uint8).reshape(-1, 3)
    colours, counts = np.unique(image, axis=0, return_counts=True)
    return {tuple(colour): int(count) for colour, count in zip(colours.tolist(), counts, strict=True)}


def test_every_colour_of_the_legend_is_in_the_clouds(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3))
    rows = [{"prediction": (points, rng.integers(0, 3, 400)), "label": (points, np.full(400, 5))}]
    names = [*(f"part {k}" for k in range(5)), "wrong", "part 6"]
    found = pixels(plots.clouds(tmp_path / "clouds.png", rows, names))
    colours = [tuple(round(255 * part) for part in colour) for colour in plots.class_colours(names)]
    legend = {k for k in range(7) if found.get(colours[k], 0)}
    assert legend == {0, 1, 2, 5}
    assert all(found[colours[k]] > 300 for k in legend), "more than a marker of the legend"


def test_every_class_has_a_colour_of_its_own():
    """As pixels, up to the 145 fine labels of MedPointS, beside "right", "wrong", black text and the white page."""
    for count in (60, 145):
        colours = plots.class_colours([*(f"part {k}" for k in range(count)), "right", "wrong"])
        shown = {tuple(round(255 * part) for part in colour) for colour in colours}
        assert len(shown) == count + 2 and not shown & {(0, 0, 0), (255, 255, 255)}


def test_a_class_of_few_points_is_seen_beside_the_legend(tmp_path):
    """One point in 400 is "wrong": its colour is in the part of the picture where the clouds are."""
    points = np.random.default_rng(0).normal(size=(400, 3))
    points[0] = (4.0, 4.0, 4.0)  # nothing in front of it
    wrong = np.zeros(400, np.int64)
    wrong[0] = 1
    file = plots.clouds(tmp_path / "clouds.png", [{"error": (points, wrong)}], ["right", "wrong"])
    image = (imread(file)[..., :3] * 255).round().astype(np.uint8)
    clouds = image[:, : image.shape[1] * 4 // 5].reshape(-1, 3)
    for name in ("right", "wrong"):
        colour = [round(255 * part) for part in plots.FIXED[name]]
        assert (clouds == colour).all(1).sum() > 3, name


def test_confusion_matrix_is_coloured_by_share(tmp_path):
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    found = pixels(plots.confusion(tmp_path / "confusion.png", counts, ["a", "b", "c"]))
    for share in (0.8, 0.2, 0.5, 0.0):
        colour = tuple(round(255 * part) for part in colormaps["Blues"](share)[:3])
        near = sum(n for c, n in found.items() if max(abs(a - b) for a, b in zip(c, colour, strict=True)) <= 1)
        assert near > 500, share


def test_scan_orders_run_from_end_to_end(tmp_path):
    line = np.stack([np.linspace(0, 1, 200), np.zeros(200), np.zeros(200)], 1)
    order = np.arange(200)
    found = pixels(plots.scan_orders(tmp_path / "orders.png", line, {"x": order, "x, reversed": order[::-1]}))
    for end in (0.0, 1.0):
        assert found[tuple(round(255 * part) for part in colormaps["viridis"](end)[:3])] > 3


@pytest.mark.parametrize(
    ("recipe", "made"),
    [
        ("point_ssm/medpoints", {"confusion", "orders"}),
        ("pointnet_seg/medpoints-segmentation", {"confusion", "clouds"}),
        ("point_ssm_cpl/medpoints-completion", {"clouds"}),
        ("mlp/digits", {"confusion"}),
    ],
)
def test_runs_leave_pictures_of_their_task(recipe, made, tmp_path):
    run = train(recipe, SHORT, sample=True, folder=tmp_path / "run", quiet=True)
    record = read_json(run / "record.json")
    assert record["benchmark"]["sample"]
    poses = "medpoints" in recipe and "completion" not in recipe
    assert set(record["slices"]) == ({"turned"} if poses else set())
    for name in made:
        assert len(pixels(run / "plots" / f"{name}.png")) > 20, f"{name}: an empty picture"
