"""Triangle meshes: STL (ASCII and binary), OBJ (Wavefront) and OFF (Geomview), vertices and faces alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_reader import Cloud, fan, suffix


def read_mesh(file: Path) -> tuple[np.ndarray, np.ndarray] | Cloud:
    """Vertices (V, 3) and triangles (T, 3) of vertex numbers; an OBJ or OFF without faces gives a cloud."""
    vertices, faces = {".stl": _stl, ".obj": _obj, ".off": _off}[suffix(file)](file)
    if not len(faces):
        return Cloud(vertices, np.zeros((len(vertices), 0), np.float32))
    return vertices, faces


def _stl(file: Path) -> tuple[np.ndarray, np.ndarray]:
    data = file.read_bytes()
    count = int(np.frombuffer(data, "<u4", 1, 80)[0]) if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        rows = np.frombuffer(
            data, np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("bytes", "<u2")]), count, 84
        )
        corners = rows["corner"].reshape(-1, 3)
    elif data[:5].lower() == b"solid":
        corners = _ascii_stl(file, data.decode("ascii", "replace"))
    else:
        raise ZooError(
            f"{file}: {len(data)} bytes do not hold the {max(count, 0)} triangles that its header announces; it is cut "
            "off or no STL file, get it again"
        )
    if not len(corners):
        raise ZooError(f"{file}: holds no triangle; drop the file or write it anew")
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _ascii_stl(file: Path, text: str) -> np.ndarray:
    corners = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.split()[:1] == ["vertex"]:
            corners.append(_numbers(file, number, line, line.split()[1:], 3))
    if len(corners) % 3 or "endsolid" not in text:
        raise ZooError(
            f"{file}: ends after {len(corners)} corners within a triangle or solid; it is cut off, get it again"
        )
    return np.array(corners).reshape(-1, 3)


def _obj(file: Path) -> tuple[np.ndarray, np.ndarray]:
    vertices, polygons = [], {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append(_numbers(file, number, line, words[1:4], 3))
        elif words[:1] == ["f"]:
            corners = [word.split("/")[0] for word in words[1:]]
            if len(corners) < 3 or not all(corner.lstrip("-").isdecimal() for corner in corners):
                raise ZooError(f"{file}: row {number}: '{line[:60]}' is no face; mend the row")
            # from 1, or backwards from the last vertex so far
            face = [int(corner) - 1 if int(corner) > 0 else len(vertices) + int(corner) for corner in corners]
            polygons.setdefault(len(face), []).append(face)
    return np.array(vertices).reshape(-1, 3), fan([np.array(faces) for faces in polygons.values()])


def _off(file: Path) -> tuple[np.ndarray, np.ndarray]:
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = [(number, line.split("#")[0].split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words]
    # some writers put the counts beside the keyword
    if lines and lines[0][1][0].startswith("OFF"):
        rest = [lines[0][1][0][3:], *lines[0][1][1:]]
        lines = [(lines[0][0], [word for word in rest if word]), *lines[1:]]
        lines = lines if lines[0][1] else lines[1:]
    else:
        raise ZooError(f"{file}: row 1: does not begin with OFF; write the file anew")
    if not lines or len(lines[0][1]) < 2 or not all(word.isdecimal() for word in lines[0][1]):
        raise ZooError(
            f"{file}: row {lines[0][0] if lines else 2}: no numbers of vertices and faces; write the file anew"
        )
    number_of_vertices, number_of_faces = map(int, lines[0][1][:2])
    if len(lines) - 1 < number_of_vertices + number_of_faces:
        raise ZooError(
            f"{file}: {len(lines) - 1} rows for {number_of_vertices} vertices and {number_of_faces} faces; it is cut "
            "off, get it again"
        )
    body, polygons = lines[1 + number_of_vertices :][:number_of_faces], {}
    vertices = [_numbers(file, at, " ".join(words), words[:3], 3) for at, words in lines[1 : 1 + number_of_vertices]]
    for at, words in body:
        if not words[0].isdecimal() or not all(word.isdecimal() for word in words[1 : 1 + int(words[0])]):
            raise ZooError(f"{file}: row {at}: '{' '.join(words)[:60]}' is no face; mend the row")
        face = [int(word) for word in words[1 : 1 + int(words[0])]]
        if len(face) != int(words[0]):
            raise ZooError(f"{file}: row {at}: {len(face)} corners of {words[0]}; mend the row")
        polygons.setdefault(len(face), []).append(face)
    return np.array(vertices).reshape(-1, 3), fan([np.array(faces) for faces in polygons.values()])


def _numbers(file: Path, row: int, line: str, words: list[str], count: int) -> list[float]:
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    if len(found) != count:
        raise ZooError(f"{file}: row {row}: '{line.strip()[:60]}' is not {count} coordinates; mend the row")
    return found
