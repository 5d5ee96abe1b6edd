"""A finished run in a notebook and by the command: one implementation, files read as they come, options by the task."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import statezoo
from statezoo.zoo.api import create_dataset
from statezoo.zoo.cli import main
from statezoo.zoo.data.log_sample import generate
from statezoo.zoo.errors import ZooError
from statezoo.zoo.recipe import Recipe

QUICK = ["--sample", "train.max_steps=1", "train.logger=null"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on the samples of three formats: a network, and two models that count."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("sasrec/log", "popularity/ml-100k", "popularity/kuairand", "popularity/recbole", "mlp/digits"):
        assert main(["train", recipe, *QUICK, "--folder", str(folder / recipe.split("/")[1])]) == 0
    return folder


def events(users=12, **names):
    """A log of new users with columns user, item and time, or named otherwise."""
    user, item, _, time = generate(3, users=users)
    frame = pd.DataFrame({"user": [f"u{n}" for n in user], "item": item, "time": time})
    return frame.rename(columns=names)


@pytest.fixture
def new(tmp_path):
    events().to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def told(capsys, *words):
    """The one line of a command that the user can mend."""
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err.strip().removeprefix("error: ")


def predicted(folder, *words):
    """The table that the command writes."""
    assert main(["predict", *map(str, words), "--out", str(folder / "out.parquet")]) == 0
    return pd.read_parquet(folder / "out.parquet")


# in Python ----------------------------------------------------------------------------------------------------------


def test_python_predicts_what_the_command_writes(runs, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = statezoo.open_run(runs / "log")
    for options, flags in (({}, []), ({"top": 3}, ["--top", "3"]), ({"features": True}, ["--features"])):
        table = predicted(tmp_path, runs / "log", new, *flags)
        for source in (new, "new.csv", events(), events().set_index(np.arange(len(events())) + 7)):
            pd.testing.assert_frame_equal(run.predict(source, **options), table)
    written = run.predict(new, out=tmp_path / "there.csv")
    assert len(pd.read_csv(tmp_path / "there.csv")) == len(written) == 120
    assert list(written) == ["id", "rank", "item", "score"] and written.attrs["counts"]["events"] == len(events())
    before = sorted(path.name for path in (runs / "log").iterdir())
    run.predict(new)
    assert sorted(path.name for path in (runs / "log").iterdir()) == before, "nothing is written unasked"


def test_a_run_has_its_model_spec_recipe_and_record(runs):
    run = statezoo.open_run(str(runs / "log"))
    assert run.model.config == statezoo.load(runs / "log").config and not run.model.training
    assert run.spec.inputs.kind == "log" and run.spec.size("num_items") == len(run.spec.inputs.vocabulary)
    assert isinstance(run.recipe, Recipe) and run.recipe.id == "sasrec/log"
    assert run.record == json.loads((runs / "log/record.json").read_text())
    with pytest.raises(ZooError, match=r"nowhere: no recipe.yaml; give the folder of a finished run"):
        statezoo.open_run("nowhere")


@pytest.mark.parametrize("name", ["log", "ml-100k"])
def test_the_folder_alone_is_enough(name, runs, tmp_path, monkeypatch):
    there = shutil.copytree(runs / name, tmp_path / "moved")
    for variable in ("STATEZOO_DATA", "STATEZOO_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (there / "data.json").unlink()
    table = statezoo.open_run(there).predict(events())
    pd.testing.assert_frame_equal(table, statezoo.open_run(runs / name).predict(events()))
    assert not (tmp_path / "STATEZOO_CACHE").exists(), "no sample is made, no copy of the events is left"


def test_what_is_left_out_is_warned_of(runs):
    with pytest.warns(UserWarning, match="1 events of unknown items left out"):
        frame = pd.concat([events(), pd.DataFrame({"user": ["u1"], "item": [10**6], "time": [1]})])
        assert statezoo.open_run(runs / "log").predict(frame).attrs["counts"]["events_of_unknown_items"] == 1


@pytest.mark.parametrize(
    ("name", "source", "options", "message"),
    [
        ("log", "nofile.csv", {}, "nofile.csv: no such file or folder; check the path"),
        ("log", [1, 2], {}, "data is a list; give a pandas DataFrame, or a file"),
        ("digits", events(), {}, "digits reads no DataFrame; give a file or folder"),
        ("log", events(), {"topp": 3}, "topp is no option of next_item, which has top"),
        ("log", events(), {"top": 0}, "top 0: give at least 1"),
        ("log", events(), {"top": True}, "top True: give a whole number"),
        ("log", events(), {"top": 3, "features": True}, "top is of predictions, not of features; leave it out"),
        ("log", events(), {"data": {"users": "user"}}, "unknown key 'data.users' in log; did you mean 'data.user'?"),
        ("log", events(), {"data": "user=customer"}, "data='user=customer': say how the source is read by a dict"),
        ("log", pd.DataFrame(), {}, "DataFrame: unknown column 'user'; valid: none (set user=NAME)"),
        ("log", None, {}, "data is a NoneType; give a pandas DataFrame, or a file"),
        ("log", events(), {"data": {"user": "usr"}}, "DataFrame: unknown column 'usr'; did you mean 'user'? (set us"),
        ("log", events(), {"data": {"future": "maybe"}}, "recipe sasrec/log: data.future: Expected a <class 'bool'>"),
        ("log", events(), {"out": "table.xlsx"}, "out table.xlsx: write .parquet or .csv"),
        ("ml-100k", events(user="person"), {}, "DataFrame: unknown column 'user'"),
        ("recbole", events(), {"data": {"name": "ml-100k"}}, "ml-100k reads no DataFrame; give a file or folder"),
    ],
)  # fmt: skip
def test_what_python_refuses(name, source, options, message, runs):
    with pytest.raises(ZooError) as caught:
        statezoo.open_run(runs / name).predict(source, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# how a file is read -------------------------------------------------------------------------------------------------


def test_a_file_may_have_an_equals_sign(runs, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day=3").mkdir()
    shutil.copy(new, tmp_path / "day=3/new.csv")
    pd.testing.assert_frame_equal(
        predicted(tmp_path, runs / "log", "day=3/new.csv"), predicted(tmp_path, runs / "log", new)
    )


def test_columns_separator_and_unit_of_another_file(runs, new, tmp_path):
    plain = predicted(tmp_path, runs / "log", new)
    names = {"user": "customer", "item": "sku", "time": "sold_at"}
    words = [f"data.{role}={column}" for role, column in names.items()]
    other = events(**names)
    for name, separator in (("tab", "\t"), ("semicolon", ";"), ("pipe", "|"), ("\\t", "\t")):
        other.to_csv(tmp_path / "other.txt", index=False, sep=separator)
        there = predicted(tmp_path, runs / "log", *words, f"data.separator={name}", "--log", tmp_path / "other.txt")
        pd.testing.assert_frame_equal(there, plain)
    other["sold_at"] *= 1000
    pd.testing.assert_frame_equal(
        statezoo.open_run(runs / "log").predict(other, data={**names, "time_unit": "ms"}), plain
    )


@pytest.mark.parametrize("name", ["ml-100k", "kuairand", "recbole"])
def test_a_plain_log_serves_a_run_of_any_log(name, runs, new, tmp_path):
    create_dataset(name).write_file(tmp_path / "own", generate(3, users=12))
    own = predicted(tmp_path, runs / name, tmp_path / "own").assign(id=lambda table: "u" + table["id"])
    plain = predicted(tmp_path, runs / name, new, "data.name=log")
    pd.testing.assert_frame_equal(plain, own)
    pd.testing.assert_frame_equal(statezoo.open_run(runs / name).predict(events()), own)
    renamed = statezoo.open_run(runs / name).predict(events(user="who"), data={"user": "who", "name": "log"})
    pd.testing.assert_frame_equal(renamed, own)


@pytest.mark.parametrize(
    ("trained", "have", "factor"),
    [("log", "ms", 1000), ("log", "s", 1), ("kuairand", "s", 1), ("kuairand", "us", 10**6)],
)
def test_times_come_in_the_unit_of_training(trained, have, factor, runs, tmp_path):
    """A file that counts otherwise gives the model the same numbers, to what its unit tells."""
    model = statezoo.open_run(runs / trained)
    frame, unit = events(), 1000 if trained == "kuairand" else 1
    frame["time"] *= factor
    reader, source = model._reader(frame, {"name": "log", "time_unit": have}, tmp_path)
    part = reader.inference(source, runs / trained / "prep")
    batch = part.batch(np.arange(len(part)))
    known = frame.assign(time=frame["time"] // factor * unit).sort_values("time", kind="stable")
    for i, user in enumerate(part.ids):
        times = known[known["user"] == user]["time"].to_numpy()[-20:]
        assert batch["times"][i, : batch["length"][i]].tolist() == times.tolist()


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("log", "data.max_len=20", "data.max_len says more than how a file is read, which is as in training; log let"),
        ("log", "data.split=global-time", "data.split says more than how a file is read"),
        ("log", "data.root=elsewhere", "data.root says more than how a file is read"),
        ("log", "data.usr=x", "unknown key 'data.usr' in log; did you mean 'data.user'?"),
        ("log", "train.lr=1", "'train.lr=1': of a run only how a file is read can be changed, by data.key"),
        ("log", "data=x", "'data=x': of a run only how a file is read can be changed"),
        ("log", "data.user.x=1", "'data.user.x=1': of a run only how a file is read"),
        ("log", "data.name=lgo", "unknown dataset 'lgo'; did you mean 'log'?"),
        ("log", "data.name=digits", "digits cannot read for a run of log; leave data.name out"),
        ("log", "data.user=[1]", "recipe sasrec/log: data.user: Expected a <class 'str'>"),
        ("log", "data.time_unit=h", "recipe sasrec/log: data.time_unit: expected s, ms, us or ns, got 'h'; give"),
        ("ml-100k", "data.user=who", "unknown key 'data.user' in ml-100k"),
        ("ml-100k", "data.max_len=3", "data.max_len says more than how a file is read, which is as in training; ml"),
        ("digits", "data.name=log", "log cannot read for a run of digits; leave data.name out"),
    ],
)  # fmt: skip
def test_what_was_trained_cannot_be_changed(name, word, message, runs, new, capsys):
    assert told(capsys, runs / name, new, word).startswith(message)


# options of tasks ---------------------------------------------------------------------------------------------------


def test_options_are_the_tasks_own(runs, new, capsys):
    for top in ("0", "-3"):
        assert told(capsys, runs / "log", new, "--top", top) == f"--top {top}: give at least 1"
    assert "argument --top: invalid int value: 'many'" in told(capsys, runs / "log", new, "--top", "many")
    message = "--top is no option of classification, which has none; leave it out"
    assert told(capsys, runs / "digits", new, "--top", "3") == message
    message = "--top is of predictions, not of features; leave it out"
    assert told(capsys, runs / "log", new, "--top", "3", "--features") == message


OWN = '''
"""A task with further options of prediction, and a log that has it."""

import numpy as np

from statezoo.datasets.recsys.log import Log
from statezoo.tasks.next_item import NextItem


class MyLog(Log):
    """A log of ours."""

    tasks = ("{file}",)


class Ranking(NextItem):
    """Ranks, and says how it was asked to."""

    rows = "next_item"
    predict_options = {{
        "top": {{"default": 10, "least": 1, "help": "items per user"}},
        "hide_seen": {{"default": None, "choices": (True, False), "help": "leave out what users had"}},
        "padding": {{"default": "none", "choices": ("none", "zeros"), "help": "what else"}},
    }}

    def predictions(self, outputs, batch, *, top, hide_seen, padding):
        found = super().predictions(outputs, batch, top=top)
        asked = np.full(found["item"].shape, f"{{top}} {{hide_seen}} {{padding}}")
        return {{**found, "asked": asked}}
'''


def test_options_of_a_task_from_anywhere_are_flags(new, tmp_path, capsys):
    file, run = tmp_path / "own.py", tmp_path / "run"
    file.write_text(OWN.format(file=file))
    words = [f"task.name={file}", *QUICK, "--folder", str(run)]
    assert main(["train", f"popularity/{file}", *words]) == 0

    def asked(*flags):
        return set(predicted(tmp_path, run, new, "--trust-code", *flags)["asked"])

    assert asked() == {"10 None none"}
    assert asked("--hide-seen", "--top", "2") == {"2 True none"}
    assert asked("--show-seen", "--padding", "zeros") == {"10 False zeros"}
    assert "not allowed with argument" in told(capsys, run, new, "--show-seen", "--hide-seen")
    assert "argument --padding: invalid choice: 'ones'" in told(capsys, run, new, "--padding", "ones")
    assert main(["predict", str(run), "--help"]) == 0
    assert "leave out what users had (default: as in training)" in " ".join(capsys.readouterr().out.split())
    assert "is code from outside the zoo" in told(capsys, run, new)
    with pytest.raises(ZooError, match=r"is code from outside the zoo.* trust_code=True"):
        statezoo.open_run(run)
    opened = statezoo.open_run(run, trust_code=True)
    assert set(opened.predict(new, hide_seen=True)["asked"]) == {"10 True none"}
    for options, message in (
        ({"hide_seen": 1}, "hide_seen 1: give True or False"),
        ({"padding": "x"}, "padding 'x': giv"),
    ):
        with pytest.raises(ZooError, match=message):
            opened.predict(new, **options)


def test_help_names_the_options_of_every_task(capsys):
    assert main(["predict", "--help"]) == 0
    assert "--top TOP next_item: items per user (default: 10)" in " ".join(capsys.readouterr().out.split())


MINE = """
from statezoo.datasets.recsys.log import Log


class MyLog(Log):
    tasks = ("next_item",)

    def read_file(self, file):
        raw = super().read_file(file)
        print("read by my own code")
        return raw
"""


def test_an_adapter_whose_file_is_typed_reads_for_a_run(runs, new, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_log.py").write_text(MINE)
    expected = predicted(tmp_path, runs / "log", "new.csv")
    capsys.readouterr()
    pd.testing.assert_frame_equal(predicted(tmp_path, runs / "log", "new.csv", "data.name=my_log.py"), expected)
    assert "read by my own code" in capsys.readouterr().out
    found = statezoo.open_run(runs / "log").predict("new.csv", data={"name": "my_log.py"})
    pd.testing.assert_frame_equal(found, expected)
    assert "read by my own code" in capsys.readouterr().out
