"""Logs that could be read in two ways, or that no code can hold: one line with the row, no guess and no traceback."""

import datetime as dt
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_frame import told
from statezoo.zoo.data.log_reader import read_log
from statezoo.zoo.errors import ZooError

COLUMNS = {"user": "user", "item": "item", "time": "time"}
HEAD = "user,item,time\n"


def refused(file, content, **options):
    """The one line that reading gives."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ZooError) as caught:
        read_log(file, COLUMNS, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frame_of(times, **columns):
    rows = {"user": [n % 3 for n in range(len(times))], "item": [n % 2 for n in range(len(times))], **columns}
    return pd.DataFrame(rows | {"time": pd.Series(times, dtype=object)})


def times_of(frame, **options):
    """Its times as they are read, with the errors that are told of a frame."""
    data = create_dataset("log", data=frame, k_core=1, **options)
    with told(data.frame):
        return data.read_file(data.log_file()).time.tolist()


# times with and without a zone ----------------------------------------------------------------------------------------

ZONED = dt.datetime(2020, 7, 1, 12, tzinfo=dt.timezone.utc)
NAIVE = dt.datetime(2020, 7, 1, 12)
KINDS = {
    "datetime": [ZONED, NAIVE, ZONED],
    "the naive one first": [NAIVE, ZONED, ZONED],
    "pandas": [pd.Timestamp(ZONED), pd.Timestamp(NAIVE), pd.Timestamp(ZONED)],
    "pandas in categories": pd.Categorical([ZONED, NAIVE, ZONED]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_times_with_and_without_a_zone_is_refused_or_told_the_zone(kind):
    times = KINDS[kind]
    frame = frame_of(times) if kind != "pandas in categories" else frame_of([1, 2, 3]).assign(time=times)
    naive = next(row for row, time in enumerate(times) if time.tzinfo is None)
    with pytest.raises(ZooError) as caught:
        times_of(frame)
    assert str(caught.value).startswith(f"DataFrame: row {naive}: time '2020-07-01 12:00:00' has no time zone; ")
    assert "time_zone" in str(caught.value)
    expected = [1593604800] * 3
    expected[naive] -= 7200
    assert times_of(frame, time_zone="Europe/Berlin") == expected
    assert times_of(frame, time_zone="UTC") == [1593604800] * 3


def test_nanoseconds_and_missing_times_of_a_mixed_column():
    frame = frame_of([pd.Timestamp(ZONED), pd.Timestamp(NAIVE) + pd.Timedelta(7, "ns")])
    assert times_of(frame, time_zone="UTC", time_unit="ns") == [1593604800 * 10**9, 1593604800 * 10**9 + 7]
    with pytest.raises(ZooError, match="DataFrame: row 2: time '' is neither"):
        times_of(frame_of([ZONED, NAIVE, pd.NaT]), time_zone="UTC")
    with pytest.raises(ZooError, match="DataFrame: row 1: time '2020-10-25 02:30:00' occurs twice in data.time_zone"):
        times_of(frame_of([ZONED, dt.datetime(2020, 10, 25, 2, 30)]), time_zone="Europe/Berlin")
    for zone, options in (("UTC", {}), (None, {"time_zone": "UTC"})):
        late = pd.Timestamp(NAIVE, tz=zone) + pd.Timedelta(7, "ns")
        assert times_of(frame_of([late, late]), time_unit="ns", **options) == [1593604800 * 10**9 + 7] * 2
    assert times_of(frame_of([ZONED, ZONED.astimezone(dt.timezone(dt.timedelta(hours=5)))])) == [1593604800] * 2


# what no code can hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "zone"),
    [("0001-01-01T00:00:00", "Asia/Tokyo"), ("9999-12-31T23:59:59", "America/New_York"), ("0001-01-01", "Etc/GMT-14")],
)
def test_moments_at_the_ends_of_the_calendar(tmp_path, moment, zone):
    said = refused(tmp_path / "log.csv", HEAD + f"a,x,1\na,y,{moment}\n", time_zone=zone, future=True)
    assert re.search(r"log\.csv: row 3: time '.*' .*; mend the row", said), said
    frame = frame_of([ZONED, dt.datetime.fromisoformat(moment)])
    with pytest.raises(ZooError, match="DataFrame: row 1: "):
        times_of(frame, time_zone=zone, future=True)


@pytest.mark.parametrize("column", ["user", "item", "time"])
def test_halves_of_characters_are_no_text(tmp_path, column):
    row = {"user": '"a"', "item": '"x"', "time": '"2020-01-01T00:00:00Z"'}
    text = [
        "{" + ", ".join(f'"{key}": {value}' for key, value in one.items()) + "}"
        for one in (row, row | {column: '"u\\ud800"'})
    ]
    said = refused(tmp_path / "log.jsonl", "\n".join(text) + "\n")
    assert said.startswith(f"{tmp_path / 'log.jsonl'}: row 2: ") and "\\ud800" in said
    for kind in (object, "str", "category"):
        values = pd.Series(["1", "2", "3\ud800"], dtype=object)
        try:
            values = values.astype(kind)
        except UnicodeError:  # of pandas: such a column cannot be
            continue
        with pytest.raises(ZooError) as caught:
            create_dataset("log", data=frame_of([1, 2, 3]).assign(**{column: values}), k_core=1).prepare()
        assert str(caught.value).startswith("DataFrame: row 2: ") and "\\ud800" in str(caught.value)


@pytest.mark.parametrize("name", ["time_zone", "separator", "columns", "user", "item", "time", "file"])
def test_settings_that_are_no_text_are_refused(tmp_path, name):
    with pytest.raises(ZooError, match=f"log: {name}=3: give text"):
        create_dataset("log", root=tmp_path, **{name: 3})


# two of a name --------------------------------------------------------------------------------------------------------


def test_columns_of_one_name_are_refused(tmp_path):
    file = tmp_path / "log.csv"
    said = refused(file, "user,item,time,time\na,x,1,2\n")
    assert said == f"{file}: row 1: 2 columns are named 'time'; rename all but one, or say which by data.time=NAME"
    said = refused(file, "a,x,1,2\n", names=("user", "item", "time", "time"))
    assert "2 columns are named 'time'" in said
    file.write_text("user,item,time,note,note\na,x,1,2,3\n")
    assert len(read_log(file, COLUMNS)) == 1, "which of the others is meant does not matter"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array([1]), pa.array([2])], [*COLUMNS, "time"])
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(ZooError, match=r"log\.parquet: row 1: 2 columns are named 'time'"):
        read_log(tmp_path / "log.parquet", COLUMNS)


def test_keys_of_one_name_are_refused(tmp_path):
    first = '{"user": "a", "item": "x", "time": 1}\n'
    said = refused(tmp_path / "log.jsonl", first + '{"user": "a", "item": "x", "time": 1, "time": 2}\n')
    assert said == f"{tmp_path / 'log.jsonl'}: row 2: the key 'time' is there twice; write each once"


# numbers that went through something ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["1,23E+05", " 1.23E+05", "1.23E+05 ", "\t2.0", " 1,5", "12,0", "-1,0E+10", "\xa01E+05", "2.", "٢.٠"]
)
def test_ids_of_a_spreadsheet_are_refused_however_it_writes_them(tmp_path, name):
    said = refused(tmp_path / "log.csv", HEAD + f'a,x,1\n"{name}",x,2\n')
    assert "row 3: user id" in said and "is a decimal number" in said
    with pytest.raises(ZooError, match="DataFrame: row 1: item id .* is a decimal number"):
        create_dataset("log", data=frame_of([1, 2], item=["x", name]), k_core=1).prepare()


def test_names_that_look_a_little_like_numbers_stay(tmp_path):
    names = ["1e5", "12e4", "a,b", "1,2,3", "1.2.3", "v1.0", " 7", "1-2", ",", "."]
    (tmp_path / "log.csv").write_text(HEAD + "".join(f'"{name}","{name}",1\n' for name in names))
    assert read_log(tmp_path / "log.csv", COLUMNS).users == names


@pytest.mark.parametrize("number", ["1e5", "1E5", "2.0", "1e+05"])
def test_a_json_number_with_a_point_or_exponent_is_no_id(tmp_path, number):
    said = refused(tmp_path / "log.jsonl", f'{{"user": "1e5", "item": {number}, "time": 1e0}}\n')
    assert said.startswith(f"{tmp_path / 'log.jsonl'}: row 1: item id '{number}' is a decimal number")
    (tmp_path / "log.jsonl").write_text('{"user": "1e5", "item": 5, "time": 7.0}\n')
    log = read_log(tmp_path / "log.jsonl", COLUMNS)
    assert (log.users, log.items, log.time.tolist()) == (["1e5"], ["5"], [7])


@pytest.mark.parametrize(
    ("time", "what"),
    [
        ("1_600_000_777", "is neither a whole number nor ISO 8601"),
        ("1600000_777.0", "is neither"),
        ("٢٠٠٠", "is neither"),
        ("１６００", "is neither"),
        ("٢٠٢٠-01-01T00:00:00Z", "is neither"),
        ("2020-01-01T00:00:00.٥Z", "is neither"),
        ("0.0E+09", "does not write its last digits"),
        ("0E+09", "does not write its last digits"),
        ("1.6E+09", "does not write its last digits"),
    ],
)
def test_times_are_of_plain_digits_all_of_them_written(tmp_path, time, what):
    said = refused(tmp_path / "log.csv", HEAD + f"a,x,1\na,y,{time}\n", time_unit="ms")
    assert said.startswith(f"{tmp_path / 'log.csv'}: row 3: time ") and what in said
    (tmp_path / "log.csv").write_text(HEAD + "a,x,0\na,y, 5 \na,z,0.0\na,w,-0\n")
    assert read_log(tmp_path / "log.csv", COLUMNS).time.tolist() == [0, 5, 0, 0]
