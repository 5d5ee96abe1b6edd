"""Starting from other weights: everything that fits by name and shape is taken, the rest is reported."""

from __future__ import annotations

from pathlib import Path

from ..backbones.base import Model
from ..errors import ZooError
from ..stored import read_weights


def weights_file(source: str) -> Path:
    """The file that `train.init_from` means: itself, or the weights of a run folder."""
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ZooError(f"train.init_from={source}: no weights there; give a finished run or a .safetensors file")
    return path


def init_from(model: Model, source: str) -> str:
    """Load weights of a run folder or a `.safetensors` file into `model`; returns one line that says what fitted."""
    path = weights_file(source)
    weights, own = read_weights(path), model.state_dict()
    fits = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    if not fits:
        raise ZooError(
            f"train.init_from={source}: no tensor of it fits this model by name and shape; check the model's name"
        )
    model.load_state_dict({**own, **fits})
    fresh = [name for name in own if name not in fits]
    unused = [name for name in weights if name not in fits]
    return (
        f"starts from {path}: {len(fits)} tensors taken; new here: {', '.join(fresh) or 'none'}; "
        f"not used: {', '.join(unused) or 'none'}"
    )
