"""Most popular items: every user gets the training counts as scores. The floor of every recommendation board."""

from __future__ import annotations

import numpy as np

from ...data.logs import TrainWindows
from ...data.spec import Spec
from ...stored import array
from ..base import Fitted


class Popularity(Fitted):
    """Items ranked by how often they occur in training."""

    configs = {"popularity": {}}
    accepts = ("log",)
    inputs = ("items",)
    given = ("num_items",)

    def __init__(self, num_items: int):
        self.count = np.zeros(num_items + 1, np.float32)

    def fit(self, part: TrainWindows, spec: Spec) -> None:
        """Count all training events."""
        _, item = part.events()
        self.count = np.bincount(item, minlength=len(self.count)).astype(np.float32)

    def predict(self, items: np.ndarray) -> np.ndarray:
        """Scores (B, num_items + 1), the same for everyone."""
        return np.broadcast_to(self.count, (len(items), len(self.count)))

    def state(self) -> dict[str, np.ndarray]:
        """The counts."""
        return {"count": self.count}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """The counts."""
        self.count = array(state, "count", self.count.shape, np.float32)
