"""Reading interaction logs: delimited text and Parquet to int64 times and integer-coded ids, every row checked.

Ids are kept as the source writes them ("0054890" stays itself, 64-bit ids lose no digit). Times are whole numbers of
the source's unit or ISO 8601 strings with a time zone, and stay int64 from here to the model: as float32, seconds
near 1e9 are 64 apart and most users of MovieLens-100K change item order.
"""

from __future__ import annotations

import csv
import re
import time as clock
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ZooError, unknown

CHUNK = 500_000  # rows of Parquet read at once
BLOCK = 1 << 24  # bytes of text read at once; the longest row
#: 12.0, 1.5e7 and 1E+05 were ids once; 1e5 without a point or a sign may be a name
FLOAT_ID = r"[+-]?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]\d+)"
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class RawLog:
    """A log in file order: codes into the id lists, int64 times."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    users: list[str]
    items: list[str]
    first_row: int = 1
    """Line of the file that holds event 0, for messages."""

    def __len__(self) -> int:
        return len(self.time)


class _Coder:
    """Codes for ids in order of first appearance."""

    def __init__(self):
        self.codes: dict[str, int] = {}

    def __call__(self, ids) -> np.ndarray:
        import pandas as pd

        local, unique = pd.factorize(ids)
        known = self.codes
        return np.fromiter((known.setdefault(str(name), len(known)) for name in unique), np.int64, len(unique))[local]


def read_log(
    file: Path,
    columns: Mapping[str, str | int],
    *,
    separator: str = ",",
    header: bool = True,
    time_unit: str = "s",
    future: bool = False,
) -> RawLog:
    """Read a log file whose `columns` say where `user`, `item` and `time` are (names, or positions without header).

    `.parquet` files are read by name; anything else is UTF-8 text split at `separator`, one character or a doubled one
    ("::"), with fields quoted where it is "," or ";". `future` admits times later than now. Raises `ZooError` with
    file, row (1 = first line) and remedy.
    """
    if time_unit not in UNITS:
        raise unknown("time unit", time_unit, UNITS)
    if not file.is_file():
        raise ZooError(f"{file}: no such file; check data.file and data.root")
    user, item, times = _Coder(), _Coder(), []
    users, items = [], []
    parquet = file.suffix == ".parquet"
    chunks = _parquet(file, columns, time_unit) if parquet else _text(file, columns, separator, header)
    for row, chunk in chunks:
        users.append(user(_ids(chunk["user"], "user", file, row)))
        items.append(item(_ids(chunk["item"], "item", file, row)))
        times.append(_times(chunk["time"], file, row, time_unit, future))
    if not times or not sum(map(len, times)):
        raise ZooError(f"{file}: row 1: the file is empty; give a log with at least one event per line")
    join = np.concatenate
    first_row = 1 + int(header and not parquet)
    return RawLog(join(users), join(items), join(times), list(user.codes), list(item.codes), first_row)


def _text(file: Path, columns, separator: str, header: bool) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    step = len(separator)
    if step not in (1, 2) or separator[0] != separator[-1]:
        raise ZooError(f"{file}: separator {separator!r} is neither one character nor a doubled one; use another")
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline().rstrip("\r\n")
        more = not header or lines.read(1)
    if not first:
        raise ZooError(f"{file}: row 1: the file is empty; give a log with at least one event per line")
    if not more:
        raise ZooError(f"{file}: row 2: no events below the header; give a log with at least one event per line")
    # outside CSV a quotation mark is part of a name, and would swallow rows up to the next one
    quote = '"' if separator in (",", ";") else False
    names = next(csv.reader([first], delimiter=separator)) if quote else first.split(separator)
    places = {}
    for role, column in columns.items():
        if header and column not in names:
            raise _no_column(file, role, str(column), names)
        places[role] = names.index(column) if header else int(column)
        if places[role] >= len(names):
            raise ZooError(
                f"{file}: row 1: no column {places[role] + 1} for '{role}' (the line has {len(names)}); "
                f"check the separator {separator!r}"
            )
    # the parser splits at one character: of "::" every second field is the empty one between
    fields = [str(place) for place in range(step * (len(names) - 1) + 1)]
    wanted = {role: fields[place * step] for role, place in places.items()}
    row = 1 + int(header)
    try:
        # not pandas, which fills short rows and with `usecols` cuts long ones, without a word
        reader = arrow.open_csv(
            file,
            arrow.ReadOptions(column_names=fields, skip_rows=int(header), block_size=BLOCK, use_threads=False),
            arrow.ParseOptions(
                delimiter=separator[0], quote_char=quote, newlines_in_values=bool(quote), ignore_empty_lines=False
            ),
            arrow.ConvertOptions(
                include_columns=sorted(set(wanted.values())), column_types=dict.fromkeys(wanted.values(), pa.string())
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


def _parquet(file: Path, columns, unit: str) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ZooError(f"{file}: is no Parquet file ({error}); name it by what it holds or write it anew") from error
    schema = source.schema_arrow
    for role, column in columns.items():
        if column not in schema.names:
            raise _no_column(file, role, str(column), schema.names)
        kind = schema.field(column).type
        if role != "time" and pa.types.is_floating(kind):
            raise ZooError(
                f"{file}: row 1: column '{column}' holds {kind} ids, which mixes id types and loses digits of "
                "64-bit ids; store it as int64 or string"
            )
        if role == "time" and pa.types.is_timestamp(kind) and kind.tz is None:
            raise ZooError(f"{file}: row 1: times without a time zone; store '{column}' with tz=UTC or as integers")
    row = 1
    for batch in source.iter_batches(CHUNK, columns=sorted(set(columns.values()))):
        frame = {role: batch.column(column) for role, column in columns.items()}
        if pa.types.is_timestamp(frame["time"].type):
            frame["time"] = _ticks(frame["time"], file, row, unit)
        elif pa.types.is_floating(frame["time"].type):
            frame["time"] = _whole(frame["time"], file, row)
        yield row, {role: values.cast(pa.string()).to_pandas().fillna("") for role, values in frame.items()}
        row += len(batch)


def _ticks(stamps, file: Path, row: int, unit: str):
    """Parquet timestamps as whole numbers of `unit`, exactly."""
    import pyarrow as pa

    have, want = UNITS[stamps.type.unit], UNITS[unit]
    ticks = stamps.cast(pa.int64()).fill_null(0).to_numpy()
    scaled = ticks // max(have // want, 1) * max(want // have, 1)
    inexact = scaled // max(want // have, 1) * max(have // want, 1) != ticks  # a fraction lost, or 64 bits left
    if inexact.any():
        at = int(np.flatnonzero(inexact)[0])
        raise ZooError(
            f"{file}: row {row + at}: time {stamps[at]} is no whole number of 64 bits in data.time_unit={unit}; "
            f"set data.time_unit={stamps.type.unit}"
        )
    return pa.array(scaled, mask=stamps.is_null().to_numpy(zero_copy_only=False))


def _whole(times, file: Path, row: int):
    """Float times as integers: exact up to the mantissa only, for float32 seconds near 1e9 are 64 apart."""
    import pyarrow as pa
    import pyarrow.compute as pc

    last = 2.0 ** {16: 11, 32: 24, 64: 53}[times.type.bit_width]
    values = times.to_numpy(zero_copy_only=False).astype(np.float64)
    beyond = np.flatnonzero(np.abs(values) > last)
    if len(beyond):
        raise ZooError(
            f"{file}: row {row + beyond[0]}: a {times.type} cannot tell time {times[beyond[0]]} from its neighbours; "
            "store times as int64"
        )
    # one that is not whole keeps its text, by which it is refused
    return times if pc.any(pc.not_equal(pc.floor(times), times)).as_py() else times.cast(pa.int64())


def _no_column(file: Path, role: str, column: str, names) -> ZooError:
    error = unknown("column", column, names)
    return ZooError(f"{file}: row 1: {error} (set data.{role}=NAME)")


def _ids(ids, role: str, file: Path, row: int):
    """Refuse missing ids and ids that went through a float."""
    empty = np.flatnonzero((ids == "").to_numpy())
    if len(empty):
        raise ZooError(f"{file}: row {row + empty[0]}: no {role} id; complete or delete the row")
    floats = ids.str.fullmatch(FLOAT_ID).to_numpy(dtype=bool)
    if floats.any():
        at = int(np.flatnonzero(floats)[0])
        raise ZooError(
            f"{file}: row {row + at}: {role} id '{ids.iloc[at]}' is a decimal number, mixing id types (an id column "
            "that went through float or a spreadsheet, which loses digits); export it as integers or text"
        )
    return ids


def _times(times, file: Path, row: int, unit: str, future: bool) -> np.ndarray:
    """int64 times in `unit`; whole numbers, decimals with zero fraction, or ISO 8601 with a time zone."""
    # up to 18 digits, or nanoseconds of 19 that int64 holds
    whole = times.str.fullmatch(r"[+-]?(?:[0-9]{1,18}|[0-8][0-9]{18})").to_numpy(dtype=bool)
    values = np.zeros(len(times), np.int64)
    values[whole] = times[whole].astype("int64")
    for at in np.flatnonzero(~whole):
        values[at] = _odd_time(times.iloc[at], f"{file}: row {row + at}", unit)
    negative = np.flatnonzero(values < 0)
    if len(negative):
        at = negative[0]
        raise ZooError(
            f"{file}: row {row + at}: negative time {times.iloc[at]}; times count from 1970-01-01, mend the row"
        )
    latest = clock.time() + 86_400
    late = np.flatnonzero(values > latest * UNITS[unit])
    if len(late) and not future:
        at = late[0]
        # a finer unit is likely where it makes the number a moment between 1975 and now
        finer = next((name for name, size in UNITS.items() if latest / 10 < values[at] / size <= latest), None)
        hint = f"if it counts {finer}, set data.time_unit={finer}" if finer else "mend the row"
        raise ZooError(
            f"{file}: row {row + at}: time {times.iloc[at]} lies in the future; {hint}, or admit it by data.future=true"
        )
    return values


def _odd_time(text: str, where: str, unit: str) -> int:
    """A time that is no plain integer, exactly: a decimal without fraction, or ISO 8601."""
    from datetime import datetime, timezone
    from decimal import Decimal, InvalidOperation

    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")  # an ISO string or an error
    if number.is_finite():
        if abs(number) >= 1 << 63:
            raise ZooError(f"{where}: time '{text}' does not fit into 64 bits; mend the row")
        if number and number.as_tuple().exponent > 0:  # 1.5E+09 may have been any of a hundred million seconds
            raise ZooError(
                f"{where}: time '{text}' does not write its last digits, so that moments that differ are one; export "
                "times as whole numbers"
            )
        if number != number.to_integral_value():
            raise ZooError(
                f"{where}: time '{text}' has a fraction; give whole numbers and say their unit by data.time_unit"
            )
        return int(number)
    # the fraction is taken apart, because datetime cuts it off behind six digits
    split = re.fullmatch(r"(.+[T ]\d\d:?\d\d:?\d\d)[.,](\d+)(.*)", text)
    stem, fraction, zone = split.groups() if split else (text, "0", "")
    try:
        stamp = datetime.fromisoformat((stem + zone).replace("Z", "+00:00"))
    except ValueError as error:
        raise ZooError(f"{where}: time '{text}' is neither a whole number nor ISO 8601; mend the row") from error
    if stamp.tzinfo is None:
        raise ZooError(f"{where}: time '{text}' has no time zone; add one (Z or +00:00)")
    past = stamp - datetime(1970, 1, 1, tzinfo=timezone.utc)
    part, rest = divmod(int(fraction) * UNITS[unit], 10 ** len(fraction))
    if rest:
        fits = next((name for name, size in UNITS.items() if int(fraction) * size % 10 ** len(fraction) == 0), None)
        remedy = f"set data.time_unit={fits}" if fits else "round it"
        raise ZooError(f"{where}: time '{text}' is finer than data.time_unit={unit}; {remedy}")
    ticks = (past.days * 86_400 + past.seconds) * UNITS[unit] + part
    if abs(ticks) >= 1 << 63:
        raise ZooError(f"{where}: time '{text}' does not fit into 64 bits as {unit}; set a coarser data.time_unit")
    return ticks
