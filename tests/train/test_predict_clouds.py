"""Predictions on clouds without labels: points with labels and completed clouds as PLY, classes as a table."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statezoo
import torch
from scipy.spatial import cKDTree
from statezoo.zoo.cli import main
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.ply import write_cloud, write_ply
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import read_json
from statezoo.zoo.train.inference import open_run

QUICK = ["train.max_steps=2", "train.logger=null", "--sample"]


def new_clouds(folder, *names, points=300):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_ply(folder / name, 20 + 7 * np.random.default_rng(n).normal(size=(points + n, 3)))


@pytest.mark.parametrize("model", ["pointnet_seg", "point_ssm_seg"])
def test_segmentation_labels_every_point(model, tmp_path, capsys):
    run, new = tmp_path / "run", tmp_path / "new"
    assert main(["train", f"{model}/medpoints-segmentation", *QUICK, "--folder", str(run)]) == 0
    new_clouds(new, "a.ply", "deep/b.ply")
    new_clouds(new, "few.ply", points=20)
    assert main(["predict", str(run), str(new)]) == 0
    assert "3 samples" in capsys.readouterr().out
    names = read_json(run / "predictions/classes.json")
    outputs = read_json(run / "prep/spec.json")["outputs"]
    assert [*names.values()] == outputs["classes"]
    assert [*map(int, names)] == outputs["values"] == [*range(1, 47)], "numbers as the data have them, from 1 on"
    s = open_run(run)
    part = s.dataset.inference(new, run / "prep")
    for i, name in enumerate(("a", "deep/b", "few")):
        given, made = (read_cloud(folder / f"{name}.ply") for folder in (new, run / "predictions"))
        np.testing.assert_allclose(made.xyz, given.xyz, atol=1e-4)
        # every point has the class of the nearest one that entered the model
        drawn = part.batch(np.array([i]))["points"]
        with torch.inference_mode():
            guess = s.task.model(torch.from_numpy(drawn))[0].argmax(1).numpy()
        nearest = cKDTree(part.to_file_units(i, drawn[0])).query(part.cloud(i))[1]
        assert np.array_equal(made.label, guess[nearest] + 1)
    shutil.rmtree(new / "deep")
    assert main(["predict", str(run), str(new)]) == 0
    assert {file.name for file in (run / "predictions-2").rglob("*")} == {"a.ply", "few.ply", "classes.json"}
    assert (run / "predictions/deep/b.ply").is_file(), "nothing is taken away"
    made = statezoo.open_run(run).predict(new)
    assert made == [run / "predictions-3/a.ply", run / "predictions-3/few.ply"]
    with pytest.raises(ZooError, match="top is no option of segmentation, which has none; leave it out"):
        statezoo.open_run(run).predict(new, top=3)
    assert main(["predict", str(run), str(new), "--out", str(new)]) == 2
    assert f"--out {new}: holds files already; give a new folder" in capsys.readouterr().err


def test_clouds_need_a_folder_to_be_written_to(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "pointnet_seg/medpoints-segmentation", *QUICK, "--folder", str(run)]) == 0
    new_clouds(tmp_path / "new", "a.ply")
    capsys.readouterr()
    for out in (tmp_path / "table.csv", run / "recipe.yaml"):
        assert main(["predict", str(run), str(tmp_path / "new"), "--out", str(out)]) == 2
        assert "segmentation writes one .ply for each cloud; give a folder" in capsys.readouterr().err
    assert not (tmp_path / "table.csv").exists()


def test_features_are_needed_where_a_network_was_trained_with_them(tmp_path, capsys):
    run = tmp_path / "run"
    recipe = ["train", "pointnet/cloud-folder", "data.features=true", *QUICK, "--folder", str(run)]
    assert main(recipe) == 0 and main(["eval", str(run)]) == 0
    assert "prediction rows are identical" in capsys.readouterr().out
    sample = Path(read_json(run / "data.json")["folder"])
    assert main(["predict", str(run), str(sample), "--out", str(tmp_path / "table.csv")]) == 0, "with its groups.csv"
    assert len(pd.read_csv(tmp_path / "table.csv")) == 160
    new_clouds(tmp_path / "new", "a.ply")
    assert main(["predict", str(run), str(tmp_path / "new")]) == 2
    assert "has the features none" in capsys.readouterr().err
    recipe[1] = "dgcnn/cloud-folder"
    assert main([*recipe[:-1], str(tmp_path / "other")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: DGCNN reads coordinates alone") and "leave data.features out" in told


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
    assert "unknown class folder 'unknown' in" in capsys.readouterr().err


def test_classes_are_a_table(tmp_path):
    assert main(["train", "pointnet/medpoints", *QUICK, "--folder", str(tmp_path / "run")]) == 0
    new_clouds(tmp_path / "new", "a.ply", "b.ply")
    for extra, columns in (([], {"id", "class", "probability"}), (["--features"], {"id", "f0"})):
        out = tmp_path / "table.csv"
        assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(out), *extra]) == 0
        table = pd.read_csv(out)
        assert columns <= set(table.columns) and table["id"].tolist() == ["a", "b"]


def own_data(folder):
    for name, stretch in (("ball", 1.0), ("rod", 9.0)):
        for i in range(10):
            points = np.random.default_rng(i).normal(size=(300, 3)) * [1, 1, stretch]
            write_cloud(folder / name / f"{name}{i}.ply", points)


def test_data_that_have_changed_are_named(tmp_path, capsys):
    """By `zoo eval` beside what it finds, by --resume as a reason to stop: groups may have changed sides."""
    folder, run = tmp_path / "data", tmp_path / "run"
    own_data(folder)
    given = [f"data.root={folder}", "data.points=256", "train.max_steps=2", "train.logger=null"]
    assert main(["train", "pointnet/cloud-folder", *given, "--folder", str(run)]) == 0
    assert main(["eval", str(run)]) == 0
    assert "prediction rows are identical" in capsys.readouterr().out
    write_cloud(folder / "rod" / "another.ply", np.random.default_rng(99).normal(size=(300, 3)))
    assert main(["eval", str(run)]) == 0
    told = "files of the data set have changed and the split has changed since"
    assert f"{told} the run was trained" in capsys.readouterr().out
    (run / "record.json").unlink()
    assert main(["train", "pointnet/cloud-folder", "--resume", str(run)]) == 2
    assert f"{run}: {told} it began; put the data back, or start a new run" in capsys.readouterr().err


def test_classes_are_those_of_the_run_whatever_became_of_its_data(tmp_path, capsys):
    """Trained on a folder of the user's own, which is then renamed, and at last gone."""
    folder = tmp_path / "data"
    own_data(folder)
    run, asked = tmp_path / "run", folder / "ball" / "ball0.ply"
    shutil.copy(asked, tmp_path / "asked.ply")
    given = [f"data.root={folder}", "data.points=256", "--folder", str(run)]
    assert main(["train", "distance-knn/cloud-folder", *given]) == 0

    def predicted():
        assert main(["predict", str(run), str(tmp_path / "asked.ply"), "--out", str(tmp_path / "a.csv")]) == 0
        return pd.read_csv(tmp_path / "a.csv")["class"].tolist()

    before = predicted()
    (folder / "ball").rename(folder / "zball")
    assert predicted() == before == ["ball"]
    shutil.rmtree(folder)
    assert predicted() == before
