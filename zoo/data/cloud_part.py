"""Samples of point clouds: a fixed number of points drawn from each, and what the task needs beside them.

classification  points (N, 3) and label ().
segmentation    points (N, 3) and label (N,), -1 where a point has none; outside the training part also, for carrying
                what was found for N points to every point of the cloud (M of them, padded to the batch's longest):
                nearest (M,) int32, the row of `points` next to each point of the cloud, and all_label (M,) int16, -1
                for padding and for points without a label.
completion      points (N, 3) of the partial cloud, target (N, 3) of the whole in the *same* frame, the partial cloud's
                (that of the whole is unknown to who completes), so that coordinates of the target may leave [-1, 1];
                and category (), the class of the cloud, for models that are told it.

With features, features (N, F) come along, standardised by mean and deviation over the training points. Normals (nx, ny,
nz or normal_x, normal_y, normal_z) turn with the points, and are divided by one number for the three.

The N points are drawn without replacement; a smaller cloud gives each point once and draws the rest again from them.
In training the draw is a function of (seed, epoch, sample), in evaluation of the sample's id alone (for a file to
predict for, of the id that it would have in the data set). `farthest` draws
each point farthest from those before it: from a random one on in training, from the file's first in evaluation; where
the cloud has too few places, the rest are points that repeat one. Clouds with fewer points than N are drawn as above.

Where no partial clouds are stored, they are made as MedPointS made its own (arXiv:2504.13015): the nearest 20 % of the
points around one of them, drawn at random, are taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..errors import ZooError
from ..geometry.fps import farthest_points
from ..seeding import generator
from .base import Part
from .cloud_pack import Item, frame
from .cloud_reader import stem

MISSING = 0.2  #: share of the points taken away for completion


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn from clouds."""

    task: str
    points: int
    replace: bool = False
    farthest: bool = False
    rotate: str = "none"
    own_frames: bool = False
    cut: bool = False  #: completion: take the partial cloud out of the whole
    carry: bool = False  #: segmentation: add `nearest` and `all_label`
    turned: bool = False  #: evaluation: each cloud in a random pose of its own, the same points of it
    normals: tuple[int, ...] = ()  #: the three columns of features that turn with the points
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


