"""Samples are cached by all the code that draws them."""

import inspect
import sys
from pathlib import Path

import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data import base
from statezoo.zoo.files import hash_file
from statezoo.zoo.registry import entries

ROOT = Path(base.__file__).parents[2]


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """The files whose hashes were taken, and hashes that a test gives them."""
    taken, given = [], {}

    def of(file):
        taken.append(Path(file))
        return given.get(Path(file).name) or hash_file(file)

    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "hash_file", of)
    return taken, given


@pytest.mark.parametrize("key", [key for key in entries("dataset") if ":" not in key])
def test_all_that_draws_a_sample_is_in_its_key(key, hashed):
    """What runs is watched, so that a helper elsewhere cannot be forgotten."""
    cls = entries("dataset")[key].load()
    ran = set()
    sys.setprofile(lambda frame, event, _: ran.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        cls.sample(**({"subset": cls.subsets[0]} if cls.subsets else {}))
    finally:
        sys.setprofile(None)
    ours = {file for file in map(Path, ran) if any(file.is_relative_to(ROOT / top) for top in ("zoo", "datasets"))}
    assert Path(inspect.getfile(cls)) in ours <= set(hashed[0])


@pytest.mark.parametrize("name", ["msd_hippocampus_parts.py", "cloud_sample.py", "cloud_shapes.py", "seeding.py"])
def test_a_sample_is_drawn_anew_where_what_draws_it_changes(name, hashed):
    cls = entries("dataset")["msd-hippocampus-parts"].load()
    before = cls.sample().folder
    assert cls.sample().folder == before
    hashed[1][name] = "another"
    assert cls.sample().folder != before


def test_a_sample_in_another_form_is_another_sample():
    """Columns and file names that the recipe gives are those that the sample is written with."""
    for config in ({}, {"user": "customer", "separator": "tab"}, {"file": "sales.parquet", "item": "sku"}):
        assert create_dataset("log").sample(**config).prepare() == create_dataset("log").sample().prepare()
