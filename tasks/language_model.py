"""Language modelling: the next token of DNA, protein, SMILES or text.

Training: mean cross entropy per token, at all positions in one pass, so that the model has to be causal. Rows: summed
negative log-likelihood and number of tokens per sequence. Token 0 is padding and never a target.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..zoo.backbones.base import Fitted, outputs
from ..zoo.data.base import Dataset, Part
from ..zoo.errors import ZooError
from ..zoo.train.causality import assert_causal
from ..zoo.train.task import Rows, Task, part_batches, with_ids

REMEDY = "choose a causal model, or causal mixers"


class LanguageModel(Task):
    """The next token at every position."""

    rows = "language_model"
    kinds = ("tokens",)

    def accept(self, dataset: Dataset) -> None:
        """The model must be causal; with the data prepared it is looked at as well."""
        if not getattr(self.model, "causal", False):
            raise ZooError(
                f"{type(self.model).__name__} is not causal, so that it would read the token it is to predict; {REMEDY}"
            )
        if dataset.prepared and not isinstance(self.model, Fitted):
            assert_causal(self.model, dataset.part("train"), outputs, REMEDY)

    def accept_fitted(self, dataset: Dataset) -> None:
        """A fitted model is given whole sequences too."""
        assert_causal(self.model, dataset.part("train"), outputs, REMEDY)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy over target tokens; outputs (B, L, V), target (B, L)."""
        scores = self.model(*self.inputs(batch))
        return F.cross_entropy(scores.flatten(0, 1), batch["target"].flatten(), ignore_index=0)

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Summed NLL in nats and token count of each sequence."""
        target = batch["target"]
        nll = F.cross_entropy(outputs.double().transpose(1, 2), target, ignore_index=0, reduction="none").sum(1)
        return {"nll": nll.cpu().numpy(), "tokens": (target != 0).sum(1).cpu().numpy()}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The token frequencies of the training part (plus one each) at every position."""
        size = self.spec.size("vocab_size")
        count = np.ones(size) + sum(np.bincount(b["target"].ravel(), minlength=size) for b in part_batches(train))
        count[0] = 0
        logits = torch.from_numpy(np.log(np.maximum(count / count.sum(), 1e-300)))
        rows = []
        for arrays in part_batches(part):
            target = torch.from_numpy(np.asarray(arrays["target"]))
            rows.append(self.outputs_to_rows(logits.expand(*target.shape, size), {"target": target}))
        return with_ids(part, {name: np.concatenate([r[name] for r in rows]) for name in rows[0]})
