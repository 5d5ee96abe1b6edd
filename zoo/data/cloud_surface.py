"""Points drawn uniformly over the area of a mesh, with the labels and features of its vertices.

R. Osada, T. Funkhouser, B. Chazelle and D. Dobkin, Shape Distributions, ACM TOG 21(4), 2002, section 3.1: a triangle
with the chance of its area, and in it (1 - sqrt(r1)) A + sqrt(r1) (1 - r2) B + sqrt(r1) r2 C for uniform r1, r2. The
draw is a function of the seed. A point has the features of the three corners in these shares, and the label of the
corner with the greatest, for labels have no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ZooError
from .cloud_columns import Cloud


class Polygons(NamedTuple):
    """Faces with k corners: their vertex numbers (n, k) from 0, and which faces of the file they are (n,), from 1."""

    corners: np.ndarray
    numbers: np.ndarray


def grouped(faces: Sequence[Sequence[int]]) -> list[Polygons]:
    """Faces in the file's order as one group for each number of corners, in the order in which these are met."""
    found: dict[int, tuple[list, list]] = {}
    for number, face in enumerate(faces, 1):
        corners, numbers = found.setdefault(len(face), ([], []))
        corners.append(face)
        numbers.append(number)
    return [
        Polygons(np.array(corners, np.int64).reshape(len(corners), -1), np.array(numbers))
        for corners, numbers in found.values()
    ]


def triangles(file: Path, faces: Sequence[Polygons], vertices: int) -> np.ndarray:
    """Triangles (T, 3): corner 0 with each edge that does not touch it; refuses faces of too few or unknown corners."""
    wrong = []
    for corners, numbers in faces:
        if corners.shape[1] < 3:
            wrong.append((int(numbers[0]), f"has {corners.shape[1]} corners"))
            continue
        outside = (corners < 0) | (corners >= vertices)
        rows = np.flatnonzero(outside.any(1))
        if len(rows):
            vertex = corners[rows[0]][outside[rows[0]]][0]
            wrong.append((int(numbers[rows[0]]), f"names vertex {vertex} of {vertices}"))
    if wrong:
        number, what = min(wrong)
        raise ZooError(f"{file}: face {number}: {what}; mend the face")
    parts = []
    for corners, _ in faces:
        edge = np.arange(1, corners.shape[1] - 1)
        parts.append(corners[:, np.stack([np.zeros_like(edge), edge, edge + 1], 1)].transpose(1, 0, 2).reshape(-1, 3))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 3), np.int64)


def on_surface(file: Path, mesh: Cloud, faces: Sequence[Polygons], count: int, rng: np.random.Generator) -> Cloud:
    """`count` points of a mesh, float64, uniform over the area of its faces; `mesh` holds what is at the vertices."""
    face = triangles(file, faces, len(mesh.xyz))
    corner = mesh.xyz.astype(np.float64)[face]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 0:
        raise ZooError(f"{file}: its {len(face)} faces have no area; mend the mesh")
    drawn = np.searchsorted(np.cumsum(area) / area.sum(), rng.random(count), side="right")
    drawn = np.minimum(drawn, len(face) - 1)
    a, b, c = corner[drawn].transpose(1, 0, 2)
    r1, r2 = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    xyz = (1 - r1) * a + r1 * (1 - r2) * b + r1 * r2 * c
    share, at = np.hstack([1 - r1, r1 * (1 - r2), r1 * r2]), face[drawn]
    features = np.einsum("nk,nkf->nf", share, mesh.features[at].astype(np.float64)).astype(np.float32)
    label = None if mesh.label is None else mesh.label[at[np.arange(count), share.argmax(1)]]
    return Cloud(xyz, features, mesh.names, label)
