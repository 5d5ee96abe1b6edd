"""Meshes: STL (ASCII and binary), OBJ (Wavefront) and OFF (Geomview); vertices with colours and normals, and faces.

Statements that shape nothing (materials, groups, texture coordinates) are stepped over; what would shape something and
is not understood (curves of OBJ, other dimensions of OFF) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import Cloud, bare, cloud_of, count_of, number_of
from .cloud_surface import Polygons, grouped

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("bytes", "<u2")])
STEPPED_OVER = {
    *("vt", "vn", "vp", "g", "o", "s", "mg", "l", "p", "usemtl", "mtllib", "usemap", "maplib", "lod", "bevel"),
    *("c_interp", "d_interp", "shadow_obj", "trace_obj"),
}
CORNER = re.compile(r"(-?[0-9]{1,18})(/(-?[0-9]{1,18})?(/(-?[0-9]{1,18})?)?)?")
COLOURS = ("r", "g", "b")


def read_stl(file: Path) -> tuple[Cloud, list[Polygons]]:
    """Triangles, each with corners of its own."""
    data = file.read_bytes()
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    count = int(np.frombuffer(data, "<u4", 1, 80)[0]) if len(data) >= 84 else -1
    rest = len(data) - 84 - TRIANGLE.itemsize * count
    is_text = text[:5].lower() == b"solid" and b"\0" not in data
    if count >= 0 and (rest == 0 or (0 < rest < TRIANGLE.itemsize and not is_text)):  # some writers add a few bytes
        corners = np.frombuffer(data, TRIANGLE, count, 84)["corner"].reshape(-1, 3)
    elif is_text:
        corners = _ascii_stl(file, data.decode("utf-8-sig", "replace"))
    else:
        raise ZooError(
            f"{file}: {len(data)} bytes do not hold the {max(count, 0)} triangles that its header announces; it is cut "
            "off or no STL file, get it again"
        )
    if not len(corners):
        raise ZooError(f"{file}: holds no triangle; drop the file or write it anew")
    faces = np.arange(len(corners)).reshape(-1, 3)
    return bare(corners), [Polygons(faces, np.arange(1, len(faces) + 1))]


def _ascii_stl(file: Path, text: str) -> np.ndarray:
    corners, inside, solids = [], None, 0  # `inside`: corners of the loop so far
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        key = words[0].lower() if words else ""
        if key == "vertex" and inside is not None:
            corners.append(_numbers(file, number, line, words[1:], (3,)))
            inside += 1
        elif key == "outer" and inside is None:
            inside = 0
        elif key == "endloop" and inside == 3:
            inside = None
        elif key in ("solid", "endsolid") and inside is None and solids == (key == "endsolid"):
            solids = 1 - solids
        elif key not in ("", "facet", "endfacet"):
            if number == len(lines):
                break  # cut off within a line
            raise ZooError(
                f"{file}: row {number}: '{line.strip()[:60]}' fits no triangle of three corners at this place; mend it"
            )
    if inside is not None or solids:
        raise ZooError(
            f"{file}: ends after {len(corners)} corners within a triangle or solid; it is cut off, get it again"
        )
    return np.array(corners).reshape(-1, 3)


def read_obj(file: Path) -> tuple[Cloud, list[Polygons]]:
    """Vertices, with r, g, b where they have colours, and polygons."""
    vertices, faces = [], []
    for number, line in _statements(file):
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append(_vertex(file, number, line, words[1:]))
            if len(vertices[-1]) != len(vertices[0]):
                raise ZooError(f"{file}: row {number}: some vertices have colours and others none; mend the row")
        elif words[:1] == ["f"]:
            found = [CORNER.fullmatch(word) for word in words[1:]]
            corners = [int(one[1]) for one in found if one]
            if len(found) < 3 or len(corners) < len(found) or 0 in corners:
                raise ZooError(f"{file}: row {number}: '{line[:60]}' is no face; mend the row")
            # from 1, or backwards from the last vertex so far
            faces.append([corner - 1 if corner > 0 else len(vertices) + corner for corner in corners])
        elif words and words[0] not in STEPPED_OVER:
            raise ZooError(f"{file}: row {number}: '{line.strip()[:60]}' is no line of a mesh in OBJ; take it out")
    return _cloud(file, vertices, COLOURS), grouped(faces)


def _statements(file: Path) -> Iterator[tuple[int, str]]:
    """Lines without comments, and with what follows a backslash at their end; the number of the first."""
    whole, first = [], 0
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        first = first if whole else number
        line = line.partition("#")[0].rstrip()
        whole.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield first, " ".join(whole)
            whole = []
    if whole:
        yield first, " ".join(whole)


def _vertex(file: Path, number: int, line: str, words: list[str]) -> list[float]:
    """The numbers x y z, or x y z r g b; a weight behind x y z must be 1."""
    values = _numbers(file, number, line, words, (3, 4, 6, 7))
    if len(values) in (4, 7) and values[3] != 1:
        raise ZooError(f"{file}: row {number}: a vertex of weight {values[3]:g}; give a mesh without weights")
    return values[:3] + values[-3:] if len(values) > 4 else values[:3]


def read_off(file: Path) -> tuple[Cloud, list[Polygons]]:
    """Vertices, with nx, ny, nz (N), r, g, b, a (C) and s, t (ST) where the keyword says so, and polygons."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    lines = [(number, line.split("#")[0].split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words]
    keyword = re.fullmatch(r"(ST)?(C)?(N)?(4)?(n)?OFF(\d.*)?", lines[0][1][0]) if lines else None
    if keyword is None:
        raise ZooError(f"{file}: row 1: does not begin with OFF; write the file anew")
    texture, colour, normal, four, many, beside = keyword.groups()
    if four or many or lines[0][1][1:2] == ["BINARY"]:
        raise ZooError(f"{file}: row 1: {' '.join(lines[0][1])[:20]}; save it as text in three dimensions, OFF")
    # some writers put the counts beside the keyword
    rest = [*([beside] if beside else []), *lines[0][1][1:]]
    lines = [(lines[0][0], rest), *lines[1:]] if rest else lines[1:]
    counts = [count_of(word) for word in lines[0][1]] if lines else []
    if not 2 <= len(counts) <= 3 or None in counts:
        raise ZooError(
            f"{file}: row {lines[0][0] if lines else 2}: no numbers of vertices and faces; write the file anew"
        )
    if len(lines) - 1 != counts[0] + counts[1]:
        more = len(lines) - 1 > counts[0] + counts[1]
        raise ZooError(
            f"{file}: {len(lines) - 1} rows for {counts[0]} vertices and {counts[1]} faces; "
            f"{'its counts are wrong, write the file anew' if more else 'it is cut off, get it again'}"
        )
    names = [*(("nx", "ny", "nz") if normal else ()), *((*COLOURS, "a") if colour else ())]
    names += ["s", "t"] if texture else []
    widths = (3 + len(names), 2 + len(names)) if colour else (3 + len(names),)  # colours with or without alpha
    widths = widths if names else (3, 6, 7)  # and some behind coordinates, whatever the keyword
    vertices = [_numbers(file, at, " ".join(words), words, widths) for at, words in lines[1 : 1 + counts[0]]]
    if len({len(one) for one in vertices}) > 1:
        at = next(i for i, one in enumerate(vertices) if len(one) != len(vertices[0]))
        raise ZooError(f"{file}: row {lines[1 + at][0]}: more or fewer numbers than the first vertex has; mend the row")
    width = len(vertices[0]) - 3 if vertices else 0
    names = names or [*COLOURS, "a"][:width]
    names = [name for name in names if name != "a" or width == len(names)]
    faces = [_off_face(file, at, words) for at, words in lines[1 + counts[0] :]]
    return _cloud(file, vertices, names), grouped(faces)


