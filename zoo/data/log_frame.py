"""Interaction logs given as pandas DataFrames: written once to the cache as Parquet, and read as any Parquet log is.

There is one reader and so one set of checks; only the words differ: a row is told by its position in the frame
(`frame.iloc[row]`), whatever its index. The file's name, and the manifest, are a hash of the three columns' content, so
that equal events give equal hashes whatever else the frame holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ..errors import ZooError, unknown
from ..files import atomic, cache_root
from .log_sources import half_of
from .log_times import find_zone, in_zone


class Frame(NamedTuple):
    """A frame's copy in the cache, and the SHA-256 of its content."""

    file: Path
    sha256: str


def store(frame, columns: Mapping[str, str], folder: Path | None = None, zone: str | None = None) -> Frame:
    """Write the columns of `user`, `item` and `time` of a DataFrame to `folder` (default: the cache), once.

    `zone`: of the times without one in a column that has some with.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(frame, pd.DataFrame):
        raise ZooError(f"data is a {type(frame).__name__}; give a pandas DataFrame, or a file")
    names = [str(name) for name in frame.columns]
    for role, column in columns.items():
        if column not in names:
            raise ZooError(f"DataFrame: {unknown('column', column, names)} (set {role}=NAME)")
        if names.count(column) > 1:
            raise ZooError(f"DataFrame: {names.count(column)} columns are named '{column}'; rename all but one")
    if not len(frame):
        raise ZooError("DataFrame: holds no rows; give a log with at least one event per row")
    given = {column: _plain(frame.iloc[:, names.index(column)]) for column in columns.values()}
    given[columns["time"]] = _moments(given[columns["time"]], zone)
    arrays = {column: _array(values, column) for column, values in given.items()}
    digest = _digest([arrays[column] for column in columns.values()])
    name = hashlib.sha256(repr((digest, *columns.items())).encode()).hexdigest()
    file = (folder or cache_root() / "frames") / f"{name}.parquet"
    if not file.is_file():
        with atomic(file) as temporary:
            pq.write_table(pa.table(arrays), temporary)
    return Frame(file, digest)


@contextmanager
def told(frame: Frame | None) -> Iterator[None]:
    """Errors of the copy in the cache as those of the frame, rows by position; as they are without a frame."""
    try:
        yield
    except ZooError as error:
        if frame is None:
            raise
        file = re.escape(str(frame.file))
        text = re.sub(rf"{file}: row (\d+)", lambda found: f"DataFrame: row {int(found[1]) - 1}", str(error))
        raise ZooError(re.sub(file, "DataFrame", text)) from error


def _plain(values):
    """A column without the coding of categories of any type."""
    import pandas as pd

    coded = isinstance(values.dtype, pd.CategoricalDtype) and values.cat.categories.dtype == object
    return values.astype(object) if coded else values


def _moments(values, zone: str | None):
    """A column of Python's times as one of pandas, all with a zone or all without; any other as it is."""
    import pandas as pd

    if values.dtype != object:
        return values
    times = {row: time for row, time in enumerate(values) if isinstance(time, datetime) and time is not pd.NaT}
    if not times or len(times) + values.isna().sum() < len(values):
        return values
    naive = [row for row, time in times.items() if time.tzinfo is None]
    local, moments = None if zone is None else find_zone(zone), values.tolist()
    for row in naive if len(naive) < len(times) else ():
        time = times[row]
        whole = time.to_pydatetime(warn=False) if isinstance(time, pd.Timestamp) else time
        moment = in_zone(whole, local, f"DataFrame: row {row}: time '{time}'")
        moments[row] = pd.Timestamp(moment) + pd.Timedelta(getattr(time, "nanosecond", 0), "ns")
    try:  # not Arrow, which cuts nanoseconds off
        return pd.to_datetime(pd.Series(moments, dtype=object), utc=len(naive) < len(times))
    except pd.errors.OutOfBoundsDatetime as error:
        raise ZooError(f"DataFrame: times of nanoseconds end in 2262, others of the column do not ({error})") from error


def _array(values, column: str):
    """A column as an Arrow array of whole numbers, text, floats or timestamps."""
    import pyarrow as pa
    import pyarrow.types as kinds

    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError) as error:
        raise ZooError(f"DataFrame: {_odd(values, column)}; make it int64 or text throughout") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if kinds.is_dictionary(array.type):
        array = array.dictionary_decode()
    fits = (kinds.is_integer, kinds.is_string, kinds.is_large_string, kinds.is_floating, kinds.is_timestamp)
    if not any(fit(array.type) for fit in (*fits, kinds.is_null)):
        raise ZooError(
            f"DataFrame: column '{column}' holds {array.type}; make it int64, text or datetime64 with a zone"
        )
    return array.cast(pa.string()) if kinds.is_null(array.type) else array


def _odd(values, column: str) -> str:
    """What keeps a column from being one, with the first row of another type where there is one."""
    halves = ((row, half_of(value)) for row, value in enumerate(values) if isinstance(value, str))
    row, half = next(((row, half) for row, half in halves if half), (0, ""))
    if half:
        return f"row {row}: column '{column}' holds {half}, half of a character"
    types = [type(value).__name__ for value in values]
    at = next((row for row, name in enumerate(types) if name != types[0]), None)
    if at is None:
        return f"column '{column}' holds {types[0]} values that are no ids or times"
    return f"row {at}: column '{column}' mixes {types[0]} and {types[at]}"


def _digest(arrays: list) -> str:
    """SHA-256 over the types and values of columns, in order."""
    import pyarrow as pa
    from pyarrow import csv

    digest = hashlib.sha256("\n".join(str(array.type) for array in arrays).encode())

    class Sink:
        closed = False

        def write(self, block) -> int:
            digest.update(block)
            return len(block)

        def flush(self) -> None:
            """Nothing is held back."""

        def close(self) -> None:
            """Nothing to close."""

    plain = [array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array for array in arrays]
    csv.write_csv(pa.table(plain, names=[str(i) for i in range(len(plain))]), pa.PythonFile(Sink(), mode="w"))
    return digest.hexdigest()
