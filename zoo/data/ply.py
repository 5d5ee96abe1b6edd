"""PLY, the polygon file format of G. Turk (Stanford, 1994): ASCII and binary of both byte orders, read and written.

Strict: a file holds exactly what its header announces. Vertices may have any scalar properties; faces are lists of
vertex numbers. Other elements are stepped over.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ZooError
from ..files import atomic

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


def read_ply(file: Path) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Vertex columns by property name, and the faces: arrays (n, k) of vertex numbers, one for each k."""
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
        elif element.name == "face":
            faces = next((found[name] for name in FACES if name in element.lists), [])
    if columns is None:
        raise ZooError(f"{file}: has no element 'vertex', so no points; write the file anew")
    rest = len(data) - start if text is None else sum(not line.isspace() for line in text)
    if rest:
        unit = "bytes" if text is None else "lines"
        raise ZooError(
            f"{file}: {rest} {unit} more than its header announces; the header is wrong, write the file anew"
        )
    return columns, faces


def _header(file: Path, data: bytes) -> tuple[str, list[_Element], int]:
    """Byte order ("" for ASCII), elements in order, and where the body begins."""
    end = data.find(b"end_header")
    begin = data.find(b"\n", end) + 1
    if not data.startswith(b"ply") or end < 0 or not begin:
        raise ZooError(f"{file}: no PLY file (it must begin with 'ply' and have an 'end_header'); write it anew")
    order, elements = None, []
    for number, line in enumerate(data[:end].decode("ascii", "replace").splitlines(), 1):
        match line.split():
            case ["format", kind, "1.0"] if kind in ORDERS:
                order = ORDERS[kind]
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name, int(count), {}, {}, []))
            case ["property", "list", length, kind, name] if elements and length in TYPES and kind in TYPES:
                elements[-1].lists[name] = TYPES[length], TYPES[kind]
                elements[-1].order.append(name)
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].scalars[name] = TYPES[kind]
                elements[-1].order.append(name)
            case ["ply"] | ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ZooError(f"{file}: row {number}: '{line[:60]}' is no line of a PLY header; write the file anew")
    if order is None:
        raise ZooError(f"{file}: the header states no format of {', '.join(ORDERS)}; write the file anew")
    return order, elements, begin


def _binary(file: Path, data: bytes, start: int, element: _Element, order: str):
    """The columns of an element, lists as arrays (n, k) per length k, and where the next element begins."""
    lengths = {name: _first_length(data, start, element, name, order) for name in element.lists}
    dtype = np.dtype(
        [
            field
            for name in element.order
            for field in (
                [(name, order + element.scalars[name])]
                if name in element.scalars
                else [
                    (f"{name} length", order + element.lists[name][0]),
                    (name, order + element.lists[name][1], (lengths[name],)),
                ]
            )
        ]
    )
    if start + element.count * dtype.itemsize <= len(data):
        rows = np.frombuffer(data, dtype, element.count, start)
        if all((rows[f"{name} length"] == lengths[name]).all() for name in element.lists):
            columns = {name: rows[name] for name in element.scalars}
            columns |= {name: [rows[name]] for name in element.lists}
            return columns, start + element.count * dtype.itemsize
    elif not element.lists:
        have = (len(data) - start) // max(dtype.itemsize, 1)
        raise _short(file, element, have)
    return _rows(file, data, start, element, order)


def _first_length(data: bytes, start: int, element: _Element, wanted: str, order: str) -> int:
    """Length of a list in the first row of its element; 0 where there is none."""
    for name in element.order:
        kind = element.scalars.get(name) or element.lists[name][0]
        size = int(kind[1])
        if start + size > len(data) or not element.count:
            return 0
        if name in element.scalars:
            start += size
            continue
        length = max(0, int(np.frombuffer(data, order + kind, 1, start)[0]))
        if name == wanted:
            return length
        start += size + length * int(element.lists[name][1][1])
    return 0


def _rows(file: Path, data: bytes, start: int, element: _Element, order: str):
    """The same, row by row: for lists of several lengths."""
    scalars = {name: [] for name in element.scalars}
    lists: dict[str, dict[int, list]] = {name: {} for name in element.lists}
    for row in range(element.count):
        for name in element.order:
            kind, length = element.scalars.get(name), 1
            if kind is None:
                size, kind = element.lists[name]
                if start + int(size[1]) > len(data):
                    raise _short(file, element, row)
                length = max(0, int(np.frombuffer(data, order + size, 1, start)[0]))
                start += int(size[1])
            if start + length * int(kind[1]) > len(data):
                raise _short(file, element, row)
            values = np.frombuffer(data, order + kind, length, start)
            start += values.nbytes
            if name in scalars:
                scalars[name].append(values[0])
            else:
                lists[name].setdefault(length, []).append(values)
    grouped = {name: [np.array(rows) for rows in groups.values()] for name, groups in lists.items()}
    return {name: np.array(column) for name, column in scalars.items()} | grouped, start


def _ascii(file: Path, text: io.TextIOBase, row: int, element: _Element):
    """The columns of an element from its lines, and the number of the line below them."""
    from .cloud_reader import read_table

    lines = list(itertools.islice(text, element.count))
    if len(lines) < element.count:
        raise _short(file, element, len(lines))
    if not element.lists:
        table = read_table(file, lines, row, len(element.order))
        return dict(zip(element.order, table.T, strict=True)), row + element.count
    scalars = {name: [] for name in element.scalars}
    lists: dict[str, dict[int, list]] = {name: {} for name in element.lists}
    for number, line in enumerate(lines, row):
        fields = iter(line.split())
        try:
            for name in element.order:
                if name in scalars:
                    scalars[name].append(float(next(fields)))
                    continue
                length = int(next(fields))
                lists[name].setdefault(length, []).append([int(next(fields)) for _ in range(length)])
        except (ValueError, StopIteration):
            fields = iter([""])
        if next(fields, None) is not None:
            raise ZooError(f"{file}: row {number}: '{line.strip()[:60]}' is no '{element.name}'; mend the row")
    grouped = {name: [np.array(rows) for rows in groups.values()] for name, groups in lists.items()}
    return {name: np.array(column) for name, column in scalars.items()} | grouped, row + element.count


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
