"""Files appear whole or not at all; hashes, seeds and locks are what they say."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from statezoo.zoo import seeding
from statezoo.zoo.data.cache import cached, store
from statezoo.zoo.errors import ZooError, nearest, unknown
from statezoo.zoo.files import (
    atomic,
    canonical_json,
    clean,
    hash_file,
    hash_folder,
    locked,
    read_json,
    write_json,
    write_text,
    writing,
)
from statezoo.zoo.registry import entries


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), atomic(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_atomic_keeps_the_users_permissions(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ZooError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


def test_hashes(tmp_path):
    write_text(tmp_path / "f" / "a", "abc")
    assert hash_file(tmp_path / "f" / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = hash_folder(tmp_path / "f")
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "b")
    assert hash_folder(tmp_path / "f") != before
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'


def test_seeds_are_pure_and_differ_by_every_key():
    # recorded from the first version: seeds must stay the same on every machine and in every later one
    assert seeding.derive(0, "step", 1) == seeding.derive(0, "step", 1)
    assert seeding.derive(0, "order", 0) == 8092615236773915655
    keys = [(s, name, i) for s in range(5) for name in ("order", "step") for i in range(50)]
    assert len({seeding.derive(*key) for key in keys}) == len(keys)
    assert seeding.derive(1, "1") != seeding.derive("1", 1), "types are part of a key"
    assert seeding.generator(3, "a").integers(1 << 30) == seeding.generator(3, "a").integers(1 << 30)


def test_lock_is_exclusive_and_released(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(ZooError, match="busy now"):
        with locked(tmp_path / "lock", wait=0, busy="busy now"):
            raise AssertionError("the lock was given twice")
    with locked(tmp_path / "lock", wait=0):
        pass


def _build(counter):
    with open(counter, "a") as file:
        file.write("built\n")
    return {"x": np.arange(5)}, {"n": 5}


def _fetch(counter, cache):
    os.environ["STATEZOO_CACHE"] = cache
    arrays, facts = cached("set", {"k": 1}, lambda: _build(counter))
    assert arrays["x"].tolist() == [0, 1, 2, 3, 4] and facts == {"n": 5}


def test_cache_is_built_once_by_two_processes(tmp_path):
    counter, cache = str(tmp_path / "count"), str(tmp_path / "cache")
    children = [multiprocessing.get_context("fork").Process(target=_fetch, args=(counter, cache)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert open(counter).read() == "built\n"


def test_cache_depends_on_its_key_and_survives_a_failed_build(tmp_path, monkeypatch):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError):
        cached("set", {"k": 1}, lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    one = cached("set", {"k": 1}, lambda: ({"x": np.ones(2)}, {}))[0]["x"]
    other = cached("set", {"k": 2}, lambda: ({"x": np.zeros(2)}, {}))[0]["x"]
    assert one.tolist() == [1, 1] and other.tolist() == [0, 0]
    assert isinstance(one, np.memmap) and not one.flags.writeable


def test_unknown_names_suggest_or_list():
    assert nearest("ml_100K", ["ml-100k", "ml-1m"]) == "ml-100k"
    assert str(unknown("model", "sasrc", ["sasrec", "gru4rec"])) == "unknown model 'sasrc'; did you mean 'sasrec'?"
    assert "valid: gru4rec, sasrec" in str(unknown("model", "zzzz", ["sasrec", "gru4rec"]))


# what the system refuses --------------------------------------------------------------------------------------------


SAVERS = {
    "text": "write_text(folder / 'file.txt', 'x' * 9000)",
    "torch": "with atomic(folder / 'file.ckpt') as t: torch.save({'w': big}, t)",
    "numpy": "with atomic(folder / 'file.npy') as t: np.save(t, big.numpy())",
    "rows": "from statezoo.zoo.train.rows import save_rows; save_rows(folder / 'file.npz', {'a': big.numpy()})",
    "safetensors": "from safetensors.torch import save_file\n"
    "    with atomic(folder / 'file.safetensors') as t: save_file({'w': big}, str(t))",
    "folder": "from statezoo.zoo.data.cache import store; store(folder / 'file', {'a': big.numpy()}, {})",
    "log": "from statezoo.zoo.train.csvlog import CsvLog; log = CsvLog(folder / 'file.csv'); log.start()\n"
    "    for step in range(400): log.write(step, 1, 'train', {'loss': 0.5})",
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """Folder, words and files left of every saver, in a process that may write files of 4 KB."""
    script = [
        "import json, os, resource, sys; from pathlib import Path; import numpy as np; import torch",
        "from statezoo.zoo.errors import ZooError; from statezoo.zoo.files import *",
        "top = Path(sys.argv[1]); big = torch.randn(9000); found = {}",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))",
    ]
    for kind, saved in SAVERS.items():
        script += [f"folder = top / {kind!r}; folder.mkdir()", f"try:\n    {saved}\n    told = 'nothing'"]
        script += ["except ZooError as error:\n    told = str(error)"]
        script += [f"found[{kind!r}] = str(folder), told, os.listdir(folder)"]
    code = "\n".join([*script, "print(json.dumps(found))"])
    words = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("top"))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", SAVERS)
def test_a_file_that_may_not_grow_is_named_with_the_remedy(kind, limited):
    folder, told, left = limited[kind]
    assert told.startswith(f"{folder}/file") and "\n" not in told and told.endswith(", or choose another folder")
    assert "raise the limit of file sizes (ulimit -f)" in told
    assert ("File too large" in told) == (kind not in ("torch", "numpy", "folder")), "these do not tell why"
    assert left == (["file.csv"] if kind == "log" else []), "a temporary is left"


def test_a_full_disk_is_named():
    with pytest.raises(ZooError, match=r"^/dev/full: No space left on device; free space on that disk, or"):
        with writing("/dev/full"), open("/dev/full", "w") as full:
            full.write("x")


@pytest.mark.parametrize("write", [
    lambda place: write_text(place, "x"),
    lambda place: write_json(place, {}),
    lambda place: locked(place).__enter__(),
    lambda place: store(place, {}, {}),
], ids=["text", "json", "lock", "cache"])  # fmt: skip
def test_a_folder_that_cannot_be_made_is_named(write, tmp_path):
    (tmp_path / "a").write_text("a file")
    for place in (tmp_path / "a" / "b.txt", tmp_path / "a" / "b" / "c.txt"):
        remedy = "(check the path, its rights and the disk|move the file away .*), or choose another folder"
        with pytest.raises(ZooError, match=f"^{place}: .*; {remedy}$"):
            write(place)
    assert os.listdir(tmp_path) == ["a"]


def test_a_cache_that_cannot_be_written_tells_its_variable(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("STATEZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ZooError, match=r"home/\.cache/statezoo/.*, or set STATEZOO_CACHE to another folder$"):
        cached("set", {"k": 1}, lambda: ({"x": np.ones(2)}, {}))


def test_errors_of_other_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a.txt"):
        open(tmp_path / "elsewhere" / "none.txt")
    with pytest.raises(RuntimeError, match="os error 28"), atomic(tmp_path / "a.txt"):
        raise RuntimeError("(os error 28)")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_stands_leaves_no_temporary(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    with pytest.raises(ZooError, match=f"^{tmp_path / 'a'}: Is a directory; move the folder away"):
        write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["b"]


def test_only_our_own_leftovers_are_cleaned(tmp_path):
    ours = (".last.ckpt.abcd_123.ckpt", ".last.ckpt.aaaaaaaa.ckpt")
    theirs = (".last.ckpt.abcd_123", ".vimrc.settings", ".last.ckpt.ABCDEFGH.ckpt", "last.ckpt", ".other.abcd1234")
    for name in (*ours, *theirs):
        (tmp_path / name).write_text("")
    (tmp_path / ".prep.abcd1234").mkdir()
    clean(tmp_path, "last.ckpt", "prep")
    assert sorted(os.listdir(tmp_path)) == sorted(theirs)


# damaged cache entries ----------------------------------------------------------------------------------------------


def _cut(folder):
    data = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(data[:-8])


def _other_shape(folder):
    np.save(folder / "x.npy", np.arange(5).reshape(5, 1))


DAMAGES = {
    "cut": _cut,
    "cut in its head": lambda folder: (folder / "x.npy").write_bytes(b"\x93NUM"),
    "gone": lambda folder: (folder / "x.npy").unlink(),
    "another shape": _other_shape,
    "another type": lambda folder: np.save(folder / "x.npy", np.arange(5).astype(np.float64)),
    "facts are no JSON": lambda folder: (folder / "facts.json").write_text("{"),
    "facts are others": lambda folder: (folder / "facts.json").write_text('{"n": 6}'),
    "facts are gone": lambda folder: (folder / "facts.json").unlink(),
    "contents are no mapping": lambda folder: (folder / "contents.json").write_text("[]"),
    "contents are gone": lambda folder: (folder / "contents.json").unlink(),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_entry_is_made_anew_and_told(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    build = lambda: ({"x": np.arange(5)}, {"n": 5})  # noqa: E731
    cached("set", {"k": 1}, build)
    folder = next(path for path in (tmp_path / "set").iterdir() if path.is_dir())
    DAMAGES[damage](folder)
    capsys.readouterr()
    arrays, facts = cached("set", {"k": 1}, build)
    assert arrays["x"].tolist() == [0, 1, 2, 3, 4] and facts == {"n": 5}
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert str(folder) in told.err and "made anew" in told.err
    cached("set", {"k": 1}, lambda: pytest.fail("a whole entry is made again"))
    assert capsys.readouterr().err == ""


def test_leftovers_of_a_killed_build_are_cleaned(tmp_path, monkeypatch):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    cached("set", {"k": 1}, lambda: ({"x": np.ones(2)}, {}))
    folder = next(path for path in (tmp_path / "set").iterdir() if path.is_dir())
    left = folder.parent / f".{folder.name}.abcd1234"
    left.mkdir()
    cached("set", {"k": 1}, lambda: pytest.fail("made again"))
    assert not left.exists()


@pytest.mark.parametrize("damage", ["emptied", "a file gone", "a file cut", "a file more"])
def test_a_damaged_sample_is_drawn_anew_and_told(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    cls = entries("dataset")["ml-100k"].load()
    folder = cls.sample().folder
    whole = hash_folder(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if damage == "a file more":
        (folder / "more").write_text("")
    for file in files if damage == "emptied" else files[:1] if damage == "a file gone" else ():
        file.unlink()
    if damage == "a file cut":
        files[0].write_bytes(files[0].read_bytes()[:-1])
    assert cls.sample().folder == folder and hash_folder(folder) == whole
    told = "the sample is not whole; it is drawn anew" in capsys.readouterr().err
    assert told == (damage != "a file more"), "what an adapter leaves beside its files is taken away without a word"
    assert cls.sample().folder == folder and capsys.readouterr().err == ""
