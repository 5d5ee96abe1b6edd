"""The `zoo` command: light help and lists, one-line errors with the nearest name, exit codes, JSON, new data sets."""

import json
import os
import re
import subprocess
import sys

import pytest
from statezoo.zoo import cli
from statezoo.zoo.cli import VERBS, main
from statezoo.zoo.recipe import recipe_files
from statezoo.zoo.registry import entries
from statezoo.zoo.train.console import Console

HEAVY = ("torch", "numpy", "lightning", "pandas", "scipy", "sklearn", "jsonargparse", "rich", "pydantic")


def python(code, *arguments, **options):
    """A fresh interpreter, as a user's shell starts it: with output buffered."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=clean, text=True, check=False, **{"capture_output": True} | options)


def fails(capsys, *words, code=2):
    """What a failing command prints: one line on stderr, nothing on stdout."""
    assert main(list(words)) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err.rstrip("\n")


def answers(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


# light --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    ["import statezoo; dir(statezoo)", "import statezoo; statezoo.list_models()"]
    + [
        f"from statezoo.zoo.cli import main; assert main({words!r}) == 0"
        for words in (
            ["--help"],
            ["train", "--help"],
            ["list"],
            ["list", "recipes", "--json"],
            ["--version"],
            [],
            ["list", "models", "mamba*", "--task", "next_item", "--kind", "log"],
            ["predict", "--help"],
            ["new", "model", "x"],
        )
    ],  # fmt: skip
)
def test_nothing_heavy_is_imported(code, tmp_path):
    done = python(f"import sys\n{code}\nprint(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_help_names_every_verb(capsys):
    text = answers(capsys, "--help")
    assert set(re.findall(r"^    (\w+)\s", text, re.M)) == set(VERBS)
    for verb in VERBS:
        told = answers(capsys, verb, "--help")
        assert told.startswith(f"usage: zoo {verb} ")
        assert ("Any option of a recipe can be given" in told) == (verb in ("train", "bench"))


def test_list_names_everything(capsys):
    text = answers(capsys, "list")
    names = [*entries("model"), *entries("dataset"), *entries("task"), *recipe_files()]
    assert all(re.search(rf"^  {re.escape(name)} ", text, re.M) for name in names)
    assert answers(capsys, "list", "recipes").splitlines()[0] == f"recipes ({len(recipe_files())})"


def test_list_into_a_closed_pipe_is_no_error():
    for words in (["list"], ["list", "--json"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        code = f"import sys; from statezoo.zoo.cli import main; sys.exit(main({words}))"
        done = python(code, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")


# errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian sasrec/ml-100k", "unknown verb 'trian'; did you mean 'train'?"),
        ("list modles", "unknown list 'modles'; did you mean 'models'?"),
        ("list --jsn", "unknown option '--jsn' in zoo list; did you mean '--json'?"),
        ("train sasrec/ml-100k --sampel", "unknown option '--sampel' in zoo train; did you mean '--sample'?"),
        ("data check digits --contrct", "unknown option '--contrct' in zoo data; did you mean '--contract'?"),
        ("--hlep", "zoo: the following arguments are required: VERB; see `zoo --help`"),
        ("train", "zoo train: the following arguments are required: recipe; see `zoo train --help`"),
        ("train sasrec", re.compile("unknown recipe 'sasrec'; did you mean 'sasrec/.*'")),
        ("train sasrc/ml-100k", "unknown model 'sasrc'; did you mean 'sasrec'?"),
        ("train sasrec/ml100k", "unknown dataset 'ml100k'; did you mean 'ml-100k'?"),
        ("bench sasrec/ml-100", "unknown dataset 'ml-100'; did you mean 'ml-100k'?"),
        ("data describe digts", "unknown dataset 'digts'; did you mean 'digits'?"),
        (
            "data chek digits",
            re.compile(r"zoo data: argument action: invalid choice: 'chek' \(.*check.*\); see `zoo data --help`"),
        ),
        (
            "train sasrec/ml-100k train.lrr=1",
            "unknown key 'train.lrr' in recipe sasrec/ml-100k; did you mean 'train.lr'?",
        ),
        ("train sasrec/ml-100k train.lr=abc", re.compile(r"recipe sasrec/ml-100k: train\.lr: .*float.*abc; .*type")),
        ("data check digits split_sed=1", "unknown argument 'split_sed' in Digits; did you mean 'split_seed'?"),
        # an override without a value, wherever it stands
        (
            "train sasrec/ml-100k train.lr --sample",
            re.compile("zoo train does not take 'train.lr'; an override is key"),
        ),
        (
            "train sasrec/ml-100k --sample train.lr",
            re.compile("zoo train does not take 'train.lr'; an override is key"),
        ),
        ("bench sasrec/ml-100k =3 --sample", re.compile("zoo bench does not take '=3'; an override is key.sub=value")),
        ("data check digits split_seed", re.compile("zoo data does not take 'split_seed'; an override is key")),
        # words for verbs that take none
        ("list models train.lr=1", "zoo list takes no key=value (train.lr=1); drop it"),
        ("doctor x=1", "zoo doctor takes no key=value (x=1); drop it"),
        ("list models datasets", "zoo list does not take 'datasets'; drop it"),
        ("data describe digits --contract", "--contract belongs to `zoo data check`, not to `describe`"),
        # files
        ("train nowhere.yaml", re.compile("no file nowhere.yaml; give a recipe id")),
        ("train nowhere.py/digits", re.compile(r"no file /.*/nowhere\.py; check the path, or `zoo new model NAME`")),
        ("data check nowhere.py", re.compile(r"no file /.*/nowhere\.py; check the path, or `zoo new dataset NAME`")),
        ("eval nowhere", re.compile("nowhere: no recipe.yaml; give the folder of a finished run")),
        ("predict nowhere nofile", re.compile("nofile: no such file or folder; check the path")),
        ("train sasrec/ml-100k --resume nowhere", re.compile("nowhere: no recipe.yaml, so no run to resume")),
        ("new dataset 1st", re.compile("'1st' cannot be a file's name; use letters")),
        ("bench sasrec/ml-100k --sample --steps 0", "--steps 0: give at least 1 step"),
        ("bench popularity/ml-100k --sample", re.compile("popularity is no network, it has no steps to time; ")),
    ],
)
def test_user_errors_are_one_line_with_the_remedy(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = fails(capsys, *command.split())
    if isinstance(message, str):
        assert text == f"error: {message}"
    else:
        assert message.match(text.removeprefix("error: ")), text
    assert not list(tmp_path.glob("runs/**/*.yaml")), "nothing was started"


BROKEN = """
from statezoo.zoo.backbones.base import Model


