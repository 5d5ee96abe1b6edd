"""The saved state: damage anywhere is found, and a run goes on only under the conditions that it was saved under."""

import random
import re
import shutil

import numpy as np
import pytest
import torch
from statezoo.zoo.backbones.baselines.mlp import MLP
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json, write_json
from statezoo.zoo.ops import backends
from statezoo.zoo.train import csvlog, engine, head, state
from statezoo.zoo.train.run import train

SHORT = ["train.epochs=2", "train.log_every=4", "train.logger=null"]


def digits(run, *overrides, **how):
    how = how if "resume" in how else {"folder": run, "sample": True, **how}
    return train("mlp/digits", [*(() if "resume" in how else SHORT), *overrides], quiet=True, **how)


def stopped(run, begin, monkeypatch, after=1):
    """Begin a run and interrupt it when it has saved `after` states."""
    saved = []

    def save(*arguments):
        state.save(*arguments)
        saved.append(arguments)
        if len(saved) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save", save)
        with pytest.raises(KeyboardInterrupt, match=f"--resume {run}` goes on"):
            begin(run)
    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that stopped after its first epoch."""
    with pytest.MonkeyPatch.context() as patch:
        return stopped(tmp_path_factory.mktemp("begun") / "run", digits, patch)


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def test_a_flipped_bit_anywhere_is_found(run):
    file = run / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    assert state.load(run)["progress"]["step"] == 5
    places = {*range(0, len(whole), len(whole) // 150), *range(100), *range(len(whole) - 200, len(whole))}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(ZooError, match=r"last\.ckpt: damaged, .*; put a copy of it back, or start a new run"):
            state.load(run)
    for cut in (b"", whole[:10], whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        file.write_bytes(cut)
        with pytest.raises(ZooError, match=r"last\.ckpt: damaged"):
            digits(run, resume=str(run))
    file.write_bytes(whole)
    assert torch.load(file, weights_only=True)["progress"] == state.load(run)["progress"], "torch reads it as it is"


def _edit(run, **changes):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state.save(run, {key: value for key, value in (saved | changes).items() if value is not ...})


CONDITIONS = {
    "recipe": ("0" * 64, "another recipe than its recipe.yaml .*; put recipe.yaml back"),
    "seed": (3, "with seed 3, now 0"),
    "statezoo": ("0.0.1", "with statezoo 0.0.1, now .*; resume with that version, or start a new run"),
    "python": ("3.9", "with Python 3.9, now"),
    "torch": ("2.0.0", "with torch 2.0.0, now"),
    "numpy": ("1.0", "with numpy 1.0, now"),
    "lightning": ("1.0", "with lightning 1.0, now"),
    "world": (2, "with processes 2, now 1; resume with the same train.devices"),
    "device": ("NVIDIA H100", "with device NVIDIA H100, now cpu, .*; resume on that one"),
    "strategy": ("DDPStrategy", "with strategy DDPStrategy, now SingleDeviceStrategy"),
    "deterministic": (False, "with deterministic algorithms False, now True"),
    "matmul": ("high", "with precision of matrix products high, now highest"),
    "train.log_every": (20, "with train.log_every 20, now 4; resume with train.log_every=20"),
    "lightning ": (..., "last.ckpt: says nothing of lightning, so it was saved by another version"),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_resume_under_another_condition_is_refused(name, run):
    value, told = CONDITIONS[name]
    _edit(run, **{name.strip(): value})
    before = {path: hash_file(path) for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ZooError, match=told):
        digits(run, resume=str(run))
    assert {path: hash_file(path) for path in run.rglob("*") if path.is_file()} == before


def test_a_recipe_edited_together_with_its_head_is_not_believed(run):
    facts = read_json(run / "data.json")
    assert facts["recipe"]["train"]["lr"] == 0.002
    facts["recipe"]["train"]["lr"] = 0.004
    write_json(run / "data.json", facts)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.002", "lr: 0.004"))
    with pytest.raises(ZooError, match="another recipe than its recipe.yaml"):
        digits(run, resume=str(run))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda rows: rows[:-2], "rows are missing"),
        (lambda rows: [], "rows are missing"),
        (lambda rows: [rows[0], *rows[2:], rows[1]], "rows have changed"),
        (None, "rows are missing"),
    ],
)
def test_rows_that_the_state_counts_must_be_in_the_log(run, damage, told):
    log = run / "metrics.csv"
    rows = log.read_text().splitlines(keepends=True)
    log.unlink() if damage is None else log.write_text("".join(damage(rows)))
    kept = run / "checkpoints" / state.BEFORE
    kept.write_text("of an older state")
    with pytest.raises(ZooError, match=rf"metrics\.csv: {told} of those that the saved state counts .*; put the"):
        digits(run, resume=str(run))
    assert kept.read_text() == "of an older state", "what is refused is left as it is"


def test_best_weights_that_the_state_counts_must_be_whole(run):
    best = run / "checkpoints" / "best.safetensors"
    data = bytearray(best.read_bytes())
    data[-5] ^= 1
    best.write_bytes(data)
    with pytest.raises(ZooError, match=r"best\.safetensors: damaged or gone .*; put a copy of it back, or start"):
        digits(run, resume=str(run))
    best.unlink()
    with pytest.raises(ZooError, match=r"best\.safetensors: damaged or gone"):
        digits(run, resume=str(run))


def test_a_kill_between_two_states_takes_no_best_weights_away(tmp_path):
    def better(text):
        return lambda path: path.write_text(text)

    path = tmp_path / "checkpoints" / "best.safetensors"
    path.parent.mkdir()
    best = state.BestWeights(tmp_path, None)
    best.replace(better("one"))
    best.saved()
    counted = best.sha256
    best.replace(better("two"))
    best.replace(better("three"))
    assert path.read_text() == "three"
    state.BestWeights(tmp_path, counted).go_back()  # killed before a state counted them
    assert path.read_text() == "one" and len(list(path.parent.iterdir())) == 1
    path.with_name(state.BEFORE).write_text("older")  # killed behind a state, before these were taken away
    state.BestWeights(tmp_path, counted).go_back()
    assert path.read_text() == "one" and len(list(path.parent.iterdir())) == 1
    state.BestWeights(tmp_path, None).go_back()
    assert not list(path.parent.iterdir())


def test_what_was_written_behind_the_state_is_cut_off(run, tmp_path):
    whole = digits(tmp_path / "whole")
    with open(run / "metrics.csv", "a") as log:
        log.write("12,2,train,loss,0.5\n13,2,tra")
    digits(run, resume=str(run))
    for name in ("metrics.csv", "model.safetensors", "predictions.npz"):
        assert hash_file(run / name) == hash_file(whole / name), name


#: all that is carried from step to step; an epoch has 5 batches: states are saved at steps 3, 5, 6, 9 and 10
CARRIED = [
    "train.ema=0.9", "train.accumulate=3", "train.clip=1", "train.schedule=cosine", "train.warmup_steps=2",
    "train.save_every=2", "train.log_every=4", "model.dropout=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("carried") / "run", *CARRIED)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_goes_on_from_every_state_to_the_same_bytes(after, carried, tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", lambda run: digits(run, *CARRIED), monkeypatch, after)
    assert state.load(run)["progress"]["step"] == (3, 6, 9)[after - 1]
    digits(run, resume=str(run))
    for name in ("metrics.csv", "model.safetensors", "predictions.npz"):
        assert hash_file(run / name) == hash_file(carried / name), name
    ended, whole = state.load(run), state.load(carried)
    assert ended["progress"] | {"seconds": 0} == whole["progress"] | {"seconds": 0} and whole["progress"]["step"] == 10
    assert (ended["log"], ended["losses"]) == (whole["log"], whole["losses"])
    assert not (run / "checkpoints" / state.BEFORE).exists()


def test_a_state_is_on_the_disk_behind_the_log_that_it_counts(tmp_path, monkeypatch):
    order = []
    for module, name in ((csvlog, "metrics.csv"), (state, state.NAME)):
        seen = lambda path, sync=module.sync, name=name: order.append((path.name == name, name)) or sync(path)  # noqa: E731
        monkeypatch.setattr(module, "sync", seen)
    digits(tmp_path / "run")
    assert order == [(True, "metrics.csv"), (True, state.NAME)] * 2


WRONG = {
    "no batch": ({"losses": []}, "losses"),
    "one sum": ({"losses": [[1.0]]}, "losses"),
    "a truth": ({"losses": [[True, 0.0]]}, "losses"),
    "no number": ({"losses": [[0.0, float("nan")]]}, "losses"),
    "averages in a list": ({"ema": []}, "ema"),
    "no averages": ({"ema": ...}, "ema"),
    "a hash of no text": ({"best_sha256": 3}, "best_sha256"),
    "no hash": ({"best_sha256": ...}, "best_sha256"),
    "backends in a list": ({"backends": []}, "backends"),
    "before the first step": ({"progress/step": -1}, "progress.step"),
    "a step too few": ({"progress/stale": ...}, "progress.stale"),
    "something more": ({"progress/more": 1}, "progress"),
    "stopped by a number": ({"progress/stopped": 0}, "progress"),
    "a best in words": ({"progress/best": "0.5"}, "progress.best"),
    "no best": ({"progress/best": ...}, "progress"),
    "fewer than no bytes": ({"log/bytes": -1}, "log"),
    "bytes in words": ({"log/bytes": "9"}, "log"),
    "a log without a hash": ({"log/sha256": None}, "log"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_that_lacks_what_a_run_goes_on_from_names_it(case, begun):
    saved, (changes, named) = state.load(begun), WRONG[case]
    engine.check_state(saved, begun)
    for place, value in changes.items():
        *inner, name = place.split("/")
        at = saved[inner[0]] if inner else saved
        at.pop(name) if value is ... else at.update({name: value})
    with pytest.raises(ZooError, match=rf"is no state to go on from \({re.escape(named)} is missing"):
        engine.check_state(saved, begun)


def test_a_clean_run_that_goes_on_with_edited_code_is_dirty(run, capsys, monkeypatch):
    clean = {"version": "1", "commit": "1" * 40, "dirty": False}
    write_json(run / "data.json", read_json(run / "data.json") | {"code": clean})
    monkeypatch.setattr(head, "code", lambda: clean | {"dirty": True})
    train("mlp/digits", resume=str(run))
    assert "the code has changed" not in capsys.readouterr().out
    assert read_json(run / "record.json")["code"] == clean | {"dirty": True}


def test_weights_that_changed_before_a_first_state_are_refused(tmp_path, monkeypatch):
    weights = digits(tmp_path / "weights", "train.max_steps=1")
    start = shutil.copy(weights / "model.safetensors", tmp_path / "start.safetensors")
    run, whole = tmp_path / "run", start.read_bytes()

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "save", stop)
        digits(run, f"train.init_from={start}")
    shutil.copy(digits(tmp_path / "other", "train.max_steps=1", "seed=1") / "model.safetensors", start)
    with pytest.raises(ZooError, match=r"the weights at train\.init_from have changed since it began; put them back"):
        digits(run, resume=str(run))
    start.write_bytes(whole)
    digits(run, resume=str(run))
    assert read_json(run / "record.json")["model"]["pretrained"]


def test_a_run_that_goes_on_under_another_commit_is_no_commits(run, capsys):
    facts = read_json(run / "data.json")
    then = facts["code"] | {"commit": "0" * 40, "dirty": False}
    write_json(run / "data.json", facts | {"code": then})
    train("mlp/digits", resume=str(run))
    assert "the code has changed since the run began (commit 000000000000, now" in capsys.readouterr().out
    assert read_json(run / "record.json")["code"] == then | {"dirty": True}
    assert head.code()["commit"] != "0" * 40


@pytest.fixture
def drawing(monkeypatch):
    """A model that draws from every generator that a library may use, in evaluation too."""
    plain = MLP.forward_features

    def drawn(self, *inputs):
        features = plain(self, *inputs)
        noise = torch.from_numpy(np.random.rand(*features.shape)).to(features)
        extra = 0.1 * torch.randn_like(features) if self.training else 0
        return features * (0.5 + noise) * (0.5 + random.random()) + extra

    monkeypatch.setattr(MLP, "forward_features", drawn)


def test_every_step_and_every_seed_draws_noise_of_its_own(tmp_path, monkeypatch):
    plain, drawn = MLP.forward_features, []

    def noting(self, *inputs):
        if self.training:
            drawn.append(torch.rand(()).item())
        return plain(self, *inputs)

    monkeypatch.setattr(MLP, "forward_features", noting)
    for name, seed in (("one", 0), ("other", 1), ("again", 0)):
        digits(tmp_path / name, f"seed={seed}", "train.max_steps=6")
    one, other, again = drawn[:6], drawn[6:12], drawn[12:]
    assert len(set(one + other)) == 12 and again == one


@pytest.mark.parametrize("after", [1, 2])
def test_a_model_that_draws_from_numpy_and_python_goes_on_the_same(after, drawing, tmp_path, monkeypatch):
    """After 2: training is over, and the evaluation on the test part is left."""
    whole = digits(tmp_path / "whole")
    run = stopped(tmp_path / "run", digits, monkeypatch, after)
    np.random.seed(2)
    random.seed(2)
    digits(run, resume=str(run))
    for name in ("metrics.csv", "model.safetensors", "predictions.npz"):
        assert hash_file(run / name) == hash_file(whole / name), name


# backends -----------------------------------------------------------------------------------------------------------


def scanning(run, **how):
    """A model with a scan, on the backend that is the first to serve here."""
    how = how if "resume" in how else {"folder": run, "sample": True}
    words = [] if "resume" in how else ["train.max_steps=3", "train.save_every=1", "train.logger=null"]
    return train("mamba4rec/ml-100k", words, quiet=True, **how)


@pytest.mark.parametrize("after", [1, 3])
def test_a_resume_with_another_backend_is_refused(after, tmp_path, monkeypatch):
    """In training, and where training is over, in the evaluation on the test part."""
    run = stopped(tmp_path / "run", scanning, monkeypatch, after)
    served = set(state.load(run)["backends"].values())
    assert served - {"reference"}
    with backends.use_backend("reference"), pytest.raises(ZooError, match=r"was served by '.*', now by 'reference' \("):
        scanning(run, resume=str(run))
    scanning(run, resume=str(run))
    assert read_json(run / "record.json")["cost"]["train_steps"] == 3


def test_calls_are_held_to_what_served_them():
    known = {}
    q = torch.randn(1, 8, 4)
    toy = "toy_held"
    backends.register(toy, "cpp", lambda: "cpp", lambda call: None)
    backends.register(toy, "torch", lambda: "torch")
    try:
        with backends.held(known):
            backends.choose(toy, backends.call_of(q, 8))
            with backends.use_backend("torch"):
                backends.choose(toy, backends.call_of(q, 9))  # another call, which nothing is known of
                with pytest.raises(ZooError, match="toy_held of 8 steps .* was served by 'cpp', now by 'torch'"):
                    backends.choose(toy, backends.call_of(q, 8))
        assert list(known.values()) == ["cpp", "torch"]
        with backends.use_backend("torch"):
            assert backends.choose(toy, backends.call_of(q, 8))() == "torch", "outside nothing is held"
    finally:
        del backends._BACKENDS[toy]


def test_code_from_outside_that_was_edited_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "net.py"
    plain = (
        '"""A model."""\n\nfrom statezoo.zoo.backbones.baselines import mlp\n\n\n'
        'class Net(mlp.MLP):\n    """A model of its own."""\n\n    configs = {"net": {}}\n'
    )
    file.write_text(plain)
    begin = lambda run: train(f"{file}/digits", SHORT, sample=True, folder=run, quiet=True)  # noqa: E731
    run = stopped(tmp_path / "run", begin, monkeypatch)
    file.write_text(f"{plain}    scale = 2\n")
    with pytest.raises(ZooError, match=r"net\.py: has changed since .*recipe\.yaml was written; put it back"):
        train(f"{file}/digits", resume=str(run), quiet=True)
    kept = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(kept[: kept.index("code:")])
    with pytest.raises(ZooError, match="with a file of the model of SHA-256 .*; put that file back, or start"):
        train(f"{file}/digits", resume=str(run), quiet=True)
    (run / "recipe.yaml").write_text(kept)
    file.write_text(plain)
    train(f"{file}/digits", resume=str(run), quiet=True)
    assert (run / "record.json").is_file()
