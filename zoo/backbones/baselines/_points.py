"""What the point-cloud baselines share: perceptrons for points and vectors, and the linear head on a code."""

from __future__ import annotations

from torch import Tensor, nn

from ..base import Model


def shared(*widths: int) -> nn.Sequential:
    """Linear, batch norm and ReLU for every point of (B, C, N), layer by layer."""
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv1d(a, b, 1, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def dense(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """The same for vectors (B, C), dropout behind each layer."""
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(), *[nn.Dropout(dropout)][: bool(dropout)]]
    return nn.Sequential(*layers)


class Headed(Model):
    """Base of the networks for clouds that end in a linear head; a subclass calls `reset_head` when it is built."""

    accepts = ("points",)
    inputs = ("points",)
    given = ("num_outputs",)
    #: width of `forward_features`, set by the subclass
    width: int

    def reset_head(self, num_outputs: int) -> None:
        """A new head; 0: none."""
        self.head = nn.Linear(self.width, num_outputs) if num_outputs else nn.Identity()

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (..., width) to scores (..., num_outputs)."""
        return self.head(features)