class Net(Model):
    configs = {"net": {}}
    accepts = ("image",)
    inputs = ("image",)

    def __init__(self):
        raise RuntimeError("two\\nlines")
"""


ORDERS = [
    ["train", "sasrec/ml-100k", "--sample", "--folder", "f"],
    ["eval", "run", "--trust-code"],
    ["predict", "run", "source", "--out", "o", "--features"],
    ["data", "sample", "digits", "--seed", "3", "--folder", "f"],
    ["bench", "sasrec/ml-100k", "--sample", "--steps", "3"],
    ["new", "dataset", "cells", "--domain", "points", "--folder", "f"],
    ["leaderboard", "digits", "--runs", "--markdown"],
    ["list", "models", "s4d", "--kind", "image"],
]


@pytest.mark.parametrize("words", ORDERS, ids=lambda words: words[0])
def test_options_stand_anywhere_among_the_words_of_a_verb(words, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, f"_{words[0]}", lambda options: seen.append({**vars(options), "handler": None}))
    verb, first = words[0], next(i for i, word in enumerate(words) if word.startswith("--"))
    names, given = words[1:first], words[first:]
    options = [[word, *given[i + 1 : i + 2]] if given[i + 1 : i + 2] and not given[i + 1].startswith("--") else [word]
               for i, word in enumerate(given) if word.startswith("--")]  # fmt: skip
    mixed = [word for i in range(max(len(names), len(options))) for word in [*sum(options[i : i + 1], []),
                                                                             *names[i : i + 1]]]  # fmt: skip
    for order in ([*names, *given], [*given, *names], mixed, [*names[:1], *given, *names[1:]]):
        assert main([verb, *order]) == 0, order
    assert len(seen) == 4 and all(one == seen[0] for one in seen), seen


def test_a_failure_has_another_exit_code_and_a_traceback_only_with_debug(capsys, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(BROKEN)
    words = ["train", f"{file}/digits", "--sample", "--json"]
    assert fails(capsys, *words, code=1) == "failure: RuntimeError: two lines; add --debug for the traceback"
    assert main([*words, "--debug"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and f'File "{file}"' in printed
    assert printed.endswith("failure: RuntimeError: two lines\n")


def test_what_the_system_refuses_is_told_with_its_place(capsys):
    told = fails(capsys, "train", "mlp/digits", "--sample", "--folder", "/dev/null/run")
    assert told.startswith("error: /dev/null/run") and "Not a directory; check the path, its rights and" in told


def test_a_user_error_with_debug_keeps_its_code_and_line(capsys):
    assert main(["--debug", "list", "modles"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith("error: unknown list 'modles'; did you mean 'models'?\n")


def test_interruption(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_list", interrupted)
    assert fails(capsys, "list", code=130) == "interrupted"


# JSON ---------------------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def facts(*words):
        return json.loads(answers(capsys, *words, "--json"))

    listed = facts("list")
    assert list(listed) == ["models", "datasets", "tasks", "recipes"]
    assert listed["recipes"]["sasrec/ml-100k"] == "zoo train sasrec/ml-100k"
    assert facts("list", "models") == {"models": listed["models"]}
    assert facts("data", "describe", "digits")["tasks"] == ["classification"]
    made = facts("data", "sample", "digits", "--folder", "copy")
    checked = facts("data", "check", "digits", f"root={made['folder']}")
    assert checked["samples"]["train"] > checked["samples"]["test"] > 0
    assert "states its facts" in facts("data", "check", "digits", "--contract")["passed"]
    done = facts("train", "mlp/digits", "--sample", "train.max_steps=2", "train.logger=null")
    assert done["record"]["benchmark"]["sample"] is True and done["record"]["recipe"]["id"] == "mlp/digits"
    assert json.loads((tmp_path / done["run"] / "record.json").read_text()) == done["record"]
    assert facts("bench", "mlp/digits", "--sample", "--steps", "2")["parameters"] > 0
    assert facts("eval", done["run"])
    assert facts("leaderboard", "ml-100k") and facts("doctor")["entries"]["task"] == len(entries("task"))


# a new data set -----------------------------------------------------------------------------------------------------


@pytest.fixture
def new(tmp_path, monkeypatch, capsys):
    """Write the scaffold of a data set in a folder far from the zoo and return its path."""
    monkeypatch.chdir(tmp_path)

    def write(name="my-set"):
        answers(capsys, "new", "dataset", name)
        return tmp_path / f"{name.replace('-', '_')}.py"

    return write


def test_new_data_set_keeps_the_contract_and_trains_from_a_foreign_folder(new, capsys, tmp_path, monkeypatch):
    new()
    assert fails(capsys, "new", "dataset", "my-set") == (
        "error: my_set.py is there already; choose another name or delete it"
    )
    assert "my-set keeps the whole contract" in answers(capsys, "data", "check", "my_set.py", "--contract")
    words = ["train", "mlp/my_set.py", "--sample", "train.max_steps=2", "train.logger=null"]
    shown = answers(capsys, *words)
    assert "mlp (tiny preset) on SYNTHETIC SAMPLE of my-set" in shown
    (record,) = tmp_path.glob("runs/**/record.json")
    # the run knows its data set wherever it is looked at
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "add --trust-code" in fails(capsys, "eval", str(record.parent))
    assert json.loads(answers(capsys, "eval", str(record.parent), "--json", "--trust-code"))
    answers(capsys, *(word.replace("my_set.py", "../my_set.py") for word in words))


def test_new_clouds_keep_the_contract_and_train(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = answers(capsys, "new", "dataset", "my-clouds", "--domain", "points")
    assert "my-clouds keeps the whole contract" in answers(capsys, "data", "check", "my_clouds.py", "--contract")
    words = shown.partition("zoo train ")[2].split()
    found = json.loads(answers(capsys, "train", *words, "train.logger=null", "--json"))["record"]["metrics"]
    assert found["balanced_accuracy"]["value"] > 0.9, "by the command that it names"
    told = fails(capsys, "new", "dataset", "x", "--domain", "point")
    assert told == "error: unknown domain 'point' in zoo new; did you mean 'points'?"


def test_new_model_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "zoo train my_net.py/digits --sample" in answers(capsys, "new", "model", "my-net")
    for recipe in ("my_net.py/digits", "my_net.py:my_net_wide/digits"):
        assert "my_net.py" in answers(capsys, "train", recipe, "--sample", "train.max_steps=2", "train.logger=null")


BATCH = """

