"""Language modelling: the next token of DNA, protein, SMILES or text.

Training: mean cross entropy per token. Rows: summed negative log-likelihood and number of tokens per sequence. Token 0
is padding and never a target.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..zoo.data.base import Part
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class LanguageModel(Task):
    """The next token at every position."""

    rows = "language_model"
    kinds = ("tokens",)

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
