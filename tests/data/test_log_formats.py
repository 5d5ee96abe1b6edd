"""Formats of logs beyond plain text and Parquet: gzipped, JSON lines, folders of parts, no header, local times."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_reader import read_log
from statezoo.zoo.errors import ZooError

COLUMNS = {"user": "user", "item": "item", "time": "time"}
HEAD = "user,item,time\n"
EXACT = [("a", "x", 1), ("b,b", 'y"', 2)]


def events(log):
    assert log.time.dtype == np.int64
    return [(log.users[u], log.items[i], t) for u, i, t in zip(log.user, log.item, log.time.tolist(), strict=True)]


def write(folder, content):
    """A log file of text, or of a dict of columns as Parquet."""
    file = folder / ("log.csv" if isinstance(content, str) else "log.parquet")
    file.write_text(content) if isinstance(content, str) else pq.write_table(pa.table(content), file)
    return file


def read(folder, content, **options):
    return events(read_log(write(folder, content), COLUMNS, **options))


LINES = '{"user": "a", "item": "x", "time": 1}\n{"user": "b,b", "time": 2, "item": "y\\"", "note": [1]}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.jsonl", LINES),
        ("log.ndjson", LINES.rstrip()),
        ("log.jsonl.gz", gzip.compress(LINES.encode())),
        ("log.csv.gz", gzip.compress(b'user,item,time\na,x,1\n"b,b","y""",2\n')),
        ("log.csv.gz", gzip.compress(b"user,item,time\na,x,1\n") + gzip.compress(b'"b,b","y""",2\n')),
        ("log.dat.gz", gzip.compress(b'user,item,time\na,x,1\n"b,b","y""",2\n')),
    ],
    ids=["jsonl", "ndjson", "jsonl.gz", "csv.gz", "csv.gz of two members", "dat.gz"],
)
def test_compressed_files_and_json_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert events(read_log(tmp_path / name, COLUMNS)) == EXACT


def test_numbers_of_json_lines_keep_their_digits(tmp_path):
    ids = [2**63 + 1, 2**60 + 1, "0054890"]
    text = "".join(json.dumps({"user": i, "item": i, "time": 10**18 + 1}) + "\n" for i in ids)
    (tmp_path / "log.jsonl").write_text(text)
    log = read_log(tmp_path / "log.jsonl", COLUMNS, time_unit="ns")
    assert log.users == list(map(str, ids)) and set(log.time) == {10**18 + 1}


BAD_LINES = {
    "no JSON": ('{"user": 1,\n', 2, "is no JSON in UTF-8", "one object a line"),
    "no object": ("[1, 2, 3]\n", 2, "is no object but a list", "one object a line"),
    "no key": ('{"user": 1, "itm": 2, "time": 3}\n', 2, "unknown key 'item'; did you mean 'itm'", "data.item=NAME"),
    "blank line": ("\n", 2, "is no JSON", "one object a line"),
    "null id": ('{"user": null, "item": 2, "time": 3}\n', 2, "no user id", "complete or delete"),
    "boolean": ('{"user": true, "item": 2, "time": 3}\n', 2, "'user' is a bool", "give text or a number"),
    "nested": ('{"user": {"id": 1}, "item": 2, "time": 3}\n', 2, "'user' is a dict", "give text or a number"),
    "decimal id": ('{"user": 1.0, "item": 2, "time": 3}\n', 2, "is a decimal number", "as integers or text"),
    "deep": ('{"a":' * 9999 + "\n", 2, "is no JSON", "one object a line"),
    "not UTF-8": (b'{"user": "\xe9", "item": 2, "time": 3}\n', 2, "is no JSON in UTF-8", "one object a line"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_json_lines_are_named(tmp_path, name):
    line, row, what, remedy = BAD_LINES[name]
    first = b'{"user": 1, "item": 2, "time": 3}\n'
    (tmp_path / "log.jsonl").write_bytes(first + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(ZooError) as caught:
        read_log(tmp_path / "log.jsonl", COLUMNS)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'log.jsonl'}: row {row}: ") and "\n" not in text
    assert what in text and remedy in text


def test_damaged_gzip_files_are_named(tmp_path):
    whole = gzip.compress(b"user,item,time\n" + b"a,x,1\n" * 5000)
    cases = {"cut": whole[:-20], "flipped": whole[:40] + b"\xff\xff" + whole[42:], "trailing": whole + b"more",
             "plain": b"user,item,time\na,x,1\n"}  # fmt: skip
    for name, content in cases.items():
        (tmp_path / f"{name}.csv.gz").write_bytes(content)
        with pytest.raises(ZooError, match=rf"{name}\.csv\.gz: is damaged or no gzip file"):
            read_log(tmp_path / f"{name}.csv.gz", COLUMNS)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"user,item,time\n" + b"a,x,1\n" * 3_000_000, 9))
    with pytest.raises(ZooError, match=r"bomb\.csv\.gz: inflates to over 100 times its size"):
        read_bounded(tmp_path / "bomb.csv.gz")


