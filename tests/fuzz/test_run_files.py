"""Every file of a run, changed in hundreds of ways: a result or one line, no other error, no hang, no gigabytes."""

import hashlib
import shutil
import warnings

import pytest
from _mutate import COUNT, json_files, limits, mutants, survives, yaml_files
from statezoo.leaderboards import board
from statezoo.zoo import api
from statezoo.zoo.data.cache import Damaged, fetch, store
from statezoo.zoo.data.spec import Spec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.recipe import load
from statezoo.zoo.train import head, state
from statezoo.zoo.train.csvlog import CsvLog, read_log
from statezoo.zoo.train.engine import check_state
from statezoo.zoo.train.inference import open_run
from statezoo.zoo.train.rows import load_rows
from statezoo.zoo.train.run import train


@pytest.fixture(autouse=True)
def _limits():
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trained(tmp_path_factory, recipe, *overrides):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    return train(recipe, ["train.max_steps=2", "train.logger=null", *overrides], sample=True, folder=folder, quiet=True)


@pytest.fixture(scope="module")
def log_run(tmp_path_factory):
    return _trained(tmp_path_factory, "sasrec/ml-100k", "train.ema=0.9", "train.schedule=cosine")


@pytest.fixture(scope="module")
def fitted_run(tmp_path_factory):
    return _trained(tmp_path_factory, "item-knn/ml-100k")


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    return _trained(tmp_path_factory, "mlp/digits")


@pytest.fixture
def copied(tmp_path):
    """A copy of a run, of which the test may change a file."""

    def copy(run):
        return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("plots"))

    return copy


def fuzz(path, files, *calls):
    """Write each file to `path` and call; a good share must be refused, or nothing was tested."""
    good, number, refused = path.read_bytes(), 0, 0
    for data in files:
        path.write_bytes(data)
        number, refused = number + 1, refused + (not all([survives(call) for call in calls]))
    path.write_bytes(good)
    assert all(survives(call) for call in calls), "the good file is read"
    assert refused > number // 20


def test_recipe(copied, log_run):
    path = copied(log_run) / "recipe.yaml"
    fuzz(path, yaml_files(path.read_bytes(), "recipe", COUNT // 2), lambda: load(str(path)))


@pytest.mark.parametrize("kind", ["log_run", "fitted_run", "image_run"])
def test_config(copied, kind, request):
    run = copied(request.getfixturevalue(kind))
    path = run / "config.json"
    fuzz(path, json_files(path.read_bytes(), f"config-{kind}", COUNT // 3), lambda: api.load(run))


@pytest.mark.parametrize("kind", ["fitted_run", "image_run"])
def test_weights(copied, kind, request):
    run = copied(request.getfixturevalue(kind))
    path = run / "model.safetensors"
    fuzz(path, mutants(path.read_bytes(), f"weights-{kind}", COUNT // 2), lambda: api.load(run))


def test_spec(copied, log_run):
    run = copied(log_run)
    path = run / "prep/spec.json"
    fuzz(path, json_files(path.read_bytes(), "spec"), lambda: Spec.load(path.parent))


def test_whole_runs_are_opened(copied, log_run):
    """Recipe, spec, head and weights together, as `zoo predict` reads them; fewer, for it takes long."""
    run = copied(log_run)
    for name, make in (("recipe.yaml", yaml_files), ("prep/spec.json", json_files), ("data.json", json_files)):
        path = run / name
        good = path.read_bytes()
        for data in list(make(good, f"whole-{name}"))[::40]:
            path.write_bytes(data)
            survives(lambda: open_run(run, prepared=False))
        path.write_bytes(good)
    assert survives(lambda: open_run(run, prepared=False))


def test_head(copied, log_run):
    run = copied(log_run)
    path = run / "data.json"
    fuzz(path, json_files(path.read_bytes(), "head"), lambda: head.read(run))


def test_record(tmp_path, log_run):
    path = tmp_path / "record.json"
    shutil.copy(log_run / "record.json", path)  # away from its rows, which take longer than it

    def read():
        found = board.Found(board.read_record(path), path)
        for one in board.boards([found]):
            board.markdown(one)
            board.table(one)

    fuzz(path, json_files(path.read_bytes(), "record"), read)


def test_rows(copied, image_run):
    run = copied(image_run)
    path, record = run / "predictions.npz", board.read_record(run / "record.json")

    def verify():
        predictions = record.predictions.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        board.verify(board.Found(record.model_copy(update={"predictions": predictions}), run / "record.json"))

    fuzz(path, mutants(path.read_bytes(), "rows"), lambda: load_rows(path), verify)


def test_state(copied, log_run):
    run = copied(log_run)
    path = run / "checkpoints/last.ckpt"

    def sealed():
        """The same with a seal that fits: what somebody else wrote on purpose."""
        data = path.read_bytes()
        path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
        check_state(state.load(run), path)

    fuzz(path, mutants(path.read_bytes(), "state", COUNT // 2), lambda: state.load(run))
    good = path.read_bytes()
    fuzz(path, mutants(good[: -len(state.MARK) - state.DIGITS], "sealed", COUNT // 2), sealed)


def test_log_of_metrics(copied, log_run):
    path = copied(log_run) / "metrics.csv"
    good = path.read_bytes()
    mark = {"bytes": len(good) // 2, "sha256": hashlib.sha256(good[: len(good) // 2]).hexdigest()}

    def cut():
        data = path.read_bytes()
        CsvLog(path).start(mark)
        path.write_bytes(data)

    fuzz(path, mutants(good, "metrics", COUNT // 2), lambda: read_log(path), cut)


def test_cache_entries(tmp_path, log_run):
    import numpy as np

    folder = tmp_path / "entry"
    store(folder, {"item": np.arange(50), "names": np.array(["a", "bc"])}, {"users": ["x", "y"], "counts": {"n": 3}})

    def whole():
        try:
            fetch(folder)
        except Damaged as damage:  # the entry is made anew
            raise ZooError(str(damage)) from damage

    for name in ("item.npy", "names.npy", "facts.json", "contents.json"):
        make = mutants if name.endswith(".npy") else json_files
        fuzz(folder / name, make((folder / name).read_bytes(), f"cache-{name}", COUNT // 4), whole)
