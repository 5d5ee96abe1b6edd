"""Logs are read exactly or refused with file, row and remedy; what is unusual but right is counted."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_reader import read_log
from statezoo.zoo.data.log_times import in_unit
from statezoo.zoo.errors import ZooError

COLUMNS = {"user": "user", "item": "item", "time": "time"}
PLACES = {"user": 0, "item": 1, "time": 2}
HEAD = "user,item,time\n"
FIRST = "a,x,1\n"  # a good row
DATA = Path(os.environ.get("STATEZOO_DATA", ""), "recsys")
real = pytest.mark.skipif("STATEZOO_DATA" not in os.environ, reason="STATEZOO_DATA is not set: no MovieLens-100K")


def write(folder, content, name="log.csv"):
    """A log file of text, bytes, or (Parquet) a dict of columns."""
    file = folder / name
    if isinstance(content, dict):
        file = folder / "log.parquet"
        pq.write_table(pa.table(content), file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def events(log):
    assert log.time.dtype == np.int64
    return [(log.users[u], log.items[i], t) for u, i, t in zip(log.user, log.item, log.time.tolist(), strict=True)]


def read(folder, content, columns=COLUMNS, **options):
    return events(read_log(write(folder, content), columns, **options))


# what is refused ------------------------------------------------------------------------------------------------------

TWO = pa.array(["a", "b"])
NOON = 1_600_000_000
STAMPS = pa.array([NOON * 10**9, NOON * 10**9 + 1])


def stamps(unit, zone="UTC"):
    return STAMPS.cast(pa.timestamp("ns", zone)).cast(pa.timestamp(unit, zone), safe=False)


# name: content, row, what is wrong, remedy, options
BAD = {
    "missing column": ("user,itm,time\na,x,1\n", 1, "'item'; did you mean 'itm'", "set data.item=NAME", {}),
    "nothing like the column": ("a,b,c\na,x,1\n", 1, "'user'; valid: a, b, c", "set data.user=NAME", {}),
    "missing parquet column": (
        {"user": TWO, "itm": TWO, "time": [1, 2]},
        1,
        "did you mean 'itm'",
        "data.item=NAME",
        {},
    ),
    "wrong separator": (HEAD + FIRST, 1, "unknown column 'user'", "set data.user=NAME", {"separator": "\t"}),
    "wrong separator, no header": (
        FIRST,
        1,
        "no column 2 for 'item' (the line has 1)",
        r"check the separator '\t'",
        {"separator": "\t", "header": False, "columns": PLACES},
    ),
    "no such column": ("a,x\n", 1, "no column 3 for 'time'", "separator", {"header": False, "columns": PLACES}),
    "empty file": ("", 1, "the file is empty", "give a log with at least one event", {}),
    "header only": (HEAD, 2, "no events below the header", "give a log", {}),
    "header only, no end of line": (HEAD[:-1], 2, "no events below the header", "give a log", {}),
    "empty parquet": (dict.fromkeys(COLUMNS, pa.array([], pa.int64())), 1, "the file is empty", "give a log", {}),
    # rows
    "short row": (HEAD + FIRST + "b,2\n", 3, "Expected 3 columns, got 2: b,2", "every row needs the columns", {}),
    "first row short": (HEAD + "b,2\n" + FIRST, 2, "Expected 3 columns, got 2", "every row needs the columns", {}),
    "long row": (HEAD + FIRST + "b,o,y,2\n", 3, "Expected 3 columns, got 4: b,o,y,2", "separated by ','", {}),
    "all rows long": (HEAD + "b,o,y,2\n" * 9, 2, "Expected 3 columns, got 4", "separated by ','", {}),
    "short row, no used column missing": (
        "user,item,time,note\na,x,1,n\nb x,2,3\n",
        3,
        "Expected 4 columns, got 3",
        "every row needs the columns",
        {},
    ),
    "open quotation mark": (HEAD + FIRST + '"b,x,2\nc,x,3\n', 3, "Expected 3 columns, got 1", "separated by ','", {}),
    "separator within a field": (
        "a::x::1\nb:o:y::x::5\n",
        2,
        "got 7: b:o:y::x::5",
        "separated by '::'",
        {"separator": "::", "header": False, "columns": PLACES},
    ),
    "not UTF-8": (HEAD.encode() + b"a,x,1\n\xe9,x,2\n\xe8,x,2\n", 3, "invalid UTF8", "as UTF-8", {}),
    # ids
    "no user": (HEAD + FIRST + ",x,2\n", 3, "no user id", "complete or delete the row", {}),
    "no item": (HEAD + FIRST + "b,,2\n", 3, "no item id", "complete or delete the row", {}),
    "blank line": (HEAD + FIRST + "\n" + FIRST, 3, "no user id", "complete or delete the row", {}),
    "null id in parquet": ({"user": ["a", None], "item": TWO, "time": [1, 2]}, 2, "no user id", "complete", {}),
    "ids through float": (HEAD + "1,x,1\n2.0,x,2\n", 3, "user id '2.0' is a decimal number", "as integers or text", {}),
    "big ids through float": (HEAD + "1,9.007199254740993e+15,1\n", 2, "mixing id types", "as integers or text", {}),
    "ids of a spreadsheet": (HEAD + "1,1.23E+05,1\n", 2, "item id '1.23E+05' is a decimal number", "as integers", {}),
    "ids of a spreadsheet, one digit": (
        HEAD + "1,x,1\n1E+05,x,2\n",
        3,
        "user id '1E+05' is a decimal",
        "integers or text",
        {},
    ),
    "ids below one": (HEAD + ".5,x,1\n", 2, "user id '.5' is a decimal number", "integers or text", {}),
    "float ids in parquet": (
        {"user": [1.0, 2.0], "item": TWO, "time": [1, 2]},
        1,
        "column 'user' holds double ids",
        "store it as int64 or string",
        {},
    ),
    # times
    "unparsable time": (HEAD + FIRST + "b,x,yesterday\n", 3, "neither a whole number nor ISO 8601", "mend the row", {}),
    "no time": (HEAD + FIRST + "b,x,\n", 3, "time '' is neither", "mend the row", {}),
    "nan": (HEAD + FIRST + "b,x,nan\n", 3, "time 'nan' is neither", "mend the row", {}),
    "infinity": (HEAD + FIRST + "b,x,inf\n", 3, "time 'inf' is neither", "mend the row", {}),
    "beyond 64 bits": (HEAD + FIRST + "b,x,9223372036854775808\n", 3, "does not fit into 64 bits", "mend", {}),
    "far beyond 64 bits": (HEAD + FIRST + "b,x,1e999999\n", 3, "does not fit into 64 bits", "mend the row", {}),
    "ISO beyond 64 bits": (
        HEAD + "b,x,2600-01-01T00:00:00Z\n",
        2,
        "does not fit into 64 bits as ns",
        "set a coarser data.time_unit",
        {"time_unit": "ns", "future": True},
    ),
    "times of a spreadsheet": (
        HEAD + FIRST + "b,x,1.00000E+09\n",
        3,
        "time '1.00000E+09' does not write its last digits",
        "whole numbers",
        {},
    ),
    "times of a spreadsheet in ms": (
        HEAD + "b,x,1.2E12\n",
        2,
        "does not write its last digits",
        "export times as whole",
        {"time_unit": "ms"},
    ),
    "a float's text": (HEAD + "b,x,9.78301e+08\n", 2, "does not write its last digits", "as whole numbers", {}),
    "fraction": (HEAD + FIRST + "b,x,978300019.5\n", 3, "has a fraction", "data.time_unit", {}),
    "negative": (HEAD + FIRST + "b,x,-5\n", 3, "negative time -5", "mend the row", {}),
    "before 1970": (HEAD + FIRST + "b,x,1969-12-31T23:59:59Z\n", 3, "negative time", "mend the row", {}),
    "no time zone": (HEAD + FIRST + "b,x,2020-01-01T00:00:00\n", 3, "has no time zone", "add one (Z or +00:00)", {}),
    "date": (HEAD + FIRST + "b,x,2020-01-01\n", 3, "has no time zone", "add one", {}),
    "finer than seconds": (HEAD + "b,x,2020-01-01T00:00:00.5Z\n", 2, "finer than", "set data.time_unit=ms", {}),
    "finer than milliseconds": (
        HEAD + "b,x,2020-01-01 00:00:00.000250+01:00\n",
        2,
        "finer than data.time_unit=ms",
        "set data.time_unit=us",
        {"time_unit": "ms"},
    ),
    "finer than microseconds": (
        HEAD + "b,x,2020-01-01T00:00:00.123456789Z\n",
        2,
        "finer than data.time_unit=us",
        "set data.time_unit=ns",
        {"time_unit": "us"},
    ),
    "finer than anything": (
        HEAD + "b,x,2020-01-01T00:00:00.1234567891Z\n",
        2,
        "finer than data.time_unit=ns",
        "round it",
        {"time_unit": "ns"},
    ),
    "milliseconds read as seconds": (HEAD + f"a,x,{NOON}000\n", 2, "the future", "set data.time_unit=ms", {}),
    "microseconds read as seconds": (HEAD + f"a,x,{NOON}000000\n", 2, "the future", "set data.time_unit=us", {}),
    "nanoseconds read as milliseconds": (
        HEAD + f"a,x,{NOON}000000000\n",
        2,
        "lies in the future; if it counts ns",
        "set data.time_unit=ns",
        {"time_unit": "ms"},
    ),
    "future": (HEAD + FIRST + "b,x,9000000000\n", 3, "lies in the future; mend", "admit it by data.future=true", {}),
    "null time in parquet": ({"user": TWO, "item": TWO, "time": [1, None]}, 2, "time '' is neither", "mend", {}),
    "null stamp in parquet": (
        {"user": TWO, "item": TWO, "time": pa.array([NOON, None]).cast(pa.timestamp("s", "UTC"))},
        2,
        "time '' is neither",
        "mend the row",
        {},
    ),
    "stamps without a zone": (
        {"user": TWO, "item": TWO, "time": stamps("us", None)},
        1,
        "times without a time zone",
        "with tz=UTC",
        {},
    ),
    "stamps finer than the unit": (
        {"user": TWO, "item": TWO, "time": stamps("ns")},
        2,
        "no whole number",
        "set data.time_unit=ns",
        {"time_unit": "us"},
    ),
    "stamps beyond 64 bits": (
        {"user": TWO[:1], "item": TWO[:1], "time": pa.array([2 * 10**10]).cast(pa.timestamp("s", "UTC"))},
        1,
        "no whole number of 64 bits",
        "set data.time_unit=ms",
        {"time_unit": "ns", "future": True},
    ),
    "float32 times": (
        {"user": TWO, "item": TWO, "time": pa.array([1, 978300019], pa.int64()).cast(pa.float32(), safe=False)},
        2,
        "a float cannot tell time 978300032.0 from its neighbours",
        "store times as int64",
        {},
    ),
    "nanoseconds as doubles": (
        {"user": TWO, "item": TWO, "time": [1.0, NOON * 1e9]},
        2,
        "a double cannot tell",
        "store times as int64",
        {"time_unit": "ns"},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_file_row_and_remedy(tmp_path, name):
    content, row, what, remedy, options = BAD[name]
    file = write(tmp_path, content)
    with pytest.raises(ZooError) as caught:
        read_log(file, **{"columns": COLUMNS, **options})
    text = str(caught.value)
    assert text.startswith(f"{file}: row {row}: ") and "\n" not in text
    assert what in text and remedy in text


def test_what_cannot_be_a_log_at_all_is_refused(tmp_path):
    file = write(tmp_path, HEAD + FIRST)
    with pytest.raises(ZooError, match=r"nowhere\.csv: no such file; check data\.file"):
        read_log(tmp_path / "nowhere.csv", COLUMNS)
    with pytest.raises(ZooError, match="unknown time unit 'msec'; did you mean 'ms'"):
        read_log(file, COLUMNS, time_unit="msec")
    for separator in ("", "|*|", ", "):
        with pytest.raises(ZooError, match="neither one character nor a doubled one"):
            read_log(file, COLUMNS, separator=separator)
    with pytest.raises(ZooError, match=r"log\.parquet: is no Parquet file"):
        read_log(write(tmp_path, HEAD, "log.parquet"), COLUMNS)


# what is read exactly -------------------------------------------------------------------------------------------------

BIG = [2**53, 2**53 + 1, 2**63 - 1]  # the first two are one number as doubles
EXACT = [("a", "x", 1), ("b,b", 'y"', 2)]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (HEAD + 'a,x,1\n"b,b","y""",2\n', {}),
        (HEAD + 'a,x,1\n"b,b","y""",2', {}),  # no end of line at the end
        (HEAD.replace("\n", "\r\n") + 'a,x,1\r\n"b,b","y""",2\r\n', {}),
        ('"user","item","time"\n"a","x","1"\n"b,b","y""","2"\n', {}),
        ("\ufeff" + HEAD + 'a,x,1\n"b,b","y""",2\n', {}),
        ("\ufeff" + 'a,x,1\n"b,b","y""",2\n', {"header": False, "columns": PLACES}),
        ('time;note;item;user\n1;"a; b";x;a\n2;"two\nlines";"y""";b,b\n', {"separator": ";"}),
        ('user\titem\ttime\na\tx\t1\nb,b\ty"\t2\n', {"separator": "\t"}),
        ('user::item::time\na::x::1\nb,b::y"::2\n', {"separator": "::"}),
        ('a::x::5::1\nb,b::y"::::2\n', {"separator": "::", "header": False, "columns": PLACES | {"time": 3}}),
        (HEAD.encode()[:-1] + b",title\na,x,1,Am\xe9lie\n" + b'"b,b","y""",2,x\n', {}),  # Latin-1 beside the ids
        ({"user": ["a", "b,b"], "item": ["x", 'y"'], "time": [1, 2]}, {}),
        ({"user": pa.array(["a", "b,b"]).dictionary_encode(), "item": ["x", 'y"'], "time": ["1", "2.0"]}, {}),
    ],
    ids=[
        "csv",
        "no newline",
        "crlf",
        "all quoted",
        "BOM",
        "BOM no header",
        "semicolon",
        "tab",
        "doubled",
        "doubled, empty field",
        "latin-1 title",
        "parquet",
        "categories",
    ],
)
def test_formats(tmp_path, content, options):
    assert read(tmp_path, content, **options) == EXACT


