"""Nearest neighbours on histograms of distances: the floor that point-cloud networks have to beat.

A cloud is described by the histogram of distances between random pairs of its points, in units of their mean (the D2
shape distribution of Osada et al., TOG 2002, doi:10.1145/571647.571648): neither pose nor scale enters. A new cloud
gets the class shares of its nearest training clouds in L1 distance.
"""

from __future__ import annotations

import numpy as np

from ...data.spec import Spec
from ...seeding import generator
from ...stored import array
from ...train.task import part_batches
from ..base import Fitted

FARTHEST = 3.0  #: last bin's end, in mean distances


class DistanceKNN(Fitted):
    """The classes of the nearest training clouds by histograms of point distances."""

    serves = ("classification",)
    configs = {"distance-knn": {}}
    accepts = ("points",)
    inputs = ("points",)
    given = ("num_outputs",)

    def __init__(self, num_outputs: int, *, neighbours: int = 5, bins: int = 64, pairs: int = 20_000):
        """`pairs` of points are drawn, the same places in every cloud."""
        self.num_outputs, self.neighbours, self.bins, self.pairs = num_outputs, neighbours, bins, pairs
        self.histogram, self.label = np.zeros((0, bins), np.float32), np.zeros(0, np.int64)

    def describe(self, points: np.ndarray) -> np.ndarray:
        """Points (B, N, 3) to histograms (B, bins) that sum to 1."""
        one, other = generator(0, "distance-knn", points.shape[1]).integers(points.shape[1], size=(2, self.pairs))
        distance = np.linalg.norm(points[:, one] - points[:, other], axis=2)
        distance /= np.maximum(distance.mean(1, keepdims=True), 1e-12)
        place = np.minimum((distance / FARTHEST * self.bins).astype(np.int64), self.bins - 1)
        row = np.arange(len(points))[:, None] * self.bins
        counts = np.bincount((place + row).ravel(), minlength=len(points) * self.bins)
        return (counts.reshape(len(points), self.bins) / self.pairs).astype(np.float32)

    def fit(self, part, spec: Spec) -> None:
        """Histograms and classes of the training clouds."""
        batches = [(self.describe(batch["points"]), batch["label"]) for batch in part_batches(part, 32)]
        self.histogram = np.concatenate([histogram for histogram, _ in batches])
        self.label = np.concatenate([label for _, label in batches]).astype(np.int64)

    def predict(self, points: np.ndarray) -> np.ndarray:
        """Log shares (B, num_outputs) of the classes among the nearest; the nearest one decides ties."""
        from scipy.spatial.distance import cdist

        distance = cdist(self.describe(points), self.histogram, "cityblock")
        near = np.argsort(distance, 1, kind="stable")[:, : self.neighbours]
        votes = np.ones(near.shape[1])
        votes[0] += 0.5
        shares = np.full((len(points), self.num_outputs), 1e-3)
        np.add.at(shares, (np.arange(len(points))[:, None], self.label[near]), votes)
        return np.log(shares / shares.sum(1, keepdims=True)).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Histograms and classes."""
        return {"histogram": self.histogram, "label": self.label}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Histograms and classes."""
        histogram = array(state, "histogram", (None, self.bins), np.float32)
        label = array(state, "label", (len(histogram),), np.int64)
        if not len(label) or not 0 <= label.min() <= label.max() < self.num_outputs:
            raise ValueError(f"label: holds no cloud, or classes beyond {self.num_outputs}")
        self.histogram, self.label = histogram, label
