"""docs/time.md says what the records say."""

import os
import re
from pathlib import Path

import pytest
from statezoo.leaderboards.board import boards, difference, find_records
from statezoo.zoo.api import create_dataset

PAGE = Path(__file__).resolve().parent.parent / "docs" / "time.md"
HEAD = """\
| log | split | timestamps | none | causal | published | causal - none | published - none |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
TRACKS = ("tim4rec_notime", "tim4rec", "tim4rec.reference")


def lines():
    """A row per board that has all three tracks: ndcg@10, and paired differences."""
    made = []
    for board in boards(find_records()):
        rows = {row.model: row for row in board.rows}
        if not set(TRACKS) <= set(rows):
            continue
        log, _, split = board.name.partition("-next_item@")
        exact, rounded, _ = split.partition("-float32")
        values = [f"{rows[name].value['ndcg@10']:.4f}" for name in TRACKS]
        gains = [difference(rows[name], rows[TRACKS[0]], "ndcg@10") for name in TRACKS[1:]]
        cells = [f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" for mean, low, high in gains]
        made.append(f"| {' | '.join([log, exact, 'float32' if rounded else 'int64', *values, *cells])} |")
    return made


def test_the_table_is_that_of_the_records():
    shown = re.search(re.escape(HEAD) + r"\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8")).group(1)
    assert shown.splitlines() == lines() and len(lines()) >= 4


def test_every_row_has_five_seeds():
    for board in boards(find_records()):
        rows = {row.model: row for row in board.rows}
        if set(TRACKS) <= set(rows):
            assert all(rows[name].seeds == tuple(range(5)) for name in TRACKS)


@pytest.mark.skipif("STATEZOO_DATA" not in os.environ, reason="STATEZOO_DATA is not set")
@pytest.mark.parametrize("split", ["leave-two-out", "global-time"])
@pytest.mark.parametrize("log", ["ml-100k", "movietweetings"])
def test_the_share_of_full_windows_is_that_of_the_data(log, split):
    adapter = create_dataset(log, split=split)
    if not (adapter.folder / adapter.source_files()[0]).is_file():
        pytest.skip(f"no {log} in STATEZOO_DATA")
    full, users = adapter.check()["test_histories_that_fill_max_len"], len(adapter.part("test"))
    assert f"| {log} | {split} | {full} of {users} |" in PAGE.read_text(encoding="utf-8")