def test_a_quotation_mark_in_tab_separated_text_swallows_no_row(tmp_path):
    content = 'user\ttitle\titem\ttime\na\t"Quoted\tx\t1\nb\t"Again\ty\t2\nc\tnone\tz\t3\n'
    assert read(tmp_path, content, separator="\t") == [("a", "x", 1), ("b", "y", 2), ("c", "z", 3)]


@pytest.mark.parametrize("kind", ["csv", "parquet", "parquet unsigned"])
def test_64_bit_ids_keep_every_digit(tmp_path, kind):
    ids = BIG if kind != "parquet unsigned" else [*BIG[:2], 2**64 - 1]
    if kind == "csv":
        content = HEAD + "".join(f"{number},{number},{at}\n" for at, number in enumerate(ids))
    else:
        column = pa.array(ids, pa.uint64() if "unsigned" in kind else pa.int64())
        content = {"user": column, "item": column, "time": [0, 1, 2]}
    assert read(tmp_path, content) == [(str(number), str(number), at) for at, number in enumerate(ids)]


def test_ids_stay_as_they_are_written(tmp_path):
    ids = ["0054890", "54890", "nan", "NA", "1e5", "-3", "ß", " a", "TRUE"]
    found = read(tmp_path, HEAD + "".join(f"{name},{name},1\n" for name in ids))
    assert found == [(name, name, 1) for name in ids]


