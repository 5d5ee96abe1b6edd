"""A multilayer perceptron over the flattened image: the floor of the image models."""

from __future__ import annotations

from torch import Tensor, nn

from ...nn.feedforward import FeedForward
from ..base import Model


class MLP(Model):
    """Flatten, one hidden layer, classify."""

    configs = {"mlp": {}}
    accepts = ("image",)
    inputs = ("image",)
    given = ("in_channels", "height", "width", "num_outputs")
    tiny = {"dim": 32, "hidden": 64}

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        num_outputs: int,
        *,
        dim: int = 128,
        hidden: int = 256,
        dropout: float = 0.1,
    ):
        """`num_outputs` 0 gives features of size `dim`."""
        super().__init__()
        self.embed = nn.Linear(in_channels * height * width, dim)
        self.mix = FeedForward(dim, hidden, dropout)
        self.norm = nn.LayerNorm(dim)
        self.head: nn.Module = nn.Identity()
        self.reset_head(num_outputs)

    def reset_head(self, num_outputs: int) -> None:
        """A new head for `num_outputs` classes; 0 for none."""
        self.head = nn.Linear(self.norm.normalized_shape[0], num_outputs) if num_outputs else nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) to (B, dim)."""
        x = self.embed(image.flatten(1))
        return self.norm(x + self.mix(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (B, dim) to scores (B, num_outputs)."""
        return self.head(features)
