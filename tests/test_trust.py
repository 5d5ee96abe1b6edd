"""Code from outside the zoo runs where the user typed its path alone; what else a recipe names never runs."""

import json
import os
import subprocess
import sys

import pytest
import statezoo
import yaml
from statezoo.leaderboards import board
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json
from statezoo.zoo.recipe import load
from statezoo.zoo.registry import find
from statezoo.zoo.train.inference import open_run
from statezoo.zoo.train.run import session, train
from statezoo.zoo.trust import trusting, typed

NET = """
import os
from pathlib import Path

from statezoo.zoo.backbones.baselines.mlp import MLP

with open(Path(__file__).with_name("ran"), "a") as mark:
    mark.write("x")


class Net(MLP):
    configs = {"net": {}, "wide": {"hidden": 48}}
"""
SET = """
from pathlib import Path

from statezoo.datasets.images.digits import Digits

with open(Path(__file__).with_name("ran"), "a") as mark:
    mark.write("x")


class MySet(Digits):
    tasks = ("classification",)
"""
SHORT = ["train.max_steps=2", "train.logger=null"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model's and a data set's file, which mark that they ran."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "my_set.py").write_text(SET)
    return tmp_path


def ran(folder):
    """Whether a file of the folder ran since it was asked; one that was imported already runs anew only if changed."""
    mark = folder / "ran"
    found = mark.is_file()
    mark.unlink(missing_ok=True)
    return found


def forget():
    """Forget what was imported, so that running again is seen."""
    for name in [name for name in sys.modules if name.startswith("statezoo_file_")]:
        del sys.modules[name]


def refused(call, *words, **options):
    forget()
    with pytest.raises(ZooError) as caught:
        call(*words, **options)
    text = str(caught.value)
    assert "\n" not in text and "--trust-code" in text and "trust_code=True" in text, text


def fails(capsys, *words):
    forget()
    capsys.readouterr()
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


@pytest.fixture
def run(here):
    """A finished run of the file's model on the zoo's data."""
    made = train("net.py/digits", SHORT, sample=True, quiet=True)
    assert ran(here)
    return made


# typed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["net.py/digits"],
        ["./net.py:wide/digits"],
        ["mlp/my_set.py"],
        ["mlp/digits", "model.name=net.py"],
        ["mlp/digits", "model={name: net.py}"],
        ["mlp/digits", "data.name=./my_set.py"],
    ],
)
def test_a_typed_path_runs_and_is_kept_with_its_hash(here, words, capsys):
    forget()
    assert main(["train", *words, "--sample", *SHORT, "--folder", "run", "--json"]) == 0
    assert ran(here)
    name = "net.py" if any("net.py" in word for word in words) else "my_set.py"
    assert yaml.safe_load((here / "run/recipe.yaml").read_text())["code"] == {str(here / name): hash_file(here / name)}
    record = board.read_record(here / "run/record.json")
    assert record.recipe.code == {name: hash_file(here / name)} and str(here) not in record.model_dump_json()
    assert read_json(here / "run/record.json") == record.model_dump()
    # the same command goes on, and words of an earlier command are forgotten
    assert main(["train", *words, "--sample", *SHORT, "--resume", "run", "--json"]) == 0
    assert "--trust-code" in fails(capsys, "eval", "run") and not ran(here)


def test_python_names_a_file_by_itself(here):
    forget()
    assert statezoo.create_model("net.py:wide", num_outputs=3, in_channels=1, height=8, width=8).config["hidden"] == 48
    assert ran(here)
    assert statezoo.create_dataset("my_set.py").name == "my-set" and ran(here)
    refused(find("model", "net.py").load)
    with typed("net.py"):
        find("model", "net.py").load()
        refused(find("dataset", "my_set.py").load)
    refused(find("model", "net.py").load)
    with trusting(everything=True), typed("net.py"):
        find("dataset", "my_set.py").load()


def test_a_recipe_remembers_what_may_run(here):
    recipe = load("net.py/my_set.py", sample=True)
    forget()
    s = session(recipe, sample=True)
    assert type(s.task.model).__name__ == "Net" and s.dataset.name == "my-set"
    assert recipe.scientific()["model"]["name"] == "net.py"
    assert recipe.id == "net.py/my_set.py" and recipe.words == f"{here}/net.py/{here}/my_set.py"
    assert load(recipe.words).code == recipe.code


# named by a file ----------------------------------------------------------------------------------------------------


def test_a_finished_run_runs_no_code_of_its_own(here, run, capsys, monkeypatch):
    other = here / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    refused(statezoo.load, run)
    refused(open_run, run)
    for words in (["eval", str(run)], ["predict", str(run), str(here)]):
        assert f"error: {here / 'net.py'}: is code from outside the zoo" in fails(capsys, *words)
    assert not ran(here)
    assert statezoo.load(run, trust_code=True).config["num_outputs"] == 10 and ran(here)
    assert open_run(run, trust_code=True).recipe.code
    refused(statezoo.load, run)
    assert main(["eval", str(run), "--trust-code", "--json"]) == 0