@pytest.mark.parametrize(
    ("unit", "ticks"), [("s", NOON), ("ms", NOON * 1000 + 7), ("us", NOON * 10**6 + 7), ("ns", NOON * 10**9 + 7)]
)
def test_units(tmp_path, unit, ticks):
    """Numbers, ISO strings and Parquet timestamps of one unit give the same int64, to the last digit."""
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    fraction = f".{ticks % 10**digits:0{digits}d}" if digits else ""
    iso = f"2020-09-13T12:26:40{fraction}Z"
    assert read(tmp_path, HEAD + f"a,x,{ticks}\na,y,{iso}\n", time_unit=unit) == [("a", "x", ticks), ("a", "y", ticks)]
    column = pa.array([ticks, 0]).cast(pa.timestamp(unit, "UTC"))
    stamped = {"user": TWO, "item": TWO, "time": column}
    assert read(tmp_path, stamped, time_unit=unit) == [("a", "a", ticks), ("b", "b", 0)]
    coarse = {"user": TWO, "item": TWO, "time": pa.array([NOON, 0]).cast(pa.timestamp("s", "Europe/Vienna"))}
    assert read(tmp_path, coarse, time_unit=unit)[0][2] == NOON * 10**digits


def test_equal_instants_in_different_zones_are_equal(tmp_path):
    zones = [
        "2020-09-13T12:26:40Z",
        "2020-09-13T12:26:40+00:00",
        "2020-09-13 14:26:40+02:00",
        "2020-09-13T17:56:40.000+05:30",
        "2020-09-12T23:26:40-13:00",
        str(NOON),
    ]
    content = HEAD + "".join(f"a,{at},{stamp}\n" for at, stamp in enumerate(zones))
    assert [time for _, _, time in read(tmp_path, content)] == [NOON] * len(zones)


