"""The procedural anatomy is neither trivial nor hopeless for a small PointNet: five seeds on its own sample."""

import pytest
from statezoo.zoo.files import read_json
from statezoo.zoo.train.run import train

SHORT = ["train.epochs=40", "train.batch_size=64", "train.lr=0.001", "train.logger=null"]


@pytest.mark.slow
def test_pointnet_learns_the_sample_in_part(tmp_path):
    reached = []
    for seed in range(5):
        run = train(
            "pointnet/medpoints", [f"seed={seed}", *SHORT], sample=True, folder=tmp_path / str(seed), quiet=True
        )
        reached.append(read_json(run / "record.json")["metrics"]["balanced_accuracy"]["value"])
    print("balanced accuracy", [f"{value:.3f}" for value in reached])
    assert all(0.6 <= value <= 0.9 for value in reached)
