"""PLY, the polygon file format of G. Turk (Stanford, 1994): ASCII and binary of both byte orders, read and written.

Strict: a file holds exactly what its header announces, and text what its type can hold. Vertices may have any scalar
properties; faces are lists of vertex numbers. Other elements, and lists of vertices, are stepped over.
"""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ZooError
from ..files import atomic
from .cloud_columns import MOST_COLUMNS, count_of, declared, number_of, twice
from .cloud_surface import Polygons
from .cloud_table import read_table

TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
FACES = ("vertex_indices", "vertex_index")


@dataclass
class _Element:
    name: str
    count: int
    scalars: dict[str, str]  # property to numpy type
    lists: dict[str, tuple[str, str]]  # property to the types of its length and its entries
    order: list[str]


def read_ply(file: Path) -> tuple[dict[str, np.ndarray], list[Polygons]]:
    """Vertex columns by property name, and the faces, one group for each number of corners."""
    data = file.read_bytes()
    order, elements, start = _header(file, data)
    text = None if order else io.TextIOWrapper(io.BytesIO(data[start:]), "ascii", "replace")
    row = data[:start].count(b"\n") + 1  # of the first line below the header
    columns, faces = None, []
    for element in elements:
        if text is None:
            found, start = _binary(file, data, start, element, order)
        else:
            found, row = _ascii(file, text, row, element)
        if element.name == "vertex":
            columns = {name: found[name] for name in element.scalars}
        elif element.name == "face" and element.count:
            faces = found[_corners(file, element)]
    if columns is None:
        raise ZooError(f"{file}: has no element 'vertex', so no points; write the file anew")
    rest = len(data) - start if text is None else sum(not line.isspace() for line in text)
    if rest:
        unit = "bytes" if text is None else "lines"
        raise ZooError(
            f"{file}: {rest} {unit} more than its header announces; the header is wrong, write the file anew"
        )
    return columns, faces


def _corners(file: Path, element: _Element) -> str:
    """The property that lists the corners of faces."""
    names = [name for name in FACES if name in element.lists]
    if len(names) != 1:
        raise ZooError(f"{file}: its faces have {len(names)} lists of {' or '.join(FACES)}; write one of them")
    if element.lists[names[0]][1][0] == "f":
        raise ZooError(f"{file}: its faces number their corners in fractions; write them as whole numbers")
    return names[0]


def _header(file: Path, data: bytes) -> tuple[str, list[_Element], int]:
    """Byte order ("" for ASCII), elements in order, and where the body begins."""
    last = re.search(rb"^end_header[ \t]*\r?\n", data, re.MULTILINE)
    if not data.startswith(b"ply") or last is None:
        raise ZooError(f"{file}: no PLY file (it must begin with 'ply' and have an 'end_header'); write it anew")
    order, elements = None, []
    for number, line in enumerate(data[: last.start()].decode("ascii", "replace").splitlines(), 1):
        match line.split():
            case ["format", kind, "1.0"] if kind in ORDERS and order is None:
                order = ORDERS[kind]
            case ["element", name, word] if (count := count_of(word)) is not None:
                if any(element.name == name for element in elements):
                    raise twice(file, (name, name), f"row {number}: the element ")
                elements.append(_Element(name, count, {}, {}, []))
            case ["property", "list", length, kind, name] if (
                elements and TYPES.get(length, "f")[0] != "f" and kind in TYPES
            ):
                _new(file, number, elements[-1], name)
                elements[-1].lists[name] = TYPES[length], TYPES[kind]
            case ["property", kind, name] if elements and kind in TYPES:
                _new(file, number, elements[-1], name)
                elements[-1].scalars[name] = TYPES[kind]
            case ["ply"] | ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ZooError(f"{file}: row {number}: '{line[:60]}' is no line of a PLY header; write the file anew")
    if order is None:
        raise ZooError(f"{file}: the header states no format of {', '.join(ORDERS)}; write the file anew")
    for element in elements:
        if element.count and not element.order:
            raise ZooError(f"{file}: element '{element.name}' has no property; write the file anew")
    return order, elements, last.end()


def _new(file: Path, row: int, element: _Element, name: str) -> None:
    if name in element.order:
        raise twice(file, (name, name), f"row {row}: the property ")
    if len(element.order) >= MOST_COLUMNS:
        raise ZooError(f"{file}: row {row}: more than {MOST_COLUMNS} properties; write the file anew")
    element.order.append(name)


