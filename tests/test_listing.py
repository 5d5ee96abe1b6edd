"""What lists show and keep: kinds and tasks as the classes have them, by glob, name, task and kind of input."""

import json

import pytest
import statezoo
from statezoo.zoo import parameters
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.listing import facts, kinds, select
from statezoo.zoo.recipe import named, recipe_files
from statezoo.zoo.registry import entries
from statezoo.zoo.source import stated

HUGE = [name for name in entries("model") if name.endswith(("m", "b")) and name[-2].isdigit()]


def shown(capsys, *words, code=0):
    assert main(["list", *words]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err.strip()


def names(text):
    return [line.split()[0] for line in text.splitlines() if line.startswith("  ")]


def test_models_by_glob_task_and_kind(capsys):
    found = shown(capsys, "models", "mamba*", "--task", "next_item", "--kind", "log")
    assert found.splitlines()[0] == "models (1)" and names(found) == ["mamba4rec"]
    assert found.splitlines()[1].split()[:3] == ["mamba4rec", "log", "next_item"]
    assert statezoo.list_models("mamba*", task="next_item", kind="log") == ["mamba4rec"]
    assert statezoo.list_models() == list(entries("model"))
    assert statezoo.list_models("MAMBA*", kind="tokens") == [n for n in entries("model") if n.startswith("mamba") and
                                                              n != "mamba4rec"]  # fmt: skip
    assert statezoo.list_models("tim4rec") == ["tim4rec"], "a name that there is stands for itself"
    assert statezoo.list_models("4rec", kind="log") == [n for n in entries("model") if "4rec" in n]
    assert statezoo.list_models("nothing*") == []


def test_models_are_listed_with_their_parameters(capsys):
    shown_lines = shown(capsys, "models", "mamba*", "--task", "next_item", "--kind", "log").splitlines()
    found = statezoo.list_models("mamba*", task="next_item", kind="log", details=True)
    assert list(found) == ["mamba4rec"] and found["mamba4rec"]["sizes"] == {"num_items": 1000}
    assert found["mamba4rec"]["kinds"] == ["log"] and found["mamba4rec"]["tasks"] == ["next_item"]
    model = statezoo.create_model("mamba4rec", num_items=1000)
    count = sum(p.numel() for p in model.parameters())
    assert found["mamba4rec"]["parameters"] == count
    assert shown_lines[1].split()[3] == f"{count:,}" and "1000 items" in shown_lines[2]
    fitted = statezoo.list_models("popularity", details=True)["popularity"]
    assert fitted["parameters"] is None and shown(capsys, "models", "popularity").splitlines()[1].split()[3] == "-"


@pytest.mark.parametrize("key", [pytest.param(k, marks=[pytest.mark.slow] * (k in HUGE)) for k in entries("model")])
def test_listed_parameters_are_those_of_the_network(key):
    """Where this fails, a network was changed or added: run `python -m statezoo.zoo.parameters`."""
    assert facts(entries("model")[key])["parameters"] == parameters.measure(entries("model")[key])
    assert key in json.loads(parameters.FILE.read_text())


def test_options_stand_before_between_and_behind_the_names(capsys):
    wanted = shown(capsys, "models", "pointnet*", "--kind", "points", "--task", "segmentation")
    assert len(names(wanted)) >= 1
    for order in (
        ["models", "--kind", "points", "--task", "segmentation", "pointnet*"],
        ["--kind", "points", "models", "--task", "segmentation", "pointnet*"],
        ["--kind", "points", "--task", "segmentation", "models", "pointnet*"],
        ["models", "--kind=points", "pointnet*", "--task=segmentation"],
    ):
        assert shown(capsys, *order) == wanted
    assert json.loads(shown(capsys, "--json", "models", "--kind", "log", "sasrec")).keys() == {"models"}


def test_data_sets_and_recipes_by_task_and_kind(capsys):
    found = names(shown(capsys, "datasets", "--task", "segmentation"))
    assert found == [key for key, entry in entries("dataset").items() if "segmentation" in entry.load().tasks] != []
    assert set(names(shown(capsys, "datasets", "--kind", "image"))) == {"digits", "cifar10-jpg"}
    assert names(shown(capsys, "tasks", "--kind", "log")) == ["next_item"]
    assert names(shown(capsys, "recipes", "*/medpoints*", "--task", "completion")) == [
        "point_ssm_cpl/medpoints-completion"
    ]
    assert set(names(shown(capsys, "recipes", "--kind", "tokens"))) == {"mamba_lm/characters"}
    everywhere = shown(capsys, "all", "--kind", "tokens")
    assert "recipes (1)" in everywhere and "datasets (1)" in everywhere
    assert json.loads(shown(capsys, "models", "s4d", "--json")) == {
        "models": {
            "s4d": {
                "summary": entries("model")["s4d"].summary, "kinds": ["image"], "tasks": ["classification", "property"],
                "parameters": 201_482, "sizes": {"in_channels": 3, "num_outputs": 10},
            }
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models", "sasrek"], "error: unknown model 'sasrek'; did you mean 'sasrec'?"),
        (["datasets", "ml-100q"], "error: unknown dataset 'ml-100q'; did you mean 'ml-100k'?"),
        (["all", "sasrek"], "error: unknown name 'sasrek'; did you mean 'sasrec'?"),
        (["models", "sasrec", "--kind", "points"], "error: unknown model 'sasrec'; valid: dgcnn, "),
        (["models", "--task", "next-item"], "error: unknown task 'next-item'; did you mean 'next_item'?"),
        (["models", "--kind", "logs"], "error: unknown kind 'logs'; did you mean 'log'?"),
        (["models", "*", "x"], "error: zoo list does not take 'x'; drop it"),
    ],
)
def test_what_there_is_not_is_told(words, message, capsys):
    assert shown(capsys, *words, code=2).startswith(message)
    if "--kind" in words or "--task" in words:
        return
    assert shown(capsys, "models", "x*") == "models (0)\n", "a pattern may match nothing"


def test_kinds_are_those_of_the_classes():
    """What lists say is what `from_spec` accepts and what Specs give."""
    for key, entry in entries("model").items():
        assert facts(entry)["kinds"] == [*entry.load().accepts] and facts(entry)["tasks"], key
    for key, entry in entries("dataset").items():
        assert facts(entry)["kinds"] == [entry.load().kind] and entry.load().kind in kinds(), key
    for key, entry in entries("task").items():
        assert facts(entry)["kinds"] == [*entry.load().kinds] != [], key


def test_recipes_are_listed_under_the_task_that_their_files_state():
    by_task = {task: select("recipes", task=task) for task in entries("task")}
    for name, file in recipe_files().items():
        found = named(str(file))
        assert [task for task, recipes in by_task.items() if name in recipes] == [found["task"].key], name
        assert stated(found["data"], "kind") in facts(found["model"])["kinds"], name
        assert found["task"].key in facts(found["model"])["tasks"], name


def test_python_refuses_names_that_there_are_not():
    with pytest.raises(ZooError, match="unknown task 'next-item'; did you mean 'next_item'"):
        statezoo.list_models(task="next-item")


# beside the verbs ---------------------------------------------------------------------------------------------------


def test_version_and_bare_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"statezoo {statezoo.__version__}\n"
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert bare == capsys.readouterr().out != ""
