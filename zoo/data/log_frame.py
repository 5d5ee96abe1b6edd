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
from pathlib import Path
from typing import NamedTuple

from ..errors import ZooError, unknown
from ..files import atomic, cache_root


class Frame(NamedTuple):
    """A frame's copy in the cache, and the SHA-256 of its content."""

    file: Path
    sha256: str


def store(frame, columns: Mapping[str, str], folder: Path | None = None) -> Frame:
    """Write the columns of `user`, `item` and `time` of a DataFrame to `folder` (default: the cache), once."""
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
    arrays = {column: _array(frame.iloc[:, names.index(column)], column) for column in columns.values()}
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
