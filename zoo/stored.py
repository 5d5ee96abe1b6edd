"""Arrays, weights and training states on disk, read without trust in them.

A header of a few bytes may claim any shape, and a compressed entry may grow a thousandfold: sizes are compared with
those of the file before anything is allocated. Nothing is unpickled but torch's own tensors, and of a pickle's words
only those that tensors need are known.
"""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from .errors import ZooError
from .foreign import reading

LARGEST_ROWS = 512 << 20  # bytes that a file of rows may unpack to
RATIO, FLOOR = 200, 16 << 20  # times its size that it may unpack to, or so many bytes: rows of one label compress well
KINDS = "biufUS"  # numbers and text; never objects
DTYPES = ("bfloat16", "float16", "float32", "float64")  # in which some optimisers note that they keep their moments


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of a `.npy` of `size` bytes; raises ValueError where its data are not just as many."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.kind not in KINDS or dtype.itemsize == 0 or dtype.fields or dtype.subdtype:
        raise ValueError(f"dtype {dtype} is neither numbers nor text")
    if any(not isinstance(n, int) or n < 0 or n > size for n in shape) or len(shape) > 8:
        raise ValueError(f"shape {shape} does not fit into {size} bytes")
    data = size - stream.tell()
    if math.prod(shape) * dtype.itemsize != data:
        raise ValueError(f"shape {shape} of {dtype} takes {math.prod(shape) * dtype.itemsize} bytes, it holds {data}")
    return shape, fortran, dtype


