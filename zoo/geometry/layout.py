"""Layouts of clouds of unequal size: padded (B, N, ...) with lengths (B,), packed (S, ...) with offsets (B,), and PyG.

Packed clouds stand one behind another, S points in all; `offsets` are the ends of the clouds, the cumulative lengths,
as in Pointcept. `to_data` and `from_data` speak to `torch_geometric`, whose Batch is packed, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BadArgument, ZooError
from ..ops.checks import expect, expect_integers
from .checks import expect_lengths, known, padding

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data


def pack(padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Padded (B, N, ...) with `lengths` (B,) to packed (S, ...) and int64 offsets (B,); differentiable."""
    if padded.ndim < 2:
        raise BadArgument(f"pack: padded: expected (B, N, ...), got {tuple(padded.shape)}")
    lengths = expect_lengths("pack", "lengths", lengths, *padded.shape[:2]).to(padded.device)
    return padded.flatten(0, 1).index_select(0, _valid(lengths, padded.shape[1])), lengths.cumsum(0)


def pad(packed: Tensor, offsets: Tensor, fill: float = 0) -> tuple[Tensor, Tensor]:
    """Packed (S, ...) with `offsets` (B,) to padded (B, N, ...), N the largest cloud, and int64 lengths (B,).

    Padded places hold `fill`; differentiable. Raises BadArgument where an offset is not above the one before, or the
    last is not S.
    """
    expect("pad", "offsets", offsets, "B")
    expect_integers("pad", "offsets", offsets)
    if packed.ndim < 1 or (known(offsets) and int(offsets[-1]) != packed.shape[0]):
        raise BadArgument(
            f"pad: offsets: expected the ends of the clouds, the last {packed.shape[0] if packed.ndim else 0}, got "
            f"{offsets.tolist()}; they are the cumulative lengths, without a zero before them"
        )
    offsets = offsets.to(device=packed.device, dtype=torch.int64)
    lengths = expect_lengths("pad", "offsets, as lengths", offsets.diff(prepend=offsets.new_zeros(1)), len(offsets))
    size = int(lengths.max())
    padded = packed.new_full((len(lengths) * size, *packed.shape[1:]), fill)
    padded = padded.index_copy(0, _valid(lengths, size), packed)
    return padded.unflatten(0, (len(lengths), size)), lengths


def _valid(lengths: Tensor, size: int) -> Tensor:
    """Indices of the valid points in padded clouds seen as one."""
    return (~padding(lengths, size)).flatten().nonzero().flatten()


def to_data(clouds: Mapping[str, Tensor], lengths: Tensor | None = None) -> Batch:
    """A `torch_geometric` Batch of padded clouds: `pos` (B, N, 3) and any other attributes, such as `x` or `y`.

    An attribute (B, N, ...) belongs to the points and is packed, any other (B, ...) to the clouds. `lengths` (B,),
    everything valid by default. A single cloud is `to_data(...)[0]`.
    """
    data = _torch_geometric()
    if "pos" not in clouds:
        raise BadArgument(f"to_data: clouds: expected 'pos' among the attributes, got {', '.join(clouds) or 'none'}")
    pos = clouds["pos"]
    expect("to_data", "pos", pos, "B", "N", 3)
    batch, size, _ = pos.shape
    for name, tensor in clouds.items():
        if tensor.ndim < 1 or tensor.shape[0] != batch:
            raise BadArgument(f"to_data: {name}: expected ({batch}, ...), got {tuple(tensor.shape)}")
    if lengths is None:
        lengths = torch.full((batch,), size, device=pos.device)
    sizes = expect_lengths("to_data", "lengths", lengths, batch, size).tolist()

    def part(tensor: Tensor, cloud: int) -> Tensor:
        if tensor.ndim > 1 and tensor.shape[1] == size:
            return tensor[cloud, : sizes[cloud]]
        return tensor[cloud : cloud + 1]  # with its first axis, along which Batch puts clouds together

    graphs = ({name: part(tensor, cloud) for name, tensor in clouds.items()} for cloud in range(batch))
    return data.Batch.from_data_list([data.Data(**graph) for graph in graphs])


def from_data(data: Data | Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Padded attributes and lengths (B,) of a `torch_geometric` Batch, or of a Data, which is one cloud.

    Tensors with one row for each point become (B, N, ...), padded with zeros; other tensors stay as they are. The
    points of a cloud must stand together, as they do in every Batch.
    """
    _torch_geometric()
    if data.pos is None:
        raise BadArgument("from_data: data: expected positions in `pos`, got none; set data.pos to (points, 3)")
    count, batch = data.pos.shape[0], getattr(data, "batch", None)
    if batch is None:
        batch = torch.zeros(count, dtype=torch.int64, device=data.pos.device)
    if bool((batch.diff() < 0).any()):
        raise BadArgument("from_data: data.batch: expected numbers that never fall, got a fall; sort points by cloud")
    lengths = torch.bincount(batch, minlength=getattr(data, "num_graphs", 1))
    if bool((lengths == 0).any()):
        raise BadArgument(
            f"from_data: data: cloud {int((lengths == 0).nonzero()[0])} has no points; leave it out of the Batch"
        )
    offsets = lengths.cumsum(0)
    tensors = {name: value for name, value in data.to_dict().items() if isinstance(value, Tensor)}
    clouds = {name: value for name, value in tensors.items() if name not in ("batch", "ptr")}
    for name, value in clouds.items():
        if value.ndim and value.shape[0] == count:
            clouds[name], _ = pad(value, offsets)
    return clouds, pad(data.pos, offsets)[1]


def _torch_geometric():
    try:
        from torch_geometric import data
    except ImportError as error:
        raise ZooError("Data and Batch need torch_geometric; install it with: pip install torch-geometric") from error
    return data
