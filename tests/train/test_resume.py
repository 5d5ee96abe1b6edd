"""A run that is killed and resumed ends with the bytes of one that was not: weights, log, predictions, metrics."""

import multiprocessing
import os
import signal
import time

import pytest
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json
from statezoo.zoo.seeding import generator
from statezoo.zoo.train.run import train

# dropout, a moving average, clipping, accumulation, a schedule and early stopping: everything that carries state
SETTINGS = [
    "model.dropout=0.2", "train.ema=0.9", "train.clip=1.0", "train.accumulate=3", "train.schedule=cosine",
    "train.patience=5", "train.epochs=6", "train.save_every=4", "train.log_every=3", "train.logger=null",
]  # fmt: skip
KILLS = int(os.environ.get("STATEZOO_KILLS", "3"))
LEFT = ("model.safetensors", "predictions.npz", "metrics.csv", "config.json", "recipe.yaml")

# children are forked from a process that has imported everything and run nothing: a second each, not ten
spawn = multiprocessing.get_context("forkserver")
spawn.set_forkserver_preload(["statezoo.zoo.train.run", "statezoo.zoo.train.finish", "statezoo.tasks.next_item"])


def start(run, resume=False):
    arguments = {"resume": str(run)} if resume else {"folder": run}
    process = spawn.Process(
        target=train, args=("sasrec/ml-100k", SETTINGS), kwargs={"sample": True, "quiet": True, **arguments}
    )
    process.start()
    return process


def lines(run):
    log = run / "metrics.csv"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def fingerprint(run):
    return {name: hash_file(run / name) for name in LEFT} | {"metrics": read_json(run / "record.json")["metrics"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts, and how many lines its log has."""
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(run)
    process.join()
    assert process.exitcode == 0
    return run


def test_two_uninterrupted_runs_are_identical(whole, tmp_path):
    process = start(tmp_path / "again")
    process.join()
    assert process.exitcode == 0
    assert fingerprint(tmp_path / "again") == fingerprint(whole)


@pytest.mark.parametrize("kill", range(min(KILLS, 3)))
def test_killed_and_resumed_is_identical(whole, tmp_path, kill):
    _kill_and_compare(whole, tmp_path / "run", kill)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(3, KILLS))
def test_killed_at_many_moments(whole, tmp_path, kill):
    _kill_and_compare(whole, tmp_path / "run", kill)


def _kill_and_compare(whole, run, kill):
    """SIGKILL when the log has grown to a random length and a random moment later; every second time once more."""
    rng = generator("kill", kill)
    kills = 0
    resume = False
    for _ in range(1 + kill % 2):
        process = start(run, resume)
        target = int(rng.integers(2, lines(whole)))
        while process.is_alive() and lines(run) < target:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        resume = (run / "recipe.yaml").is_file()
    assert kills, "every process ended before it could be killed"
    process = start(run, resume)
    process.join()
    assert process.exitcode == 0
    assert fingerprint(run) == fingerprint(whole)


def command(words, said):
    """The command in a process of its own, which need not find this file; its stderr goes to `said`."""
    text = f"import sys; from statezoo.zoo.cli import main; sys.stderr = open({str(said)!r}, 'w', buffering=1); "
    return spawn.Process(target=exec, args=(f"{text}sys.exit(main({words!r}))", {}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(whole, tmp_path, number):
    run, said = tmp_path / "run", tmp_path / "said"
    words = ["train", "sasrec/ml-100k", "--sample", "--folder", str(run), *SETTINGS]
    process, again = command(words, said), command(["train", "sasrec/ml-100k", "--resume", str(run)], said)
    process.start()
    while lines(run) < 6 and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    assert said.read_text() == f"interrupted; `zoo train sasrec/ml-100k --resume {run}` goes on\n"
    again.start()
    again.join()
    assert again.exitcode == 0
    assert fingerprint(run) == fingerprint(whole)


def test_a_run_that_never_began_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match="made for segmentation"):
        train("pointnet_seg/anatomy-bones-classification", sample=True, quiet=True)
    with pytest.raises(ZooError, match="optimizer"):
        train("sasrec/ml-100k", ["train.optimizer=none-such"], sample=True, quiet=True)
    assert not list(tmp_path.rglob("*-seed*"))
    with pytest.raises(ZooError, match="no unfinished run"):
        train("sasrec/ml-100k", resume=True, sample=True, quiet=True)


def test_finished_run_is_left_alone(whole):
    before = {name: (whole / name).stat().st_mtime_ns for name in LEFT}
    train("sasrec/ml-100k", resume=str(whole), quiet=True)
    assert {name: (whole / name).stat().st_mtime_ns for name in LEFT} == before


@pytest.mark.parametrize(
    ("override", "named"), [("train.lr=0.1", "train.lr"), ("seed=4", "seed=0"), ("model.dim=8", "model.dim")]
)
def test_resume_refuses_other_settings(whole, override, named):
    with pytest.raises(ZooError, match=named):
        train("sasrec/ml-100k", [override], resume=str(whole), quiet=True)


def test_resume_refuses_another_thread_count(whole, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "record.json").unlink()
    with pytest.raises(ZooError, match="train.threads="):
        train(
            "sasrec/ml-100k",
            ["train.threads=1"] if _threads(run) != 1 else ["train.threads=2"],
            resume=str(run),
            quiet=True,
        )


def _threads(run):
    import torch

    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["threads"]


def test_resume_without_a_run_says_so():
    with pytest.raises(ZooError, match="no unfinished run"):
        train("sasrec/ml-100k", resume=True, sample=True, quiet=True)


def test_two_processes_do_not_write_one_run(tmp_path):
    from statezoo.zoo.files import locked

    with locked(tmp_path / "run" / ".lock"), pytest.raises(ZooError, match="being written by another process"):
        train("sasrec/ml-100k", sample=True, folder=tmp_path / "run", quiet=True)
