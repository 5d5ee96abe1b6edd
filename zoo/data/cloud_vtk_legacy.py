"""VTK's legacy files, `.vtk`: POLYDATA and UNSTRUCTURED_GRID of versions 1 to 5.1, in text or big-endian."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, count_of
from .cloud_surface import Polygons
from .cloud_vtk import bad, by_type, polygons, text_numbers

LEGACY = {
    **{"char": "i1", "signed_char": "i1", "unsigned_char": "u1", "short": "i2", "unsigned_short": "u2", "int": "i4"},
    **{"unsigned_int": "u4", "long": "i8", "unsigned_long": "u8", "vtktypeint64": "i8", "vtkIdType": "i4"},
    **{"vtktypeint32": "i4", "float": "f4", "double": "f8"},
}
WORD = re.compile(rb"\S+")


def read_legacy(file: Path, data: bytes) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], list[Polygons]]:
    """Points, arrays of point data by name, and faces."""
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
                raise bad(file, f"{key} of {rows} rows for {0 if points is None else len(points)} points")
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
            raise bad(file, f"'{key[:40]}' is no section that can follow here")
    if points is None:
        raise bad(file, "has no POINTS")
    for _, array in arrays:
        if len(array) != len(points):
            raise bad(file, f"an array of {len(array)} rows for {len(points)} points")
    if len(cells.get("TRIANGLE_STRIPS", ((0,),))[0]) > 1:
        raise ZooError(f"{file}: has strips of triangles; save them as triangles")
    key = "CELLS" if "CELLS" in cells else "POLYGONS"
    if key not in cells:
        return points, arrays, []
    count = len(cells[key][0]) - 1
    if key == "CELLS" and (types is None or len(types) != count):
        raise bad(file, f"{count} cells have {0 if types is None else len(types)} CELL_TYPES")
    return points, arrays, polygons(file, *cells[key], by_type(file, types) if key == "CELLS" else None)


ATTRIBUTES = {"SCALARS": 1, "COLOR_SCALARS": 1, "VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "TEXTURE_COORDINATES": 2}


class _Legacy:
    """A place in a file of words, lines, and numbers in text or big-endian."""

    def __init__(self, file: Path, data: bytes):
        self.file, self.data, self.at = file, data, 0
        if not re.match(r"# vtk DataFile Version \d+\.\d+", self.line()):
            raise bad(file, "does not begin with '# vtk DataFile Version'")
        self.line()  # a title
        kind = self.word().upper()
        if kind not in ("ASCII", "BINARY") or self.word().upper() != "DATASET":
            raise bad(file, "states neither ASCII nor BINARY, or no DATASET")
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
            raise bad(self.file, f"'{word[:40]}' is no count for a file of {len(self.data)} bytes")
        return count

    def numbers(self, count: int, kind: str, name: str) -> np.ndarray:
        """The next `count` numbers of a type."""
        code = LEGACY.get(kind)
        if code is None:
            raise bad(self.file, f"'{name[:40]}' of type '{kind[:40]}', no numbers")
        left = len(self.data) - self.at
        if self.binary:
            self.line()
            if count * int(code[1]) > len(self.data) - self.at:
                raise bad(self.file, f"'{name[:40]}' announces {count} numbers, more than follow")
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
            raise bad(self.file, f"'{name[:40]}' announces {count} numbers, more than follow")
        return text_numbers(self.file, name, words, code)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the corners of each cell begin, and the corners; of version 5 or those before it."""
        count, size, before = self.count(), self.count(), self.at
        if self.word().upper() == "OFFSETS":
            starts = self.numbers(count, self.word(), "OFFSETS")
            if self.word().upper() != "CONNECTIVITY":
                raise bad(self.file, "has OFFSETS without CONNECTIVITY")
            return (starts if count else np.zeros(1, np.int64)), self.numbers(size, self.word(), "CONNECTIVITY")
        self.at = before
        table, starts, at = self.numbers(size, "int", "cells").tolist(), [0], 0
        corners: list[int] = []
        for _ in range(count):
            length = table[at] if at < size else -1
            if length < 0 or at + 1 + length > size:
                raise bad(self.file, f"{count} cells do not fit their {size} numbers")
            corners += table[at + 1 : at + 1 + length]
            starts.append(len(corners))
            at += 1 + length
        if at != size:
            raise bad(self.file, f"{count} cells do not fill their {size} numbers")
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
                raise bad(self.file, f"array '{name[:40]}' has {width} components")
            found.append((name, self.numbers(width * rows, self.word(), name).reshape(rows, width)))
        return found

    def colours(self, name: str, rows: int, width: int) -> np.ndarray:
        """Colours (rows, width): bytes in binary, numbers up to 1 in text."""
        if not 1 <= width <= MOST_COLUMNS:
            raise bad(self.file, f"array '{name[:40]}' has {width} components")
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
            raise bad(self.file, f"array '{name[:40]}' has {width} components")
        return [("normals" if key == "NORMALS" else name, self.numbers(rows * width, kind, name).reshape(rows, width))]
