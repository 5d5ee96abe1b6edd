"""VTK's XML files, `.vtp` and `.vtu`: text, base64 and raw data, unpacked or by zlib."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, count_of
from .cloud_foreign import told
from .cloud_surface import Polygons
from .cloud_vtk import bad, by_type, polygons, text_numbers

KINDS = {
    **{f"{sign}Int{bits}": f"{sign.lower() or 'i'}{bits // 8}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{"Float32": "f4", "Float64": "f8"},
}


def read_xml(file: Path, data: bytes) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], list[Polygons]]:
    """Points, arrays of point data by name, and faces."""
    kind = "PolyData" if file.suffix.lower() == ".vtp" else "UnstructuredGrid"
    begin = re.search(rb"<AppendedData\s[^>]*>\s*_", data)
    appended = b""
    if begin:
        end = data.rfind(b"</AppendedData>")
        appended, data = data[begin.end() : end], data[: begin.end()] + data[max(end, begin.end()) :]
    if b"<!" in data.replace(b"<!--", b""):
        raise bad(file, "declares types or entities, which no VTK file does")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise bad(file, f"no XML ({told(error)})") from error
    grid = root.find(kind)
    if root.tag != "VTKFile" or grid is None or grid.find("Piece") is None:
        raise bad(file, f"no VTKFile of {kind} with a Piece")
    reader = _Arrays(file, root, appended)
    pieces = [reader.piece(piece) for piece in grid.findall("Piece")]
    points = np.concatenate([one[0] for one in pieces])
    names = [name for name, _ in pieces[0][1]]
    if any([name for name, _ in one[1]] != names for one in pieces):
        raise bad(file, "its pieces have different arrays")
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
            raise bad(self.file, "a Piece has no array of Points")
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
            wanted = by_type(self.file, self.named(cells, "types", count)) if count else None
            return xyz, arrays, self.faces(cells, count, wanted)
        return xyz, arrays, self.faces(piece.find("Polys"), self.count(piece, "NumberOfPolys"), None)

    def count(self, piece: ElementTree.Element, name: str) -> int:
        count = count_of(piece.get(name, "0").strip())
        if count is None:
            raise bad(self.file, f"{name} is '{piece.get(name)[:40]}', no count")
        return count

    def faces(self, cells: ElementTree.Element | None, count: int, wanted: np.ndarray | None) -> list[Polygons]:
        if not count:
            return []
        if cells is None:
            raise bad(self.file, f"{count} polygons are announced, none follow")
        ends = self.named(cells, "offsets", count).astype(np.int64)
        corners = self.named(cells, "connectivity", max(int(ends[-1]), 0))
        return polygons(self.file, np.concatenate([[0], ends]), corners, wanted)

    def named(self, cells: ElementTree.Element, name: str, count: int) -> np.ndarray:
        found = [one for one in cells.findall("DataArray") if one.get("Name") == name]
        if len(found) != 1:
            raise bad(self.file, f"its cells have {len(found)} arrays of '{name}'")
        array = self.array(found[0], count, 1)[:, 0]
        if array.dtype.kind == "f":
            raise bad(self.file, f"'{name}' of its cells are fractions")
        return array

    def array(self, tag: ElementTree.Element, rows: int, width: int | None = None) -> np.ndarray:
        """A DataArray (rows, width)."""
        name, kind = tag.get("Name", tag.tag)[:40], KINDS.get(tag.get("type"))
        wide = count_of(tag.get("NumberOfComponents", "1").strip())
        if kind is None or not wide or wide != (width or wide) or wide > MOST_COLUMNS:
            raise bad(self.file, f"array '{name}' is no numbers of {width or 'some'} components")
        text, how = (tag.text or "").encode(), tag.get("format", "ascii")
        if how == "ascii":
            words = text.split()
            self.same(name, len(words), rows * wide)
            return text_numbers(self.file, name, words, kind).reshape(rows, wide)
        offset = count_of(tag.get("offset", "0").strip()) or 0
        body = self.appended[offset:] if how == "appended" else text.strip()
        try:
            content = self.content(body, self.raw and how == "appended", rows * wide * int(kind[1]))
        except (ValueError, binascii.Error, zlib.error) as error:
            raise bad(self.file, f"array '{name}' is broken ({told(error)})") from error
        self.same(name, len(content), rows * wide * int(kind[1]))
        return np.frombuffer(content, self.order + kind).reshape(rows, wide)

    def same(self, name: str, have: int, want: int) -> None:
        if have != want:
            raise bad(self.file, f"array '{name}' holds {have} numbers or bytes, its header announces {want}")

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
