"""Files and installed plug-ins are the registry: every name is found without an import, and told where it is wrong."""

import sys

import pytest
from statezoo.zoo import api, registry, scaffold
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import read_json
from statezoo.zoo.listing import select
from statezoo.zoo.recipe import load
from statezoo.zoo.registry import MARK, ROOT, entries, find, read_file
from statezoo.zoo.trust import typed

KINDS = ("model", "dataset", "task")


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def error_of(kind, key):
    with pytest.raises(ZooError) as caught:
        find(kind, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# the zoo's own files ------------------------------------------------------------------------------------------------


def test_registry_is_short():
    assert len((ROOT / "zoo/registry.py").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_source_says_is_what_the_class_says(kind):
    assert list(entries(kind)) == sorted(entries(kind))
    for key, entry in entries(kind).items():
        cls = entry.load()
        assert (cls.__name__, cls.__module__) == (entry.cls, entry.module)
        assert getattr(cls, MARK[kind]) == entry.declared[MARK[kind]]
        assert entry.summary and entry.summary == (cls.__doc__ or sys.modules[cls.__module__].__doc__).split("\n")[0]
        assert find(kind, key) == entry


def test_every_file_of_the_folders_is_an_entry():
    for kind, patterns in registry.FOLDERS.items():
        files = {file for pattern in patterns for file in ROOT.glob(f"{pattern}/*.py") if file.name[0] != "_"}
        without = {file.name for file in files} - {entry.file.name for entry in entries(kind).values()}
        assert without <= {"base.py"}, f"{without}: no {kind} in it; files that are no entries begin with _"


def test_unknown_names_get_the_nearest():
    assert error_of("model", "sasrecc") == "unknown model 'sasrecc'; did you mean 'sasrec'?"
    assert error_of("dataset", "ML_100K") == "unknown dataset 'ML_100K'; did you mean 'ml-100k'?"
    assert error_of("task", "next-item") == "unknown task 'next-item'; did you mean 'next_item'?"


# a file by its path -------------------------------------------------------------------------------------------------

NETS = '''
"""A module."""
raise RuntimeError("reading a file must not run it")


class Net:
    """A net of two sizes."""

    configs: dict = {"net": {}, "net_wide": {"dim": 256}}
    depth = 3 * 4  # not a literal


class Other:
    configs = {"other": {"dim": 1}}


class Base:
    """No entry: states no configs."""


class _Hidden:
    configs = {"hidden": {}}


def function():
    class Inner:
        configs = {"inner": {}}
'''

SETS = '''
class MySet:
    """Sets of molecules."""

    tasks = ("property",)
    subsets = ("esol", "lipo")
'''


def test_path_with_several_configs(tmp_path):
    file = write(tmp_path / "nets.py", NETS)
    assert [entry.key for entry in read_file("model", file, "m")] == ["net", "net_wide", "other"]
    for key, cls, config in (
        (str(file), "Net", {}),  # the first
        (f"{file}:net", "Net", {}),
        (f"{file}:net_wide", "Net", {"dim": 256}),
        (f"{file}:other", "Other", {"dim": 1}),
    ):
        entry = find("model", key)
        assert (entry.cls, entry.config) == (cls, config)
    assert find("model", str(file)).summary == "A net of two sizes."
    assert find("model", f"{file}:other").summary == "A module."
    for name in ("hidden", "inner", "Base"):
        assert f"unknown model '{name}' in {file}; " in error_of("model", f"{file}:{name}")
    assert error_of("model", f"{file}:net_wid").endswith("did you mean 'net_wide'?")


def test_path_with_subsets(tmp_path):
    file = write(tmp_path / "my_set.py", SETS)
    assert [entry.key for entry in read_file("dataset", file, "m")] == ["my-set", "my-set:esol", "my-set:lipo"]
    assert find("dataset", str(file)).key == "my-set"
    assert find("dataset", f"{file}:lipo").key == "my-set:lipo"
    assert error_of("dataset", f"{file}:lippo").endswith("valid: my-set, my-set:esol, my-set:lipo")


def test_subsets_of_the_zoos_own_folders(tmp_path, monkeypatch, fresh):
    write(tmp_path / "datasets/bio/my_set.py", SETS)
    write(tmp_path / "datasets/bio/_helper.py", SETS)
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    assert list(entries("dataset")) == ["my-set", "my-set:esol", "my-set:lipo"]
    assert entries("dataset")["my-set:lipo"].module == "statezoo.datasets.bio.my_set"


def test_paths_are_relative_to_the_folder_one_is_in(tmp_path, monkeypatch):
    write(tmp_path / "here/my_set.py", SETS)
    monkeypatch.chdir(tmp_path)
    assert find("dataset", "here/my_set.py").file == tmp_path / "here/my_set.py"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("dataset", "~/here/my_set.py:esol").key == "my-set:esol"


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, dim in (("a", 1), ("b", 2)):
        write(tmp_path / folder / "net.py", f"class Net:\n    configs = {{'net': {{}}}}\n    dim = {dim}\n")
    with typed(f"{tmp_path}/a/net.py", f"{tmp_path}/b/net.py"):
        assert [find("model", f"{tmp_path}/{folder}/net.py").load().dim for folder in "ab"] == [1, 2]


def test_a_file_that_fails_to_import_can_be_mended(tmp_path):
    file = write(tmp_path / "net.py", "import nowhere_at_all\n\n\nclass Net:\n    configs = {'net': {}}\n")
    with typed(str(file)):
        with pytest.raises(ModuleNotFoundError):
            find("model", str(file)).load()
        write(file, "class Net:\n    configs = {'net': {}}\n")
        assert find("model", str(file)).load().__name__ == "Net"


def test_wrong_files_are_named(tmp_path):
    broken = write(tmp_path / "broken.py", "import os\n\n\nclass Net(:\n    pass\n")
    assert error_of("model", str(broken)).startswith(f"{broken}, line 4: ")
    empty = write(tmp_path / "empty.py", "class Net:\n    pass\n")
    for kind in KINDS:
        assert error_of(kind, str(empty)) == (
            f"{empty}: no public class states `{MARK[kind]}`, which makes it a {kind}; add it"
        )
    missing = tmp_path / "missing.py"
    assert error_of("dataset", f"{missing}:esol").startswith(f"no file {missing}; ")


# plug-ins -----------------------------------------------------------------------------------------------------------

PLUGIN = '''
"""What an installed distribution brings."""

from statezoo.zoo.backbones.base import Model
from statezoo.zoo.data.base import Dataset
from statezoo.zoo.train.task import Task


class Net(Model):
    configs = {"fake_net": {"dim": 3}}

    def __init__(self, *, dim: int = 1):
        super().__init__()


class Set(Dataset):
    domain = "images"
    tasks = ("fake_task",)


class FakeTask(Task):
    rows = "classification"
'''


@pytest.fixture
def fresh():
    """The registry read anew, now and after the test."""
    entries.cache_clear()
    yield
    entries.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch, fresh):
    """Put a distribution with entry points on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(points, name="fake"):
        text = "".join(f"[statezoo.{kind}s]\n{key} = {value}\n" for kind, (key, value) in points.items())
        write(tmp_path / f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        write(tmp_path / f"{name}-1.0.dist-info/entry_points.txt", text)
        entries.cache_clear()

    write(tmp_path / "fake_plugin.py", PLUGIN)
    yield installed
    sys.modules.pop("fake_plugin", None)


POINTS = {
    "model": ("fake_net", "fake_plugin:Net"),
    "dataset": ("fake-set", "fake_plugin:Set"),
    "task": ("fake_task", "fake_plugin:FakeTask"),
}


def test_plugins_of_all_three_kinds(install):
    before = {kind: set(entries(kind)) for kind in KINDS}
    install(POINTS)
    for kind, (key, value) in POINTS.items():
        assert set(entries(kind)) == before[kind] | {key}
        entry = find(kind, key)
        assert (f"{entry.module}:{entry.cls}", entry.summary) == (value, "plug-in of fake")
    assert "fake_plugin" not in sys.modules, "finding imports nothing"
    assert all(find(kind, key).load().__module__ == "fake_plugin" for kind, (key, _) in POINTS.items())


def test_plugins_serve_as_the_zoos_own(install):
    install(POINTS)
    assert "fake_net" in api.list_models()
    assert api.create_model("fake_net").config == {"dim": 3}
    recipe = load("fake_net/fake-set-fake_task")
    assert (recipe.model, recipe.task["name"]) == ({"name": "fake_net", "dim": 3}, "fake_task")


def test_a_plugin_data_set_has_the_name_of_its_entry_point(install, tmp_path, monkeypatch, capsys):
    """In its folder, in messages, in the run's place and in the record: not that of the file it stands in."""
    monkeypatch.setenv("STATEZOO_DATA", str(tmp_path / "data"))
    scaffold.write("dataset", "corp-sets", tmp_path, "images")
    install({"dataset": ("tumour-tiles", "corp_sets:CorpSets")})
    data = api.create_dataset("tumour-tiles")
    assert data.name == data.key == "tumour-tiles" and data.folder == tmp_path / "data/images/tumour-tiles"
    with pytest.raises(ZooError, match="^tumour-tiles: data.csv not in .*images/tumour-tiles; "):
        data.prepare()
    assert main(["train", "mlp/tumour-tiles", "--sample", "train.max_steps=1", "train.logger=null"]) == 0
    assert "on SYNTHETIC SAMPLE of tumour-tiles (" in capsys.readouterr().out
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert record.relative_to(tmp_path / "runs").parts[:2] == ("mlp", "tumour-tiles-sample")
    assert read_json(record)["benchmark"]["dataset"] == "tumour-tiles"
    sys.modules.pop("corp_sets")


def test_own_names_stay_where_a_plugin_names_the_same_class(install):
    install({"dataset": ("a-log", "statezoo.datasets.recsys.log:Log")})
    assert api.create_dataset("log").name == "log"


def test_what_plugins_state_is_listed_without_importing_them(install, tmp_path):
    write(tmp_path / "pack/__init__.py", "raise RuntimeError('looking up must not run it')")
    write(
        tmp_path / "pack/deep.py", '"""."""\n\n\nclass Other:\n    """Sets of ours."""\n\n    tasks = ("property",)\n'
    )
    install({"dataset": ("other", "pack.deep:Other")}, name="other")
    install(POINTS)
    found = select("datasets", "fake-set")["fake-set"]
    assert (found["tasks"], found["summary"]) == (["fake_task"], "plug-in of fake")
    assert select("datasets", "other")["other"]["summary"] == "Sets of ours. (plug-in of other)"
    assert select("models", "fake_net")["fake_net"]["kinds"] == [] and "fake_plugin" not in sys.modules
    assert "fake-set" in select("datasets", task="fake_task")


@pytest.mark.parametrize(("kind", "key"), [("model", "sasrec"), ("dataset", "ml-100k"), ("task", "next_item")])
def test_a_name_claimed_twice_is_an_error(install, kind, key):
    own = entries(kind)[key].module
    install({kind: (key, POINTS[kind][1])})
    with pytest.raises(ZooError, match=rf"{kind} '{key}' is defined twice: {own} and fake_plugin; rename one"):
        entries(kind)


def test_two_plugins_of_one_name_are_an_error(install):
    install(POINTS)
    install({"model": ("fake_net", "other_plugin:Net")}, name="other")
    with pytest.raises(ZooError, match=r"model 'fake_net' is defined twice: \w+_plugin and \w+_plugin"):
        entries("model")