class Changed(Part):
    def batch(self, index, seeds=None):
        batch = super().batch(index, seeds)
        batch["image"] = (batch["image"] {change}).astype(np.float32)
        return batch


class """

# what is replaced in the scaffold, by what, and the rule that its check names
BROKEN_RULES = {
    "no licence": (
        'license = "CC0-1.0"',
        'license = ""',
        "states its facts: MySet does not state `license`",
    ),
    "no summary": (
        '"""The line that `zoo list` shows."""',
        "",
        "states its facts: MySet has no docstring",
    ),
    "unknown task": (
        'tasks = ("classification",)',
        'tasks = ("clasification",)',
        "unknown task 'clasification'; did you mean 'classification'?",
    ),
    "another kind": (
        'kind = "image"',
        'kind = "log"',
        "batches match the spec: MySet states the kind log, its Spec image",
    ),
    "download without hash": (
        "    # urls = ",
        "    urls = ",
        "states its facts: MySet: the download data.csv has no SHA-256",
    ),
    "sample differs under one seed": (
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        "sample is reproducible: MySet.write_sample: two calls with one seed",
    ),
    "sample ignores its seed": (
        "np.random.default_rng(seed)",
        "np.random.default_rng(0)",
        "sample is reproducible: MySet.write_sample: seeds 0 and 1 wrote the same files",
    ),
    "accepts an empty folder": (
        'files = {"data.csv": ""}',
        "files = {}",
        "missing files are named: MySet: an empty folder was accepted",
    ),
    "wrong dtype": (
        "np.array(images, np.float32)",
        "np.array(images, np.float64)",
        "batches match the spec: my-set: train 'image' is float64 (1, 4, 4), not float32 (1, 4, 4)",
    ),
    "wrong shape": (
        "reshape(-1, 1, 4, 4)",
        "reshape(-1, 4, 4)",
        "batches match the spec: my-set: train 'image' is float32 (4, 4), not float32 (1, 4, 4)",
    ),
    "tensor missing": (
        '"image": np.array',
        '"picture": np.array',
        "batches match the spec: my-set: the train part has no 'image', which the Spec lists",
    ),
    "label without a class": (
        "Outputs(classes=CLASSES)",
        "Outputs(classes=CLASSES[:1])",
        "batches match the spec: my-set: label 1 has no class name",
    ),
    "split differs": (
        '"test": 0.2}',
        '"test": 0.2}, seed=np.random.default_rng().integers(1 << 40)',
        "preparing is deterministic: my-set: two preparations gave different splits",
    ),
    "groups cross the split": (
        "by_group(patients, ",
        "by_group(ids, ",
        "leakage: ",
    ),
    "ids repeat": (
        "ids.append(row[0])",
        "ids.append(row[1])",
        "ids are unique and parts disjoint: my-set: ids of the train part repeat",
    ),
    "one group for all": (
        "ids[index], patients[index])",
        "ids[index], patients[index][:1])",
        "ids are unique and parts disjoint: my-set: 1 groups for ",
    ),
    "sample depends on its batch": (
        "\nclass ",
        BATCH.format(change='- batch["image"].mean(0)'),
        "batches do not depend on neighbours: my-set: 'image' of a train sample depends on",
    ),
    "sample changes": (
        "\nclass ",
        BATCH.format(change="+ np.random.default_rng().normal()"),
        "batches do not depend on neighbours: my-set: 'image' changes when asked again",
    ),
    "writes beside the data": (
        "ids, patients, images",
        "path.with_suffix('.idx').touch()\n        ids, patients, images",
        "nothing is written beside the data: my-set: preparing wrote into the data folder",
    ),
    "no floor": (
        "Outputs(classes=CLASSES)",
        "Outputs()",
        "classification needs at least 2 classes",
    ),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_a_broken_rule_is_named(rule, new, capsys):
    file = new()
    text = file.read_text(encoding="utf-8")
    old, changed, named = BROKEN_RULES[rule]
    assert text.count(old) == 1
    text = text.replace(old, changed)
    if "class Changed" in text:
        text = text.replace("= Part(part", "= Changed(part")
    file.write_text(text, encoding="utf-8")
    assert fails(capsys, "data", "check", "my_set.py", "--contract").startswith(f"error: {named}")


NASTY = "X\x1b[31mred\x9b\x7f\udcff"


def test_names_are_shown_escaped_on_the_screen(tmp_path, monkeypatch, capsys):
    """A folder's name could else recolour or rewrite what the terminal shows."""
    folder = tmp_path / NASTY
    assert main(["data", "sample", "digits", "--folder", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "X\\x1b[31mred\\x9b\\x7f\\udcff" in printed and printed.replace("\n", "").isprintable()
    assert main(["data", "sample", "digits", "--json", "--folder", str(tmp_path / f"{NASTY}2")]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["folder"] == str(tmp_path / f"{NASTY}2"), "for machines it is the same text"
    assert printed.replace("\n", "").isprintable()
    Console().line(f"run: {folder}")
    assert capsys.readouterr().out == f"run: {tmp_path}/X\\x1b[31mred\\x9b\\x7f\\udcff\n"


def test_what_went_wrong_is_shown_escaped_as_well(monkeypatch, capsys):
    for error, start in (
        (OSError(13, "refused", NASTY), "error: X"), (RuntimeError(NASTY), "failure: RuntimeError: X"),
        (KeyboardInterrupt(NASTY), "interrupted; X"),
    ):  # fmt: skip

        def fails_so(options, error=error):
            raise error

        monkeypatch.setattr(cli, "_doctor", fails_so)
        assert main(["doctor"]) in (1, 2, 130)
        printed = capsys.readouterr().err
        assert printed.startswith(f"{start}\\x1b[31mred\\x9b\\x7f\\udcff") and printed.count("\n") == 1
        assert printed.replace("\n", "").isprintable()


def test_a_name_in_brackets_is_no_markup_above_the_bar(capsys):
    from rich.progress import Progress

    console = Console()
    console.bar = Progress()
    console.line("run: a[red]b\x1b[2J")
    assert capsys.readouterr().out == "run: a[red]b\\x1b[2J\n"
