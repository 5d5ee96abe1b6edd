"""Training on everything: no evaluation, the last weights, `final.json` in place of a record, the command to begin."""

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import statezoo
import torch
from statezoo.leaderboards.board import add, find_records
from statezoo.leaderboards.schema import read_final
from statezoo.zoo.api import create_dataset
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, hash_folder, hash_json, read_json
from statezoo.zoo.stored import read_weights
from statezoo.zoo.train import engine
from statezoo.zoo.train.inference import evaluate_run, open_run
from statezoo.zoo.train.run import train

SMALL = ["model.dim=8", "train.batch_size=256"]  # three steps an epoch
QUICK = [*SMALL, "train.epochs=2", "train.logger=null", "train.log_every=2"]
#: everything that carries state
STATEFUL = ["model.dropout=0.2", "train.ema=0.9", "train.accumulate=2", "train.schedule=cosine", "train.save_every=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network trained on everything, with a moving average."""
    return train("sasrec/ml-100k@all", [*QUICK, *STATEFUL], sample=True, folder=tmp_path_factory.mktemp("all") / "run")


def test_a_run_on_everything_states_what_it_is(run):
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {"final.json", "model.safetensors", "config.json", "prep/spec.json", "plots/loss.png"} <= files
    assert not files & {"record.json", "predictions.npz"}
    final, data = read_final(run / "final.json"), create_dataset("ml-100k").sample(split="all", max_len=20)
    spec = data.prepare()
    assert final.trained_on.model_dump() == {
        "dataset": "ml-100k", "version": data.version, "task": "next_item", "split": "all", "sample": True,
    }  # fmt: skip
    assert final.data.manifest_sha256 == hash_json(data.manifest())
    assert final.data.split_sha256 == [data.split_hash()] and final.data.facts == data.facts()
    assert final.data.n == {"train": len(data.part("train")), "valid": 0, "test": 0}
    assert final.data.facts["events_after_k_core"] == sum(spec.inputs.counts), "every event of the core is trained"
    assert final.model.weights_sha256 == hash_file(run / "model.safetensors")
    assert final.model.prep_sha256 == hash_folder(run / "prep") and final.model.macs > 0
    assert final.recipe.id == "sasrec/ml-100k@all" and final.recipe.scientific["train"]["epochs"] == 2
    assert final.cost.train_steps == 2 * -(-len(data.part("train")) // 256) == 6
    assert final.cost.peak_memory_bytes > 0 and final.seed == 0


def test_log_and_screen_tell_the_loss_alone_and_the_weights_are_the_last(tmp_path, capsys):
    folder = train("sasrec/ml-100k@all", QUICK, sample=True, folder=tmp_path / "run")
    state, weights = weights_of(folder)
    assert all(torch.equal(state["model"][name], weights[name]) for name in weights)
    log = pd.read_csv(folder / "metrics.csv")
    assert set(log["split"]) == {"train"} and set(log["metric"]) == {"loss", "epoch_loss"}
    losses = log[log["metric"] == "epoch_loss"]["value"].tolist()
    printed = capsys.readouterr().out
    shown = re.findall(r"^epoch +(\d+)  step +\d+/\d+  loss (\S+)  \d+ s left$", printed, re.M)
    assert shown == [("1", f"{losses[0]:.4f}"), ("2", f"{losses[1]:.4f}")]
    assert "valid " not in printed.split("data:")[1] and "nothing was held out" in printed
    assert f"zoo predict {folder} " in printed and "zoo eval" not in printed


def weights_of(folder):
    """The last state, and the weights that the run kept."""
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    weights = read_weights(folder / "model.safetensors")
    assert set(state["model"]) == set(weights)
    assert state["progress"]["step"] == read_json(folder / "final.json")["cost"]["train_steps"]
    return state, weights


def test_the_weights_are_the_last_average(run):
    state, weights = weights_of(run)
    assert all(torch.equal(state["ema"][name], weights[name]) for name in weights)
    assert any(not torch.equal(state["model"][name], weights[name]) for name in weights)


def test_max_steps_ends_it_too(tmp_path):
    folder = train(
        "sasrec/ml-100k@all", [*QUICK, "train.max_steps=2"], sample=True, folder=tmp_path / "run", quiet=True
    )
    assert read_final(folder / "final.json").cost.train_steps == 2


@pytest.mark.parametrize("model", ["popularity", "item-knn"])
def test_fitted_models_are_fitted_on_everything(model, tmp_path):
    folder = train(f"{model}/ml-100k@all", sample=True, folder=tmp_path / "run", quiet=True)
    final = read_final(folder / "final.json")
    assert final.cost.train_steps == 0 and final.model.macs is None and final.environment.deterministic is None
    new = pd.DataFrame({"user": ["ann"], "item": statezoo.open_run(folder).spec.inputs.vocabulary[:1], "time": [1]})
    assert len(statezoo.open_run(folder).predict(new, top=5)) == 5
    if model == "popularity":
        counts = create_dataset("ml-100k").sample(split="all").prepare().inputs.counts
        assert statezoo.load(folder).predict(items=np.ones((1, 1), int))[0, 1:].tolist() == list(counts)


# going on -------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("where", ["middle", "last weights", "end"])
def test_a_run_that_was_killed_ends_with_the_same_bytes(run, tmp_path, where, monkeypatch):
    def stop(*_):
        raise Stop

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        if where == "middle":
            whole = engine.Engine.on_train_batch_start

            def start(self, trainer, task, batch, batch_idx):
                if self.progress.step == 3:
                    stop()
                whole(self, trainer, task, batch, batch_idx)

            patched.setattr(engine.Engine, "on_train_batch_start", start)
        elif where == "last weights":  # are written, and no state counts them
            save = engine.Engine._save

            def before_the_last(self, trainer, task):
                return stop() if self.progress.step == self.total else save(self, trainer, task)

            patched.setattr(engine.Engine, "_save", before_the_last)
        else:
            patched.setattr("statezoo.zoo.train.finish.write_json", stop)
        with pytest.raises(Stop):
            train("sasrec/ml-100k@all", [*QUICK, *STATEFUL], sample=True, folder=folder, quiet=True)
    assert not (folder / "final.json").exists(), "the mark of a finished run is written last"
    with pytest.raises(ZooError, match="give the folder of a finished run"):
        open_run(folder)
    train("sasrec/ml-100k@all", resume=str(folder), quiet=True)
    for name in ("model.safetensors", "metrics.csv", "config.json", "recipe.yaml", "prep/spec.json"):
        assert hash_file(folder / name) == hash_file(run / name), name
    facts = [read_final(one / "final.json").model_dump() for one in (folder, run)]
    for one in facts:
        del one["created"], one["cost"]
    assert facts[0] == facts[1]


def test_a_finished_run_is_left_alone(run, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["train", "sasrec/ml-100k@all", "--resume", str(run)]) == 0
    assert f"{run} is finished; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setenv("STATEZOO_RUNS", str(tmp_path / "runs"))
    assert main(["train", "popularity/ml-100k@all", "--sample"]) == 0
    capsys.readouterr()
    assert main(["train", "popularity/ml-100k@all", "--sample", "--resume"]) == 2
    assert "no unfinished run" in capsys.readouterr().err


# what is done with it -------------------------------------------------------------------------------------------------


def test_it_predicts_by_command_and_from_python(run, tmp_path, capsys):
    data = create_dataset("ml-100k").sample()
    file = data.folder / data.source_files()[0]
    assert main(["predict", str(run), str(file), "--out", str(tmp_path / "top.csv"), "--top", "3"]) == 0
    opened = statezoo.open_run(run)
    table = opened.predict(file, top=3)
    assert len(table) == len(pd.read_csv(tmp_path / "top.csv")) > 0 and set(table["rank"]) == {1, 2, 3}
    assert opened.record == json.loads((run / "final.json").read_text())
    assert statezoo.load(run).config == opened.model.config
    assert open_run(run).dataset.split == "all"


def test_eval_and_boards_refuse_it_in_one_line(run, capsys):
    for words in (["eval", str(run)], ["leaderboard", "--add", str(run)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "was trained on everything, nothing was held out" in error
        assert "train another run with a split that holds something out" in error
    for ask in (evaluate_run, add):
        with pytest.raises(ZooError, match="nothing was held out"):
            ask(run)


def test_runs_on_everything_are_on_no_board(run, monkeypatch):
    monkeypatch.setenv("STATEZOO_RUNS", str(run.parent))
    assert not [one for one in find_records(runs=True) if one.path.is_relative_to(run.parent)]


def test_json_and_bench_know_it(tmp_path, capsys):
    words = ["sasrec/ml-100k@all", "--sample", "--json"]
    assert main(["train", *words, "train.max_steps=2", "--folder", str(tmp_path / "run")]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done == {"run": str(tmp_path / "run"), "final": read_json(tmp_path / "run/final.json")}
    assert main(["bench", *words, "--steps", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["inference_ms"] > 0


def test_an_edited_final_is_refused(run, tmp_path):
    there = shutil.copytree(run, tmp_path / "run")
    for change in ({"extra": 1}, {"seed": "0"}, {"model": {}}, {"trained_on": None}):
        (there / "final.json").write_text(json.dumps(read_json(run / "final.json") | change))
        with pytest.raises(ZooError, match=r"final\.json: .*; files are written by runs, not by hand"):
            statezoo.open_run(there).record  # noqa: B018
    (there / "final.json").write_text("{")
    with pytest.raises(ZooError, match="not valid JSON"):
        statezoo.open_run(there).record  # noqa: B018


# before it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [True, False])
def test_patience_is_refused_before_anything_is_read(sample, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STATEZOO_DATA", str(tmp_path / "none"))
    words = ["train", "sasrec/ml-100k@all", *(["--sample", "train.patience=20"] if sample else [])]
    assert main([*words, "--folder", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train.patience=20: data.split=all holds nothing out to stop by" in error
    assert "set train.patience=null, and train.epochs to the best of an earlier run" in error
    assert not (tmp_path / "run").exists()


def hint(printed):
    (command,) = re.findall(r"^to serve, train on everything: (zoo train .*)$", printed, re.M)
    return shlex.split(command)


def test_a_run_ends_with_the_command_that_trains_on_everything(tmp_path, capsys):
    folder = train("sasrec/ml-100k", QUICK, sample=True, folder=tmp_path / "run")
    log = pd.read_csv(folder / "metrics.csv")
    best = log[(log["metric"] == "ndcg@10") & (log["split"] == "valid")].set_index("epoch")["value"].idxmax()
    words = hint(capsys.readouterr().out)
    assert words == [
        "zoo", "train", "sasrec/ml-100k@all", "--sample", f"train.epochs={best}", "train.patience=null", *SMALL,
    ]  # fmt: skip
    assert main([*words[1:], "train.logger=null", "--folder", str(tmp_path / "all")]) == 0
    steps = [read_json(one)["cost"]["train_steps"] for one in (tmp_path / "all/final.json", folder / "record.json")]
    assert steps[0] / steps[1] >= best / 2, "as many epochs, of more events"


def test_the_command_keeps_what_the_run_was_told(tmp_path, capsys):
    told = ["task.topk=[5, 10]", "train.max_steps=3", "model.dim=16", "data.k_core=3", "seed=3"]
    train("sasrec/ml-100k@global-time", [*told, "train.patience=1"], sample=True, folder=tmp_path / "run")
    words = hint(capsys.readouterr().out)
    assert words[2:4] == ["sasrec/ml-100k@all", "--sample"] and re.fullmatch(r"train.epochs=\d", words[4])
    assert words[5] == "train.patience=null", "and no max_steps, which would cut the epochs of more events"
    assert sorted(words[6:]) == sorted(["task.topk=[5, 10]", "model.dim=16", "data.k_core=3", "seed=3"])
    assert main([*words[1:], "--folder", str(tmp_path / "all")]) == 0
    recipes = [statezoo.open_run(tmp_path / name).recipe for name in ("run", "all")]
    assert recipes[0].model == recipes[1].model and recipes[0].task == recipes[1].task
    assert recipes[1].data == recipes[0].data | {"split": "all"} and recipes[1].seed == 3


def test_the_command_of_a_yaml_recipe_names_the_runs_own(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {name: sasrec}\ndata: {name: ml-100k}\ntask: {name: next_item}\n")
    folder = train(str(tmp_path / "mine.yaml"), [*QUICK, "train.max_steps=2"], sample=True, folder=tmp_path / "run")
    words = hint(capsys.readouterr().out)
    assert words[2:4] == [str(folder / "recipe.yaml"), "--sample"] and "data.split=all" in words
    assert main([*words[1:], "--folder", str(tmp_path / "all")]) == 0


def test_the_command_of_a_fitted_model_needs_no_epochs(tmp_path, capsys):
    train("popularity/ml-100k", sample=True, folder=tmp_path / "run")
    assert hint(capsys.readouterr().out) == ["zoo", "train", "popularity/ml-100k@all", "--sample"]


def test_data_without_such_a_split_give_no_command(tmp_path, capsys):
    train("mlp/digits", ["train.max_steps=2"], sample=True, folder=tmp_path / "run")
    assert "train on everything" not in capsys.readouterr().out