def read_bounded(file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("statezoo.zoo.data.log_sources.RATIO", 100)
        return read_log(file, COLUMNS)


def test_a_folder_of_parts_is_one_log(tmp_path):
    folder = tmp_path / "log"
    for n, name in enumerate(["part-00001.snappy.parquet", "part-00000.snappy.parquet", "a=2/part-0.parquet"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"user": [f"u{n}"], "item": ["x"], "time": [n]}).to_parquet(folder / name)
    for mark in ("_SUCCESS", ".part-00000.crc", "_delta_log/0.json"):
        (folder / mark).parent.mkdir(exist_ok=True)
        (folder / mark).write_text("")
    assert [user for user, *_ in events(read_log(folder, COLUMNS))] == ["u2", "u1", "u0"], "in the order of names"
    (folder / "part-00002.csv").write_text("user,item,time\nd,x,1\n")
    with pytest.raises(ZooError, match=r"part-00002\.csv: parts of a log are of one kind, here \.csv, \.parquet"):
        read_log(folder, COLUMNS)
    (tmp_path / "none").mkdir()
    with pytest.raises(ZooError, match="a folder without files"):
        read_log(tmp_path / "none", COLUMNS)


def test_rows_of_parts_are_named_by_their_file(tmp_path):
    (tmp_path / "log").mkdir()
    rows = {"a.csv": "1,x,1\n2,x,2\n", "b.csv": "3,x,3\n1,x,1\n"}
    for name, text in rows.items():
        (tmp_path / "log" / name).write_text(HEAD + text)
    data = create_dataset("log", root=tmp_path, file="log", k_core=1)
    with pytest.raises(ZooError, match=r"b\.csv: row 3: repeats an earlier event \(user 1, item x, time 1\)"):
        data.prepare()
    (tmp_path / "log" / "b.csv").write_text(HEAD + "3,x,3\n4,x,-1\n")
    with pytest.raises(ZooError, match=r"b\.csv: row 3: negative time"):
        data.prepare()
    assert data.manifest().keys() == {"log/a.csv", "log/b.csv"}


def test_columns_of_text_without_a_header_are_named(tmp_path):
    file = write(tmp_path, 'a|7|x|1\nb,b|8|y"|2\n')
    names = ("user", "rating", "item", "time")
    assert events(read_log(file, COLUMNS, names=names, separator="pipe")) == EXACT
    with pytest.raises(ZooError, match=r"row 1: has 4 columns, data\.columns names 3; name each once"):
        read_log(file, COLUMNS, names=names[:3], separator="pipe")
    with pytest.raises(ZooError, match="unknown column 'item'; did you mean 'itm'"):
        read_log(file, COLUMNS, names=("user", "rating", "itm", "time"), separator="pipe")


@pytest.mark.parametrize(("name", "mark"), [("tab", "\t"), ("\\t", "\t"), ("semicolon", ";"), ("pipe", "|"),
                                            ("space", " "), ("comma", ","), ("colons", "::")])  # fmt: skip
def test_separators_have_names(tmp_path, name, mark):
    content = "\n".join(mark.join(row) for row in (("user", "item", "time"), ("a", "x", "1"), ("b", "y", "2")))
    assert read(tmp_path, content, separator=name) == [("a", "x", 1), ("b", "y", 2)]


def test_times_without_a_zone_are_of_the_one_that_is_said(tmp_path):
    summer, winter = "2020-07-01T12:00:00", "2020-01-01 12:00:00"
    content = HEAD + f"a,x,{summer}\na,y,{winter}\na,z,2020-07-01T12:00:00Z\na,w,5\n"
    times = [time for *_, time in read(tmp_path, content, time_zone="Europe/Berlin")]
    assert times == [1593597600, 1577876400, 1593604800, 5]
    stamps = pd.to_datetime([summer, winter], format="ISO8601")
    frame = {"user": ["a", "a"], "item": ["x", "y"], "time": pa.array(stamps.as_unit("s").to_numpy())}
    assert [time for *_, time in read(tmp_path, frame, time_zone="Europe/Berlin")] == times[:2]
    for moment, told in (("2020-10-25T02:30:00", "occurs twice"), ("2020-03-29T02:30:00", "does not exist")):
        with pytest.raises(ZooError, match=rf"row 2: time '{moment}' {told} in data\.time_zone=Europe/Berlin"):
            read(tmp_path, HEAD + f"a,x,{moment}\n", time_zone="Europe/Berlin")
        frame = {"user": ["a"], "item": ["x"], "time": pa.array(pd.to_datetime([moment]).as_unit("s").to_numpy())}
        with pytest.raises(ZooError, match=r"row 1 or later: .* where clocks are changed"):
            read(tmp_path, frame, time_zone="Europe/Berlin")
    with pytest.raises(ZooError, match="no such time zone; did you mean 'Europe/Berlin'"):
        read(tmp_path, content, time_zone="Europe/Berln")


@pytest.mark.parametrize("name", ["log.JSONL", "log.Ndjson", "log.JSONL.GZ", "log.CSV.GZ", "log.csv.Gz", "log.PARQUET"])
def test_the_kind_of_a_file_is_told_by_its_name_in_any_case(tmp_path, name):
    if "parquet" in name.lower():
        columns = {"user": ["a", "b,b"], "item": ["x", 'y"'], "time": [1, 2]}
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        text = LINES if "json" in name.lower() else 'user,item,time\na,x,1\n"b,b","y""",2\n'
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.lower().endswith("gz") else text.encode())
    assert events(read_log(tmp_path / name, COLUMNS)) == EXACT


