"""Segmentation: a class for every labelled unit of a sample (point, pixel, residue).

Training: mean cross entropy over labelled units. Rows: one confusion matrix per sample, counts[true, predicted].
Label -1 marks units without a label; they are neither trained nor counted.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..zoo.data.base import Part
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class Segmentation(Task):
    """A class for every unit of a sample."""

    rows = "segmentation"

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy over the labelled units; outputs (B, N, C), label (B, N)."""
        scores = self.model(*self.inputs(batch))
        return F.cross_entropy(scores.flatten(0, 1), batch["label"].flatten(), ignore_index=-1)

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Confusion counts (B, C, C) from outputs (B, N, C)."""
        return {"counts": confusion(batch["label"].cpu().numpy(), outputs.argmax(2).cpu().numpy(), outputs.shape[2])}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The most frequent class of the training part for every unit."""
        classes = len(self.spec.outputs.classes)
        total = sum(np.bincount(b["label"][b["label"] >= 0], minlength=classes) for b in part_batches(train))
        counts = [
            confusion(b["label"], np.full_like(b["label"], np.argmax(total)), classes) for b in part_batches(part)
        ]
        return with_ids(part, {"counts": np.concatenate(counts)})


def confusion(label: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Counts (B, C, C) of [true, predicted] units per sample; label -1 is left out."""
    sample = np.broadcast_to(np.arange(len(label))[:, None], label.shape)
    known = label >= 0
    place = (sample * classes + label) * classes + guess
    return np.bincount(place[known], minlength=len(label) * classes**2).reshape(len(label), classes, classes)
