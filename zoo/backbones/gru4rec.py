"""GRU4Rec: a gated recurrent network over item sequences (Hidasi et al., ICLR 2016, arXiv:1511.06939).

    h_t = GRU(Dropout(E[item_t]), h_{t-1});   score(i) = <W h_t, E[i]>

In the form that later papers compare with (Tan et al., 2016, arXiv:1606.08117; RecBole): cross entropy over all items,
items scored by the shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._recommender import Recommender


class GRU4Rec(Recommender):
    """A GRU over a user's last items."""

    configs = {"gru4rec": {}}
    accepts = ("log",)
    inputs = ("items",)
    given = ("num_items",)
    tiny = {"dim": 32, "hidden": 32, "dropout": 0.1}
    causal = True

    def __init__(self, num_items: int, *, dim: int = 64, hidden: int = 128, layers: int = 1, dropout: float = 0.3):
        """`num_items` without padding; `hidden` is the GRU's width, `dim` that of the items."""
        super().__init__()
        self.item = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, layers, bias=False, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(hidden, dim)
        nn.init.xavier_normal_(self.item.weight)
        for name, weight in self.gru.named_parameters():
            nn.init.xavier_uniform_(weight) if "weight_ih" in name else nn.init.orthogonal_(weight)
        self.clear_padding()

    def forward_features(self, items: Tensor) -> Tensor:
        """Items (B, L) int64, 0 = padding at the right; returns (B, L, dim)."""
        hidden, _ = self.gru(self.dropout(self.item(items)))
        return self.out(hidden)

    def init_states(self, batch: int) -> list[dict[str, Tensor]]:
        """The hidden vectors before a user's first event."""
        weight = self.item.weight
        size = self.gru.num_layers, batch, self.gru.hidden_size
        return [{"hidden": torch.zeros(size, dtype=weight.dtype, device=weight.device)}]

    def step(
        self, item: Tensor, time: Tensor, states: list[dict[str, Tensor]]
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """One event (B,) per user to features (B, dim) and the next states; its time is not looked at."""
        y, hidden = self.gru(self.dropout(self.item(item))[:, None], states[0]["hidden"])
        return self.out(y[:, 0]), [{"hidden": hidden}]
