"""Segmentation: a class for every labelled unit of a sample (point, pixel, residue).

Training: weighed sum of the mean cross entropy over labelled units and the soft Dice loss. Rows: one confusion matrix
per sample, counts[true, predicted]. Label -1 marks units without a label; they are neither trained nor counted. Where a
sample is drawn from more points than enter the model, evaluation counts them all: each takes the class of the nearest
drawn one (`nearest` (B, M) into the drawn units, `all_label` (B, M)).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..zoo import plots
from ..zoo.backbones.base import Fitted, Model
from ..zoo.data.base import Part
from ..zoo.data.ply import write_cloud
from ..zoo.data.spec import Spec
from ..zoo.files import write_json
from ..zoo.nn.losses import soft_dice
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class Segmentation(Task):
    """A class for every unit of a sample."""

    rows = "segmentation"
    kinds = ("points", "patches")

    def __init__(self, model: Model | Fitted, spec: Spec, *, cross_entropy: float = 1.0, dice: float = 0.0):
        """Weights of the two losses."""
        super().__init__(model, spec)
        self.cross_entropy, self.dice = cross_entropy, dice

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Over the labelled units; outputs (B, N, C), label (B, N)."""
        scores, label = self.model(*self.inputs(batch)), batch["label"]
        loss = self.cross_entropy * F.cross_entropy(scores.flatten(0, 1), label.flatten(), ignore_index=-1)
        return loss + self.dice * soft_dice(scores, label) if self.dice else loss

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Confusion counts (B, C, C) from outputs (B, N, C), over all units of each sample."""
        guess, label = outputs.argmax(2), batch["label"]
        if "nearest" in batch:
            guess, label = guess.gather(1, batch["nearest"].long()), batch["all_label"].long()
        return {"counts": confusion(label.cpu().numpy(), guess.cpu().numpy(), outputs.shape[2])}

    def write_files(self, outputs: Tensor, batch: dict[str, Tensor], part: Part, folder: Path) -> None:
        """Every point of each cloud with its `label` as the data number it, in the units of its file, as `<id>.ply`.

        `classes.json` has the names of the numbers.
        """
        classes = self.spec.outputs.classes
        values = np.array(self.spec.outputs.values or range(len(classes)))
        write_json(folder / "classes.json", dict(zip(values.tolist(), classes, strict=True)))
        guess = values[outputs.argmax(2).gather(1, batch["nearest"].long()).cpu().numpy()]
        for i, labels in zip(batch["index"].tolist(), guess, strict=True):
            points = part.cloud(i)
            write_cloud(folder / f"{part.ids[i]}.ply", points, label=labels[: len(points)])

    def pictures(self, folder: Path, rows: Rows, part: Part) -> None:
        """The confusion matrix over all units; for point clouds three samples by prediction, label and error."""
        names = self.spec.outputs.classes
        plots.confusion(folder / "confusion.png", rows["counts"].sum(0), names)
        if self.spec.inputs.kind != "points":
            return
        arrays, scores = self.few(part)
        found = zip(arrays["points"], arrays["label"], scores.argmax(2), strict=True)
        shown = [_clouds(*sample, len(names)) for sample in found]
        plots.clouds(folder / "clouds.png", shown, [*names, "right", "wrong"])

    def trivial(self, train: Part, part: Part) -> Rows:
        """The most frequent class of the training part for every unit."""
        classes = len(self.spec.outputs.classes)
        total = sum(np.bincount(b["label"][b["label"] >= 0], minlength=classes) for b in part_batches(train))
        labels = (b.get("all_label", b["label"]).astype(np.int64) for b in part_batches(part, 64))
        counts = [confusion(label, np.full_like(label, np.argmax(total)), classes) for label in labels]
        return with_ids(part, {"counts": np.concatenate(counts)})


def _clouds(points: np.ndarray, label: np.ndarray, guess: np.ndarray, wrong: int) -> dict:
    """One sample as prediction, label and error; errors have the classes `wrong` (right) and `wrong` + 1."""
    known = label >= 0
    parts = {"prediction": guess, "label": label, "error": wrong + (guess != label)}
    return {title: (points[known], classes[known]) for title, classes in parts.items()}


def confusion(label: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Counts (B, C, C) of [true, predicted] units per sample; label -1 is left out."""
    sample = np.broadcast_to(np.arange(len(label))[:, None], label.shape)
    known = label >= 0
    place = (sample * classes + label) * classes + guess
    return np.bincount(place[known], minlength=len(label) * classes**2).reshape(len(label), classes, classes)
