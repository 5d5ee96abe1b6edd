"""Tables of numbers in text: rows of x y z and further columns, with names or a count before them, and label files.

A row is split between blanks, or at each semicolon, else comma, where it has one: what stands between two of them is
one column, so that an empty one is refused and never takes its neighbour's place.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, Cloud, cloud_of, number_of, whole


def read_table(
    file: Path, lines: Sequence[str], rows: Sequence[int], columns: int | None = None, delimiter: str | None = None
) -> np.ndarray:
    """Lines of numbers to (n, columns) float64; `rows` are their numbers in the file, for messages."""
    if not lines:
        return np.zeros((0, columns or 0))
    if (columns or len(lines[0].split(delimiter))) > MOST_COLUMNS:
        raise ZooError(f"{file}: row {rows[0]}: more than {MOST_COLUMNS} columns; write one point per row")
    try:
        table = np.loadtxt(lines, ndmin=2, comments=None, delimiter=delimiter)
        if table.shape == (len(lines), columns or table.shape[1]):
            return table
    except ValueError:
        pass  # said below, with the row
    for row, line in zip(rows, lines, strict=True):
        fields = [one.strip() for one in line.split(delimiter)]
        shown = re.sub("[,;]", " ", line.strip())[:60]
        columns = columns or len(fields)
        if "" in fields and any(fields):
            raise ZooError(
                f"{file}: row {row}: column {fields.index('') + 1} of '{line.strip()[:60]}' is empty; fill it in"
            )
        try:
            good = len([number_of(one) for one in fields]) == columns and columns
        except ValueError:
            good = False
        if not good:
            raise ZooError(f"{file}: row {row}: '{shown}' is not {columns} numbers; mend the row")
    raise ZooError(f"{file}: row {rows[0]}: no table of numbers; write the file anew")


def read_xyz(file: Path) -> Cloud:
    """A cloud from rows of numbers, which names of columns or the count of rows may precede."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] not in "#/"), len(lines))
    _refuse_decimal_commas(file, lines[first : first + 2], first + 1)  # the first may be names or a count
    head = lines[first].lower() if lines[first:] else ""
    named = [one.strip() for one in head.split(_delimiter(head))]
    if not {"x", "y", "z"} <= set(named):
        named = head.split()
    if {"x", "y", "z"} <= set(named):
        if len(set(named)) < len(named):
            raise ZooError(f"{file}: row {first + 1}: a column's name occurs twice; give each a name of its own")
        if named[-1] == "":  # a separator ends the row
            named.pop()
        table = _rows(file, lines[first + 1 :], first + 2, len(named))
        return cloud_of(file, dict(zip(named, table.T, strict=True)))
    first += head.strip() == str(len(lines) - first - 1)  # how many follow
    table = _rows(file, lines[first:], first + 1) if lines[first:] else np.zeros((0, 3))
    if table.shape[1] < 3:
        raise ZooError(f"{file}: row {first + 1}: {table.shape[1]} columns, no x y z; check the separator")
    return cloud_of(file, dict(zip(numbered(table.shape[1]), table.T, strict=True)))


def numbered(columns: int) -> tuple[str, ...]:
    """Names of columns that have none: x, y, z, then `column 4` and so on."""
    return "x", "y", "z", *(f"column {i + 1}" for i in range(3, columns))


def _delimiter(line: str) -> str | None:
    return next((one for one in ";," if one in line), None)


def _rows(file: Path, lines: list[str], row: int, columns: int | None = None) -> np.ndarray:
    delimiter = _delimiter("\n".join(lines))
    if delimiter is None:
        gap = next((i for i, line in enumerate(lines) if re.search(r"\S *\t *\t", line)), None)
        if gap is not None:
            raise ZooError(
                f"{file}: row {row + gap}: two tabs follow each other, so that a column may be empty; fill it in, or "
                "write one blank between columns"
            )
    elif all(line.rstrip().endswith(delimiter) for line in lines):  # a separator ends every row
        lines = [line.rstrip()[:-1] for line in lines]
    if delimiter:  # rows without one are split between blanks
        lines = [line if delimiter in line else delimiter.join(line.split()) for line in lines]
    return read_table(file, lines, range(row, row + len(lines)), columns, delimiter)


def _refuse_decimal_commas(file: Path, lines: list[str], row: int) -> None:
    for number, line in enumerate(lines, row):
        line = line.strip()
        if re.search(r"\d,\d", line) and re.search(r"[^,\s]\s+[^,\s]|;", line):  # "0,5 1,5 2,5" is no row of six
            raise ZooError(
                f"{file}: row {number}: '{line[:60]}' has commas within columns between blanks or semicolons; write "
                "decimal points"
            )


def read_labels(file: Path, count: int, unit: tuple[str, str] = ("point", "points")) -> np.ndarray:
    """One label per line, whole numbers written as such or as floats, of `count` points or vertices; int64 (count,)."""
    if not file.is_file():
        raise ZooError(f"{file}: no such file, so the cloud beside it has no labels; complete the data")
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    if len(lines) != count:
        raise ZooError(f"{file}: {len(lines)} labels for a cloud of {count} {unit[1]}; give one label per {unit[0]}")
    return whole(file, read_table(file, lines, range(1, count + 1), 1)[:, 0])


def read_records(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file below the names of its columns, with their numbers; each has a value for every column."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(rows, [])]
            if len(set(names)) < len(names):
                raise ZooError(f"{file}: row 1: a column's name occurs twice; give each a name of its own")
            for row in rows:
                if row and len(row) != len(names):
                    raise ZooError(f"{file}: row {rows.line_num}: {len(row)} columns of {len(names)}; mend the row")
                if row:
                    yield rows.line_num, dict(zip(names, row, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{file}: no table in UTF-8 ({error}); write it anew") from error
