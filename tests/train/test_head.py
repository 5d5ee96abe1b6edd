"""The head of a run is whole or not there: a kill at any write of it, and a refused run, leave nothing in the way."""

import multiprocessing
import os
import shutil

import pytest
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json, write_json
from statezoo.zoo.recipe import Recipe
from statezoo.zoo.train import head
from statezoo.zoo.train.run import train

LEFT = ("recipe.yaml", "prep/spec.json", "config.json", "model.safetensors", "predictions.npz")
spawn = multiprocessing.get_context("forkserver")
spawn.set_forkserver_preload(["statezoo.zoo.train.run", "statezoo.zoo.train.finish", "statezoo.tasks.next_item"])

# A run of a model that is fitted in no time, killed at each event of the system that changes something in its folder,
# then gone on with, by --resume where there is a recipe.yaml and by the same command where there is none.
KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from statezoo.zoo.files import hash_file, read_json
from statezoo.zoo.train.run import train

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")


def forked(run, moment, **how):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        places = [os.fsdecode(place) for place in arguments if isinstance(place, (str, bytes, os.PathLike))]
        if event in EVENTS and not (event == "open" and arguments[1] == "r") and any(p.startswith(run) for p in places):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        train("popularity/ml-100k", sample=True, quiet=True, **how)
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)


def left(run):
    files = [p for p in Path(run).rglob("*") if p.is_file() and p.name != "record.json"]
    names = {str(p.relative_to(run)): hash_file(p) for p in files}
    record = read_json(Path(run, "record.json"))
    return names, record["metrics"], record["model"]["prep_sha256"], record["code"]


def kill_everywhere(run, stride, double):
    assert forked(run + "-whole", 0, folder=Path(run + "-whole")) == 0
    data = read_json(Path(run + "-whole", "data.json"))
    moment, resumed = 1, 0
    while True:
        status = forked(run, moment, folder=Path(run))
        if status == 0:
            break
        assert status == signal.SIGKILL, (moment, status)
        for again in (double, 0) if double else (0,):
            whole = os.path.isfile(run + "/recipe.yaml")
            resumed += whole
            status = forked(run, again, **({"resume": run} if whole else {"folder": Path(run)}))
            if status == 0:
                break
        assert status == 0, (moment, status)
        assert left(run) == left(run + "-whole"), moment
        assert read_json(Path(run, "data.json")) == data
        shutil.rmtree(run)
        moment += stride
    assert moment > 40 and 0 < resumed, (moment, resumed)