class Clouds(Part):
    """Some of the clouds of a pack, as samples of a task."""

    def __init__(
        self,
        arrays: dict,
        place: np.ndarray,
        items: list[Item],
        category: np.ndarray | None,
        how: Drawing,
        keys: Sequence[str] | None = None,
    ):
        """`keys`: what the draws of evaluation are a function of; by default the ids of the items."""
        mine = [items[i] for i in place]
        known = category is not None
        labels = {"label": category[place]} if how.task == "classification" and known else {}
        super().__init__(labels, np.array([item.id for item in mine]), np.array([item.group for item in mine]))
        self.packed, self.place, self.how = arrays, place, how
        self.keys = [key_of(i) for i in self.ids.tolist()] if keys is None else list(keys)
        self.category = category[place] if known else None

    def batch(self, index: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The tensors of the module's docstring, with a leading batch axis."""
        rows = [self._one(int(i), None if seeds is None else int(seed)) for i, seed in _pairs(index, seeds)]
        return {name: _stacked([row[name] for row in rows]) for name in rows[0]}

    def turned(self) -> Clouds:
        """The same samples, each in a random pose of its own."""
        other = copy(self)
        other.how = replace(self.how, turned=True)
        return other

    def cloud(self, i: int) -> np.ndarray:
        """All points of sample `i` in the units of its file, (M, 3) float64."""
        return self.to_file_units(i, self._span("xyz", "start", i))

    def has_labels(self, i: int) -> bool:
        """Whether a point of sample `i` has one."""
        return bool((self._span("label", "start", i) >= 0).any())

    def label_counts(self, classes: int) -> np.ndarray:
        """How many points of all clouds have each of the classes of points, (classes,)."""
        counts = (
            np.bincount(self._span("label", "start", i).astype(int) + 1, minlength=classes + 1)
            for i in range(len(self))
        )
        return sum(counts)[1:]

    def to_file_units(self, i: int, xyz: np.ndarray) -> np.ndarray:
        """Coordinates in the frame of sample `i` (of evaluation) to the units of its file."""
        at = self.place[i]
        return xyz.astype(np.float64) * self.packed["scale"][at] + self.packed["centre"][at]

    def _span(self, name: str, start: str, i: int) -> np.ndarray:
        bounds = self.packed[start]
        return self.packed[name][bounds[self.place[i]] : bounds[self.place[i] + 1]]

    def _one(self, i: int, seed: int | None) -> dict[str, np.ndarray]:
        how = self.how
        rng = generator("evaluation", self.keys[i]) if seed is None else generator(seed, "cloud")
        xyz = self._span("xyz", "start", i)
        turn = None if seed is None or how.rotate == "none" else rotation(rng, how.rotate)
        if seed is None and how.turned:
            turn = rotation(generator("pose", self.keys[i]), "so3")
        row = {}
        if how.task == "completion":
            given = without_nearest(xyz, rng) if how.cut else np.arange(len(xyz))
            part = xyz[given] if turn is None else xyz[given] @ turn
            chosen = self._draw(rng, part, seed)
            centre, scale = frame(part)
            row["points"] = _in_frame(part[chosen], centre, scale)
            whole = xyz if how.cut else self._span("target", "target_start", i) if "target" in self.packed else None
            if whole is not None:
                whole = whole if turn is None else whole @ turn
                centre, scale = frame(whole) if how.own_frames else (centre, scale)
                row["target"] = _in_frame(whole[self._draw(rng, whole, seed)], centre, scale)
            if self.category is not None:
                row["category"] = self.category[i]
            chosen = given[chosen]
        else:
            chosen = self._draw(rng, xyz, seed)
            points = xyz[chosen]
            row["points"] = points if turn is None else _in_frame(points @ turn, *frame(points @ turn))
            if how.task == "classification" and self.category is not None:
                row["label"] = self.category[i]
        if how.task == "segmentation":
            row |= self._labels(i, xyz, chosen)
        if "features" in self.packed:
            features = np.array(self._span("features", "start", i)[chosen])
            if how.normals and turn is not None:
                features[:, how.normals] = features[:, how.normals] @ turn
            row["features"] = ((features - np.array(how.mean)) / np.array(how.deviation)).astype(np.float32)
        return row

    def _draw(self, rng: np.random.Generator, xyz: np.ndarray, seed: int | None) -> np.ndarray:
        if self.how.farthest and len(xyz) >= self.how.points:
            return farthest(xyz, self.how.points, 0 if seed is None else int(rng.integers(len(xyz))))
        return draw(rng, len(xyz), self.how.points, self.how.replace)

    def _labels(self, i: int, xyz: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
        label = self._span("label", "start", i) if "label" in self.packed else None
        row = {} if label is None else {"label": label[chosen].astype(np.int64)}
        if self.how.carry:
            from scipy.spatial import cKDTree

            row["nearest"] = cKDTree(xyz[chosen]).query(xyz)[1].astype(np.int32)
            row |= {} if label is None else {"all_label": np.asarray(label)}
        return row


def key_of(name: str) -> str:
    """An id without the suffix of a format: what draws are a function of, whether ids are files' names or not."""
    place = PurePosixPath(name)
    return (place.parent / stem(Path(place))).as_posix()


def normal_columns(names: Sequence[str]) -> list[int]:
    """Places of the three components of normals among the names of features; [] where there are none."""
    for triple in (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")):
        if missing := [name for name in triple if name not in names]:
            if len(missing) < 3:
                raise ZooError(f"features: no '{missing[0]}' beside the other components of normals; give all three")
            continue
        return [names.index(name) for name in triple]
    return []


def draw(rng: np.random.Generator, have: int, count: int, again: bool = False) -> np.ndarray:
    """`count` of `have` places: without replacement, or where too few are there each once and the rest drawn again.

    `again` draws all with replacement, as the original loader of MedPointS does even from larger clouds (about a
    third of 2,048 points of 4,096 then repeat another).
    """
    if again:
        return rng.integers(have, size=count)
    if have >= count:
        return rng.choice(have, count, replace=False)
    return np.concatenate([rng.permutation(have), rng.integers(have, size=count - have)])


def farthest(xyz: np.ndarray, count: int, first: int) -> np.ndarray:
    """Places of `count` of at least as many points (M, 3): `first`, then each the farthest from those before it.

    No place is drawn twice: where all that is left repeats what was drawn, the rest are taken in order.
    """
    order = np.arange(len(xyz))
    order[[0, first]] = first, 0  # sampling starts at the first row
    points = torch.from_numpy(np.ascontiguousarray(xyz[order], dtype=np.float32))
    picks = order[farthest_points(points[None], count)[0].numpy()]
    distinct = np.unique(picks, return_index=True)[1]
    if len(distinct) < count:
        again = np.setdiff1d(np.arange(count), distinct)
        picks[again] = np.setdiff1d(np.arange(len(xyz)), picks)[: len(again)]
    return picks


def without_nearest(xyz: np.ndarray, rng: np.random.Generator, share: float = MISSING) -> np.ndarray:
    """Places of the points that stay when the nearest `share` around one of them is taken away, in order."""
    distance = np.square(xyz - xyz[rng.integers(len(xyz))]).sum(1)
    order = np.argsort(distance, kind="stable")
    return np.sort(order[min(max(int(share * len(xyz)), 1), len(xyz) - 1) :])


def rotation(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A uniform rotation (3, 3) float32 about z, or of all of SO(3) (a unit quaternion of four normal numbers)."""
    if kind == "z":
        angle = rng.uniform(0, 2 * np.pi)
        w, x, y, z = np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)
    else:
        w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


def _pairs(index: np.ndarray, seeds: np.ndarray | None):
    return zip(index, [None] * len(index) if seeds is None else seeds, strict=True)


def _in_frame(xyz: np.ndarray, centre: np.ndarray, scale: float) -> np.ndarray:
    """A part whose points coincide has no size, and keeps that of its cloud."""
    return ((xyz - centre) / (scale or 1)).astype(np.float32)


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of one name; of different lengths, padded with -1 (labels) or 0 (places)."""
    longest = max(len(row) if np.ndim(row) else 0 for row in rows)
    if np.ndim(rows[0]) == 1 and any(len(row) != longest for row in rows):
        fill = -1 if rows[0].dtype == np.int16 else 0
        rows = [np.pad(row, (0, longest - len(row)), constant_values=fill) for row in rows]
    return np.stack(rows)
