"""Columns of numbers to clouds without loss: what a type cannot hold, and names that occur twice, are refused.

Text, declared types and scaled values all pass through here, so that no label wraps around, is cut at the point or
takes the value of a neighbouring type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import ZooError

LARGEST = 1e30  # coordinates beyond it, or all below its inverse, are bytes in the wrong order
LARGEST_LABEL = 2**31 - 1
EXACT = 2**53  # the largest range of whole numbers that float64 holds one by one
MOST_COLUMNS = 4096  # of a table or an element: more is a file of another kind, and each costs an array


@dataclass(frozen=True)
class Cloud:
    """Points (N, 3), float32 or as precise as the file; features (N, F) float32 by name; labels (N,) int64 or None.

    `counts` says what reading left out on request, by name.
    """

    xyz: np.ndarray
    features: np.ndarray
    names: tuple[str, ...] = ()
    label: np.ndarray | None = field(default=None)
    counts: dict[str, int] = field(default_factory=dict)


def bare(xyz: np.ndarray, label: np.ndarray | None = None) -> Cloud:
    """A cloud without features."""
    return Cloud(xyz, np.zeros((len(xyz), 0), np.float32), (), label)


def cloud_of(file: Path, columns: dict[str, np.ndarray]) -> Cloud:
    """A cloud from columns by name: x, y, z, `label` if it is there, and the others as features; names in any case."""
    lower = {name.lower(): column for name, column in columns.items()}
    if len(lower) < len(columns):
        raise twice(file, columns)
    missing = [name for name in "xyz" if name not in lower]
    if missing:
        raise ZooError(f"{file}: has no '{missing[0]}' among {', '.join(columns) or 'no columns'}; write x, y and z")
    for name in "xyz":
        if lower[name].dtype.kind in "iu" and lower[name].itemsize == 8:
            refuse(file, name, lower[name], _inexact(lower[name]), "is too large to be a coordinate")
    xyz = np.stack([lower.pop(name) for name in "xyz"], 1)
    xyz = xyz if xyz.dtype in (np.float32, np.float64) else xyz.astype(np.float64)
    label = lower.pop("label", None)
    for name, column in lower.items():
        if column.dtype.kind == "f" and column.itemsize > 4:
            refuse(file, name, column, _beyond(column, np.float32), "is too large for a feature, which is a float32")
    features = np.stack([*lower.values()], 1).astype(np.float32) if lower else np.zeros((len(xyz), 0), np.float32)
    return Cloud(xyz, features, tuple(lower), None if label is None else whole(file, label))


def twice(file: Path, names: Iterable[str], where: str = "") -> ZooError:
    """The error for columns of the same name, which differ in case alone or not at all."""
    low = [name.lower() for name in names]
    name = next((name for name in low if low.count(name) > 1), "")
    return ZooError(f"{file}: {where}'{name}' occurs twice; give each column a name of its own")


def whole(file: Path, label: np.ndarray) -> np.ndarray:
    """Labels as int64; refuses fractions, and what is beyond 32 bits, in whatever type it came."""
    if label.dtype.kind == "f":
        bad = np.flatnonzero(~(np.isfinite(label) & (np.round(label) == label)))
        if len(bad):
            raise ZooError(f"{file}: label {bad[0] + 1} is {label[bad[0]]:g}, no whole number; mend the row")
    bad = np.flatnonzero((label > LARGEST_LABEL) | (label < -LARGEST_LABEL))
    if len(bad):
        raise ZooError(f"{file}: label {bad[0] + 1} is {label[bad[0]]:g}, which is too large; number the labels from 0")
    return label.astype(np.int64)


def declared(file: Path, name: str, values: np.ndarray, kind: str, rows: Sequence[int]) -> np.ndarray:
    """Values of text, float64, as the numpy type `kind` that the header declares; `rows` are their rows in the file.

    Refuses what that type cannot hold: fractions and numbers beyond its range, or beyond what float64 counts.
    """
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        bad = _beyond(values, dtype)
    else:
        low, high = max(int(np.iinfo(dtype).min), -EXACT), min(int(np.iinfo(dtype).max), EXACT)
        bad = ~((np.round(values) == values) & (values >= low) & (values <= high))
    refuse(file, name, values, bad, f"does not fit its declared type ({_spoken(dtype)})", rows)
    return values.astype(dtype)


def refuse(file: Path, name: str, values: np.ndarray, bad: np.ndarray, why: str, rows: Sequence[int] = ()) -> None:
    """Raise for the first of the values that are `bad`, with its row or point."""
    found = np.flatnonzero(bad)
    if len(found):
        first = int(found[0])
        place = f"row {rows[first]}" if len(rows) else f"point {first + 1}"
        raise ZooError(f"{file}: {place}: '{name}' {values[first]:.10g} {why}; mend the file")


def _beyond(values: np.ndarray, dtype) -> np.ndarray:
    return np.isfinite(values) & (np.abs(values) > np.finfo(dtype).max)


def _inexact(values: np.ndarray) -> np.ndarray:
    return (values > EXACT) | (values < -EXACT)


def _spoken(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        return f"float of {dtype.itemsize} bytes"
    return f"whole numbers {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"


def count_of(word: str) -> int | None:
    """A count in a header, None where the word is none; 18 digits at most, for Python refuses to read thousands."""
    return int(word) if re.fullmatch(r"[0-9]{1,18}", word) else None


def number_of(word: str) -> float:
    """A number in text; ValueError for what only Python takes for one, such as 1_000 or digits of other scripts."""
    if "_" in word or not word.isascii():
        raise ValueError(word)
    return float(word)


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
            "drop these points, or set data.nan_points=drop where they are NaN"
        )


def check_features(file: Path, cloud: Cloud) -> None:
    """Refuse features that are no numbers."""
    bad = np.flatnonzero(~np.isfinite(cloud.features).all(1))
    if len(bad):
        name = cloud.names[int(np.argmin(np.isfinite(cloud.features[bad[0]])))]
        raise ZooError(
            f"{file}: point {bad[0] + 1}: '{name}' is not finite ({len(bad)} such points); mend or drop them, or set "
            "data.nan_points=drop where they are NaN"
        )


def check_cloud(file: Path, cloud: Cloud) -> Cloud:
    """A cloud that an adapter read by itself, checked as those of the zoo's readers are; labels become int64."""
    xyz, features, label = cloud.xyz, np.asarray(cloud.features), cloud.label
    if getattr(xyz, "ndim", 0) != 2 or xyz.shape[1] != 3 or xyz.dtype not in (np.float32, np.float64):
        raise ZooError(f"{file}: read() gave coordinates that are no float32 or float64 array (N, 3); mend the adapter")
    if features.shape != (len(xyz), len(cloud.names)) or features.dtype != np.float32:
        raise ZooError(
            f"{file}: read() gave features of shape {features.shape} and type {features.dtype} for {len(xyz)} points "
            f"and {len(cloud.names)} names; give a float32 array (points, names)"
        )
    check_points(file, xyz)
    check_features(file, cloud)
    if label is None:
        return cloud
    label = np.asarray(label)
    if label.shape != (len(xyz),) or label.dtype.kind not in "iuf":
        raise ZooError(
            f"{file}: read() gave labels of shape {label.shape} and type {label.dtype} for {len(xyz)} points; give one "
            "whole number per point"
        )
    return Cloud(xyz, features, cloud.names, whole(file, label), cloud.counts)