"""


@pytest.mark.parametrize(
    ("stride", "double"),
    [(4, 0), pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(1, 9, marks=pytest.mark.slow)],
)
def test_killed_at_any_write_it_goes_on_to_the_same_bytes(tmp_path, stride, double):
    """`double`: the attempt to go on is killed as well, at that write of its own."""
    train("popularity/ml-100k", sample=True, folder=tmp_path / "first", quiet=True)  # the sample is in the cache
    call = f"kill_everywhere({str(tmp_path / 'run')!r}, {stride}, {double})"
    process = spawn.Process(target=exec, args=(f"{KILLS}\n{call}", {"__name__": "kills"}))
    process.start()
    process.join()
    assert process.exitcode == 0


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


REFUSED = {
    "an unknown optimizer": ("sasrec/ml-100k", ["train.optimizer=none-such"], "optimizer"),
    "a model for another task": ("pointnet_seg/anatomy-bones-classification", [], "made for segmentation"),
    "no step to make": ("sasrec/ml-100k", ["train.max_steps=0"], "nothing to train"),
    "weights that are not there": ("sasrec/ml-100k", ["train.init_from=nowhere"], "no weights there"),
    "a loss that is no number": (
        "mlp/digits", ["train.optimizer=sgd", "train.lr=1e30", "train.log_every=1000", "train.logger=null"], "lower",
    ),
}  # fmt: skip


PLACES = ("of its own", "deep", "there already", "chosen by the zoo")


@pytest.mark.parametrize(
    ("why", "place"),
    [*((why, "of its own") for why in REFUSED), *(("no step to make", place) for place in PLACES[1:]),
     ("a model for another task", "there already"), ("a loss that is no number", "there already")],
)  # fmt: skip
def test_a_refused_run_leaves_nothing(why, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATEZOO_RUNS")
    source, overrides, told = REFUSED[why]
    folder = {"of its own": tmp_path / "run", "deep": tmp_path / "a" / "b" / "run", "there already": tmp_path / "mine"}
    if place == "there already":
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("keep")
    before = tree(tmp_path)
    with pytest.raises(ZooError, match=told):
        train(source, overrides, sample=True, folder=folder.get(place), quiet=True)
    assert tree(tmp_path) == before


def test_a_refused_start_leaves_a_run_that_is_there_alone(tmp_path):
    run = train("popularity/ml-100k", sample=True, folder=tmp_path / "run", quiet=True)
    (run / "record.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ZooError, match="holds a run already; add --resume"):
        train("popularity/ml-100k", sample=True, folder=run, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.fixture
def unfinished(tmp_path):
    """A run that was killed as it wrote its record."""
    run = train("popularity/ml-100k", sample=True, folder=tmp_path / "run", quiet=True)
    (run / "record.json").unlink()
    return run


@pytest.mark.parametrize(
    ("now", "then", "named"),
    [
        ("max_len: 20", "max_len: 19", "data.max_len=20"),
        ("seed: 0", "seed: 1", "seed=0"),
        ("- 10\n", "- 11\n", "task.topk="),
        ("log_every: 20", "log_every: 2", "train.log_every=20"),
        ("eval_batch_size: null", "eval_batch_size: 3", "train.eval_batch_size=null"),
        ("loss_chunk: null", "loss_chunk: 7", "task.loss_chunk=null"),
    ],
)
def test_an_edited_recipe_is_not_believed(unfinished, now, then, named):
    recipe = unfinished / "recipe.yaml"
    assert now in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(now, then))
    with pytest.raises(ZooError, match=rf"recipe\.yaml: has been edited, the run began with {named}"):
        train("popularity/ml-100k", resume=str(unfinished), quiet=True)


@pytest.mark.parametrize(
    "override", ["train.eval_batch_size=7", "train.log_every=3", "task.loss_chunk=7", "train.compile=true",
                 "train.devices=2", "train.init_from=x.safetensors", "train.deterministic=false"],
)  # fmt: skip
def test_overrides_that_change_bytes_are_refused_at_resume(unfinished, override):
    with pytest.raises(ZooError, match=f"was started with {override.split('=')[0]}=.*; drop the override or start"):
        train("popularity/ml-100k", [override], resume=str(unfinished), quiet=True)


def test_what_has_no_say_may_change(unfinished):
    words = ["train.workers=1", "train.save_every=9", "train.logger=CSVLogger"]
    train("popularity/ml-100k", words, resume=str(unfinished), quiet=True)
    assert (unfinished / "record.json").is_file()


def test_a_setting_that_only_the_head_knows_is_an_edit(unfinished):
    facts = read_json(unfinished / "data.json")
    facts["recipe"]["model"]["beta"] = 2
    write_json(unfinished / "data.json", facts)
    with pytest.raises(ZooError, match=r"has been edited, the run began with model\.beta=2"):
        train("popularity/ml-100k", resume=str(unfinished), quiet=True)


def test_the_recipe_is_the_last_of_the_head_to_be_written(tmp_path, monkeypatch):
    there, save = [], Recipe.save
    monkeypatch.setattr(Recipe, "save", lambda self, path: there.append(tree(path.parent)) or save(self, path))
    train("popularity/ml-100k", sample=True, folder=tmp_path / "run", quiet=True)
    assert len(there) == 1 and {"data.json", "prep/spec.json"} <= set(there[0])


@pytest.mark.parametrize(
    ("text", "commit"), [("node: " + "a" * 40, "a" * 40), ("node: $Format:%H$", None), (None, None)]
)
def test_an_archive_is_of_the_commit_that_git_wrote_into_it(text, commit, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "ROOT", tmp_path)
    if text is not None:
        (tmp_path / ".git_archival.txt").write_text(text + "\n")
    assert head.code() == {"version": head.__version__, "commit": commit, "dirty": None}


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"sample": 1}', None])
def test_a_head_without_its_facts_is_named(unfinished, damage):
    (unfinished / "data.json").unlink() if damage is None else (unfinished / "data.json").write_text(damage)
    with pytest.raises(ZooError, match=r"data\.json: .*(restore|put it back)"):
        train("popularity/ml-100k", resume=str(unfinished), quiet=True)


def test_prep_is_made_whole_again(unfinished):
    whole = hash_file(unfinished / "prep" / "spec.json")
    (unfinished / "prep" / "spec.json").write_text("half")
    (unfinished / "prep" / ".spec.json.abcd1234.json").write_text("of a killed process")
    (unfinished / ".model.safetensors.abcd1234.safetensors").write_text("of a killed process")
    train("popularity/ml-100k", resume=str(unfinished), quiet=True)
    assert hash_file(unfinished / "prep" / "spec.json") == whole
    assert not [path for path in unfinished.rglob(".*") if path.name != ".lock"]


def test_a_run_that_starts_again_is_of_the_code_that_runs_now(unfinished):
    facts = read_json(unfinished / "data.json")
    assert facts["code"] == head.code()
    write_json(unfinished / "data.json", facts | {"code": facts["code"] | {"commit": "0" * 40}})
    train("popularity/ml-100k", resume=str(unfinished), quiet=True)
    assert read_json(unfinished / "record.json")["code"] == facts["code"], "no state was saved: all of it ran now"


def test_resume_finds_a_run_that_was_killed_behind_its_head(tmp_path, monkeypatch):
    monkeypatch.setenv("STATEZOO_RUNS", str(tmp_path / "runs"))
    run = train("popularity/ml-100k", sample=True, quiet=True)
    for path in run.iterdir():
        if path.name not in ("recipe.yaml", "data.json", "prep"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train("popularity/ml-100k", sample=True, resume=True, quiet=True) == run
    assert os.listdir(run.parent) == [run.name]


def test_places_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    words = ["train", "popularity/ml-100k", "--sample"]
    assert main([*words, "--folder", str(tmp_path / "file" / "run")]) == 2
    monkeypatch.setenv("STATEZOO_RUNS", str(tmp_path / "file" / "runs"))
    assert main(words) == 2
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path / "file" / "cache"))
    assert main([*words, "--folder", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith(f"error: {tmp_path / 'file'}") for line in told)
    remedies = ("choose another folder", "set STATEZOO_RUNS to", "set STATEZOO_CACHE to")
    assert all(remedy in line for line, remedy in zip(told, remedies, strict=True))
    assert os.listdir(tmp_path) == ["file"]
