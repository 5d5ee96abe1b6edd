"""Runs, records and recipes that were made to do harm: one line that names file, fault and remedy; nothing written."""

import hashlib
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from statezoo.leaderboards import board
from statezoo.zoo import api
from statezoo.zoo.cli import main
from statezoo.zoo.data.cache import cached
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json, write_json
from statezoo.zoo.recipe import load
from statezoo.zoo.train import state
from statezoo.zoo.train.inference import open_run
from statezoo.zoo.train.rows import load_rows
from statezoo.zoo.train.run import train

SHORT = ["train.max_steps=2", "train.logger=null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    made = {}
    for name, recipe in (("image", "mlp/digits"), ("log", "sasrec/ml-100k"), ("knn", "item-knn/ml-100k")):
        made[name] = train(recipe, SHORT, sample=True, folder=folder / name, quiet=True)
    return made


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained["image"], tmp_path / "run")


@pytest.fixture
def log_run(trained, tmp_path):
    return shutil.copytree(trained["log"], tmp_path / "log")


def refused(call, *arguments, names="", **options):
    """The line that a call fails with, which names the file."""
    with pytest.raises(ZooError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 5000 and str(names) in text and "; " in text, text
    return text


def edit(path, change):
    value = read_json(path)
    change(value)
    path.write_text(json.dumps(value))


# config and weights -------------------------------------------------------------------------------------------------

CONFIGS = {
    "a list": [],
    "a number": 3,
    "no name": {"config": {}},
    "name is a list": {"name": ["mlp"], "config": {}},
    "no config": {"name": "mlp"},
    "config is a list": {"name": "mlp", "config": [1]},
    "unknown model": {"name": "mlpp", "config": {}},
    "path of a folder": {"name": "../../etc", "config": {}},
    "a module": {"name": "os:system", "config": {}},
    "unknown argument": {"argument": 3},
    "argument of another type": {"dim": "wide"},
    "argument is a mapping": {"hidden": {"class_path": "os.system"}},
    "no argument": {"num_outputs": None},
    "huge": {"hidden": 10**12},
    "large": {"hidden": 10**6},
    "negative": {"hidden": -3},
    "a share": {"dropout": 7},
    "other sizes": {"hidden": 65},
    "a flag for a number": {"hidden": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configs(run, config):
    if isinstance(config, dict) and "name" not in config and "config" not in config:
        config = {"name": "mlp", "config": read_json(run / "config.json")["config"] | config}
    write_json(run / "config.json", config)
    refused(api.load, run)


def test_a_config_may_not_ask_for_layers_without_end(log_run):
    edit(log_run / "config.json", lambda saved: saved["config"].update(layers=10**9))
    told = refused(api.load, log_run, names=log_run / "model.safetensors")
    assert "far more" in told and "than it holds" in told


WEIGHTS = {
    "another shape": (lambda w, n: w.update({n: w[n][:-1].contiguous()}), "differ"),
    "whole numbers": (lambda w, n: w.update({n: w[n].long()}), "differ"),
    "one missing": (lambda w, n: w.pop(n), "missing"),
    "one too many": (lambda w, n: w.update(extra=torch.zeros(3)), "none of the model's"),
    "nothing": (lambda w, n: w.clear(), "missing"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(run, name):
    change, said = WEIGHTS[name]
    weights = load_file(run / "model.safetensors")
    change(weights, sorted(weights)[0])
    save_file(weights, run / "model.safetensors")
    for call in (api.load, open_run):
        told = refused(call, run, names=run / "model.safetensors")
        assert said in told or name == "nothing"
    code = main(["eval", str(run)])
    assert code == 2


def test_a_header_that_claims_a_terabyte(run):
    path = run / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refused(api.load, run, names=path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    refused(api.load, run, names=path)


@pytest.mark.parametrize("kind", ["near", "similarity", "missing", "negative"])
def test_states_of_models_that_are_no_networks(trained, tmp_path, kind):
    run = shutil.copytree(trained["knn"], tmp_path / "knn")
    state = load_file(run / "model.safetensors")
    if kind == "missing":
        del state["near"]
    elif kind == "similarity":
        state["similarity"] = state["similarity"].double()
    else:
        state["near"][0, 0] = -1 if kind == "negative" else 10**6
    save_file(state, run / "model.safetensors")
    refused(api.load, run, names=run / "model.safetensors")


# what a run says of itself ------------------------------------------------------------------------------------------

RECIPES = {
    "a list": "- model\n",
    "empty": "",
    "a word": "recipe\n",
    "another number": lambda raw: raw["data"].update(max_len=10**9),
    "a bomb": "a: &a [x]\nb: &b [*a, *a]\n",
    "a key twice": "model: {name: sasrec}\nmodel: {name: sasrec}\n",
    "another model": lambda raw: raw.update(model={"name": "gru4rec"}),
    "a model of another task": lambda raw: raw.update(model={"name": "mlp"}),
    "no data": lambda raw: raw.pop("data"),
    "a section that is text": lambda raw: raw.update(task="next_item"),
    "workers without end": lambda raw: raw["train"].update(workers="many"),
}


@pytest.mark.parametrize("change", RECIPES.values(), ids=RECIPES)
def test_recipes_of_runs(log_run, change):
    path = log_run / "recipe.yaml"
    if isinstance(change, str):
        path.write_text(change)
    else:
        raw = yaml.safe_load(path.read_text())
        change(raw)
        path.write_text(yaml.safe_dump(raw))
    refused(open_run, log_run, prepared=False)
    assert main(["predict", str(log_run), str(log_run)]) == 2


def test_a_run_starts_no_more_loaders_than_there_are_cores(log_run):
    raw = yaml.safe_load((log_run / "recipe.yaml").read_text())
    raw["train"]["workers"] = 1000
    (log_run / "recipe.yaml").write_text(yaml.safe_dump(raw))
    assert open_run(log_run, prepared=False).config.workers <= os.cpu_count()
    raw["train"]["workers"] = 10**6
    (log_run / "recipe.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ZooError, match="train.workers=1000000: give at most 1024"):
        open_run(log_run, prepared=False)


HEADS = {
    "a list": [],
    "no sample": {},
    "sample is text": {"sample": "yes"},
    "hash is a number": {"sample": True, "split_sha256": 3},
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads(log_run, head):
    write_json(log_run / "data.json", head)
    refused(open_run, log_run, names=log_run / "data.json")
    (log_run / "record.json").unlink()
    refused(train, "sasrec/ml-100k", sample=True, resume=str(log_run), names=log_run / "data.json")


SPECS = {
    "a list": lambda spec: [],
    "no inputs": lambda spec: spec.pop("inputs"),
    "more": lambda spec: spec.update(more=1),
    "another kind": lambda spec: spec["inputs"].update(kind="clouds"),
    "a negative size": lambda spec: spec["sizes"].update(num_items=-1),
    "a size that is true": lambda spec: spec["sizes"].update(num_items=True),
    "a huge size": lambda spec: spec["sizes"].update(num_items=10**12),
    "a huge tensor": lambda spec: spec["inputs"]["tensors"]["items"].update(shape=[10**9]),
    "items that are numbers": lambda spec: spec["inputs"].update(vocabulary=[1, 2]),
    "a shape that is text": lambda spec: spec["inputs"]["tensors"]["items"].update(shape="50"),
    "no tensors": lambda spec: spec["inputs"].update(tensors={}),
    "no dtype": lambda spec: spec["inputs"]["tensors"]["items"].pop("dtype"),
}


@pytest.mark.parametrize("change", SPECS.values(), ids=SPECS)
def test_specs(log_run, change):
    path = log_run / "prep/spec.json"
    spec = read_json(path)
    changed = change(spec)
    write_json(path, changed if changed == [] else spec)
    refused(open_run, log_run, prepared=False)


STATES = {
    "no model": lambda state: state.pop("model"),
    "no progress": lambda state: state.pop("progress"),
    "steps that are text": lambda state: state["progress"].update(step="many"),
    "more progress": lambda state: state["progress"].update(more=1),
    "steps that are no number": lambda state: state["progress"].update(step=float("nan")),
    "another shape": lambda state: state["model"].update({next(iter(state["model"])): torch.zeros(3)}),
    "a tensor too many": lambda state: state["model"].update(extra=torch.zeros(3)),
    "a tensor that claims a terabyte": lambda state: state["model"].update(
        {next(iter(state["model"])): torch.zeros(1).expand(1 << 38)}
    ),
    "moments of another shape": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(2, 2)),
    "fewer groups": lambda state: state["optimizer"]["param_groups"].pop(),
    "a group without a rate": lambda state: state["optimizer"]["param_groups"][0].pop("lr"),
    "another schedule": lambda state: state["scheduler"].update(step=3),
    "a list": lambda state: [],
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states(log_run, change):
    path = log_run / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    # as if it had been stopped between two steps
    state["progress"]["step"] = 1
    changed = change(state)
    torch.save(changed if changed == [] else state, path)
    (log_run / "record.json").unlink()
    refused(train, "sasrec/ml-100k", sample=True, resume=str(log_run), quiet=True, names=path)


class Evil:
    def __reduce__(self):
        return open, ("evil", "w")


def test_states_that_run_code_or_unpack_without_end(log_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = log_run / "checkpoints/last.ckpt"
    (log_run / "record.json").unlink()
    good = torch.load(path, weights_only=True)

    def resumed():
        return refused(train, "sasrec/ml-100k", sample=True, resume=str(log_run), quiet=True, names=path)

    torch.save(good | {"more": Evil()}, path)
    assert "damaged" in resumed()
    state._seal(path)
    resumed()
    torch.save(good, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    state._seal(path)
    assert "compressed" in resumed()
    evil = b"\x80\x02c__builtin__\nopen\n(X\x04\x00\x00\x00evilX\x01\x00\x00\x00wtR."
    path.write_bytes(evil + hashlib.sha256(evil).hexdigest().encode())
    resumed()
    assert not (tmp_path / "evil").exists()


# rows ---------------------------------------------------------------------------------------------------------------


def npy(header: dict, data: bytes = b"", version=b"\x01\x00") -> bytes:
    text = (repr(header) + "\n").encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def header(shape, descr="<f8"):
    return {"descr": descr, "fortran_order": False, "shape": shape}


ROWS = {
    "objects": npy(header((1,), "|O"), b"\x80\x04N."),
    "a terabyte": npy(header((1 << 37,)), bytes(8)),
    "a product that overflows": npy(header((1 << 32, 1 << 32, 4)), bytes(8)),
    "negative": npy(header((-1,)), bytes(8)),
    "too little": npy(header((2,)), bytes(8)),
    "too much": npy(header((1,)), bytes(16)),
    "text without width": npy(header((10**9,), "<U0")),
    "a record": npy(header((1,), [("a", "<f8")]), bytes(8)),
    "a shape of text": npy(header("x"), bytes(8)),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "code": npy({"descr": "__import__('os')", "fortran_order": False, "shape": (1,)}, bytes(8)),
    "no array": b"hello",
}


@pytest.mark.parametrize("data", ROWS.values(), ids=ROWS)
def test_rows(tmp_path, data):
    path = tmp_path / "predictions.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("id.npy", data)
    refused(load_rows, path, names=path)


def test_rows_that_unpack_without_end(tmp_path):
    path = tmp_path / "predictions.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("id.npy", npy(header((8 << 20,)), bytes(64 << 20)))
    assert path.stat().st_size < 1 << 20
    assert "unpacks to" in refused(load_rows, path, names=path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_rows_of_one_name_twice_or_of_none(tmp_path):
    path = tmp_path / "predictions.npz"
    for names in (["id.npy", "id.npy"], ["id.npy", "../x"], ["x.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, npy(header((1,)), bytes(8)))
        refused(load_rows, path, names=path)


@pytest.mark.parametrize("change", ["missing", "renamed", "shorter", "text"])
def test_rows_that_are_not_the_tasks(run, change):
    path, rows = run / "predictions.npz", load_rows(run / "predictions.npz")
    if change in ("missing", "renamed"):
        rows["other" if change == "renamed" else "id"] = rows.pop("prob") if change == "renamed" else rows["id"]
        rows.pop("prob", None)
    elif change == "shorter":
        rows["target"] = rows["target"][:-1]
    else:
        rows["prob"] = rows["prob"].astype(str)
    with open(path, "wb") as file:
        np.savez(file, **rows)
    sums = {"sha256": hash_file(path), "bytes": path.stat().st_size}
    edit(run / "record.json", lambda record: record["predictions"].update(sums))
    found = board.Found(board.read_record(run / "record.json"), run / "record.json")
    refused(board.verify, found)


# records and names --------------------------------------------------------------------------------------------------


def put(*path):
    *above, (last, value) = path

    def change(record):
        for key in above:
            record = record[key]
        record[last] = value

    return change


RECORD = {
    "a name that climbs": put("benchmark", ("dataset", "../../../evil")),
    "a split that climbs": put("benchmark", ("split", "../evil")),
    "a task that climbs": put("benchmark", ("task", "../evil")),
    "an unknown task": put("benchmark", ("task", "magic")),
    "a model that climbs": put("model", ("name", "../../evil")),
    "an absolute model": put("model", ("name", "/tmp/evil")),
    "a model that is dots": put("model", ("name", "..")),
    "a model of look-alikes": put("model", ("name", "s\u0430srec")),
    "a model with a line break": put("model", ("name", "a\nb")),
    "a model with a NUL": put("model", ("name", "a\0b")),
    "a long model": put("model", ("name", "x" * 300)),
    "an id that climbs": put("recipe", ("id", "sasrec/../../x")),
    "an absolute id": put("recipe", ("id", "/etc/x")),
    "true for a number": put("metrics", "accuracy", ("value", True)),
    "text for a number": put("metrics", "accuracy", ("value", "0.9")),
    "true for a seed": put(("seed", True)),
    "a negative seed": put(("seed", -1)),
    "a share for a count": put("model", ("parameters", 1.5)),
    "the other direction": put("metrics", "accuracy", ("better", "lower")),
    "an unknown metric": put("metrics", ("magic", {"value": 1.0, "low": None, "high": None, "better": "higher"})),
    "another primary": put(("primary", "accuracy")),
    "a primary that is not there": put(("primary", "magic")),
    "no hash": put("predictions", ("sha256", "x")),
    "a short hash": put("data", ("manifest_sha256", "ab" * 31)),
    "no test part": put("data", ("n", {"train": 3})),
    "no split": put("data", ("split_sha256", [])),
    "no sections": put("recipe", ("scientific", {})),
    "one key more": put(("more", 1)),
    "a list": lambda record: record.clear(),
}


@pytest.mark.parametrize("change", RECORD.values(), ids=RECORD)
def test_records(run, change, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "RECORDS", tmp_path / "boards" / "records")
    edit(run / "record.json", lambda record: record["benchmark"].update(sample=False))
    edit(run / "record.json", change)
    before = sorted(tmp_path.rglob("*"))
    refused(board.add, run, names=run / "record.json")
    assert main(["leaderboard", "--add", str(run)]) == 2 and main(["eval", str(run)]) == 2
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written anywhere"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_are_none(run, number):
    text = (run / "record.json").read_text()
    (run / "record.json").write_text(text.replace('"seed": 0', f'"seed": {number}', 1))
    refused(board.read_record, run / "record.json", names=run / "record.json")


def test_a_good_record_is_added_below_the_boards(run, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "RECORDS", tmp_path / "records")
    edit(run / "record.json", lambda record: record["benchmark"].update(sample=False))
    target = board.add(run)
    assert target.is_relative_to(tmp_path / "records") and board.read_record(target).id == target.stem
    edit(run / "record.json", lambda record: record["metrics"]["accuracy"].update(value=0.99))
    assert "the record is wrong" in refused(board.add, run)


IDS = [
    "../../evil",
    "mlp/../../evil",
    "/tmp/evil",
    "mlp//digits",
    "mlp/..",
    "",
    "a\nb",
    "a\0b",
    "x" * 300,
    ["a"],
    3,
    "d\u0456gits",
]


@pytest.mark.parametrize("given", IDS, ids=lambda given: repr(given)[:20])
def test_ids_out_of_files_are_names(tmp_path, given):
    recipe = {"id": given, "model": {"name": "mlp"}, "data": {"name": "digits"}, "task": {"name": "classification"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(tmp_path.parent.rglob("evil*"))
    refused(train, str(tmp_path / "mine.yaml"), SHORT, sample=True, quiet=True, names="mine.yaml")
    assert sorted(tmp_path.parent.rglob("evil*")) == before and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "source", ["mlp/digits@../../evil", "mlp/digits@", "mlp/../digits", "../mlp/digits", "mlp/digits@a\nb"]
)
def test_ids_that_are_typed_lead_nowhere_else(tmp_path, source):
    refused(load, source) if source != "mlp/digits@" else load(source)


def test_runs_of_typed_paths_lie_below_the_runs(tmp_path, monkeypatch):
    """Whatever folders a user types to a file, and whatever a recipe's file is called."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "nets/net.py").write_text(
        "from statezoo.zoo.backbones.baselines.mlp import MLP\n\n\nclass Net(MLP):\n    configs = {'net': {}}\n"
    )
    (tmp_path / "deep/er/m\u00ef ne!.yaml").write_text(
        "model: {name: mlp}\ndata: {name: digits}\ntask: {name: classification}\n"
    )
    monkeypatch.chdir(tmp_path / "deep/er")
    runs = tmp_path / "runs"
    for source, place in (
        ("../../nets/net.py/digits", "net.py/digits-sample"),
        (f"{tmp_path}/deep/../nets/net.py/digits", "net.py/digits-sample"),
        ("m\u00ef ne!.yaml", "m-ne-.yaml"),
    ):
        run = train(source, SHORT, sample=True, quiet=True)
        assert run.resolve().is_relative_to(runs) and ".." not in run.parts
        assert place.removesuffix(".yaml") in str(run)


def test_a_sample_is_written_into_its_folder(tmp_path):
    (tmp_path / "mine.csv").write_text("precious")
    for name in (str(tmp_path / "mine.csv"), "../../../../../../../../" + str(tmp_path / "mine.csv")):
        refused(train, "sasrec/log", [f"data.file={name}", *SHORT], sample=True, quiet=True)
    assert (tmp_path / "mine.csv").read_text() == "precious"


def test_a_split_that_no_record_can_name_is_told_before_training(tmp_path):
    (tmp_path / "sets.py").write_text(
        "from statezoo.datasets.images.digits import Digits\n\n\nclass Sets(Digits):\n"
        '    tasks = ("classification",)\n    split_name = "../mine"\n'
    )
    told = refused(train, f"mlp/{tmp_path}/sets.py", SHORT, sample=True, quiet=True, folder=tmp_path / "run")
    assert "split '../mine' is no name" in told and not (tmp_path / "run/metrics.csv").exists()
    (tmp_path / "my sets.py").write_text((tmp_path / "sets.py").read_text())
    assert "'my sets.py' is no name" in refused(load, f"mlp/{tmp_path}/my sets.py")


def test_cache_entries_have_names(tmp_path):
    for name in ("../evil", "/tmp/evil", "a/b", ""):
        refused(cached, name, {"a": 1}, lambda: ({"x": np.zeros(3)}, {}))


def test_a_cache_entry_that_is_not_whole_is_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))

    def entry():
        return cached("set", {"a": 1}, lambda: ({"x": np.zeros(3)}, {"n": 1}))

    entry()
    (folder,) = (path for path in (tmp_path / "set").iterdir() if path.is_dir())
    broken = {"x.npy": npy(header((1 << 37,)), bytes(8)), "facts.json": b'{"n": 2}', "contents.json": b"[]"}
    for name, data in broken.items():
        (folder / name).write_bytes(data)
        arrays, facts = entry()
        assert arrays["x"].tolist() == [0, 0, 0] and facts == {"n": 1}
        assert f"{folder}: " in capsys.readouterr().err