def _binary(file: Path, data: bytes, start: int, element: _Element, order: str):
    """The columns of an element, lists as groups of one length each, and where the next element begins."""
    lengths, size = _first_lengths(file, data, start, element, order)
    if element.count * size <= len(data) - start:
        columns: list[tuple] = []
        for name in element.order:
            if name in element.scalars:
                columns.append((name, order + element.scalars[name]))
            else:
                kinds = element.lists[name]
                columns += [(f"{name} length", order + kinds[0]), (name, order + kinds[1], (lengths[name],))]
        rows = np.frombuffer(data, np.dtype(columns), element.count, start)
        if all((rows[f"{name} length"] == lengths[name]).all() for name in element.lists):
            found = {name: rows[name] for name in element.scalars}
            found |= {name: [Polygons(rows[name], np.arange(1, element.count + 1))] for name in element.lists}
            return found, start + element.count * size
    elif not element.lists:
        raise _short(file, element, (len(data) - start) // size)
    return _rows(file, data, start, element, order)


def _first_lengths(file: Path, data: bytes, start: int, element: _Element, order: str) -> tuple[dict[str, int], int]:
    """Lengths of the lists in the first row of an element, and the bytes of that row; 0 where there is no row."""
    lengths, at = dict.fromkeys(element.lists, 0), start
    for name in element.order:
        if name in element.scalars:
            at += int(element.scalars[name][1])
            continue
        kind, entry = element.lists[name]
        if element.count:
            lengths[name] = _length(file, data, at, element, 0, order + kind)
        at += int(kind[1]) + lengths[name] * int(entry[1])
        if element.count and at > len(data):
            raise _short(file, element, 0)
    return lengths, at - start


def _length(file: Path, data: bytes, at: int, element: _Element, row: int, kind: str) -> int:
    """The length of a list, which its first number tells."""
    if at + int(kind[-1]) > len(data):
        raise _short(file, element, row)
    length = int(np.frombuffer(data, kind, 1, at)[0])
    if length < 0:
        raise ZooError(f"{file}: '{element.name}' {row + 1} has a list of length {length}; write the file anew")
    return length


def _rows(file: Path, data: bytes, start: int, element: _Element, order: str):
    """The same, row by row: for lists of several lengths."""
    scalars = {name: [] for name in element.scalars}
    lists: dict[str, _Lists] = {name: {} for name in element.lists}
    for row in range(element.count):
        for name in element.order:
            kind, length = element.scalars.get(name), 1
            if kind is None:
                size, kind = element.lists[name]
                length = _length(file, data, start, element, row, order + size)
                start += int(size[1])
            if start + length * int(kind[1]) > len(data):
                raise _short(file, element, row)
            values = np.frombuffer(data, order + kind, length, start)
            start += values.nbytes
            if name in scalars:
                scalars[name].append(values[0])
            else:
                _append(lists[name], values, row)
    return {name: np.array(column) for name, column in scalars.items()} | _groups(lists), start


_Lists = dict[int, tuple[list, list]]  # length -> lists of that length, and their rows from 1


def _append(lists: _Lists, values, row: int) -> None:
    entries, rows = lists.setdefault(len(values), ([], []))
    entries.append(values)
    rows.append(row + 1)


def _groups(lists: dict[str, _Lists]) -> dict[str, list[Polygons]]:
    return {
        name: [Polygons(np.array(entries).reshape(len(rows), -1), np.array(rows)) for entries, rows in groups.values()]
        for name, groups in lists.items()
    }


def _ascii(file: Path, text: io.TextIOBase, row: int, element: _Element):
    """The columns of an element from its lines, and the number of the line below them."""
    lines = list(itertools.islice(text, element.count))
    if len(lines) < element.count:
        raise _short(file, element, len(lines))
    rows = range(row, row + len(lines))
    if not element.lists:
        table = read_table(file, lines, rows, len(element.order))
        found = dict(zip(element.order, table.T, strict=True))
        return _as_declared(file, element, found, rows), row + element.count
    scalars = {name: [] for name in element.scalars}
    lists: dict[str, _Lists] = {name: {} for name in element.lists}
    for at, line in enumerate(lines):
        fields = iter(line.split())
        try:
            for name in element.order:
                if name in scalars:
                    scalars[name].append(number_of(next(fields)))
                else:
                    _append(lists[name], _entries(fields, *element.lists[name]), at)
        except (ValueError, StopIteration):
            fields = iter([""])
        if next(fields, None) is not None:
            raise ZooError(f"{file}: row {rows[at]}: '{line.strip()[:60]}' is no '{element.name}'; mend the row")
    found = {name: np.array(column, np.float64) for name, column in scalars.items()}
    return _as_declared(file, element, found, rows) | _groups(lists), row + element.count


def _entries(fields, size: str, kind: str) -> list:
    """A list in text: its length, then as many numbers of its type; ValueError where they are none."""
    length = count_of(next(fields))
    if length is None or length > np.iinfo(size).max:
        raise ValueError(length)
    entries = []
    for _ in range(length):
        word = next(fields)
        value = number_of(word) if kind[0] == "f" else int(word) if re.fullmatch(r"[+-]?[0-9]{1,18}", word) else None
        if value is None or (kind[0] != "f" and not np.iinfo(kind).min <= value <= np.iinfo(kind).max):
            raise ValueError(word)
        entries.append(value)
    return entries


def _as_declared(file: Path, element: _Element, found: dict[str, np.ndarray], rows: range) -> dict[str, np.ndarray]:
    """The columns as float64, as precise as the text, where each fits the type of its property."""
    for name, kind in element.scalars.items():
        declared(file, name, found[name], kind, rows)
    return found


def _short(file: Path, element: _Element, have: int) -> ZooError:
    return ZooError(
        f"{file}: ends in '{element.name}' {have + 1} of {element.count}; the file is cut off or its header is wrong, "
        "write it anew"
    )


def write_ply(file: Path, xyz: np.ndarray, **columns: np.ndarray) -> None:
    """Write points (N, 3) and further columns (N,), binary little-endian: floats as float32, integers as int32."""
    table = dict(zip("xyz", np.asarray(xyz).T, strict=True)) | columns
    dtype = np.dtype(
        [(name, "<i4" if np.asarray(column).dtype.kind in "iub" else "<f4") for name, column in table.items()]
    )
    rows = np.empty(len(xyz), dtype)
    for name, column in table.items():
        rows[name] = column
    kinds = {"<f4": "float", "<i4": "int"}
    properties = "".join(f"property {kinds[dtype[name].str]} {name}\n" for name in table)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    file.write_bytes(head.encode() + rows.tobytes())


def write_cloud(file: Path, xyz: np.ndarray, **columns: np.ndarray) -> None:
    """The same, whole or not at all, in folders that are made where they are missing."""
    with atomic(file) as temporary:
        write_ply(temporary, xyz, **columns)
