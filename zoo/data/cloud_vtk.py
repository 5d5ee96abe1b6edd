"""VTK files: polygons and point data of `.vtp` and `.vtu` (XML) and of `.vtk` (legacy, POLYDATA and UNSTRUCTURED_GRID).

Formats: https://docs.vtk.org/en/latest/vtk_file_formats/index.html; text, base64 and raw data, zlib. Read here because
the vtk package ends the whole process on broken files, and meshio reads no polygons of `.vtp` and POLYDATA. Triangles,
quads and polygons are faces; vertices and lines are stepped over, data of cells too; strips and volumes are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, Cloud, cloud_of, declared, twice
from .cloud_foreign import told
from .cloud_surface import Polygons

FACES, STEPPED_OVER = (5, 7, 9), (1, 2, 3, 4)  # types of cells: triangle, polygon, quad; vertices and lines


def read_vtk(file: Path) -> tuple[Cloud, list[Polygons]]:
    """Points with their data, and faces."""
    data = file.read_bytes()
    if file.suffix.lower() == ".vtk":
        from .cloud_vtk_legacy import read_legacy as read
    else:
        from .cloud_vtk_xml import read_xml as read
    points, columns, faces = read(file, data)
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


def bad(file: Path, what: str) -> ZooError:
    """The error of a file that is not what it says."""
    return ZooError(f"{file}: {what}; write the file anew")


def polygons(file: Path, starts: np.ndarray, corners: np.ndarray, wanted: np.ndarray | None = None) -> list[Polygons]:
    """Faces i of the corners from `starts[i]` to `starts[i + 1]`, grouped by their number; `wanted`: which of them."""
    starts, corners = starts.astype(np.int64), corners.astype(np.int64)
    size = np.diff(starts)
    if (len(starts) and (starts[0] != 0 or starts[-1] != len(corners))) or (size < 0).any():
        raise bad(file, f"its offsets do not divide its {len(corners)} corners")
    wanted = np.ones(len(size), bool) if wanted is None else wanted
    groups = []
    for k in dict.fromkeys(size[wanted].tolist()):
        rows = np.flatnonzero(wanted & (size == k))
        groups.append(Polygons(corners[starts[rows][:, None] + np.arange(k)], rows + 1))
    return groups


def by_type(file: Path, types: np.ndarray) -> np.ndarray:
    """Which cells are faces, by their types; refuses volumes."""
    strange = np.flatnonzero(~np.isin(types, FACES + STEPPED_OVER))
    if len(strange):
        raise ZooError(
            f"{file}: cell {strange[0] + 1} is of type {types[strange[0]]}, no polygon; extract the surface and save it"
        )
    return np.isin(types, FACES)


def text_numbers(file: Path, name: str, words: list[bytes], kind: str) -> np.ndarray:
    """Numbers of text as their declared type."""
    try:
        if any(b"_" in word for word in words):
            raise ValueError("a number with _")
        values = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise bad(file, f"'{name}' holds what is no number ({told(error)})") from error
    return declared(file, name, values, kind, ())
