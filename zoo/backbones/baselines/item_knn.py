"""Item-based nearest neighbours (Deshpande and Karypis, ACM TOIS 22(1), 2004) on binary user histories.

    s(i, j) = |U_i n U_j| / (sqrt(|U_i| |U_j|) + shrink);   score(u, i) = sum over j in the history of w_j s(i, j)

`neighbours` largest similarities are kept per item. `decay` weighs the history by recency: w = decay^(events since),
1 for the classical form (Ludewig et al., 2018, arXiv:1803.09587, find that recency matters in sequential tasks).
"""

from __future__ import annotations

import numpy as np

from ...data.logs import TrainWindows
from ...data.spec import Spec
from ...stored import array
from ..base import Fitted


class ItemKNN(Fitted):
    """Cosine similarity of items over users, summed over the user's history."""

    configs = {"item-knn": {}}
    accepts = ("log",)
    inputs = ("items", "length")
    given = ("num_items",)

    def __init__(self, num_items: int, *, neighbours: int = 100, shrink: float = 0.0, decay: float = 1.0):
        self.num_items, self.neighbours, self.shrink, self.decay = num_items, neighbours, shrink, decay
        self.near = np.zeros((num_items + 1, neighbours), np.int32)
        self.similarity = np.zeros((num_items + 1, neighbours), np.float32)

    def fit(self, part: TrainWindows, spec: Spec) -> None:
        """Similarities from the training events; item by item, so that memory stays at items x neighbours."""
        from scipy import sparse

        user, item = part.events()
        seen = sparse.csr_matrix(
            (np.ones(len(user), np.float32), (user, item)), shape=(user.max() + 1, self.num_items + 1)
        )
        seen.data[:] = 1  # an item counts once per user
        by_item = seen.T.tocsr()
        degree = np.sqrt(np.asarray(seen.sum(0)).ravel())
        for first in range(0, self.num_items + 1, 1024):
            block = (by_item[first : first + 1024] @ seen).toarray()
            rows = np.arange(first, first + len(block))
            block /= degree[rows, None] * degree[None] + self.shrink + 1e-12
            block[np.arange(len(block)), rows] = 0
            block[:, 0] = 0
            keep = min(self.neighbours, block.shape[1])
            # by similarity, then by item: a stable choice where similarities tie
            best = np.argsort(-block, axis=1, kind="stable")[:, :keep]
            self.near[rows, :keep] = best
            self.similarity[rows, :keep] = np.take_along_axis(block, best, 1)

    def predict(self, items: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Scores (B, num_items + 1) from the items of the window."""
        since = np.maximum(length[:, None] - 1 - np.arange(items.shape[1]), 0)
        weight = np.where(items > 0, np.float32(self.decay) ** since, 0)[..., None] * self.similarity[items]
        scores = np.zeros((len(items), self.num_items + 1), np.float32)
        rows = np.broadcast_to(np.arange(len(items))[:, None, None], weight.shape)
        np.add.at(scores, (rows.ravel(), self.near[items].ravel()), weight.ravel())
        return scores

    def state(self) -> dict[str, np.ndarray]:
        """Neighbours and similarities."""
        return {"near": self.near, "similarity": self.similarity}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Neighbours and similarities."""
        near = array(state, "near", self.near.shape, np.int32)
        if near.size and not 0 <= near.min() <= near.max() <= self.num_items:
            raise ValueError(f"near: {near.min()} to {near.max()} are no items of {self.num_items}")
        self.near, self.similarity = near, array(state, "similarity", near.shape, np.float32)
