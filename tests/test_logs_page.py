"""docs/logs.md names every setting of a log, and its figures are those of the data."""

import inspect
import os
import re
from pathlib import Path

import pytest
from statezoo.datasets.recsys.log import Log
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_sources import SEPARATORS
from statezoo.zoo.data.logs import LogDataset

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "logs.md").read_text(encoding="utf-8")


def test_every_setting_is_on_the_page():
    own, base = (set(inspect.signature(cls.__init__).parameters) for cls in (Log, LogDataset))
    for name in own | base - {"self", "subset", "log"}:
        if name not in ("self", "log"):
            assert re.search(rf"data\.{name}\b", PAGE), name
    assert all(f"`{name}`" in PAGE for name in SEPARATORS if name.isalpha() and name != "colons")


@pytest.mark.skipif("STATEZOO_DATA" not in os.environ, reason="STATEZOO_DATA is not set")
@pytest.mark.parametrize("split", ["leave-two-out", "global-time"])
@pytest.mark.parametrize("log", ["ml-100k", "movietweetings"])
def test_the_share_of_ties_is_that_of_the_data(log, split):
    adapter = create_dataset(log, split=split)
    if not (adapter.folder / adapter.source_files()[0]).is_file():
        pytest.skip(f"no {log} in STATEZOO_DATA")
    adapter.prepare()
    arrays = adapter._log.arrays
    ties = int((arrays["time"][arrays["test_end"] - 1] == arrays["test_time"]).sum())
    assert f"| {log} | {split} | {ties} of {len(arrays['test_time'])} |" in PAGE
