"""VTK files: polygons and point data of `.vtp` and `.vtu` (XML) and of `.vtk` (legacy, POLYDATA and UNSTRUCTURED_GRID).

Formats: https://docs.vtk.org/en/latest/vtk_file_formats/index.html; text, base64 and raw data, zlib. Read here because
the vtk package ends the whole process on broken files, and meshio reads no polygons of `.vtp` and POLYDATA. Triangles,
quads and polygons are faces; vertices and lines are stepped over, data of cells too; strips and volumes are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, Cloud, cloud_of, count_of, declared, twice
from .cloud_foreign import told
from .cloud_surface import Polygons

KINDS = {
    **{f"{sign}Int{bits}": f"{sign.lower() or 'i'}{bits // 8}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{"Float32": "f4", "Float64": "f8"},
}
LEGACY = {
    **{"char": "i1", "signed_char": "i1", "unsigned_char": "u1", "short": "i2", "unsigned_short": "u2", "int": "i4"},
    **{"unsigned_int": "u4", "long": "i8", "unsigned_long": "u8", "vtktypeint64": "i8", "vtkIdType": "i4"},
    **{"vtktypeint32": "i4", "float": "f4", "double": "f8"},
}
FACES, STEPPED_OVER = (5, 7, 9), (1, 2, 3, 4)  # types of cells: triangle, polygon, quad; vertices and lines
WORD = re.compile(rb"\S+")


def read_vtk(file: Path) -> tuple[Cloud, list[Polygons]]:
    """Points with their data, and faces."""
    data = file.read_bytes()
    points, columns, faces = _legacy(file, data) if file.suffix.lower() == ".vtk" else _xml(file, data)
    return cloud_of(file, _columns(file, points, columns)), faces


def _columns(file: Path, points: np.ndarray, arrays: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays (points, numbers) to columns by name: nx, ny, nz of normals, `name_0` ... of other vectors."""
    found = list(zip("xyz", points.T, strict=True))
    for name, array in arrays:
        if name.lower() == "normals" and array.shape[1] == 3:
            names = ["nx", "ny", "nz"]
        else:
            names = [name] if array.shape[1] == 1 else [f"{name}_{i}" for i in range(array.shape[1])]
        found += zip(names, array.T, strict=True)
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise twice(file, names, "the array ")
    if len(names) > MOST_COLUMNS:
        raise ZooError(f"{file}: more than {MOST_COLUMNS} numbers a point; write the file anew")
    return dict(found)


def _bad(file: Path, what: str) -> ZooError:
    return ZooError(f"{file}: {what}; write the file anew")


def _polygons(file: Path, starts: np.ndarray, corners: np.ndarray, wanted: np.ndarray | None = None) -> list[Polygons]:
    """Faces i of the corners from `starts[i]` to `starts[i + 1]`, grouped by their number; `wanted`: which of them."""
    starts, corners = starts.astype(np.int64), corners.astype(np.int64)
    size = np.diff(starts)
    if (len(starts) and (starts[0] != 0 or starts[-1] != len(corners))) or (size < 0).any():
        raise _bad(file, f"its offsets do not divide its {len(corners)} corners")
    wanted = np.ones(len(size), bool) if wanted is None else wanted
    groups = []
    for k in dict.fromkeys(size[wanted].tolist()):
        rows = np.flatnonzero(wanted & (size == k))
        groups.append(Polygons(corners[starts[rows][:, None] + np.arange(k)], rows + 1))
    return groups


def _by_type(file: Path, types: np.ndarray) -> np.ndarray:
    strange = np.flatnonzero(~np.isin(types, FACES + STEPPED_OVER))
    if len(strange):
        raise ZooError(
            f"{file}: cell {strange[0] + 1} is of type {types[strange[0]]}, no polygon; extract the surface and save it"
        )
    return np.isin(types, FACES)


# xml ------------------------------------------------------------------------------------------------------------------