def test_a_run_goes_on_where_its_file_is_typed(here, run, capsys):
    (run / "record.json").unlink()
    words = ["--sample", *SHORT, "--resume", str(run), "--json"]
    told = fails(capsys, "train", "mlp/digits", *words)
    assert "--trust-code" in told and not ran(here)
    (here / "mine.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    assert "--trust-code" in fails(capsys, "train", "mine.yaml", *words) and not ran(here)
    assert main(["train", "net.py/digits", *words]) == 0 and ran(here)
    (run / "record.json").unlink()
    forget()
    assert main(["train", "./net.py/digits", "--sample", *SHORT, "--resume", "--json"]) == 0 and ran(here)
    (run / "record.json").unlink()
    assert main(["train", "mine.yaml", *words, "--trust-code"]) == 0


def test_a_recipe_by_its_path_runs_no_code_that_it_names(here, capsys):
    (here / "mine.yaml").write_text("model: {name: net.py}\ndata: {name: digits}\ntask: {name: classification}\n")
    for words in (["train", "mine.yaml", "--sample"], ["train", "mine.yaml"], ["bench", "mine.yaml", "--sample"]):
        assert "--trust-code" in fails(capsys, *words, *SHORT)
    assert "--trust-code" in fails(capsys, "train", "mine.yaml", "data.name=my_set.py", "--folder", "net.py")
    ran(here)
    refused(load, "mine.yaml")
    assert not ran(here) and not list(here.glob("runs/*"))
    assert main(["train", "mine.yaml", "--sample", "--trust-code", "--json", *SHORT]) == 0 and ran(here)
    forget()
    assert main(["train", "mine.yaml", "model.name=./net.py", "--sample", "--json", *SHORT]) == 0 and ran(here)


@pytest.mark.parametrize("section", ["model", "data", "task"])
def test_every_section_may_only_name_what_is_registered(here, section):
    good = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "task": {"name": "classification"}}
    (here / "alias.py").symlink_to(here / "net.py")
    for name in ("net.py", str(here / "net.py"), "net.py:wide", "alias.py", "~/net.py", "../net.py", "net.py:wide.py"):
        (here / "mine.yaml").write_text(yaml.safe_dump(good | {section: {"name": name}}))
        for sample in (False, True):
            forget()
            with pytest.raises(ZooError) as caught:
                load("mine.yaml", sample=sample)
            assert "\n" not in str(caught.value)
    for name in ("os:system", "os.system", "statezoo.zoo.api", "../net", "net", "__init__", "a\nb", "", "x" * 10**5):
        (here / "mine.yaml").write_text(yaml.safe_dump(good | {section: {"name": name}}))
        with pytest.raises(ZooError, match=r"unknown|is no name|missing"):
            load("mine.yaml")
    assert not ran(here)


# changed ------------------------------------------------------------------------------------------------------------


def test_a_file_that_has_changed_is_refused(here, run, capsys):
    (here / "net.py").write_text(NET + "# another\n")
    unfinished = here / "unfinished"
    os.rename(run, unfinished)
    for words in (
        ["eval", "unfinished", "--trust-code"],
        ["predict", "unfinished", "net.py", "--trust-code"],
        ["train", "net.py/digits", "--sample", "--resume", "unfinished"],
    ):
        assert f"{here / 'net.py'}: has changed since" in fails(capsys, *words) and not ran(here)
    with pytest.raises(ZooError, match="has changed since"):
        statezoo.load(unfinished, trust_code=True)
    (here / "net.py").write_text(NET)
    forget()
    assert main(["eval", "unfinished", "--trust-code", "--json"]) == 0


def test_what_runs_is_the_text_that_was_hashed(here):
    """A compiled copy beside the file, of the same size and time, is not taken."""
    import importlib.util
    import marshal

    evil = compile("open('evil', 'w')", "net.py", "exec")
    cached = importlib.util.cache_from_source(str(here / "net.py"))
    os.makedirs(os.path.dirname(cached))
    stat = os.stat(here / "net.py")
    head = importlib.util.MAGIC_NUMBER + bytes(4)
    head += int(stat.st_mtime).to_bytes(4, "little") + stat.st_size.to_bytes(4, "little")
    with open(cached, "wb") as file:
        file.write(head + marshal.dumps(evil))
    forget()
    load("net.py/digits")
    assert ran(here) and not (here / "evil").exists()


def test_records_of_a_changed_file_are_rows_of_their_own(here, run):
    (here / "net.py").write_text(NET.replace('"hidden": 48', '"hidden": 40'))
    other = train("net.py/digits", SHORT, sample=True, quiet=True)
    records = [board.Found(board.read_record(one / "record.json"), one / "record.json") for one in (run, other)]
    (one,) = board.boards(records)
    assert len(one.rows) == 2 and len({row.settings for row in one.rows}) == 2


# nothing else runs --------------------------------------------------------------------------------------------------

