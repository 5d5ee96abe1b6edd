"""What reading counted or dropped is on the screen and in the record; fields of a record that came later."""

import pytest
from statezoo.leaderboards import board
from statezoo.leaderboards.schema import Record
from statezoo.zoo.files import read_json
from statezoo.zoo.train.run import train

QUIET = ["train.logger=null"]


def rows(users, events):
    return [(f"u{u}", f"i{(u + n) % 7}", 100 * n + u) for u in range(users) for n in range(events)]


@pytest.mark.parametrize("split", ["leave-two-out", "global-time"])
def test_what_was_dropped_is_printed_and_recorded(tmp_path, capsys, split):
    log = rows(12, 8)
    log += [log[5], ("seldom", "i1", 50)]
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in log))
    overrides = [f"data.root={tmp_path}", "data.duplicates=drop", "data.k_core=2", "task.topk=[1,5]", *QUIET]
    run = train(f"popularity/log@{split}", overrides, folder=tmp_path / "run")
    record = board.read_record(run / "record.json")
    facts = record.data.facts
    assert facts["events_in_file"] == len(log) - 1 and facts["duplicates_dropped"] == 1
    if split == "leave-two-out":
        assert (facts["users"], facts["events_after_k_core"]) == (12, 96)
    else:  # the user of one event is no part of the core, but was there
        assert (facts["users"], facts["training_users"], facts["earlier_events_in_histories_alone"]) == (13, 12, 1)
    assert record.benchmark.split_version == ("2" if split == "global-time" else None)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("data: ")]
    for name, value in facts.items():
        assert (f"{name.replace('_', ' ')} {value:,}" in line) == bool(value), name


def test_fields_that_came_later_leave_ids_alone(tmp_path):
    run = train("popularity/ml-100k", QUIET, sample=True, folder=tmp_path / "run", quiet=True)
    data = read_json(run / "record.json")
    assert "split_version" not in data["benchmark"], "unset, so not written"
    assert Record.model_validate(data).model_dump() == data
    before = {**data, "data": {name: value for name, value in data["data"].items() if name != "facts"}}
    older = Record.model_validate(before)
    assert older.model_dump() == before and older.data.facts is None
    unset = Record.model_validate(before | {"data": before["data"] | {"facts": None}})
    assert unset.id == older.id != Record.model_validate(data).id
    assert older.board() == Record.model_validate(data).board()


def test_another_version_of_a_split_is_another_board(tmp_path):
    run = train("popularity/ml-100k@global-time", QUIET, sample=True, folder=tmp_path / "run", quiet=True)
    data = read_json(run / "record.json")
    first = {**data, "benchmark": {k: v for k, v in data["benchmark"].items() if k != "split_version"}}
    assert data["benchmark"]["split_version"] == "2"
    assert Record.model_validate(first).board() != Record.model_validate(data).board()
