"""Label masks: the voxels at the border of each label, in world units (volumes are read by `cloud_volume.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import EXACT, LARGEST_LABEL, Cloud, bare
from .cloud_volume import read_volume

MOST_BORDER = 1 << 25  # points; more is noise, and takes 24 bytes each
SLAB = 1 << 22  # voxels looked at in one go


def read_mask(file: Path, background: int = 0) -> Cloud:
    """Border voxels: world coordinates (N, 3) float64 and labels (N,) int64.

    A labelled voxel (neither `background` nor NaN) is at the border where one of its six neighbours has another label
    or lies outside.
    """
    voxels, affine, slope, intercept = read_volume(file)
    labels = _labels(file, voxels, slope, intercept, background)
    if not (np.isfinite(affine).all() and np.linalg.det(affine[:, :3])):
        raise ZooError(f"{file}: its affine has no volume; mend the header")
    differs = _border(labels, background)
    if (count := int(np.count_nonzero(differs))) > MOST_BORDER:
        raise ZooError(f"{file}: {count} voxels lie at a border, which is noise; give a label mask, not an image")
    border = np.argwhere(differs)
    label = labels[tuple(border.T)].astype(np.int64)
    return bare(border @ affine[:, :3].T + affine[:, 3], label)


def _labels(file: Path, raw: np.ndarray, slope: float | None, intercept: float | None, background: int) -> np.ndarray:
    """The volume as whole numbers of at most 32 bits: as it is stored where that is what it holds."""
    scaled = slope is not None and (slope, intercept) != (1, 0)
    if raw.dtype.kind in "iu" and raw.itemsize <= 2 and not scaled:
        return raw
    labels = np.empty(raw.shape, np.int32, order="F")
    step = max(1, SLAB // max(1, raw.shape[0] * raw.shape[1]))
    for start in range(0, raw.shape[2], step):
        values = raw[:, :, start : start + step]
        if scaled:
            if values.dtype.kind in "iu" and values.itemsize == 8 and ((values > EXACT) | (values < -EXACT)).any():
                raise ZooError(f"{file}: values beyond 2^53 are scaled, so that they are rounded; save labels unscaled")
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * np.float64(slope) + np.float64(intercept)
        labels[:, :, start : start + step] = _whole(file, values, background)
    return labels


def _whole(file: Path, values: np.ndarray, background: int) -> np.ndarray:
    """Values as int32 labels, NaN as the background; refuses all that is no label."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        values = np.where(np.isnan(values), float(background), values)
        if not (np.isfinite(values).all() and (np.round(values) == values).all()):
            raise ZooError(f"{file}: holds values that are no whole numbers; give a label mask, not an image")
    beyond = (values > LARGEST_LABEL) | (values < -LARGEST_LABEL)
    if beyond.any():
        raise ZooError(
            f"{file}: label {values[beyond][0]:g} is too large; number the labels from 0, and check the header's slope"
        )
    return values.astype(np.int32)


def _border(labels: np.ndarray, background: int) -> np.ndarray:
    """Where a voxel is labelled and has a neighbour of another label."""
    differs = np.zeros(labels.shape, bool)
    for axis in range(3):
        here, there, side = ([slice(None)] * 3 for _ in range(3))
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        step = labels[tuple(here)] != labels[tuple(there)]
        differs[tuple(here)] |= step
        differs[tuple(there)] |= step
        for side[axis] in (0, -1):  # outside the volume is background
            differs[tuple(side)] = True
    differs &= labels != background
    return differs