MARKER = "open(__file__ + '.ran', 'w')\n\n\nclass Thing:\n    def __init__(self, a=1, **rest):\n        pass\n"
CLASS = {"class_path": "marker_module.Thing", "init_args": {"a": 2}}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    (tmp_path / "marker_module.py").write_text(MARKER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker_module.py.ran"
    sys.modules.pop("marker_module", None)


PLACES = [
    "train.logger", "train.lr", "train.init_from", "train.strategy", "train.accelerator", "train.optimizer",
    "model.dim", "model.dropout", "data.root", "data.quantiles", "data.split", "task.mask_history", "model.name",
    "data.name", "task.name", "model", "data", "task", "train", "seed", "id", "code", "model.new", "new",
]  # fmt: skip
VALUES = [
    CLASS,
    {"class_path": "marker_module.Thing"},
    [CLASS],
    {"a": {"b": [{"c": CLASS}]}},
    "marker_module.Thing",
    "marker_module",
    "marker_module:Thing",
    {"name": "marker_module.Thing"},
    {"__globals__": "marker_module", "__class__": "marker_module.Thing"},
]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_recipe_names_is_imported(place, marker, tmp_path):
    base = {"model": {"name": "sasrec"}, "data": {"name": "ml-100k"}, "task": {"name": "next_item"}, "train": {}}
    for value in VALUES:
        raw = yaml.safe_load(yaml.safe_dump(base))
        *above, last = place.split(".")
        (raw[above[0]] if above else raw)[last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
        for source, overrides in (
            (str(tmp_path / "mine.yaml"), []),
            ("sasrec/ml-100k", [f"{place}={json.dumps(value)}"]),
        ):
            try:
                load(source, overrides)
            except ZooError as error:
                assert "\n" not in str(error)
        assert not marker.exists() and "marker_module" not in sys.modules, (place, value)


@pytest.mark.parametrize(
    "logger",
    [
        CLASS,
        "marker_module.Thing",
        "Logger",
        "__loader__",
        "csv_logs",
        {"name": "CSVLogger", "save_dir": "/tmp"},
        {"name": "CSVLogger", "version": "../../x"},
        {"name": "CSVLogger", "version": "/tmp/x"},
        {"name": "CSVLogger", "version": [{"a": 1}]},
        {"name": "TensorBoardLogger", "sub_dir": ".."},
        {"name": "TensorBoardLogger", "filename_suffix": "x"},
        {"name": "MLFlowLogger", "tracking_uri": "http://127.0.0.1:9"},
        {"name": "CSVLogger", "__class__": "x"},
        {"name": ["CSVLogger"]},
        [3],
        7,
        [["CSVLogger"]],
    ],
    ids=str,
)
def test_loggers_are_names_and_plain_arguments_that_lead_nowhere(logger, marker, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {"model": {"name": "mlp"}, "data": {"name": "digits"}, "task": {"name": "classification"}}
            | {"train": {"max_steps": 1, "logger": logger}}
        )
    )
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    with pytest.raises(ZooError) as caught:
        train(str(tmp_path / "mine.yaml"), sample=True, folder=tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value) and not marker.exists()
    assert {path for path in tmp_path.rglob("*") if "run" not in path.parts} - before <= {tmp_path / "run"}


def test_loggers_with_arguments_write_into_the_run(tmp_path):
    logger = "train.logger=[{name: CSVLogger, version: mine, prefix: a}]"
    run = train("mlp/digits", ["train.max_steps=1", logger], sample=True, folder=tmp_path / "run", quiet=True)
    assert (run / "lightning_logs/mine/metrics.csv").is_file()


def test_links_of_a_run_lead_nowhere_out_of_it(tmp_path):
    run = train("mlp/digits", SHORT, sample=True, folder=tmp_path / "run", quiet=True)
    (tmp_path / "mine.csv").write_text("precious")
    (tmp_path / "outside").mkdir()
    for name, target in (("metrics.csv", "mine.csv"), ("plots/x.png", "mine.csv"), ("further", "outside")):
        before = (run / name).read_bytes() if (run / name).is_file() else None
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / target)
        for call in (lambda: open_run(run), lambda: train("mlp/digits", SHORT, sample=True, resume=str(run))):
            with pytest.raises(ZooError, match="is a link that leads out of"):
                call()
        (run / name).unlink()
        if before is not None:
            (run / name).write_bytes(before)
    assert (tmp_path / "mine.csv").read_text() == "precious" and open_run(run)


@pytest.mark.slow
def test_processes_of_ddp_run_the_typed_file(here):
    words = ["train", "net.py/digits", "--sample", *SHORT, "train.devices=2", "train.accelerator=cpu"]
    (here / "launch.py").write_text("import sys; from statezoo.zoo.cli import main; sys.exit(main())")
    done = subprocess.run(
        [sys.executable, "launch.py", *words, "train.strategy=ddp", "train.threads=1"],
        capture_output=True,
        text=True,
        cwd=here,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(here.glob("runs/net.py/digits-sample/001-seed0/record.json"))
