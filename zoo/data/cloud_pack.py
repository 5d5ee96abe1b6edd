"""Many files of points as a few arrays: each cloud read once, checked, put into its frame, and laid end to end.

Frame: the centre of the bounding box is subtracted and the greatest absolute coordinate divided by, so that a cloud
fills [-1, 1] along its longest side (as in MedPointS, arXiv:2504.13015). The files' own units are not kept in the
coordinates, where they would tell the source; `centre` and `scale` lead back to them.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..errors import ZooError
from ..files import cache_root
from .cloud_columns import Cloud, check_cloud
from .cloud_reader import SURFACE_POINTS, read_cloud

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


def read_item(
    folder: Path,
    item: Item,
    *,
    labelled: bool = False,
    surface_points: int = SURFACE_POINTS,
    surface_seed: int = 0,
    background: int = 0,
    nan_points: Literal["refuse", "drop"] = "refuse",
) -> Cloud:
    """The cloud of an item by the suffix of its file, with the labels of its label file where they are wanted.

    Points of a mesh are drawn by one seed for all, so that copies of a mesh are copies as clouds, which the check for
    duplicates sees.
    """
    return read_cloud(
        folder / item.cloud,
        surface_points=surface_points,
        seed=surface_seed,
        labels=folder / item.label if labelled and item.label else None,
        background=background,
        nan_points=nan_points,
    )


def pack(
    folder: Path,
    items: Sequence[Item],
    *,
    labelled: bool = False,
    values: Sequence[int] | None = None,
    features: bool = False,
    read: Callable[[Item], Cloud] | None = None,
    **reading,
) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of all clouds, and facts about them.

    xyz (P, 3) float32, the clouds end to end, cloud i from `start[i]` to `start[i + 1]`; centre (n, 3) and scale (n,);
    features (P, F); label (P,) int16, an index into `values` (default: all labels found but -1), -1 where a point has
    none, which its file says by -1, or by 0 where 0 is not among `values`; target (Q, 3) with `target_start`, in the
    frame of its partial cloud. `read` gives the cloud of an item, its labels with it; for a target it is called with
    the item whose `cloud` is that file. Without it, files are read by their suffix, with the options `reading`.
    """
    read = read or partial(read_item, folder, labelled=labelled, **reading)
    xyz, label, target, feature = _Column("f4", 3), _Column("i4"), _Column("f4", 3), None
    frames, hashes, names = [], [], None
    facts, left_out = {"repeated_points": 0, "colinear_clouds": 0}, Counter()
    for item in _shown(items):
        file = folder / item.cloud
        cloud = check_cloud(file, read(item))
        left_out.update(cloud.counts)
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
            whole_item = item._replace(cloud=item.target, label="", target="")
            whole_cloud = check_cloud(folder / item.target, read(whole_item))
            left_out.update(whole_cloud.counts)
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
    return arrays, facts | {"hashes": hashes, "features": list(names or ()), "left_out": dict(left_out)}


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


def _labels(folder: Path, item: Item, cloud: Cloud, values: Sequence[int] | None) -> np.ndarray:
    file, label = folder / (item.label or item.cloud), cloud.label
    if label is None:
        raise ZooError(f"{file}: has no labels; write a column 'label', or one label per line beside it as .seg")
    strange = np.flatnonzero(~np.isin(label, [0, *values])) if values is not None else []
    if len(strange):
        raise ZooError(
            f"{file}: label {strange[0] + 1} is {label[strange[0]]}, not one of {min(values)} to {max(values)}; mend it"
        )
    if label.min() < -1:
        raise ZooError(f"{file}: label {label.argmin() + 1} is {label.min()}; number labels from 0, -1 for none")
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
