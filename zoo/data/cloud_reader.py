"""Reading point clouds: every supported file to points with features and labels, checked.

| suffix | what | read as |
|---|---|---|
| .ply | points, or a mesh where it has faces | ASCII and binary of both byte orders (`ply.py`) |
| .pcd | points of the Point Cloud Library, v0.7 | ASCII and binary here, binary_compressed by open3d |
| .xyz .txt .pts .csv | rows of x y z and further columns, names or a count before them | between blanks, commas or ; |
| .stl .obj .off | meshes | `meshes.py` |
| .nii .nii.gz | NIfTI-1 masks: the voxels at the border of each label, in the file's world units | `nifti.py` |

The readers are the zoo's own: open3d reads no labels and no further columns of most formats, and gives an empty or
half-read cloud with a warning where a file is broken; it is used only for what would take a decompressor.

Meshes become points drawn uniformly over their area (R. Osada, T. Funkhouser, B. Chazelle and D. Dobkin, Shape
Distributions, ACM TOG 21(4), 2002, section 3.1): a triangle with the chance of its area, and in it
(1 - sqrt(r1)) A + sqrt(r1) (1 - r2) B + sqrt(r1) r2 C for uniform r1, r2. The draw is a function of the seed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import ZooError, unknown
from ..seeding import generator

SURFACE_POINTS = 4096  #: points drawn from a mesh
LARGEST = 1e30  # coordinates beyond it, or all below its inverse, are bytes in the wrong order


@dataclass(frozen=True)
class Cloud:
    """Points (N, 3), float32 or as precise as the file; features (N, F) float32 by name; labels (N,) int64 or None."""

    xyz: np.ndarray
    features: np.ndarray
    names: tuple[str, ...] = ()
    label: np.ndarray | None = field(default=None)


def suffix(file: Path) -> str:
    """The suffix that tells a file's format: `.nii.gz` as a whole, in lower case."""
    name = file.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem(file: Path) -> str:
    """The file's name without the suffix of its format."""
    return file.name[: len(file.name) - len(suffix(file))]


def read_cloud(file: Path, *, surface_points: int = SURFACE_POINTS, seed: int = 0) -> Cloud:
    """Read a file by its suffix; a mesh gives `surface_points` points drawn with `seed`.

    Raises `ZooError` with file, row or point and remedy where the file is not what its suffix says, is empty, or holds
    coordinates that are no lengths.
    """
    if not file.is_file():
        raise ZooError(f"{file}: no such file; check the path")
    if suffix(file) not in READERS:
        raise unknown("point-cloud format", suffix(file), READERS, where=str(file))
    if not file.stat().st_size:
        raise ZooError(f"{file}: is empty (0 bytes); get or write it again")
    cloud = READERS[suffix(file)](file)
    if isinstance(cloud, tuple):
        vertices, faces = cloud
        check_points(file, vertices)
        xyz = on_surface(file, vertices, faces, surface_points, generator(seed, "surface"))
        return Cloud(xyz, np.zeros((len(xyz), 0), np.float32))
    check_points(file, cloud.xyz)
    bad = np.flatnonzero(~np.isfinite(cloud.features).all(1))
    if len(bad):
        name = cloud.names[int(np.argmin(np.isfinite(cloud.features[bad[0]])))]
        raise ZooError(
            f"{file}: point {bad[0] + 1}: '{name}' is not finite ({len(bad)} such points); mend or drop them"
        )
    return cloud


def check_points(file: Path, xyz: np.ndarray) -> None:
    """Refuse a cloud without points, and coordinates that are no numbers or no lengths."""
    if not len(xyz):
        raise ZooError(f"{file}: holds no points; drop the file or write it anew")
    finite = np.isfinite(xyz)
    size = np.abs(xyz[finite])
    if size.size and (size.max() > LARGEST or 0 < size.max() < 1 / LARGEST):
        raise ZooError(
            f"{file}: coordinates up to {size.max():.0e} are no lengths: the byte order or the types in its header are "
            "wrong; write the file anew"
        )
    bad = np.flatnonzero(~finite.all(1))
    if len(bad):
        place = " ".join(f"{value:g}" for value in xyz[bad[0]])
        raise ZooError(
            f"{file}: point {bad[0] + 1}: coordinates {place}, and {len(bad) - 1} more points that are not finite; "
            "drop these points"
        )