def test_whole_numbers_written_as_decimals_are_exact(tmp_path):
    written = ["978300019.0", "978300020.", "9.78000000e8", "9.78300019e+08", "+978300019", "0978300019"]
    content = HEAD + "".join(f"a,x,{text}\n" for text in written)
    times = [978300019, 978300020, 978000000, 978300019, 978300019, 978300019]
    assert [time for _, _, time in read(tmp_path, content)] == times
    doubles = {"user": TWO, "item": TWO, "time": [978300019.0, 2.0**53]}
    assert [time for _, _, time in read(tmp_path, doubles, future=True)] == [978300019, 2**53]
    round_ones = {"user": TWO, "item": TWO, "time": [1.3e12, 1e12]}  # doubles hold all their digits, however few
    assert [time for _, _, time in read(tmp_path, round_ones, time_unit="ms")] == [1_300_000_000_000, 10**12]


def test_an_id_of_digits_and_an_e_is_a_name(tmp_path):
    assert read(tmp_path, HEAD + "1e5,12e4,1\n7E,e7,2\n") == [("1e5", "12e4", 1), ("7E", "e7", 2)]


def test_times_at_the_end_of_64_bits(tmp_path):
    content = HEAD + "a,x,8999999999999999999\na,x,9000000000000000001\na,x,9223372036854775807\n"
    times = [time for _, _, time in read(tmp_path, content, time_unit="ns", future=True)]
    assert times == [8999999999999999999, 9000000000000000001, 2**63 - 1]