def _xml(file: Path, data: bytes) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], list[Polygons]]:
    kind = "PolyData" if file.suffix.lower() == ".vtp" else "UnstructuredGrid"
    begin = re.search(rb"<AppendedData\s[^>]*>\s*_", data)
    appended = b""
    if begin:
        end = data.rfind(b"</AppendedData>")
        appended, data = data[begin.end() : end], data[: begin.end()] + data[max(end, begin.end()) :]
    if b"<!" in data.replace(b"<!--", b""):
        raise _bad(file, "declares types or entities, which no VTK file does")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _bad(file, f"no XML ({told(error)})") from error
    grid = root.find(kind)
    if root.tag != "VTKFile" or grid is None or grid.find("Piece") is None:
        raise _bad(file, f"no VTKFile of {kind} with a Piece")
    reader = _Arrays(file, root, appended)
    pieces = [reader.piece(piece) for piece in grid.findall("Piece")]
    points = np.concatenate([one[0] for one in pieces])
    names = [name for name, _ in pieces[0][1]]
    if any([name for name, _ in one[1]] != names for one in pieces):
        raise _bad(file, "its pieces have different arrays")
    arrays = [(name, np.concatenate([one[1][i][1] for one in pieces])) for i, name in enumerate(names)]
    faces, first, number = [], 0, 0
    for xyz, _, groups in pieces:
        faces += [Polygons(corners + first, numbers + number) for corners, numbers in groups]
        first, number = first + len(xyz), number + sum(len(numbers) for _, numbers in groups)
    return points, arrays, faces


