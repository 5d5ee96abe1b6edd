"""NIfTI-1 label masks, `.nii` and `.nii.gz`: the voxels at the border of each label, in the file's world units.

Format: https://nifti.nimh.nih.gov/nifti-1 (nifti1.h): a header of 348 bytes, then the voxels, first axis fastest. World
coordinates are the sform's where it is set, else the qform's, else voxel numbers times the voxel sizes.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ..errors import ZooError

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


def read_mask(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Border voxels: world coordinates (N, 3) float64 and labels (N,) int64.

    A labelled (not 0) voxel is at the border where one of its six neighbours has another label or lies outside.
    """
    data, order = _bytes(file)

    def get(kind: str, at: int, count: int = 1) -> np.ndarray:
        return np.frombuffer(data, order + kind, count, at)

    dim = get("i2", 40, 8)
    if not 3 <= dim[0] <= 7 or (dim[1 : dim[0] + 1] < 1).any() or (dim[4 : dim[0] + 1] != 1).any():
        raise ZooError(f"{file}: dimensions {dim[1 : max(dim[0], 0) + 1].tolist()}, not one volume; split the file")
    kind = TYPES.get(int(get("i2", 70)[0]))
    if kind is None:
        raise ZooError(f"{file}: data type {get('i2', 70)[0]} is no plain number; save the mask as integers")
    shape, start = tuple(int(n) for n in dim[1:4]), int(get("f4", 108)[0])
    if start < 348 or len(data) < start + int(np.prod(shape)) * int(kind[1]):
        raise ZooError(f"{file}: {len(data)} bytes do not hold {' x '.join(map(str, shape))} voxels; it is cut off")
    voxels = get(kind, start, int(np.prod(shape))).reshape(shape, order="F")
    slope, intercept = get("f4", 112, 2)
    if np.isfinite(slope) and slope != 0 and (slope, intercept) != (1, 0):
        voxels = voxels * np.float64(slope) + np.float64(intercept)
    if not (np.isfinite(voxels).all() and (np.round(voxels) == voxels).all()):
        raise ZooError(f"{file}: holds values that are no whole numbers; give a label mask, not an image")
    border = np.argwhere(_border(voxels))
    label = voxels[tuple(border.T)].astype(np.int64)
    affine = _affine(get)
    if not np.linalg.det(affine[:, :3]):
        raise ZooError(f"{file}: its affine has no volume; mend the header")
    return border @ affine[:, :3].T + affine[:, 3], label


def _bytes(file: Path) -> tuple[bytes, str]:
    """The unpacked bytes and their order, which the size of the header tells."""
    data = file.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ZooError(f"{file}: gzip fails ({error}); it is cut off, get it again") from error
    for order in "<>":
        if len(data) >= 348 and np.frombuffer(data, order + "i4", 1)[0] == 348 and data[344:347] == b"n+1":
            return data, order
    raise ZooError(f"{file}: no NIfTI-1 file of one piece (n+1); convert it to .nii.gz")


def _border(voxels: np.ndarray) -> np.ndarray:
    """Voxels that are not 0 and have a neighbour of another label."""
    padded = np.pad(voxels, 1)
    inner = (slice(1, -1),) * 3
    differs = np.zeros(voxels.shape, bool)
    for axis in range(3):
        for shift in (1, -1):
            differs |= np.roll(padded, shift, axis)[inner] != voxels
    return differs & (voxels != 0)


def _affine(get) -> np.ndarray:
    """World coordinates = affine[:, :3] @ voxel + affine[:, 3]."""
    qform, sform = get("i2", 252, 2)
    size = get("f4", 76, 8).astype(np.float64)
    if sform > 0:
        return get("f4", 280, 12).reshape(3, 4).astype(np.float64)
    if qform <= 0:
        return np.hstack([np.diag(size[1:4]), np.zeros((3, 1))])
    b, c, d, *offset = get("f4", 256, 6).astype(np.float64)
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handed = size[0] if size[0] in (-1, 1) else 1  # 0 stands for 1
    return np.hstack([rotation * (size[1:4] * [1, 1, handed]), np.array(offset)[:, None]])
