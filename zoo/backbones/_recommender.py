"""What the sequential recommenders share: one embedding holds the items and scores them, score(i) = <x_t, E[i]>."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..mixers.base import last_valid
from .base import Model


class Recommender(Model):
    """Base of the recommenders: `self.item` embeds items 1..num_items, row 0 is padding."""

    #: whether padding stays among the items of the training softmax (a quirk of published models)
    pad_competes = False

    def reset(self, std: float) -> None:
        """Linear layers and embeddings N(0, std), biases and the row of padding zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.clear_padding()

    def clear_padding(self) -> None:
        """Set the row of padding to zero where it is not an item of its own."""
        if self.item.padding_idx is not None:
            with torch.no_grad():
                self.item.weight[0].zero_()

    def tied(self) -> str:
        """The items."""
        return "item"

    def pooled_features(self, *inputs: Tensor) -> Tensor:
        """Features (B, dim) behind each user's last event."""
        given = dict(zip(self.inputs, inputs, strict=True))
        length = given["length"] if "length" in given else (given["items"] != 0).sum(1).clamp(min=1)
        return last_valid(self.forward_features(*inputs), length)

    def item_scorer(self) -> tuple[Tensor, Tensor | None]:
        """Weight (num_items + 1, dim) and bias (num_items + 1,) of the scores; row 0 is padding."""
        return self.item.weight, None

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (..., dim) to scores of all items (..., num_items + 1); column 0 is padding."""
        weight, bias = self.item_scorer()
        scores = features @ weight.T
        return scores if bias is None else scores + bias