def open_npy(path: Path) -> np.ndarray:
    """A `.npy` file memory-mapped and read-only."""
    with reading(path, "array", "delete it and it is made anew"):
        with open(path, "rb") as stream:
            _header(stream, path.stat().st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file: numbers and text, at most 512 MB, each name once."""
    if not path.is_file():
        raise ZooError(f"{path}: no such file; check the path")
    with reading(path, "file of rows"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [info.filename for info in entries]
        if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError("it holds a name twice, or something that is no array")
        total, allowed = sum(info.file_size for info in entries), max(FLOOR, RATIO * path.stat().st_size)
        if total > min(allowed, LARGEST_ROWS):
            raise ValueError(f"it unpacks to {total} bytes")
        made = {}
        for info in entries:
            with archive.open(info) as stream:
                shape, fortran, dtype = _header(stream, info.file_size)
                data = stream.read()
            if len(data) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{info.filename} ends early")
            array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
            made[info.filename.removesuffix(".npy")] = array.copy()
        return made


# weights ------------------------------------------------------------------------------------------------------------


def read_weights(path: Path | str, numpy: bool = False) -> dict:
    """The tensors (or numpy arrays) of a `.safetensors` file, whose reader holds its header against its size."""
    if not Path(path).is_file():
        raise ZooError(f"{path}: no such file; check the path")
    with reading(path, "weights file"):
        if numpy:
            from safetensors.numpy import load_file
        else:
            from safetensors.torch import load_file
        return load_file(str(path))


def check_fit(found: Mapping, own: Mapping, path: Path | str) -> None:
    """Raise where tensors are not those of the model: one line that names the first of each kind that is wrong.

    Floating tensors of another precision fit: a model that was saved in half precision is loaded into its own.
    """

    def kind(tensor):
        return "floating" if tensor.dtype.is_floating_point else tensor.dtype

    missing = [name for name in own if name not in found]
    extra = [name for name in found if name not in own]
    other = [
        f"{name} is {tuple(found[name].shape)} {found[name].dtype}, not {tuple(own[name].shape)} {own[name].dtype}"
        for name in own
        if name in found and (found[name].shape != own[name].shape or kind(found[name]) != kind(own[name]))
    ]
    wrong = [f"{len(missing)} tensors are missing ({missing[0]})"] if missing else []
    wrong += [f"{len(extra)} are none of the model's ({extra[0][:80]})"] if extra else []
    wrong += [f"{len(other)} differ ({other[0]})"] if other else []
    if wrong:
        raise ZooError(f"{path}: does not fit the model: {', '.join(wrong)}; take weights and config from one run")


@contextmanager
def within_budget(path: Path | str) -> Iterator[None]:
    """A block in which a model for the weights of `path` is built; one that could never be theirs ends with a ZooError.

    A config from somebody else may ask for a billion layers, or for a table of a terabyte: parameters and layers are
    counted as they are made, and may be a few times as many as the file holds.
    """
    from torch.nn.modules import module as hooks

    with reading(path, "weights file"):
        from safetensors import safe_open

        with safe_open(str(path), framework="np") as weights:
            tensors = len(weights.keys())
    size = os.path.getsize(path)
    limits = {"tensors": 8 * tensors + 64, "layers": 64 * tensors + 1024, "bytes": 4 * size + (1 << 20)}
    made = dict.fromkeys(limits, 0)

    def count(**more: int) -> None:
        for what, number in more.items():
            made[what] += number
            if made[what] > limits[what]:
                raise ZooError(f"{path}: its config asks for far more {what} than it holds; take both from one run")

    def parameter(module, name, tensor) -> None:
        count(tensors=1, bytes=tensor.numel() * tensor.element_size())

    handles = (
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_module_registration_hook(lambda module, name, inner: count(layers=1)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def array(state: Mapping, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
    """An array of a fitted model's state; ValueError unless it has this shape (None: any size) and dtype."""
    found = state.get(name)
    fits = found is not None and found.ndim == len(shape) and found.dtype == dtype
    if not fits or any(want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
        have = "missing" if found is None else f"{found.dtype} {found.shape}"
        raise ValueError(f"{name} is {have}, not {np.dtype(dtype)} {shape}")
    return found


# training states ----------------------------------------------------------------------------------------------------


def read_state(path: Path) -> dict:
    """What `torch.save` wrote of dicts, lists, numbers, text and dense tensors."""
    import torch

    with reading(path, "training state", "start a new run"):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch unpacks entries whole, whatever size they state
            if any(info.compress_type != zipfile.ZIP_STORED for info in entries):
                raise ValueError("it is compressed")
            if sum(info.file_size for info in entries) > path.stat().st_size:
                raise ValueError("its entries are larger than the file")
            for info in entries:
                if info.filename.endswith("data.pkl"):
                    _check_words(archive.read(info))
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_plain(state)
        if not isinstance(state, dict):
            raise ValueError("it is no mapping")
        return state


def _check_words(pickle: bytes) -> None:
    """Refuse a pickle that names anything but what tensors are made of, or makes something by other means."""
    for code, argument, _ in pickletools.genops(pickle):
        if code.name == "GLOBAL" and not _is_word(argument):
            raise ValueError(f"it names {argument[:80]}")
        if code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"):
            raise ValueError(f"it holds {code.name}")


def _is_word(name: str) -> bool:
    module, _, word = name.partition(" ")
    tensors = module == "torch" and (word.endswith("Storage") or word in ("Size", "device") or word in DTYPES)
    return tensors or name in ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")


def _check_plain(value) -> None:
    """Refuse what is neither plain nor a dense tensor that lies in as many bytes as it shows."""
    import torch

    level, seen = [value], set()
    for _ in range(16):
        below = []
        for one in level:
            if id(one) in seen:  # a list may hold itself, a thousand times
                continue
            seen.add(id(one))
            if isinstance(one, torch.Tensor):
                dense = type(one) is torch.Tensor and one.layout == torch.strided and one.device.type == "cpu"
                if not dense or one.numel() * one.element_size() > one.untyped_storage().nbytes():
                    raise ValueError(f"a tensor of shape {tuple(one.shape)} claims more than is stored")
            elif isinstance(one, dict):
                if not all(isinstance(key, (str, int)) for key in one):
                    raise ValueError("a key is neither text nor number")
                below += one.values()
            elif isinstance(one, (list, tuple)):
                below += one
            elif not (one is None or isinstance(one, (str, int, float, torch.dtype))):
                raise ValueError(f"it holds a {type(one).__name__}")
        level = below
        if not level:
            return
    raise ValueError("it nests without end")


def _is_of(shape: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether a moment may be of this shape: the parameter's, or with dimensions reduced (Adafactor: rows, columns)."""
    rest = iter(parameter)
    return all(size == 1 or size in rest for size in shape)


def restore(optimizer, scheduler, state: dict) -> None:
    """Put a saved state's optimiser and schedule back; raises ValueError where they are those of another model."""
    import torch

    saved, fresh = state["optimizer"], scheduler.state_dict()
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    if len(saved["param_groups"]) != len(groups) or set(saved["state"]) - set(range(len(parameters))):
        raise ValueError("its parameter groups are others")
    for old, group in zip(saved["param_groups"], groups, strict=True):
        # a step may add what the optimiser counts (LAMB: its steps), so that a fresh one lacks it
        added = [old[name] for name in set(old) - set(group)]
        numbers = all(isinstance(one, (int, float)) or isinstance(one, torch.Tensor) and not one.ndim for one in added)
        if set(group) - set(old) or not numbers:
            raise ValueError("its groups hold other settings")
    for index, moments in saved["state"].items():
        for name, tensor in moments.items():
            if isinstance(tensor, torch.Tensor) and not _is_of(tensor.shape, parameters[index].shape):
                raise ValueError(f"{name} of parameter {index} has shape {tuple(tensor.shape)}")
    if {name: type(value) for name, value in state["scheduler"].items()} != {
        name: type(value) for name, value in fresh.items()
    }:
        raise ValueError("its schedule is another")
    optimizer.load_state_dict(saved)
    scheduler.load_state_dict(state["scheduler"])
