"""Reading interaction logs: delimited text and Parquet to int64 times and integer-coded ids, every row checked.

Ids are kept as the source writes them ("0054890" stays itself, 64-bit ids lose no digit). Times are whole numbers of
the source's unit or ISO 8601 strings with a time zone, and stay int64 from here to the model: as float32, seconds
near 1e9 are 64 apart and most users of MovieLens-100K change item order.
"""

from __future__ import annotations

import csv
import time as clock
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ZooError, unknown

CHUNK = 500_000
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

    `.parquet` files are read by name; anything else is text split at `separator` ("::" included). `future` admits
    times later than now. Raises `ZooError` with file, row (1 = first line) and remedy.
    """
    if time_unit not in UNITS:
        raise unknown("time unit", time_unit, UNITS)
    if not file.is_file():
        raise ZooError(f"{file}: no such file; check data.file and data.root")
    user, item, times = _Coder(), _Coder(), []
    users, items = [], []
    chunks = _parquet(file, columns) if file.suffix == ".parquet" else _text(file, columns, separator, header)
    for row, chunk in chunks:
        users.append(user(_ids(chunk["user"], "user", file, row)))
        items.append(item(_ids(chunk["item"], "item", file, row)))
        times.append(_times(chunk["time"], file, row, time_unit, future))
    if not times or not sum(map(len, times)):
        raise ZooError(f"{file}: row 1: the file is empty; give a log with at least one event per line")
    join = np.concatenate
    first_row = 1 + int(header and file.suffix != ".parquet")
    return RawLog(join(users), join(items), join(times), list(user.codes), list(item.codes), first_row)


def _text(file: Path, columns, separator: str, header: bool) -> Iterator[tuple[int, dict]]:
    import pandas as pd

    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline().rstrip("\r\n")
    if not first:
        raise ZooError(f"{file}: row 1: the file is empty; give a log with at least one event per line")
    # pandas splits at one character quickly and at a regular expression slowly; "::" is every second ":" field
    step = len(separator) if len(separator) == 2 and separator[0] == separator[1] else 1
    names = first.split(separator) if len(separator) > 1 else next(csv.reader([first], delimiter=separator))
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
    try:
        reader = pd.read_csv(
            file,
            sep=separator[0] if step == 2 else separator,
            header=None,
            skiprows=int(header),
            dtype=str,
            usecols=sorted({place * step for place in places.values()}),
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8",
            encoding_errors="replace",
            chunksize=CHUNK,
            quotechar='"',
            skip_blank_lines=False,
        )
        row = 1 + int(header)
        for chunk in reader:
            yield row, {role: chunk[place * step] for role, place in places.items()}
            row += len(chunk)
    except pd.errors.EmptyDataError as error:
        raise ZooError(
            f"{file}: row 2: no events below the header; give a log with at least one event per line"
        ) from error
    except pd.errors.ParserError as error:
        raise ZooError(
            f"{file}: {str(error).strip()}; every row needs the same columns, separated by {separator!r}"
        ) from error


def _parquet(file: Path, columns) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file)
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
    row = 1
    for batch in source.iter_batches(CHUNK, columns=sorted(set(columns.values()))):
        frame = {}
        for role, column in columns.items():
            values = batch.column(column)
            if pa.types.is_timestamp(values.type) and role == "time":
                if values.type.tz is None:
                    raise ZooError(
                        f"{file}: row {row}: times without a time zone; store '{column}' with tz=UTC or as integers"
                    )
                values = values.cast(pa.timestamp("ns", tz=values.type.tz))
                frame[role] = values.to_pandas().map(lambda stamp: stamp.isoformat())
            else:
                frame[role] = values.cast(pa.string()).to_pandas().fillna("")
        yield row, frame
        row += len(batch)


def _no_column(file: Path, role: str, column: str, names) -> ZooError:
    error = unknown("column", column, names)
    return ZooError(f"{file}: row 1: {error} (set data.{role}=NAME)")


def _ids(ids, role: str, file: Path, row: int):
    """Refuse missing ids and ids that went through a float."""
    empty = np.flatnonzero((ids == "").to_numpy())
    if len(empty):
        raise ZooError(f"{file}: row {row + empty[0]}: no {role} id; complete or delete the row")
    floats = ids.str.fullmatch(r"-?\d+\.\d*(?:[eE][+-]?\d+)?").to_numpy(dtype=bool)
    if floats.any():
        at = int(np.flatnonzero(floats)[0])
        raise ZooError(
            f"{file}: row {row + at}: {role} id '{ids.iloc[at]}' is a decimal number, mixing id types (an id column "
            "that went through float); export it as integers or text"
        )
    return ids


def _times(times, file: Path, row: int, unit: str, future: bool) -> np.ndarray:
    """int64 times in `unit`; whole numbers, decimals with zero fraction, or ISO 8601 with a time zone."""
    whole = times.str.fullmatch(r"[+-]?\d{1,18}").to_numpy(dtype=bool)
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
    late = np.flatnonzero(values > (clock.time() + 86_400) * UNITS[unit])
    if len(late) and not future:
        at = late[0]
        finer = next(
            (name for name, size in UNITS.items() if values[at] * UNITS[unit] < clock.time() * size * UNITS[unit]), None
        )
        hint = f"if it counts {finer}, set data.time_unit={finer}" if finer and finer != unit else "mend the row"
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
        if number.is_finite():
            if number != number.to_integral_value():
                raise ZooError(
                    f"{where}: time '{text}' has a fraction; give whole numbers and say their unit by data.time_unit"
                )
            return int(number)
    except InvalidOperation:
        pass  # not a number: an ISO string or an error
    try:
        stamp = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ZooError(f"{where}: time '{text}' is neither a whole number nor ISO 8601; mend the row") from error
    if stamp.tzinfo is None:
        raise ZooError(f"{where}: time '{text}' has no time zone; add one (Z or +00:00)")
    past = stamp - datetime(1970, 1, 1, tzinfo=timezone.utc)
    micro = (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds
    if micro * UNITS[unit] % 1_000_000:
        raise ZooError(f"{where}: time '{text}' is finer than data.time_unit={unit}; set data.time_unit=us")
    return micro * UNITS[unit] // 1_000_000
