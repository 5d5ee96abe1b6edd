"""Files of interaction logs as chunks of text columns: delimited text, JSON lines, Parquet, gzipped, or in parts.

A chunk is (file, number of its first row, {"user": ids, "item": ids, "time": times}), pandas Series of strings; rows
count from 1, the header included. Every row is checked: short and long ones, and bytes that are no UTF-8, are errors
that name it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from ..errors import ZooError, unknown
from ..foreign import reading
from .log_times import ticks_of, whole_floats

CHUNK = 500_000  # rows of Parquet or JSON lines read at once
BLOCK = 1 << 24  # bytes of text read at once; the longest row
MOST_ROWS = 1 << 20  # of Parquet, and 64 for each byte of the file
RATIO = 1_000  # of a gzipped file: more than that is no log
#: what users write for a separator that a shell or a recipe makes hard to type
SEPARATORS = {
    "tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "colon": ":", "colons": "::",
}  # fmt: skip
JSON_LINES = (".jsonl", ".ndjson")

Chunk = tuple[Path, int, dict]


@dataclass(frozen=True)
class Layout:
    """How a log is laid out: where its columns are, and what its text and times need to be told.

    `columns` says where `user`, `item` and `time` are: names of a header or of `names`, else positions. `names`: the
    columns of text without a header. `header`: whether text has one.
    """

    columns: Mapping[str, str | int]
    separator: str = ","
    header: bool = True
    names: Sequence[str] = ()
    unit: str = "s"
    zone: tzinfo | None = None

    def split_at(self, where: Path) -> str:
        """The separator itself: one character or a doubled one."""
        separator = SEPARATORS.get(self.separator, self.separator)
        if len(separator) not in (1, 2) or separator[0] != separator[-1]:
            raise ZooError(
                f"{where}: separator {separator!r} is neither one character nor a doubled one; use another, or one of "
                f"{', '.join(name for name in SEPARATORS if name.isalpha())}"
            )
        return separator


def chunks(place: Path, layout: Layout) -> Iterator[Chunk]:
    """The rows of a log file, or of a folder's files in the order of their names."""
    for file in parts(place):
        kind, packed = kind_of(file)
        if kind == ".json":
            raise ZooError(f"{file}: .json is no log; write one object a line, and name it .jsonl")
        if kind == ".parquet":
            if packed:
                raise ZooError(f"{file}: Parquet is packed already and not read as .gz; unpack it by gunzip")
            rows = _parquet(file, layout)
        elif kind in JSON_LINES:
            rows = _json_lines(file, layout)
        else:
            rows = _text(file, layout)
        for row, columns in rows:
            yield file, row, columns


def kind_of(file: Path) -> tuple[str, bool]:
    """The suffix that says what a file holds, in lower case, and whether `.gz` behind it says that it is gzipped."""
    name = Path(file.name.lower())
    packed = name.suffix == ".gz"
    return name.with_suffix("").suffix if packed else name.suffix, packed


def parts(place: Path) -> list[Path]:
    """The files of a log: itself, or those of a folder, which writers such as Spark fill with parts and marks.

    Names that begin with "_" or "." are marks; all others must be of one kind that is read.
    """
    if not place.is_dir():
        if not place.is_file():
            raise ZooError(f"{place}: no such file; check data.file and data.root")
        return [place]
    files = sorted(
        file
        for file in place.rglob("*")
        if file.is_file() and not any(name.startswith(("_", ".")) for name in file.relative_to(place).parts)
    )
    if not files:
        raise ZooError(f"{place}: a folder without files; give a log file, or a folder of parts")
    kinds = [kind + ".gz" * packed for kind, packed in map(kind_of, files)]
    if len(set(kinds)) > 1:
        odd = files[min(range(len(files)), key=lambda i: kinds.count(kinds[i]))]
        told = ", ".join(sorted(set(kinds)))
        raise ZooError(f"{odd}: parts of a log are of one kind, here {told}; take the others out")
    return files


def empty(file: Path, row: int = 1, what: str = "the file is empty") -> ZooError:
    """The error for a log without events."""
    return ZooError(f"{file}: row {row}: {what}; give a log with at least one event per line")


def decimal_id(file: Path, row: int, role: str, name: str) -> ZooError:
    """The error for an id that is written as a number that is not whole."""
    return ZooError(
        f"{file}: row {row}: {role} id '{name}' is a decimal number, mixing id types (an id column that went through "
        "float or a spreadsheet, which loses digits); export it as integers or text"
    )