class _Arrays:
    """The DataArrays of a file."""

    def __init__(self, file: Path, root: ElementTree.Element, appended: bytes):
        self.file, self.appended = file, appended
        self.order = ">" if root.get("byte_order") == "BigEndian" else "<"
        self.head = np.dtype(self.order + {"UInt64": "u8"}.get(root.get("header_type", "UInt32"), "u4"))
        self.packed = root.get("compressor")
        if self.packed not in (None, "vtkZLibDataCompressor"):
            raise ZooError(f"{file}: is packed by {self.packed[:40]}; save it with zlib, or unpacked")
        tag = root.find("AppendedData")
        self.raw = tag is not None and tag.get("encoding") == "raw"

    def piece(self, piece: ElementTree.Element):
        """Points (n, 3), arrays of point data, and faces of a piece."""
        points = self.count(piece, "NumberOfPoints")
        place, data = piece.find("Points"), piece.find("PointData")
        found = [] if place is None else place.findall("DataArray")
        if len(found) != 1:
            raise _bad(self.file, "a Piece has no array of Points")
        xyz = self.array(found[0], points, 3)
        arrays = [
            (one.get("Name", ""), self.array(one, points))
            for one in (() if data is None else data)
            if one.tag == "DataArray"
        ]
        strips = piece.find("Strips")
        if strips is not None and self.count(piece, "NumberOfStrips"):
            raise ZooError(f"{self.file}: has strips of triangles; save them as triangles")
        cells = piece.find("Cells")
        if cells is not None:
            count = self.count(piece, "NumberOfCells")
            wanted = _by_type(self.file, self.named(cells, "types", count)) if count else None
            return xyz, arrays, self.faces(cells, count, wanted)
        return xyz, arrays, self.faces(piece.find("Polys"), self.count(piece, "NumberOfPolys"), None)

    def count(self, piece: ElementTree.Element, name: str) -> int:
        count = count_of(piece.get(name, "0").strip())
        if count is None:
            raise _bad(self.file, f"{name} is '{piece.get(name)[:40]}', no count")
        return count

    def faces(self, cells: ElementTree.Element | None, count: int, wanted: np.ndarray | None) -> list[Polygons]:
        if not count:
            return []
        if cells is None:
            raise _bad(self.file, f"{count} polygons are announced, none follow")
        ends = self.named(cells, "offsets", count).astype(np.int64)
        corners = self.named(cells, "connectivity", max(int(ends[-1]), 0))
        return _polygons(self.file, np.concatenate([[0], ends]), corners, wanted)

    def named(self, cells: ElementTree.Element, name: str, count: int) -> np.ndarray:
        found = [one for one in cells.findall("DataArray") if one.get("Name") == name]
        if len(found) != 1:
            raise _bad(self.file, f"its cells have {len(found)} arrays of '{name}'")
        array = self.array(found[0], count, 1)[:, 0]
        if array.dtype.kind == "f":
            raise _bad(self.file, f"'{name}' of its cells are fractions")
        return array

    def array(self, tag: ElementTree.Element, rows: int, width: int | None = None) -> np.ndarray:
        """A DataArray (rows, width)."""
        name, kind = tag.get("Name", tag.tag)[:40], KINDS.get(tag.get("type"))
        wide = count_of(tag.get("NumberOfComponents", "1").strip())
        if kind is None or not wide or wide != (width or wide) or wide > MOST_COLUMNS:
            raise _bad(self.file, f"array '{name}' is no numbers of {width or 'some'} components")
        text, how = (tag.text or "").encode(), tag.get("format", "ascii")
        if how == "ascii":
            words = text.split()
            self.same(name, len(words), rows * wide)
            return _text(self.file, name, words, kind).reshape(rows, wide)
        offset = count_of(tag.get("offset", "0").strip()) or 0
        body = self.appended[offset:] if how == "appended" else text.strip()
        try:
            content = self.content(body, self.raw and how == "appended", rows * wide * int(kind[1]))
        except (ValueError, binascii.Error, zlib.error) as error:
            raise _bad(self.file, f"array '{name}' is broken ({told(error)})") from error
        self.same(name, len(content), rows * wide * int(kind[1]))
        return np.frombuffer(content, self.order + kind).reshape(rows, wide)

    def same(self, name: str, have: int, want: int) -> None:
        if have != want:
            raise _bad(self.file, f"array '{name}' holds {have} numbers or bytes, its header announces {want}")

    def content(self, body: bytes, raw: bool, wanted: int) -> bytes:
        """The bytes of an array: behind their number, or behind the sizes of the blocks that zlib packed."""
        size = self.head.itemsize

        def taken(at: int, count: int) -> tuple[bytes, int]:
            """`count` bytes from `at` in the file's coding, and where the next coded span begins."""
            length = count if raw else -(-count // 3) * 4
            if count < 0 or at + length > len(body):
                raise ValueError("it is cut off")
            span = body[at : at + length]
            return span if raw else base64.b64decode(span, validate=True)[:count], at + length

        first = int(np.frombuffer(taken(0, size)[0], self.head, 1)[0])
        if self.packed:
            if (3 + first) * size > len(body):
                raise ValueError("it is cut off")
            head, at = taken(0, (3 + first) * size)
            _, block, last, *packed = np.frombuffer(head, self.head).tolist()
            sizes = [block] * first
            if first and last:
                sizes[-1] = last
            if sum(sizes) != wanted:
                raise ValueError(f"{sum(sizes)} bytes for {wanted}")
            data, at, parts = taken(at, sum(packed))[0], 0, []
            for length, unpacked in zip(packed, sizes, strict=True):
                part = zlib.decompressobj().decompress(data[at : at + length], unpacked + 1)
                if len(part) != unpacked:
                    raise ValueError(f"a block of {len(part)} bytes for {unpacked}")
                parts.append(part)
                at += length
            return b"".join(parts)
        if first != wanted:
            raise ValueError(f"{first} bytes for {wanted}")
        apart = taken(0, size)[1] if raw or body[: -(-size // 3) * 4].endswith(b"=") else 0
        return taken(apart, first)[0] if apart else taken(0, size + first)[0][size:]


def _text(file: Path, name: str, words: list[bytes], kind: str) -> np.ndarray:
    try:
        if any(b"_" in word for word in words):
            raise ValueError("a number with _")
        values = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise _bad(file, f"'{name}' holds what is no number ({told(error)})") from error
    return declared(file, name, values, kind, ())


# legacy ---------------------------------------------------------------------------------------------------------------


def _legacy(file: Path, data: bytes) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], list[Polygons]]:
    reader = _Legacy(file, data)
    points, arrays, cells, types, section = None, [], {}, None, None
    while key := reader.word().upper():
        if key == "POINTS" and points is None:
            points = reader.numbers(reader.count() * 3, reader.word(), key).reshape(-1, 3)
        elif key in ("VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS", "CELLS") and key not in cells:
            cells[key] = reader.cells()
        elif key == "CELL_TYPES" and types is None:
            types = reader.numbers(reader.count(), "int", key)
        elif key in ("POINT_DATA", "CELL_DATA"):
            section, rows = key, reader.count()
            if points is None or (key == "POINT_DATA" and rows != len(points)):
                raise _bad(file, f"{key} of {rows} rows for {0 if points is None else len(points)} points")
        elif key == "METADATA":
            reader.paragraph()
        elif key == "LOOKUP_TABLE":
            reader.colours(reader.word(), reader.count(), 4)
        elif key == "FIELD":
            found = reader.field()
            arrays += found if section == "POINT_DATA" else []
        elif section is not None and key in ATTRIBUTES:
            found = reader.attribute(key, rows)
            arrays += found if section == "POINT_DATA" else []
        else:
            raise _bad(file, f"'{key[:40]}' is no section that can follow here")
    if points is None:
        raise _bad(file, "has no POINTS")
    for _, array in arrays:
        if len(array) != len(points):
            raise _bad(file, f"an array of {len(array)} rows for {len(points)} points")
    if len(cells.get("TRIANGLE_STRIPS", ((0,),))[0]) > 1:
        raise ZooError(f"{file}: has strips of triangles; save them as triangles")
    key = "CELLS" if "CELLS" in cells else "POLYGONS"
    if key not in cells:
        return points, arrays, []
    count = len(cells[key][0]) - 1
    if key == "CELLS" and (types is None or len(types) != count):
        raise _bad(file, f"{count} cells have {0 if types is None else len(types)} CELL_TYPES")
    return points, arrays, _polygons(file, *cells[key], _by_type(file, types) if key == "CELLS" else None)


ATTRIBUTES = {"SCALARS": 1, "COLOR_SCALARS": 1, "VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "TEXTURE_COORDINATES": 2}


class _Legacy:
    """A place in a file of words, lines, and numbers in text or big-endian."""

    def __init__(self, file: Path, data: bytes):
        self.file, self.data, self.at = file, data, 0
        if not re.match(r"# vtk DataFile Version \d+\.\d+", self.line()):
            raise _bad(file, "does not begin with '# vtk DataFile Version'")
        self.line()  # a title
        kind = self.word().upper()
        if kind not in ("ASCII", "BINARY") or self.word().upper() != "DATASET":
            raise _bad(file, "states neither ASCII nor BINARY, or no DATASET")
        self.binary = kind == "BINARY"
        kind = self.word().upper()
        if kind not in ("POLYDATA", "UNSTRUCTURED_GRID"):
            raise ZooError(f"{file}: DATASET {kind[:40]}; save it as POLYDATA")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        end = len(self.data) if end < 0 else end
        line, self.at = self.data[self.at : end].decode("ascii", "replace"), end + 1
        return line

    def paragraph(self) -> None:
        """Step over the lines below this one, up to a blank one."""
        self.line()
        while self.at < len(self.data) and self.line().strip():
            pass

    def word(self) -> str:
        """The next word, "" at the end."""
        found = WORD.search(self.data, self.at)
        self.at = found.end() if found else len(self.data)
        return found[0][:200].decode("ascii", "replace") if found else ""

    def count(self) -> int:
        word = self.word()
        count = count_of(word)
        if count is None or count > len(self.data):  # each takes a byte at least
            raise _bad(self.file, f"'{word[:40]}' is no count for a file of {len(self.data)} bytes")
        return count

    def numbers(self, count: int, kind: str, name: str) -> np.ndarray:
        """The next `count` numbers of a type."""
        code = LEGACY.get(kind)
        if code is None:
            raise _bad(self.file, f"'{name[:40]}' of type '{kind[:40]}', no numbers")
        left = len(self.data) - self.at
        if self.binary:
            self.line()
            if count * int(code[1]) > len(self.data) - self.at:
                raise _bad(self.file, f"'{name[:40]}' announces {count} numbers, more than follow")
            values = np.frombuffer(self.data, ">" + code, count, self.at)
            self.at += values.nbytes
            return values
        words: list[bytes] = []
        if count * 2 <= left + 1:
            for found in WORD.finditer(self.data, self.at):
                if len(words) == count:
                    break
                words.append(found[0])
                self.at = found.end()
        if len(words) < count:
            raise _bad(self.file, f"'{name[:40]}' announces {count} numbers, more than follow")
        return _text(self.file, name, words, code)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the corners of each cell begin, and the corners; of version 5 or those before it."""
        count, size, before = self.count(), self.count(), self.at
        if self.word().upper() == "OFFSETS":
            starts = self.numbers(count, self.word(), "OFFSETS")
            if self.word().upper() != "CONNECTIVITY":
                raise _bad(self.file, "has OFFSETS without CONNECTIVITY")
            return (starts if count else np.zeros(1, np.int64)), self.numbers(size, self.word(), "CONNECTIVITY")
        self.at = before
        table, starts, at = self.numbers(size, "int", "cells").tolist(), [0], 0
        corners: list[int] = []
        for _ in range(count):
            length = table[at] if at < size else -1
            if length < 0 or at + 1 + length > size:
                raise _bad(self.file, f"{count} cells do not fit their {size} numbers")
            corners += table[at + 1 : at + 1 + length]
            starts.append(len(corners))
            at += 1 + length
        if at != size:
            raise _bad(self.file, f"{count} cells do not fill their {size} numbers")
        return np.array(starts), np.array(corners, np.int64)

    def field(self) -> list[tuple[str, np.ndarray]]:
        """The arrays of a FIELD."""
        self.word()
        found = []
        for _ in range(self.count()):
            name = self.word()
            if name == "METADATA":
                self.paragraph()
                name = self.word()
            width, rows = self.count(), self.count()
            if not 1 <= width <= MOST_COLUMNS:
                raise _bad(self.file, f"array '{name[:40]}' has {width} components")
            found.append((name, self.numbers(width * rows, self.word(), name).reshape(rows, width)))
        return found

    def colours(self, name: str, rows: int, width: int) -> np.ndarray:
        """Colours (rows, width): bytes in binary, numbers up to 1 in text."""
        if not 1 <= width <= MOST_COLUMNS:
            raise _bad(self.file, f"array '{name[:40]}' has {width} components")
        return self.numbers(rows * width, "unsigned_char" if self.binary else "float", name).reshape(rows, width)

    def attribute(self, key: str, rows: int) -> list[tuple[str, np.ndarray]]:
        """An array of POINT_DATA or CELL_DATA."""
        name, width = self.word(), ATTRIBUTES[key]
        if key == "COLOR_SCALARS":
            return [(name, self.colours(name, rows, self.count()))]
        width = self.count() if key == "TEXTURE_COORDINATES" else width
        kind = self.word()
        if key == "SCALARS":
            before, word = self.at, self.word()
            width = count_of(word) or 1
            self.at = before if count_of(word) is None else self.at
            before = self.at
            if self.word().upper() == "LOOKUP_TABLE":
                self.word()
            else:
                self.at = before
        if not 1 <= width <= MOST_COLUMNS:
            raise _bad(self.file, f"array '{name[:40]}' has {width} components")
        return [("normals" if key == "NORMALS" else name, self.numbers(rows * width, kind, name).reshape(rows, width))]
