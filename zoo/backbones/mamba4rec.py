"""Mamba4Rec and SSD4Rec: state-space mixers in SASRec's place (Liu et al., 2024, arXiv:2403.03900; Qu et al., 2024,
arXiv:2409.01192).

    x = LN(Dropout(E[item]));   x <- LN(x + Dropout(mixer(x)));   x <- LN(x + FFN(x));   score(i) = <x_t, E[i]>

No positions: the scan knows the order. Mamba4Rec has S6 (state 32, expand 2, convolution 4), one layer without the
mixer's residual or several with it, as its released code; SSD4Rec has Mamba-2's SSD. Its paper also scans backwards and
packs users into one row behind register tokens; here packing is not needed (padding is frozen exactly), and
`bidirectional` is an option, off by default because later papers compare with the causal form.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ZooError
from ..mixers import create_mixer
from ..mixers.base import SeqContext, State
from ..mixers.wrappers import Bidirectional
from ..nn.feedforward import FeedForward
from ._recommender import Recommender


class Mamba4Rec(Recommender):
    """A state-space mixer over a user's last items."""

    configs = {
        "mamba4rec": {},
        "ssd4rec": {"mixer": {"name": "ssd", "d_state": 32, "head_dim": 32}, "layers": 2},
    }
    accepts = ("log",)
    inputs = ("items", "length")
    given = ("num_items",)
    tiny = {"dim": 32, "dropout": 0.1}

    def __init__(
        self,
        num_items: int,
        *,
        dim: int = 64,
        layers: int = 1,
        mixer: Any = None,
        bidirectional: bool = False,
        hidden: int | None = None,
        dropout: float = 0.2,
        norm_eps: float = 1e-12,
        init_std: float = 0.02,
    ):
        """`num_items` without padding; `mixer` None: S6 with a state of 32; `hidden` None: 4 dim."""
        super().__init__()
        mixer = {"name": "s6", "d_state": 32} if mixer is None else mixer
        self.single = layers == 1
        self.item = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.norm, self.dropout = nn.LayerNorm(dim, norm_eps), nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(dim, mixer, bidirectional, hidden or 4 * dim, dropout, norm_eps) for _ in range(layers)
        )
        nn.init.normal_(self.item.weight, std=init_std)
        self.clear_padding()

    @property
    def causal(self) -> bool:
        """Whether all mixers are."""
        return self.mixers_are_causal()

    def forward_features(self, items: Tensor, length: Tensor) -> Tensor:
        """Items (B, L) int64, 0 = padding at the right, length (B,); returns (B, L, dim)."""
        x, ctx = self.norm(self.dropout(self.item(items))), SeqContext(lengths=length)
        for layer in self.layers:
            x = layer.finish(x, layer.mixer(x, ctx).y, residual=not self.single)
        return x

    def init_states(self, batch: int) -> list[State]:
        """The layers' states before a user's first event."""
        if not self.causal:
            raise ZooError("a bidirectional model looks at later events and cannot be updated by one; predict anew")
        weight = self.item.weight
        return [layer.mixer.init_state(batch, dtype=weight.dtype, device=weight.device) for layer in self.layers]

    def step(self, item: Tensor, time: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """One event (B,) per user to features (B, dim) and the next states; its time is not looked at."""
        x, after = self.norm(self.item(item)), []
        for layer, state in zip(self.layers, states, strict=True):
            out = layer.mixer.step(x, None, state)
            x = layer.finish(x, out.y, residual=not self.single)
            after.append(out.state)
        return x, after


class _Layer(nn.Module):
    """The mixer and the FFN, each with a norm behind its residual."""

    def __init__(self, dim: int, mixer: Any, bidirectional: bool, hidden: int, dropout: float, eps: float):
        super().__init__()
        made = Bidirectional(lambda: create_mixer(mixer, dim)) if bidirectional else create_mixer(mixer, dim)
        self.mixer, self.feedforward = made, FeedForward(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def finish(self, x: Tensor, y: Tensor, residual: bool) -> Tensor:
        y = self.dropout(y)
        x = self.norm1(x + y if residual else y)
        return self.norm2(x + self.dropout(self.feedforward(x)))