def test_recbole_times_are_exact(tmp_path):
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    rows = "1\t10\t5\t978300019.0\n1\t11\t4\t978300020\n1\t12\t3\t9.78300083e8\n1\t13\t1\t9.78000000e8\n"
    file = write(tmp_path, head + rows, "log.inter")
    log = create_dataset("recbole", root=tmp_path).read_file(file)
    assert [time for _, _, time in events(log)] == [978300019, 978300020, 978300083, 978000000]


def test_rows_of_json_lines_are_named_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("statezoo.zoo.data.log_sources.CHUNK", 3)
    lines = [f'{{"user": "a", "item": "x", "time": {n}}}\n' for n in range(10)]
    lines[7] = '{"user": "a", "item": "x", "time": -7}\n'
    file = write(tmp_path, "".join(lines), "log.jsonl")
    with pytest.raises(ZooError, match=r"log\.jsonl: row 8: negative time -7"):
        read_log(file, COLUMNS)


@pytest.mark.parametrize(("kind", "last"), [("float32", 2**24), ("float64", 2**53), ("float16", 2**11)])
def test_float_times_are_read_as_far_as_each_has_a_value_of_its_own(tmp_path, kind, last):
    for time, right in ((last, True), (last + 2, False)):
        times = np.array([time], kind)
        assert int(times[0]) == time
        file = write(tmp_path, {"user": ["a"], "item": ["x"], "time": times})
        if right:
            assert read_log(file, COLUMNS, time_unit="ns", future=True).time.tolist() == [time]
        else:
            with pytest.raises(ZooError, match="cannot tell time .* from its neighbours"):
                read_log(file, COLUMNS, time_unit="ns", future=True)


