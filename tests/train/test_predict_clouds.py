"""Predictions on clouds without labels: points with labels and completed clouds as PLY, classes as a table."""

import numpy as np
import pandas as pd
from statezoo.zoo.cli import main
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.ply import write_ply
from statezoo.zoo.files import read_json

QUICK = ["train.max_steps=2", "train.logger=null", "--sample"]


def new_clouds(folder, *names, points=300):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_ply(folder / name, 20 + 7 * np.random.default_rng(n).normal(size=(points + n, 3)))


def test_segmentation_labels_every_point(tmp_path, capsys):
    assert main(["train", "pointnet_seg/medpoints-segmentation", *QUICK, "--folder", str(tmp_path / "run")]) == 0
    new_clouds(tmp_path / "new", "a.ply", "deep/b.ply")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new")]) == 0
    classes = len(read_json(tmp_path / "run/prep/spec.json")["outputs"]["classes"])
    for name in ("a", "deep/b"):
        given, made = (read_cloud(tmp_path / folder / f"{name}.ply") for folder in ("new", "run/predictions"))
        np.testing.assert_allclose(made.xyz, given.xyz, atol=1e-4)
        assert made.label.min() >= 0 and made.label.max() < classes
    assert "2 samples" in capsys.readouterr().out


def test_completion_is_in_the_units_of_the_file(tmp_path, capsys):
    assert main(["train", "point_ssm_cpl/medpoints-completion", *QUICK, "--folder", str(tmp_path / "run")]) == 0
    names = read_json(tmp_path / "run/prep/spec.json")["outputs"]["classes"]
    new_clouds(tmp_path / "new", f"{names[0]}/a.ply")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(tmp_path / "out")]) == 0
    made = read_cloud(tmp_path / "out" / names[0] / "a.ply")
    assert made.xyz.shape == (64, 3) and np.abs(made.xyz.mean(0) - 20).max() < 25
    new_clouds(tmp_path / "odd", "unknown/a.ply")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "odd")]) == 2
    assert "gives no category, which the model needs" in capsys.readouterr().err


def test_classes_are_a_table(tmp_path):
    assert main(["train", "pointnet/medpoints", *QUICK, "--folder", str(tmp_path / "run")]) == 0
    new_clouds(tmp_path / "new", "a.ply", "b.ply")
    for extra, columns in (([], {"id", "class", "probability"}), (["--features"], {"id", "f0"})):
        out = tmp_path / "table.csv"
        assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(out), *extra]) == 0
        table = pd.read_csv(out)
        assert columns <= set(table.columns) and table["id"].tolist() == ["a", "b"]
