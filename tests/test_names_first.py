"""A misspelt name is told before anything heavy is imported, and what sources state is what constructors take."""

import json
import os
import subprocess
import sys

import pytest
from jsonargparse import ArgumentParser
from statezoo.zoo import source
from statezoo.zoo.errors import ZooError
from statezoo.zoo.recipe import check_names, load, recipe_files
from statezoo.zoo.registry import Entry, entries

GUARDED = """
import contextlib, io, json, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, NoTorch())
from statezoo.zoo.cli import main

told = {}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = main(command.split())
    told[command] = (code, error.getvalue())
print(json.dumps(told))
"""


def without_torch(commands, folder):
    """Exit code and message of commands in one interpreter that cannot import torch."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, json.dumps(commands)],
        env=clean, cwd=folder, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MISSPELT = {
    "train sasrek/ml-100k": "unknown model 'sasrek'; did you mean 'sasrec'?",
    "train sasrec/ml-100q": "unknown dataset 'ml-100q'; did you mean 'ml-100k'?",
    "train sasrec/ml-100k-next_itm": "unknown task 'next_itm' in recipe sasrec/ml-100k-next_itm; did you mean 'next_i",
    "train pointnet/medpoints-segmentaton": "unknown task 'segmentaton' in recipe pointnet/medpoints-segmentaton; did",
    "train sasrec/ml-100k-segmentation": "unknown task 'segmentation' in data set ml-100k; valid: next_item",
    "train sasrec/ml-100k@globaltime": "unknown split 'globaltime' in recipe sasrec/ml-100k@globaltime; did you mean",
    "train point_ssm/anatomy-bones@fold9": "unknown split 'fold9' in recipe point_ssm/anatomy-bones@fold9; did you m",
    "train sasrec": "unknown recipe 'sasrec'; did you mean 'sasrec/",
    "train sasrec/ml-100k train.lrr=1": "unknown key 'train.lrr' in recipe sasrec/ml-100k; did you mean 'train.lr'?",
    "train sasrec/ml-100k model.dimm=1": "unknown key 'model.dimm' in recipe sasrec/ml-100k; did you mean 'model.dim'",
    "train sasrec/ml-100k model.num_items=1": "unknown key 'model.num_items' in recipe sasrec/ml-100k",
    "train sasrec/log data.seperator=;": "unknown key 'data.seperator' in recipe sasrec/log; did you mean 'data.sep",
    "train sasrec/ml-100k task.topkk=1": "unknown key 'task.topkk' in recipe sasrec/ml-100k; did you mean 'task.topk'",
    "train sasrec/ml-100k tran.lr=1": "unknown key 'tran' in recipe sasrec/ml-100k; did you mean 'train'?",
    "train sasrec/ml-100k model.name=gru4rek": "unknown model 'gru4rek'; did you mean 'gru4rec'?",
    "train sasrec/ml-100k data.name=ml-100q --sample": "unknown dataset 'ml-100q'; did you mean 'ml-100k'?",
    "train mamba_lm/characters model.mixer.name=s44d": "unknown mixer 's44d' in recipe mamba_lm/characters (",
    "train mamba_lm/characters model.mixer=sd4": "unknown mixer 'sd4' in recipe mamba_lm/characters (model.mixer); did",
    "train mamba_lm/characters model.mixers=[s6,s44d]": "unknown mixer 's44d' in recipe mamba_lm/characters (model.mix",
    "train mamba_lm/characters model.attention.name=atention": "unknown mixer 'atention' in recipe mamba_lm/characters",
    "train mamba4rec/ml-100k model.mixer.name=s7": "unknown mixer 's7' in recipe mamba4rec/ml-100k (model.mixer); v",
    "bench mamba4rec/ml-100k model.mixer=mlstn": "unknown mixer 'mlstn' in recipe mamba4rec/ml-100k (model.mixer); did",
    "train sasrec/ml-100k --resume nowhere": "nowhere: no recipe.yaml, so no run to resume; check the path",
    "train nowhere.yaml": "no file nowhere.yaml; give a recipe id",
    "bench x/y": "unknown model 'x'; ",
    "bench sasrec/ml-100k train.lrr=1 --sample": "unknown key 'train.lrr' in recipe sasrec/ml-100k; did you mean",
    "predict no-such-run": "no-such-run: no recipe.yaml; give the folder of a finished run",
    "predict no-such-run --log nofile": "nofile: no such file or folder; check the path",
    "eval x": "x: no recipe.yaml; give the folder of a finished run",
    "leaderboard nosuch": "unknown benchmark 'nosuch'; valid: anatomy-bones-classification@fold1",
    "leaderboard ml-100k-next_item@leave-two-outt": "unknown benchmark 'ml-100k-next_item@leave-two-outt'; did you me",
    "data describe medpoint": "unknown dataset 'medpoint'; did you mean 'medpoints'?",
    "data check medpoints pionts=3": "unknown argument 'pionts' in MedPointS; did you mean 'points'?",
}


def test_misspelt_names_are_told_without_torch(tmp_path):
    told = without_torch(list(MISSPELT), tmp_path)
    for command, message in MISSPELT.items():
        code, error = told[command]
        assert code == 2 and error.count("\n") == 1, (command, error)
        assert error.startswith(f"error: {message}"), (command, error)
    assert not list(tmp_path.iterdir())


# what sources state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset", "task"])
def test_arguments_by_the_source_are_those_of_the_constructor(kind):
    """Were one missing, a right key would be refused before the constructor is asked."""
    for key, entry in entries(kind).items():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(
            entry.load(), skip={"model", "spec"} if kind == "task" else set(), fail_untyped=False
        )
        taken = {action.dest for action in parser._actions} - {"help"}
        assert set(source.arguments(entry)) - {"model", "spec"} == taken, key


@pytest.mark.parametrize(
    ("kind", "names"), [("model", ("accepts", "inputs", "given", "serves")), ("dataset", ("tasks",))]
)
def test_attributes_by_the_source_are_those_of_the_class(kind, names):
    for entry in entries(kind).values():
        cls = entry.load()
        for name in names:
            assert source.stated(entry, name, ()) == getattr(cls, name), (entry.key, name)


def test_every_recipe_passes_by_name():
    for name in recipe_files():
        check_names(name)


OPEN = '''
from somewhere_else import Base
from statezoo.zoo.data.base import Dataset


class Unknown(Base):
    """Its base cannot be followed."""

    tasks = ("classification",)

    def __init__(self, *, own: int = 1, **base):
        super().__init__(**base)


class Elsewhere(Dataset):
    """Its keywords go to a function, too."""

    tasks = ("classification",)

    def __init__(self, *, own: int = 1, **options):
        super().__init__(root=None)
        self.options = function(**options)


class Followed(Dataset):
    """Its base is the zoo's."""

    tasks = ("classification",)

    def __init__(self, *, own: int = 1, **base):
        super().__init__(**base)


class Loop(Loop):
    """Its own base."""

    tasks = ("classification",)
'''


def test_what_the_source_does_not_tell_is_left_to_the_constructor(tmp_path):
    file = tmp_path / "sets.py"
    file.write_text(OPEN)
    found = {name: Entry("dataset", "x", "m", name, "", file) for name in ("Unknown", "Elsewhere", "Followed", "Loop")}
    assert {name: source.arguments(entry) for name, entry in found.items()} == {
        "Unknown": None, "Elsewhere": None, "Followed": {"own": (), "root": (), "subset": ()}, "Loop": None,
    }  # fmt: skip
    assert source.stated(found["Unknown"], "tasks") == ("classification",)
    assert source.stated(found["Followed"], "urls") == {} and source.stated(found["Unknown"], "urls") is None


def test_python_and_the_command_refuse_in_the_same_words():
    with pytest.raises(ZooError) as by_load:
        load("sasrec/ml-100k@globaltime")
    assert str(by_load.value) == MISSPELT["train sasrec/ml-100k@globaltime"] + " 'global-time'?"
