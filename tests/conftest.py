"""Shared set-up: every test gets its own cache and runs folder; hypothesis is derandomised."""

import os

import pytest
from hypothesis import settings

settings.register_profile("zoo", derandomize=True, deadline=None)
settings.load_profile("zoo")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """One cache for the test session, never the user's."""
    previous = os.environ.get("STATEZOO_CACHE")
    os.environ["STATEZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("STATEZOO_CACHE")
    if previous is not None:
        os.environ["STATEZOO_CACHE"] = previous


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STATEZOO_RUNS", str(tmp_path / "runs"))
