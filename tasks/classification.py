"""Classification: one of C classes per sample.

Training: cross entropy with optional class weights and label smoothing. Rows: the class probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..zoo import plots
from ..zoo.backbones.base import Fitted, Model
from ..zoo.data.base import Dataset, Part
from ..zoo.data.spec import Spec
from ..zoo.errors import ZooError
from ..zoo.train.task import Rows, Task, with_ids
from .segmentation import confusion


class Classification(Task):
    """One of the data set's classes for each sample."""

    rows = "classification"
    kinds = ("image", "points", "patches")

    def __init__(
        self,
        model: Model | Fitted,
        spec: Spec,
        *,
        class_weights: Literal["none", "balanced"] = "none",
        label_smoothing: float = 0.0,
    ):
        """`class_weights="balanced"` weighs each class by samples / (classes * samples of the class) of training."""
        super().__init__(model, spec)
        if len(spec.outputs.classes) < 2:
            raise ZooError(f"classification needs at least 2 classes, the data set names {len(spec.outputs.classes)}")
        self.balanced, self.label_smoothing = class_weights == "balanced", label_smoothing
        self.register_buffer("class_weight", torch.ones(len(spec.outputs.classes)), persistent=False)

    def accept(self, dataset: Dataset) -> None:
        """Count the classes of the training part where they weigh the loss."""
        if self.balanced:
            count = np.bincount(dataset.part("train").labels(), minlength=len(self.class_weight))
            if not count.all():
                name = self.spec.outputs.classes[int(np.argmin(count))]
                raise ZooError(f"class '{name}' has no training sample to weigh; set task.class_weights=none")
            self.class_weight.copy_(torch.from_numpy(count.sum() / (len(count) * count)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Weighted mean cross entropy."""
        scores = self.model(*self.inputs(batch))
        return F.cross_entropy(scores, batch["label"], self.class_weight, label_smoothing=self.label_smoothing)

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Target and softmax probabilities (n, C)."""
        return {"target": batch["label"].cpu().numpy(), "prob": outputs.double().softmax(1).cpu().numpy()}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The class frequencies of the training part for every sample: its guess is the majority."""
        share = np.bincount(train.labels(), minlength=len(self.spec.outputs.classes)) / len(train)
        return with_ids(part, {"target": part.labels(), "prob": np.tile(share, (len(part), 1))})

    def pictures(self, folder: Path, rows: Rows, part: Part) -> None:
        """The confusion matrix; for point clouds the scan orders of a model that has some."""
        names = self.spec.outputs.classes
        counts = confusion(rows["target"][None], rows["prob"].argmax(1)[None], len(names))[0]
        plots.confusion(folder / "confusion.png", counts, names)
        if hasattr(self.model, "scan_orders"):
            points, orders = self.model.scan_orders(torch.from_numpy(part.batch(np.arange(1))["points"]))
            shown = {name: order[0].numpy() for name, order in orders.items()}
            plots.scan_orders(folder / "orders.png", points[0].numpy(), shown)

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The most probable class and its probability per sample."""
        prob = outputs.double().softmax(1).cpu().numpy()
        return {"class": np.array(self.spec.outputs.classes)[prob.argmax(1)], "probability": prob.max(1)}