def test_rows_are_named_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("statezoo.zoo.data.log_sources.CHUNK", 3)
    monkeypatch.setattr("statezoo.zoo.data.log_sources.BLOCK", 32)
    for bad, message in (("b,2\n", "Expected 3 columns"), ("b,x,-8\n", "negative time"), (",x,2\n", "no user id")):
        with pytest.raises(ZooError, match=rf"log\.csv: row 102: {message}"):
            read(tmp_path, HEAD + FIRST * 100 + bad)
    quoted = [(f"a\n{n}", "x", 1) for n in range(50)]  # line ends within fields, wherever a block ends
    assert read(tmp_path, HEAD + "".join(f'"{user}",x,1\n' for user, *_ in quoted)) == quoted
    with pytest.raises(ZooError, match="row 102 or later: .*block size.*separated by ','"):
        read(tmp_path, HEAD + FIRST * 100 + f"{'b' * 100},x,2\n")
    columns = {"user": ["a"] * 8, "item": ["x"] * 8, "time": [1, 2, 3, 4, 5, 6, 7, -8]}
    with pytest.raises(ZooError, match=r"log\.parquet: row 8: negative time -8"):
        read(tmp_path, columns)
    assert len(read(tmp_path, columns | {"time": list(range(8))})) == 8


# what is counted ------------------------------------------------------------------------------------------------------

LOG = [  # user, item, time: b has one event, c two, and z occurs as the last event of a only
    *[("a", item, at) for at, item in enumerate(["x", "y", "x", "y", "z"])],
    ("b", "x", 0),
    *[("c", item, at) for at, item in enumerate(["x", "y"])],
    *[("d", item, at) for at, item in enumerate(["y", "x", "y", "x"])],
]


