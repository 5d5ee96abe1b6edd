"""Files appear whole or not at all; hashes, seeds and locks are what they say."""

import multiprocessing
import os

import numpy as np
import pytest
from statezoo.zoo import seeding
from statezoo.zoo.data.cache import cached
from statezoo.zoo.errors import ZooError, nearest, unknown
from statezoo.zoo.files import atomic, canonical_json, hash_file, hash_folder, locked, read_json, write_json, write_text


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
