"""Two gloo processes on the CPU train one model; their evaluation is that of one process."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from statezoo.zoo.files import read_json
from statezoo.zoo.recipe import load
from statezoo.zoo.train.csvlog import read_log
from statezoo.zoo.train.inference import evaluate_run
from statezoo.zoo.train.rows import load_rows
from statezoo.zoo.train.run import session

#: best weights appear a second after the evaluation that found them: no process may go by what lies on the disk before
SLOW_DISK = """
import time
from statezoo.zoo.train import engine
save = engine._save_weights
engine._save_weights = lambda *arguments: (time.sleep(1), save(*arguments))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two processes, 401 test users: shards of unequal size."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    command = [
        "train", "sasrec/ml-100k", "--sample", "train.devices=2", "train.accelerator=cpu", "train.strategy=ddp",
        "train.epochs=2", "train.threads=1", "train.logger=null", "train.log_every=1", "model.dropout=0", "--folder",
        str(folder), "--debug",
    ]  # fmt: skip
    code = SLOW_DISK + "import sys; from statezoo.zoo.cli import main; sys.exit(main())"
    script = folder.parent / "launch.py"  # DDP starts its second process by running the same file again
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *command], capture_output=True, text=True, env=dict(os.environ), timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step") == 2, "the second process talks too"
    return folder


def test_every_test_sample_is_there_once(run):
    rows = load_rows(run / "predictions.npz")
    assert len(rows["id"]) == len(set(rows["id"].tolist())) == 400


def test_evaluation_equals_one_process(run):
    facts, _ = evaluate_run(run)
    # threads and batch shapes differ, and with them the last bits of scores: ranks may move where scores nearly tie
    for name, value in facts["metrics"].items():
        assert value == pytest.approx(facts["record"][name], abs=2e-3)


def test_the_record_says_two_processes(run):
    record = read_json(run / "record.json")
    assert record["environment"]["world_size"] == 2
    assert record["cost"]["train_steps"] == 2 * int(np.ceil(600 / (2 * 64)))


def test_the_loss_is_that_of_both_processes(run):
    log = read_log(run / "metrics.csv")
    _, losses = log["train", "loss"]
    s = session(load(str(run / "recipe.yaml")), sample=True)  # the weights of the first step
    data = s.datamodule()
    s.task.train()
    firsts = [next(iter(data.train_steps(0, 1, {"rank": rank, "world": 2}))) for rank in (0, 1)]
    with torch.no_grad():
        first = [s.task.loss(batch).item() for batch in firsts]
    assert first[0] != first[1] and losses[0] == pytest.approx(np.mean(first), rel=1e-5)
    half = len(losses) // 2
    assert log["train", "epoch_loss"][1] == pytest.approx([np.mean(losses[:half]), np.mean(losses[half:])], rel=1e-12)


def test_the_state_is_of_two_processes(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["world"] == 2 and saved["strategy"] == "DDPStrategy" and len(saved["losses"]) == 2