def dataset(folder, rows=LOG, **config):
    write(folder, HEAD + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return create_dataset("log", root=folder, **{"k_core": 1, "max_len": 5, **config})


def test_short_users_and_unseen_items_are_counted_and_handled(tmp_path):
    data = dataset(tmp_path)
    spec = data.prepare()
    assert (
        data.check().items()
        >= {
            "events_in_file": 12,
            "events_after_k_core": 12,
            "users": 4,
            "items": 3,
            "users_with_fewer_than_3_events": 2,
            "items_unseen_in_training": 1,
            "valid_targets_unseen_in_training": 0,
            "test_targets_unseen_in_training": 1,
            "duplicates_dropped": 0,
        }.items()
    )
    test = data.part("test").batch(np.arange(2))
    assert [spec.inputs.vocabulary[code - 1] for code in test["target"]] == ["z", "x"], "users a and d; z can be missed"
    checked = [dataset(tmp_path, max_len=n).check() for n in (3, 4, 5)]
    assert [counts["test_histories_that_fill_max_len"] for counts in checked] == [2, 1, 0]
    train = data.part("train")
    assert len(train) == 3, "users with two events and more train: a, c, d"
    user, item = train.events()
    assert np.bincount(user).tolist() == [3, 1, 2, 2] and 3 not in item


def test_short_users_and_unseen_items_at_the_global_split(tmp_path):
    rows = [(f"u{i % 4}", f"i{i % 3}", i) for i in range(80)]
    rows += [("u0", "new", 85), ("late", "i0", 86), ("one", "i0", 90), ("u1", "new", 95), ("u2", "i1", 96)]
    data = dataset(tmp_path, rows, split="global-time", quantiles=(0.9, 0.96))
    data.prepare()
    first, second = sorted(row[2] for row in rows)[int(0.9 * 85)], sorted(row[2] for row in rows)[int(0.96 * 85)]
    assert (first, second) == (76, 86)
    assert (
        data.check().items()
        >= {
            "events_in_file": 85,
            "training_events": 76,
            "users": 6,  # late and one have a history of known items, but none before their targets
            "items": 3,
            "later_events_of_unknown_items": 2,
            "valid_users_without_history": 0,
            "valid_targets_unseen_in_training": 1,  # u0: new at 85
            "test_users_without_history": 2,  # late, one
            "test_targets_unseen_in_training": 1,  # u1: new at 95
        }.items()
    )
    test = data.part("test").batch(np.arange(2))
    assert test["target"].tolist() == [0, 2], "u1: unknown, a miss for every model; u2: i1"


def test_duplicates_are_refused_with_their_row_or_dropped_and_counted(tmp_path):
    rows = [*LOG[:3], LOG[1], *LOG[3:], LOG[0], ("a", "y", 7), ("a", "x", 1)]  # the last two repeat no whole event
    with pytest.raises(ZooError) as caught:
        dataset(tmp_path, rows).prepare()
    where = f"{tmp_path / 'log.csv'}: row 5: repeats an earlier event (user a, item y, time 1), as do 1 more rows"
    assert str(caught.value) == f"{where}; set data.duplicates=drop to keep the first of each"
    data = dataset(tmp_path, rows, duplicates="drop")
    data.prepare()
    assert data.counts["duplicates_dropped"] == 2 and data.counts["events_in_file"] == len(LOG) + 2


def test_a_split_is_kept_under_every_setting_that_makes_it(tmp_path):
    """One file, one cache: what was made under other settings is never taken for what these make."""
    rows = [*((user, item, 10 * n) for user in "abc" for n, item in enumerate("xyzxyxyx")), ("a", "x", 0)]
    settings = [
        {}, {"k_core": 4}, {"split": "global-time", "quantiles": (0.5, 0.75)},
        {"split": "global-time", "quantiles": (0.4, 0.6)}, {"timestamps": "float32"},
        {"user": "item", "item": "user"}, {"time_unit": "ms"},
    ]  # fmt: skip
    rows = [(user, item, time + 2**24 + 1) for user, item, time in rows]
    write(tmp_path, HEAD + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    made = {}
    for n, some in enumerate(settings):
        data = create_dataset("log", root=tmp_path, **{"k_core": 1, "max_len": 5, "duplicates": "drop", **some})
        made[n] = data.prepare() and {name: array.tobytes() for name, array in data._log.arrays.items()}
    assert [n for n in made if n and made[n] == made[0]] == [6], "the unit of times alone changes no array"
    assert made[2] != made[3]
    with pytest.raises(ZooError, match="repeats an earlier event"):
        create_dataset("log", root=tmp_path, k_core=1, max_len=5).prepare()


@pytest.mark.parametrize("setting", ["max_len", "k_core"])
def test_windows_and_cores_are_of_one_event_at_least(setting, tmp_path):
    with pytest.raises(ZooError, match="must be at least 1"):
        dataset(tmp_path, **{setting: 0})
    dataset(tmp_path, **{setting: 1}).prepare()


# times stay whole -----------------------------------------------------------------------------------------------------


def collapsed(log):
    """Share of users whose items change order, and whose last item changes, when times become float32."""
    order, wrong = np.lexsort((log.time, log.user)), np.lexsort((log.time.astype(np.float32), log.user))
    user, same = log.user[order], log.item[order] == log.item[wrong]
    last = np.append(np.diff(user) != 0, True)
    moved = np.bincount(user, ~same) > 0
    return moved.mean(), 1 - same[last].mean()


def test_float32_would_merge_what_int64_keeps(tmp_path):
    assert np.spacing(np.float32(9.8e8)) == 64
    begin = 980_000_000
    rows = [("a", f"i{second}", begin + second) for second in (5, 3, 4, 1, 2, 0)]
    data = dataset(tmp_path, rows)
    data.prepare()
    assert collapsed(read_log(tmp_path / "log.csv", COLUMNS)) == (1, 1)
    for part, seconds in (("train", [0, 1, 2]), ("valid", [0, 1, 2, 3]), ("test", [0, 1, 2, 3, 4])):
        batch = data.part(part).batch(np.array([0]))
        assert batch["times"].dtype == np.int64
        assert batch["times"][0, : len(seconds)].tolist() == [begin + second for second in seconds]
    (loaded,) = data.datamodule(batch_size=1).train_steps(0, 1)
    assert str(loaded["times"].dtype) == "torch.int64" and loaded["times"][0, :3].tolist() == [
        begin,
        begin + 1,
        begin + 2,
    ]


@real
def test_float32_would_reorder_movielens(tmp_path):
    data = create_dataset("ml-100k", root=DATA / "ml-100k")
    log = data.read_file(DATA / "ml-100k" / "u.data")
    assert len(log) == 100_000 and (len(log.users), len(log.items)) == (943, 1682)
    moved, retargeted = collapsed(log)
    assert (round(moved * 943), round(retargeted * 943)) == (908, 149)  # 96.3 % and 15.8 %
    data.prepare()
    for name, part in data.parts.items():
        batch = part.batch(np.arange(100))
        assert batch["times"].dtype == np.int64, name
        seen = batch["times"][batch["items"] > 0]
        assert seen.min() >= log.time.min() and seen.max() <= log.time.max()
        steps = np.diff(batch["times"], axis=1)[(batch["items"] > 0)[:, 1:]]
        assert (steps >= 0).all() and (steps % 64 != 0).any(), "seconds, not multiples of 64"


@real
def test_the_two_copies_of_movielens_are_one_log():
    official = create_dataset("ml-100k", root=DATA / "ml-100k").read_file(DATA / "ml-100k" / "u.data")
    atomic = DATA / "ml-100k-atomic"
    assert events(official) == events(create_dataset("recbole", root=atomic).read_file(atomic / "ml-100k.inter"))


@real
def test_movietweetings_keeps_its_leading_zeros():
    data = create_dataset("movietweetings", root=DATA / "movietweetings")
    log = data.read_file(DATA / "movietweetings" / "ratings.dat")
    table = pd.read_csv(DATA / "movietweetings" / "ratings.dat", sep="::", engine="python", header=None, dtype=str)
    assert [(u, i, str(t)) for u, i, t in events(log)] == list(zip(table[0], table[1], table[3], strict=True))
    assert any(name.startswith("0") for name in log.items)


def test_times_of_one_unit_in_another():
    times = np.array([0, 1_600_000_000_123, 1_600_000_000_999])
    assert in_unit(times, "ms", "s").tolist() == [0, 1_600_000_000, 1_600_000_000], "cut off, never rounded up"
    assert in_unit(times, "ms", "us").tolist() == (times * 1000).tolist()
    assert in_unit(times, "ms", "ms").tolist() == times.tolist() and in_unit(times[:0], "s", "ns").tolist() == []
    with pytest.raises(ZooError, match="times in s do not fit into 64 bits in ns, which the model counts in"):
        in_unit(np.array([2**40]), "s", "ns")