def on_surface(file: Path, vertices: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 3), float64, uniform over the area of triangles (T, 3) of vertex numbers."""
    outside = np.flatnonzero(((faces < 0) | (faces >= len(vertices))).any(1))
    if len(outside):
        raise ZooError(
            f"{file}: face {outside[0] + 1}: names vertex {faces[outside[0]].max()} of {len(vertices)}; mend the face"
        )
    corner = vertices.astype(np.float64)[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 0:
        raise ZooError(f"{file}: its {len(faces)} faces have no area; mend the mesh")
    face = np.searchsorted(np.cumsum(area) / area.sum(), rng.random(count), side="right")
    a, b, c = corner[np.minimum(face, len(faces) - 1)].transpose(1, 0, 2)
    r1, r2 = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - r1) * a + r1 * (1 - r2) * b + r1 * r2 * c


def read_table(file: Path, lines: Sequence[str], row: int, columns: int | None = None) -> np.ndarray:
    """Lines of numbers to (n, columns) float64; `row` is the first line's number in the file, for messages."""
    if not lines:
        return np.zeros((0, columns or 0))
    try:
        table = np.loadtxt(lines, ndmin=2, comments=None)
        if table.shape == (len(lines), columns or table.shape[1]):
            return table
    except ValueError:
        pass  # said below, with the row
    for number, line in enumerate(lines, row):
        fields = line.split()
        columns = columns or len(fields)
        try:
            good = len([float(one) for one in fields]) == columns and columns
        except ValueError:
            good = False
        if not good:
            raise ZooError(f"{file}: row {number}: '{line.strip()[:60]}' is not {columns} numbers; mend the row")
    raise ZooError(f"{file}: row {row}: no table of numbers; write the file anew")


def _points(file: Path, columns: dict[str, np.ndarray]) -> Cloud:
    """A cloud from columns by name: x, y, z, `label` if it is there, and the others as features."""
    lower = {name.lower(): column for name, column in columns.items()}
    missing = [name for name in "xyz" if name not in lower]
    if missing:
        raise ZooError(f"{file}: has no '{missing[0]}' among {', '.join(columns) or 'no columns'}; write x, y and z")
    xyz = np.stack([lower.pop(name) for name in "xyz"], 1)
    xyz = xyz if xyz.dtype in (np.float32, np.float64) else xyz.astype(np.float64)
    label = lower.pop("label", None)
    features = np.stack([*lower.values()], 1).astype(np.float32) if lower else np.zeros((len(xyz), 0), np.float32)
    return Cloud(xyz, features, tuple(lower), None if label is None else whole(file, label))


def whole(file: Path, label: np.ndarray) -> np.ndarray:
    """Labels as int64; refuses fractions."""
    bad = np.flatnonzero(~(np.isfinite(label) & (np.round(label) == label)))
    if len(bad):
        raise ZooError(f"{file}: label {bad[0] + 1} is {label[bad[0]]:g}, no whole number; mend the row")
    return label.astype(np.int64)


def _ply(file: Path):
    from .ply import read_ply

    columns, faces = read_ply(file)
    cloud = _points(file, columns)
    triangles = fan(faces)
    return (cloud.xyz, triangles) if len(triangles) else cloud


def fan(faces: Sequence[np.ndarray]) -> np.ndarray:
    """Polygons, as arrays (n, k) for each k, to triangles (T, 3): corner 0 with each edge that does not touch it."""
    parts = [
        polygons[:, [0, corner, corner + 1]]
        for polygons in faces
        if polygons.ndim == 2
        for corner in range(1, polygons.shape[1] - 1)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 3), np.int64)


def _xyz(file: Path) -> Cloud:
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] not in "#/"), len(lines))
    for row, line in enumerate(lines[first : first + 2], first + 1):  # the first may be names or a count
        line = line.strip()
        if re.search(r"\d,\d", line) and re.search(r"[^,\s]\s+[^,\s]|;", line):  # "0,5 1,5 2,5" is no row of six
            raise ZooError(
                f"{file}: row {row}: '{line[:60]}' has commas within columns between blanks or semicolons; write "
                "decimal points"
            )
    lines = [re.sub("[,;]", " ", line) for line in lines]
    while lines and not lines[-1].strip():
        lines.pop()
    named = lines[first].lower().split() if lines[first:] else []
    if {"x", "y", "z"} <= set(named):
        if len(set(named)) < len(named):
            raise ZooError(f"{file}: row {first + 1}: a column's name occurs twice; give each a name of its own")
        table = read_table(file, lines[first + 1 :], first + 2, len(named))
        return _points(file, dict(zip(named, table.T, strict=True)))
    first += named == [str(len(lines) - first - 1)]  # how many follow
    table = read_table(file, lines[first:], first + 1) if lines[first:] else np.zeros((0, 3))
    if table.shape[1] < 3:
        raise ZooError(f"{file}: row {first + 1}: {table.shape[1]} columns, no x y z; check the separator")
    names = ("x", "y", "z", *(f"column {i + 1}" for i in range(3, table.shape[1])))
    return _points(file, dict(zip(names, table.T, strict=True)))


def _pcd(file: Path) -> Cloud:
    from .pcd import read_pcd

    return _points(file, read_pcd(file))


def _mesh(file: Path):
    from .meshes import read_mesh

    return read_mesh(file)


def _mask(file: Path) -> Cloud:
    from .nifti import read_mask

    xyz, label = read_mask(file)
    return Cloud(xyz, np.zeros((len(xyz), 0), np.float32), (), label)


READERS = {
    **{".ply": _ply, ".pcd": _pcd, ".xyz": _xyz, ".txt": _xyz, ".pts": _xyz, ".csv": _xyz},
    **{".stl": _mesh, ".obj": _mesh, ".off": _mesh, ".nii": _mask, ".nii.gz": _mask},
}
