"""The saved state of a run, `checkpoints/last.ckpt`: whole or refused, and bound to all that decides the bits.

The file is what `torch.save` writes, with the SHA-256 of its bytes as the comment that ends every zip archive: a
flipped bit anywhere in it is found. Beside the weights it holds the conditions it was made under (recipe, versions,
device, threads, processes, the backend that served each call of an op), the length and hash of the log, and the hash of
the best weights; a run goes on from it only where all of them are the same.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import struct
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ... import __version__
from ..errors import ZooError
from ..files import atomic, hash_file, sync
from ..recipe import Recipe
from ..registry import ROOT, find
from ..stored import read_state

NAME, BEST, BEFORE = "last.ckpt", "best.safetensors", "best-before.safetensors"
MARK, DIGITS = b"sha256:", 64
ANEW = "or start a new run"

#: condition -> how it is called, and what brings it back
REMEDIES = {
    "recipe": ("another recipe", "put recipe.yaml back as it was"),
    "seed": ("seed", "put recipe.yaml back as it was"),
    "statezoo": ("statezoo", "resume with that version"),
    "python": ("Python", "resume with that version"),
    "torch": ("torch", "resume with that version"),
    "numpy": ("numpy", "resume with that version"),
    "lightning": ("lightning", "resume with that version"),
    "threads": ("threads", "sums would round differently, resume with train.threads={then}"),
    "world": ("processes", "resume with the same train.devices and train.num_nodes"),
    "device": ("device", "resume on that one (train.accelerator, CUDA_VISIBLE_DEVICES)"),
    "strategy": ("strategy", "resume with the same train.strategy"),
    "deterministic": ("deterministic algorithms", "resume with the same train.deterministic"),
    "matmul": ("precision of matrix products", "call torch.set_float32_matmul_precision({then!r})"),
    "model.name": ("a file of the model of SHA-256", "put that file back"),
    "data.name": ("a file of the data set of SHA-256", "put that file back"),
    "task.name": ("a file of the task of SHA-256", "put that file back"),
    "train.log_every": ("train.log_every", "resume with train.log_every={then}"),
}


def conditions(recipe: Recipe, *, world: int, device: torch.device, strategy: str, deterministic: bool) -> dict:
    """What must be the same where a run goes on: plain values by name."""
    from .finish import processor

    if device.type == "cuda":
        versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        name = f"{torch.cuda.get_device_name(device)}, {versions}"
    else:
        name = f"{device.type}, {processor()}"
    kinds = {"model": "model", "data": "dataset", "task": "task"}
    classes = {name: find(kind, getattr(recipe, name)["name"]).load() for name, kind in kinds.items()}
    files = {name: Path(inspect.getfile(cls)) for name, cls in classes.items()}
    return {
        "recipe": recipe.hash(),
        "seed": recipe.seed,
        "statezoo": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "lightning": version("lightning"),
        "threads": torch.get_num_threads(),
        "world": world,
        "device": name,
        "strategy": strategy,
        "deterministic": deterministic,
        "matmul": torch.get_float32_matmul_precision(),
        "train.log_every": recipe.train["log_every"],
        **{f"task.{name}": recipe.task[name] for name in classes["task"].operational},
        # code from outside, which no version or commit of the zoo stands for
        **{f"{name}.name": hash_file(file) for name, file in files.items() if not file.is_relative_to(ROOT)},
    }


def require_same(folder: Path, state: Mapping, now: Mapping) -> None:
    """Raise, in one line that names it, where a condition of a saved state is no longer so."""
    for name, value in now.items():
        if name not in state:
            raise ZooError(
                f"{folder / 'checkpoints' / NAME}: says nothing of {name}, so it was saved by another version of "
                f"statezoo; finish the run with that one, {ANEW}"
            )
        then = state[name]
        if then != value:
            called, remedy = REMEDIES.get(name, (name, f"resume with {name}={'null' if then is None else then}"))
            what = f"was trained with {called} {then}, now {value}"
            if name == "recipe":
                what = "was trained with another recipe than its recipe.yaml and the overrides say"
            raise ZooError(f"{folder}: {what}; {remedy.format(then=then)}, {ANEW}")


def save(folder: Path, state: Mapping) -> None:
    """Write the state of the run `folder`; once this returns, a power cut does not take it away."""
    path = folder / "checkpoints" / NAME
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            torch.save(dict(state), file)
        _seal(temporary)
    sync(path)


def load(folder: Path) -> dict | None:
    """The saved state of a run; None where it has saved none yet, an error that names the file where it is damaged."""
    path = folder / "checkpoints" / NAME
    if not path.is_file():
        return None
    _require_whole(path)
    return read_state(path)


def _seal(path: Path) -> None:
    """End a zip archive without a comment with one: the hash of all that stands before it."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", len(MARK) + DIGITS) + MARK)
    digest = hash_file(path)
    with open(path, "ab") as file:
        file.write(digest.encode())


def _require_whole(path: Path) -> None:
    digest, left = hashlib.sha256(), path.stat().st_size - DIGITS
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        stated = file.read()
    if stated != digest.hexdigest().encode():
        raise ZooError(
            f"{path}: damaged, or saved by another version of statezoo (its bytes do not have the SHA-256 at its end); "
            f"put a copy of it back, {ANEW}"
        )


class BestWeights:
    """The best weights of a run, always those that the last saved state counts or later ones.

    New ones are written between two states; those that the last state counts are kept until the next one.
    """

    def __init__(self, folder: Path, sha256: str | None):
        """`sha256`: of the file that the state counts, None where it counts none."""
        self.path, self.before = folder / "checkpoints" / BEST, folder / "checkpoints" / BEFORE
        self.counted = self.sha256 = sha256

    def go_back(self) -> None:
        """Bring back the file that the state counts."""
        if self.counted is None:
            self.path.unlink(missing_ok=True)
        elif not self._is(self.path):
            if not self._is(self.before):
                raise ZooError(
                    f"{self.path}: damaged or gone (it does not have the SHA-256 that {NAME} counts); put a copy of it "
                    f"back, {ANEW}"
                )
            os.replace(self.before, self.path)
        self.before.unlink(missing_ok=True)

    def _is(self, path: Path) -> bool:
        return path.is_file() and hash_file(path) == self.counted

    def replace(self, write) -> None:
        """Let `write(path)` write better ones."""
        if self.counted is not None and self.sha256 == self.counted and self.path.is_file():
            os.replace(self.path, self.before)
        write(self.path)
        self.sha256 = hash_file(self.path)

    def saved(self) -> None:
        """A state has been saved that counts what is there now."""
        self.counted = self.sha256
        self.before.unlink(missing_ok=True)
