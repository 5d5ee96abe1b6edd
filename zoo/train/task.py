"""The task contract: a LightningModule that turns a model's outputs into a loss, prediction rows and a floor.

Prediction rows are plain numpy columns with stable ids; `zoo.metrics` computes every reported number from them, in
training and afterwards, so that there is one definition of each metric.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..backbones.base import Fitted, Model, outputs
from ..data.base import Dataset, Part
from ..data.datamodule import EvalSteps
from ..data.spec import Spec
from ..errors import ZooError
from .config import TrainConfig
from .optim import make_optimizer

Rows = dict[str, np.ndarray]


class Task(L.LightningModule):
    """Base of all tasks: a subclass states `rows`, its row schema, and implements the four methods marked below."""

    rows: ClassVar[str]
    #: kinds of input whose models serve it, unless they say otherwise by `serves`; what lists go by
    kinds: ClassVar[tuple[str, ...]] = ()
    #: arguments that say how, not what: left out of the recipe's hash
    operational: ClassVar[tuple[str, ...]] = ()
    #: arguments that came after results were recorded, with the value that does what was done before (see recipe.py)
    added_later: ClassVar[dict] = {}
    #: options of `predictions`, which `zoo predict` takes as flags; literals, known without importing the task:
    #: name -> {"default": ..., "help": ...}, with "choices" (True, False) for a pair of flags, "least" for a number
    predict_options: ClassVar[dict[str, dict]] = {}
    #: the reason that stands with a sample of which `predictions` masks everything
    nothing_left: ClassVar[str] = "no candidate is left"
    #: training settings of `--sample`
    sample_train: ClassVar[dict] = {"epochs": 8, "batch_size": 64, "patience": None, "max_steps": None}

    def __init__(self, model: Model | Fitted, spec: Spec):
        super().__init__()
        self.model, self.spec = model, spec
        self.train_config = TrainConfig()
        self.total_steps = 1

    # what a task implements -----------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a training batch."""
        raise TypeError(f"{type(self).__name__} does not implement loss()")

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Outputs of an evaluation batch to row columns (without `id` and `group`)."""
        raise TypeError(f"{type(self).__name__} does not implement outputs_to_rows()")

    def trivial(self, train: Part, part: Part) -> Rows:
        """Rows of the model that looks at no input: the floor of every board."""
        raise TypeError(f"{type(self).__name__} does not implement trivial()")

    def metric_options(self) -> dict:
        """Options of `metrics.compute` for this task's settings."""
        return {}

    def protocol(self) -> dict:
        """The options that decide the metrics; records that differ in one never share a board."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.metric_options().items()
        }

    def asks(self, **options) -> set[str]:
        """Tensors that evaluating, or predicting under `options`, needs in the batches beyond the model's inputs."""
        return set()

    def without_inputs(self, **options) -> dict[str, np.ndarray]:
        """The columns of `predictions` for a sample of which nothing can be used, best first; none by default."""
        raise ZooError(f"the task {self.rows} answers nothing without inputs; leave the fallback out")

    def accept(self, dataset: Dataset) -> None:
        """Refuse, in one line, a model and data that do not go together under this task."""

    def memory_remedies(self) -> tuple[str, ...]:
        """What else of this task makes a training step smaller, as `set key=value`; told when memory runs out."""
        return ()

    def accept_fitted(self, dataset: Dataset) -> None:
        """The same for what shows only when a model that is not a network is fitted."""

    def pictures(self, folder: Path, rows: Rows, part: Part) -> None:
        """Draw what the test rows show, and a few samples of `part`, into `folder`."""

    # what every task has ----------------------------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        """The metric that chooses the best weights and sorts the board."""
        return metrics.TASKS[self.rows].primary_for(**self.metric_options())

    def inputs(self, batch: dict) -> list:
        """The tensors that the model takes, in its order."""
        return [batch[name] for name in self.model.inputs]

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        """The model's outputs for an evaluation batch."""
        return outputs(self.model, self.inputs(batch))

    def few(self, part: Part, count: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The first samples of a part and the model's outputs for them, for pictures."""
        arrays = part.batch(np.arange(min(count, len(part))))
        self.eval()
        with torch.inference_mode():
            outputs = self.outputs({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()})
        return arrays, outputs.numpy()

    def batch_rows(self, batch: dict[str, Tensor]) -> Rows:
        """Rows of one evaluation batch, with the sample numbers as `index`."""
        outputs = self.outputs(batch)
        if torch.isnan(outputs).any():
            raise ZooError("the model's outputs are NaN; lower train.lr, set train.clip=1, or use train.precision=32")
        return self.outputs_to_rows(outputs, batch) | {"index": batch["index"].cpu().numpy()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Lightning's hook."""
        loss = self.loss(batch)
        self.step_loss = loss.detach()  # Lightning's own is divided by the batches of an optimiser step
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Lightning's hook (anyone's Trainer): collect rows."""
        self._collected: list[Rows] = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Lightning's hook."""
        self._collected.append(self.batch_rows(batch))

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook: metrics over all rows."""
        rows = {name: np.concatenate([part[name] for part in self._collected]) for name in self._collected[0]}
        ids = rows.pop("index").astype(str)
        for name, value in metrics.compute(
            self.rows, rows | {"id": ids, "group": ids}, **self.metric_options()
        ).items():
            if value is not None:
                self.log(f"valid/{name}", value)

    def configure_optimizers(self):
        """Lightning's hook: optimiser and per-step schedule of the `train` section."""
        return make_optimizer(self.model, self.train_config, self.total_steps)


def part_batches(part: Part, size: int = 512):
    """The batches of a part as numpy, in order; for counting over training data."""
    for asked in EvalSteps(part, size):
        yield part.batch(asked.index)


def with_ids(part: Part, rows: Rows) -> Rows:
    """Add the columns `id` and `group` of a part to rows in its order."""
    return {"id": part.ids.astype(str), "group": part.groups.astype(str), **rows}