def only(file: Path, role: str, column: str, names: Sequence[str]) -> int:
    """The position of the one column of that name."""
    if column not in names:
        raise ZooError(f"{file}: row 1: {unknown('column', column, names)} (set data.{role}=NAME)")
    if (found := list(names).count(column)) > 1:
        raise ZooError(
            f"{file}: row 1: {found} columns are named '{column}'; rename all but one, or say which by data.{role}=NAME"
        )
    return list(names).index(column)


# compressed files -----------------------------------------------------------------------------------------------------


class _Bounded(io.RawIOBase):
    """A gzipped file as a stream that ends where it inflates to more than `RATIO` times its size."""

    def __init__(self, file: Path):
        self.stream, self.file, self.left = gzip.open(file), file, RATIO * file.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.stream.read(min(len(buffer), 1 << 20))
        self.left -= len(data)
        if self.left < 0:
            raise ZooError(f"{self.file}: inflates to over {RATIO} times its size, as no log does; unpack it by hand")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked where its name ends in .gz; damage to the packing is an error that names it."""
    try:
        with io.BufferedReader(_Bounded(file), 1 << 20) if kind_of(file)[1] else open(file, "rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ZooError(f"{file}: is damaged or no gzip file ({error}); get it again, or unpack it by hand") from error


# delimited text -------------------------------------------------------------------------------------------------------


def _text(file: Path, layout: Layout) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    separator, header = layout.split_at(file), layout.header and not layout.names
    with opened(file) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", errors="replace")
        first = lines.readline(BLOCK).rstrip("\r\n")
        more = not header or lines.read(1)
    if not first:
        raise empty(file)
    if not more:
        raise empty(file, 2, "no events below the header")
    # outside CSV a quotation mark is part of a name, and would swallow rows up to the next one
    quote = '"' if separator in (",", ";") else False
    line = next(csv.reader([first], delimiter=separator)) if quote else first.split(separator)
    places = {role: _place(file, role, column, line, layout) for role, column in layout.columns.items()}
    # the parser splits at one character: of "::" every second field is the empty one between
    step = len(separator)
    fields = [str(place) for place in range(step * (len(line) - 1) + 1)]
    wanted = {role: fields[place * step] for role, place in places.items()}
    row = 1 + int(header)
    try:
        with opened(file) as stream:
            # not pandas, which fills short rows and with `usecols` cuts long ones, without a word
            reader = arrow.open_csv(
                stream,
                arrow.ReadOptions(column_names=fields, skip_rows=int(header), block_size=BLOCK, use_threads=False),
                arrow.ParseOptions(
                    delimiter=separator[0], quote_char=quote, newlines_in_values=bool(quote), ignore_empty_lines=False
                ),
                arrow.ConvertOptions(
                    include_columns=sorted(set(wanted.values())),
                    column_types=dict.fromkeys(wanted.values(), pa.string()),
                ),
            )
            for batch in reader:
                yield row, {role: batch.column(field).to_pandas() for role, field in wanted.items()}
                row += len(batch)
    except pa.ArrowInvalid as error:
        said = " ".join(str(error).split())
        found = re.search(r"Row #(\d+): (.{1,100})", said)
        where = f"row {found[1]}: {found[2]}" if found else f"row {row} or later: {said}"
        raise ZooError(
            f"{file}: {where}; every row needs the columns of the first, separated by {separator!r}, as UTF-8"
        ) from error


def _place(file: Path, role: str, column: str | int, line: list[str], layout: Layout) -> int:
    """The position of a column, given the fields of the first line."""
    if layout.names:
        if len(layout.names) != len(line):
            raise ZooError(
                f"{file}: row 1: has {len(line)} columns, data.columns names {len(layout.names)}; name each once, and "
                f"check the separator {layout.separator!r}"
            )
        return only(file, role, str(column), layout.names)
    if layout.header:
        return only(file, role, str(column), line)
    if int(column) >= len(line):
        raise ZooError(
            f"{file}: row 1: no column {int(column) + 1} for '{role}' (the line has {len(line)}); "
            f"check the separator {layout.separator!r}"
        )
    return int(column)


# JSON lines -----------------------------------------------------------------------------------------------------------


def _json_lines(file: Path, layout: Layout) -> Iterator[tuple[int, dict]]:
    """One object a line; numbers keep the digits they are written with."""
    import pandas as pd

    rows: dict[str, list[str]] = {role: [] for role in layout.columns}
    first = row = 1
    with opened(file) as stream:
        while line := stream.readline(BLOCK):
            record = _record(file, row, line)
            for role, column in layout.columns.items():
                if column not in record:
                    raise ZooError(f"{file}: row {row}: {unknown('key', str(column), record)} (set data.{role}=NAME)")
                rows[role].append(_as_text(file, row, role, str(column), record[column]))
            row += 1
            if row - first == CHUNK:
                yield first, {role: pd.Series(values, dtype=object) for role, values in rows.items()}
                rows, first = {role: [] for role in layout.columns}, row
    if row > first:
        yield first, {role: pd.Series(values, dtype=object) for role, values in rows.items()}


class _Decimal(str):
    """The digits of a JSON number with a point or an exponent, which is a time or nothing."""


def _record(file: Path, row: int, line: bytes) -> dict:
    if len(line) == BLOCK:
        raise ZooError(f"{file}: row {row}: is longer than {BLOCK >> 20} MiB; write one object a line")

    def unique(pairs: list[tuple]) -> dict:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ZooError(f"{file}: row {row}: the key '{twice}' is there twice; write each once")
        return made

    try:
        text = line.decode("utf-8-sig" if row == 1 else "utf-8")
        record = json.loads(text, parse_int=str, parse_float=_Decimal, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{file}: row {row}: is no JSON in UTF-8 ({error}); write one object a line") from error
    if not isinstance(record, dict):
        raise ZooError(f"{file}: row {row}: is no object but a {type(record).__name__}; write one object a line")
    return record


def _as_text(file: Path, row: int, role: str, key: str, value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ZooError(f"{file}: row {row}: '{key}' is a {type(value).__name__}; give text or a number")
    if role != "time" and isinstance(value, _Decimal):
        raise decimal_id(file, row, role, value)
    if half := half_of(value):
        raise ZooError(f"{file}: row {row}: '{key}' holds {half}, half of a character; mend the row")
    return value


def half_of(text: str) -> str:
    """The first surrogate of a text, which JSON and Python can hold and no file in UTF-8 can; "": there is none."""
    found = None if text.isascii() else re.search("[\ud800-\udfff]", text)
    return found[0] if found else ""


# Parquet --------------------------------------------------------------------------------------------------------------


def _parquet(file: Path, layout: Layout) -> Iterator[tuple[int, dict]]:
    with reading(file, "Parquet file", "write it anew"):
        yield from _parquet_rows(file, layout)


def _parquet_rows(file: Path, layout: Layout) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = layout.columns
    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ZooError(f"{file}: is no Parquet file ({error}); name it by what it holds or write it anew") from error
    schema = source.schema_arrow
    for role, column in columns.items():
        kind = schema.field(only(file, role, str(column), schema.names)).type
        if role != "time" and pa.types.is_floating(kind):
            raise ZooError(
                f"{file}: row 1: column '{column}' holds {kind} ids, which mixes id types and loses digits of "
                "64-bit ids; store it as int64 or string"
            )
        if role == "time" and pa.types.is_timestamp(kind) and kind.tz is None and layout.zone is None:
            raise ZooError(
                f"{file}: row 1: times without a time zone; store '{column}' with tz=UTC or as integers, or say the "
                "zone by data.time_zone=NAME"
            )
    most = MOST_ROWS + 64 * file.stat().st_size
    if source.metadata.num_rows > most:  # a run of one value takes a few bytes, whatever its length
        raise ValueError(f"{source.metadata.num_rows} rows in {file.stat().st_size} bytes")
    row = 1
    for batch in source.iter_batches(CHUNK, columns=sorted(set(columns.values()))):
        batch.validate(full=True)  # text that is no UTF-8 fails far from here otherwise
        frame = {role: batch.column(column) for role, column in columns.items()}
        kind = frame["time"].type
        if pa.types.is_timestamp(kind):
            if kind.tz is None:
                frame["time"] = _zoned(frame["time"], file, row, layout.zone, pc)
            frame["time"] = ticks_of(frame["time"], file, row, layout.unit)
        elif pa.types.is_floating(kind):
            frame["time"] = whole_floats(frame["time"], file, row)
        yield row, {role: values.cast(pa.string()).to_pandas().fillna("") for role, values in frame.items()}
        row += len(batch)


def _zoned(stamps, file: Path, row: int, zone: tzinfo, pc):
    try:
        return pc.assume_timezone(stamps, str(zone), ambiguous="raise", nonexistent="raise")
    except ValueError as error:
        raise ZooError(
            f"{file}: row {row} or later: {' '.join(str(error).split())}, where clocks are changed; give times with "
            "their zone"
        ) from error