@pytest.mark.parametrize("name", ["log.json", "log.JSON", "log.json.gz"])
def test_a_json_document_is_not_read_as_text(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode())
    with pytest.raises(ZooError) as caught:
        read_log(tmp_path / name, COLUMNS)
    assert str(caught.value) == f"{tmp_path / name}: .json is no log; write one object a line, and name it .jsonl"


@pytest.mark.parametrize("name", ["log.parquet.gz", "log.PARQUET.GZ"])
def test_gzipped_parquet_is_to_be_unpacked(tmp_path, name):
    pq.write_table(pa.table({"user": ["a"], "item": ["x"], "time": [1]}), tmp_path / "log.parquet")
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "log.parquet").read_bytes()))
    with pytest.raises(ZooError) as caught:
        read_log(tmp_path / name, COLUMNS)
    assert str(caught.value) == f"{tmp_path / name}: Parquet is packed already and not read as .gz; unpack it by gunzip"
    (tmp_path / "parts").mkdir()
    for part in ("a.csv.gz", "b.CSV.GZ"):
        (tmp_path / "parts" / part).write_bytes(gzip.compress(HEAD.encode() + f"{part},x,1\n".encode()))
    assert len(read_log(tmp_path / "parts", COLUMNS)) == 2, "parts of one kind, however it is written"


@pytest.mark.parametrize(
    "file", ["log.jsonl.gz", "log.JSONL", "log.csv.gz", "log.CSV.GZ", "log.PARQUET", "log.ndjson.gz"]
)
def test_the_sample_is_written_as_its_name_says(tmp_path, file):
    data = create_dataset("log", root=tmp_path, file=file)
    data.write_sample(tmp_path)
    plain = create_dataset("log", root=tmp_path / "plain")
    plain.write_sample(tmp_path / "plain")
    assert events(data.read_file(tmp_path / file)) == events(plain.read_file(tmp_path / "plain" / "log.csv"))
