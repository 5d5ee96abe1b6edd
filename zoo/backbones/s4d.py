"""S4D as an image classifier (Gu et al., 2022, arXiv:2206.11893): an image is the sequence of its pixels, row by row.

    x = W pixel;   x <- norm(x + mixer(x)) per layer, or x <- x + mixer(norm(x));   scores = head(mean over pixels of x)

The task is that of sequential MNIST and CIFAR. Nothing in it tells a model where a row ends; the system's time step has
to find the row's length, since the pixel above is W steps back.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..mixers.s4d import S4D
from .base import Model


class S4DClassifier(Model):
    """Residual S4D layers over the pixels of an image in raster order."""

    configs = {"s4d": {}}
    accepts = ("image",)
    inputs = ("image",)
    given = ("in_channels", "num_outputs")
    tiny = {"dim": 16, "layers": 2, "d_state": 8}

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        *,
        dim: int = 128,
        layers: int = 4,
        d_state: int = 64,
        init: Literal["lin", "inv", "legs", "real"] = "legs",
        discretization: Literal["zoh", "bilinear"] = "zoh",
        bidirectional: bool = False,
        n_ssm: int | None = None,
        train_B: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        prenorm: bool = False,
        dropout: float = 0.1,
    ):
        """`dropout` behind GELU and on each residual branch; `num_outputs` 0 gives features of size `dim`.

        The other options are those of the mixer.
        """
        super().__init__()
        options = {
            "d_state": d_state, "init": init, "discretization": discretization, "bidirectional": bidirectional,
            "n_ssm": n_ssm, "train_B": train_B, "dt_min": dt_min, "dt_max": dt_max, "dropout": dropout,
        }  # fmt: skip
        self.encoder = nn.Linear(in_channels, dim)
        self.layers = nn.ModuleList(_Layer(dim, prenorm, dropout, options) for _ in range(layers))
        self.norm = nn.LayerNorm(dim) if prenorm else nn.Identity()
        self.dim = dim
        self.head: nn.Module = nn.Identity()
        self.reset_head(num_outputs)

    def reset_head(self, num_outputs: int) -> None:
        """A new head for `num_outputs` classes; 0 for none."""
        self.head = nn.Linear(self.dim, num_outputs) if num_outputs else nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) to (B, dim)."""
        x = self.encoder(image.flatten(2).transpose(1, 2))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (B, dim) to scores (B, num_outputs)."""
        return self.head(features)


class _Layer(nn.Module):
    """A mixer on a residual branch, normalised before it or after the sum."""

    def __init__(self, dim: int, prenorm: bool, dropout: float, options: dict):
        super().__init__()
        self.mixer, self.norm, self.dropout = S4D(dim, **options), nn.LayerNorm(dim), nn.Dropout(dropout)
        self.prenorm = prenorm

    def forward(self, x: Tensor) -> Tensor:
        """Sequence (B, L, dim) to (B, L, dim)."""
        if self.prenorm:
            return x + self.dropout(self.mixer(self.norm(x)).y)
        return self.norm(x + self.dropout(self.mixer(x).y))