def _off_face(file: Path, at: int, words: list[str]) -> list[int]:
    """Corners; behind them a colour may follow: an index, or three or four numbers."""
    count = count_of(words[0])
    found = [count_of(word) for word in words[1 : 1 + (count or 0)]]
    if count is None or None in found:
        raise ZooError(f"{file}: row {at}: '{' '.join(words)[:60]}' is no face; mend the row")
    if len(found) != count:
        raise ZooError(f"{file}: row {at}: {len(found)} corners of {count}; mend the row")
    colour = words[1 + count :]
    if len(colour) not in (0, 1, 3, 4):
        raise ZooError(f"{file}: row {at}: {len(colour)} numbers behind {count} corners are no colour; mend the row")
    _numbers(file, at, " ".join(words), colour, (len(colour),))
    return found


def _cloud(file: Path, vertices: list[list[float]], names: Sequence[str]) -> Cloud:
    """A cloud of vertices, all with the same numbers: x y z, and where there are more, columns by `names`."""
    width = len(vertices[0]) if vertices else 3
    table = np.array(vertices, np.float64).reshape(-1, width)
    return cloud_of(file, dict(zip(("x", "y", "z", *names)[:width], table.T, strict=True)))


def _numbers(file: Path, row: int, line: str, words: list[str], counts: tuple[int, ...]) -> list[float]:
    try:
        found = [number_of(word) for word in words]
    except ValueError:
        found = None
    if found is None or len(found) not in counts:
        raise ZooError(f"{file}: row {row}: '{line.strip()[:60]}' is not {counts[0]} coordinates; mend the row")
    return found
