"""Reading point clouds: every supported file to points with features and labels, checked.

| suffix | what | read by |
|---|---|---|
| .ply | points, or a mesh where it has faces; ASCII and binary of both byte orders | `ply.py` |
| .pcd | points of the Point Cloud Library, v0.7; ASCII, binary and binary_compressed | `pcd.py` |
| .xyz .txt .pts .csv | rows of x y z and further columns, names or a count before them | `cloud_table.py` |
| .npy | an array (points, columns), or one with fields x, y, z | `cloud_array.py` |
| .stl .obj .off | meshes | `meshes.py` |
| .vtp .vtu .vtk | points, or a mesh where it has polygons | `cloud_vtk.py` |
| .nii .nii.gz .nrrd .mha | masks: the voxels at the border of each label, in world units | `cloud_mask.py` |

The readers are the zoo's own, but for the headers of NIfTI (nibabel) and NRRD (pynrrd): the libraries at hand read no
labels and no further columns of most formats, give an empty or half-read cloud where a file is broken, or end the whole
process (vtk, SimpleITK). Meshes become points drawn uniformly over their area (`cloud_surface.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import BadArgument, ZooError, unknown
from ..seeding import generator
from .cloud_columns import Cloud, check_features, check_points, cloud_of
from .cloud_surface import Polygons, on_surface
from .cloud_table import read_labels, read_xyz

SURFACE_POINTS = 4096  #: points drawn from a mesh
NAN_POINTS = ("refuse", "drop")


def suffix(file: Path) -> str:
    """The suffix that tells a file's format: `.nii.gz` as a whole, in lower case."""
    name = file.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem(file: Path) -> str:
    """The file's name without the suffix of its format."""
    return file.name[: len(file.name) - len(suffix(file))]


def read_cloud(
    file: Path,
    *,
    surface_points: int = SURFACE_POINTS,
    seed: int = 0,
    labels: Path | None = None,
    background: int = 0,
    nan_points: Literal["refuse", "drop"] = "refuse",
) -> Cloud:
    """Read a file by its suffix; a mesh gives `surface_points` points drawn with `seed`.

    `labels`: a file with one label per line for the file's points or vertices, in place of its own. `background`: the
    label of voxels of a mask that belong to nothing. `nan_points`: points with NaN among their coordinates or features
    are refused, or dropped and counted; those of a mesh are always refused, for its faces need them.

    Raises `ZooError` with file, row or point and remedy where the file is not what its suffix says, is empty, or holds
    coordinates that are no lengths.
    """
    if nan_points not in NAN_POINTS:
        raise BadArgument(f"data.nan_points={nan_points}; valid: {', '.join(NAN_POINTS)}")
    if not file.is_file():
        raise ZooError(f"{file}: no such file; check the path")
    kind = suffix(file)
    if kind not in READERS:
        raise unknown("point-cloud format", kind, READERS, where=str(file))
    if not file.stat().st_size:
        raise ZooError(f"{file}: is empty (0 bytes); get or write it again")
    cloud, faces = _mask(file, background) if kind in MASKS else READERS[kind](file)
    if labels is not None:
        unit = ("vertex", "vertices") if faces else ("point", "points")
        cloud = replace(cloud, label=read_labels(labels, len(cloud.xyz), unit))
    if nan_points == "drop" and not faces:
        cloud = without_nan(cloud)
    check_points(file, cloud.xyz)
    check_features(file, cloud)
    return on_surface(file, cloud, faces, surface_points, generator(seed, "surface")) if faces else cloud


def without_nan(cloud: Cloud) -> Cloud:
    """The points that have no NaN, and how many had one."""
    keep = ~(np.isnan(cloud.xyz).any(1) | np.isnan(cloud.features).any(1))
    label = None if cloud.label is None else cloud.label[keep]
    dropped = int(len(keep) - np.count_nonzero(keep))
    return Cloud(cloud.xyz[keep], cloud.features[keep], cloud.names, label, {"nan_points_dropped": dropped})


def _ply(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .ply import read_ply

    columns, faces = read_ply(file)
    return cloud_of(file, columns), faces


def _xyz(file: Path) -> tuple[Cloud, list[Polygons]]:
    return read_xyz(file), []


def _pcd(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .pcd import read_pcd

    return cloud_of(file, read_pcd(file)), []


def _stl(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .meshes import read_stl

    return read_stl(file)


def _obj(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .meshes import read_obj

    return read_obj(file)


def _off(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .meshes import read_off

    return read_off(file)


def _vtk(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .cloud_vtk import read_vtk

    return read_vtk(file)


def _npy(file: Path) -> tuple[Cloud, list[Polygons]]:
    from .cloud_array import read_npy

    return read_npy(file), []


def _mask(file: Path, background: int = 0) -> tuple[Cloud, list[Polygons]]:
    from .cloud_mask import read_mask

    return read_mask(file, background), []


MASKS = (".nii", ".nii.gz", ".nrrd", ".mha")
READERS = {
    **{".ply": _ply, ".pcd": _pcd, ".xyz": _xyz, ".txt": _xyz, ".pts": _xyz, ".csv": _xyz},
    **{".npy": _npy, ".stl": _stl, ".obj": _obj, ".off": _off, ".vtp": _vtk, ".vtu": _vtk, ".vtk": _vtk},
    **dict.fromkeys(MASKS, _mask),
}
