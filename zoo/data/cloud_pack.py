"""Many files of points as a few arrays: each cloud read once, checked, put into its frame, and laid end to end.

Frame: the centre of the bounding box is subtracted and the greatest absolute coordinate divided by, so that a cloud
fills [-1, 1] along its longest side (as in MedPointS, arXiv:2504.13015). The files' own units are not kept in the
coordinates, where they would tell the source; `centre` and `scale` lead back to them.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ZooError
from ..files import cache_root
from .cloud_reader import SURFACE_POINTS, Cloud, read_cloud, read_table, whole

MANY = 500  # files whose reading is shown


class Item(NamedTuple):
    """One sample: its stable id, what must not cross a split, its files relative to the folder, class and fold."""

    id: str
    group: str
    cloud: str
    category: str = ""
    fold: int = 0
    label: str = ""  #: file of labels, one a line; where empty, the cloud's own
    target: str = ""  #: file of the whole, where `cloud` is a part of it


class _Column:
    """Rows appended to a file without a name, then memory-mapped: packing holds one cloud at a time."""

    def __init__(self, dtype: str, *shape: int):
        cache_root().mkdir(parents=True, exist_ok=True)
        self.file, self.dtype, self.shape, self.rows = tempfile.TemporaryFile(dir=cache_root()), dtype, shape, [0]

    def append(self, array: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(array, self.dtype).tobytes())
        self.rows.append(self.rows[-1] + len(array))

    def array(self) -> np.ndarray:
        self.file.flush()
        shape = (self.rows[-1], *self.shape)
        return np.memmap(self.file, self.dtype, "r", shape=shape) if all(shape) else np.zeros(shape, self.dtype)


def pack(
    folder: Path,
    items: Sequence[Item],
    *,
    labelled: bool = False,
    values: Sequence[int] | None = None,
    features: bool = False,
    surface_points: int = SURFACE_POINTS,
    surface_seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of all clouds, and facts about them.

    xyz (P, 3) float32, the clouds end to end, cloud i from `start[i]` to `start[i + 1]`; centre (n, 3) and scale (n,);
    features (P, F); label (P,) int16, an index into `values` (default: all labels found but -1), -1 where a point has
    none, which its file says by -1, or by 0 where 0 is not among `values`; target (Q, 3) with `target_start`, in the
    frame of its partial cloud. Points of a mesh are drawn by `surface_seed`.
    """
    xyz, label, target, feature = _Column("f4", 3), _Column("i4"), _Column("f4", 3), None
    frames, hashes, names = [], [], None
    facts = {"repeated_points": 0, "colinear_clouds": 0}
    for item in _shown(items):
        file = folder / item.cloud
        # one seed for all, so that copies of a mesh are copies as clouds, which the check for duplicates sees
        drawn = {"surface_points": surface_points, "seed": surface_seed}
        cloud = read_cloud(file, **drawn)
        points, centre, scale = normalise(file, cloud.xyz)
        xyz.append(points)
        frames.append([*centre, scale])
        ordered = points[np.lexsort(points.T)]
        hashes.append(hashlib.sha256(ordered.tobytes()).hexdigest()[:32])
        facts["repeated_points"] += int((ordered[1:] == ordered[:-1]).all(1).sum())
        facts["colinear_clouds"] += is_colinear(points)
        if labelled:
            label.append(_labels(folder, item, cloud, values))
        if item.target:
            whole_cloud = read_cloud(folder / item.target, **drawn)
            target.append((whole_cloud.xyz - centre) / scale)
        if features:
            names = cloud.names if names is None else names
            if cloud.names != names or not names:
                raise ZooError(
                    f"{file}: has the features {', '.join(cloud.names) or 'none'}, not {', '.join(names) or 'any'}; "
                    "give every file the same columns, or set data.features=false"
                )
            feature = feature or _Column("f4", len(names))
            feature.append(cloud.features)
    frames = np.array(frames, np.float64).reshape(-1, 4)
    arrays = {"xyz": xyz.array(), "start": np.array(xyz.rows), "centre": frames[:, :3], "scale": frames[:, 3]}
    if labelled:
        found = sorted(set(np.unique(label.array()).tolist()) - {-1}) if values is None else list(values)
        arrays["label"], facts["labels"] = _index(label.array(), found), found
    if any(item.target for item in items):
        arrays |= {"target": target.array(), "target_start": np.array(target.rows)}
    if features:
        arrays["features"] = feature.array()
    return arrays, facts | {"hashes": hashes, "features": list(names or ())}


def normalise(file: Path | str, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Points in their frame, float32, and its centre (3,) and scale; refuses a cloud without extent."""
    centre, scale = frame(xyz)
    if not scale > 0:
        raise ZooError(f"{file}: its {len(xyz)} points coincide, so that the cloud has no size; drop the file")
    return ((xyz - centre) / scale).astype(np.float32), centre, scale


def frame(xyz: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre of the bounding box (3,) float64, and the greatest absolute coordinate from there."""
    low, high = xyz.min(0).astype(np.float64), xyz.max(0).astype(np.float64)
    return (low + high) / 2, float((high - low).max() / 2)


def is_colinear(xyz: np.ndarray) -> bool:
    """Whether all points lie on one line, up to float32."""
    centred = xyz.astype(np.float64) - xyz.mean(0, dtype=np.float64)
    spread = np.linalg.eigvalsh(centred.T @ centred)
    return bool(spread[1] <= 1e-12 * spread[2])


def read_labels(file: Path, count: int) -> np.ndarray:
    """One label per line, whole numbers written as such or as floats, for a cloud of `count` points; int64 (count,)."""
    if not file.is_file():
        raise ZooError(f"{file}: no such file, so the cloud beside it has no labels; complete the data")
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    if len(lines) != count:
        raise ZooError(f"{file}: {len(lines)} labels for a cloud of {count} points; give one label per point")
    return whole(file, read_table(file, lines, 1, 1)[:, 0])


def _labels(folder: Path, item: Item, cloud: Cloud, values: Sequence[int] | None) -> np.ndarray:
    file = folder / (item.label or item.cloud)
    label = read_labels(file, len(cloud.xyz)) if item.label else cloud.label
    if label is None:
        raise ZooError(f"{file}: has no labels; write a column 'label', or one label per line beside it as .seg")
    strange = np.flatnonzero(~np.isin(label, [0, *values])) if values is not None else []
    if len(strange):
        raise ZooError(
            f"{file}: label {strange[0] + 1} is {label[strange[0]]}, not one of {min(values)} to {max(values)}; mend it"
        )
    if label.min() < -1:
        raise ZooError(f"{file}: label {label.argmin() + 1} is {label.min()}; number labels from 0, -1 for none")
    if np.abs(label).max() >= 1 << 31:
        raise ZooError(f"{file}: label {np.abs(label).max()} is too large; number the labels from 0")
    return label


def _index(label: np.ndarray, values: list[int]) -> np.ndarray:
    if not values:
        return np.full(len(label), -1, np.int16)
    place = np.searchsorted(values, label).clip(0, len(values) - 1).astype(np.int16)
    return np.where(np.asarray(values)[place] == label, place, np.int16(-1))


def _shown(items: Sequence[Item]):
    """The items, with a bar on a terminal where there are many."""
    from rich.console import Console
    from rich.progress import track

    quiet = len(items) < MANY or not sys.stderr.isatty()
    return track(items, "reading clouds", console=Console(stderr=True), transient=True, disable=quiet)
