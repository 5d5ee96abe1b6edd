"""Properties: T numbers per sample, some of them perhaps unknown: regression, or T yes/no questions.

Training: mean squared error of standardised targets, or binary cross entropy, over the known values. Rows: target and
value (n, T), unknown targets as NaN; values are in the targets' units, or probabilities.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..zoo.backbones.base import Fitted, Model
from ..zoo.data.base import Dataset, Part
from ..zoo.data.spec import Spec
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class Property(Task):
    """Numbers or yes/no answers for each sample."""

    rows = "property"
    kinds = ("image", "points", "patches")

    def __init__(self, model: Model | Fitted, spec: Spec, *, kind: Literal["regression", "binary"] = "regression"):
        super().__init__(model, spec)
        self.kind = kind
        self.register_buffer("mean", torch.zeros(len(spec.outputs.targets)))
        self.register_buffer("std", torch.ones(len(spec.outputs.targets)))

    def metric_options(self) -> dict:
        """The kind of targets."""
        return {"kind": self.kind}

    def accept(self, dataset: Dataset) -> None:
        """Standardise regression by the training part."""
        if self.kind == "regression":
            mean, std = _moments(dataset.part("train"))
            self.mean.copy_(torch.from_numpy(mean))
            self.std.copy_(torch.from_numpy(std))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean over the known targets; outputs (B, T)."""
        scores, target = self.model(*self.inputs(batch)), batch["target"]
        known = ~torch.isnan(target)
        if self.kind == "regression":
            each = (scores - (target.nan_to_num() - self.mean) / self.std).square()
        else:
            each = F.binary_cross_entropy_with_logits(scores, target.nan_to_num(), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Values in the targets' units, or probabilities."""
        outputs = outputs.double()
        value = outputs * self.std + self.mean if self.kind == "regression" else outputs.sigmoid()
        return {"target": batch["target"].double().cpu().numpy(), "value": value.cpu().numpy()}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The mean of the known training values (for yes/no questions: the share of yes) for every sample."""
        mean, _ = _moments(train)
        target = np.concatenate([b["target"] for b in part_batches(part)]).astype(np.float64)
        return with_ids(part, {"target": target, "value": np.broadcast_to(mean, target.shape).copy()})


def _moments(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the known values per target; 1 where a target does not vary."""
    target = np.concatenate([b["target"] for b in part_batches(part)]).astype(np.float64)
    std = np.nanstd(target, axis=0)
    return np.nanmean(target, axis=0), np.where(std > 0, std, 1.0)
