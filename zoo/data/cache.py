"""Derived arrays on disk: made once, found by the hash of what they were made from, opened memory-mapped.

`$STATEZOO_CACHE/<dataset>/<hash>/`; two processes make an entry once (lock), a killed one leaves none (rename).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..files import cache_root, hash_json, locked, read_json, write_json

Arrays = dict[str, np.ndarray]


def cached(dataset: str, key: dict, build: Callable[[], tuple[Arrays, dict]]) -> tuple[Arrays, dict]:
    """The arrays and the JSON facts that `build()` returns, from the cache where `key` is known.

    `key` holds everything the result depends on: hashes of the files, the adapter's settings, the code's version.
    """
    folder = cache_root() / dataset / hash_json(key)[:24]
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            arrays, facts = build()
            store(folder, arrays, facts)
            del arrays  # read back memory-mapped, so that the first run holds no more than the later ones
        return fetch(folder)


def store(folder: Path, arrays: Arrays, facts: dict) -> None:
    """Write a folder of `.npy` files and `facts.json`; it takes its name when complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        write_json(temporary / "facts.json", facts)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fetch(folder: Path) -> tuple[Arrays, dict]:
    """Open what `store` wrote; arrays are memory-mapped and read-only."""
    arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
    return arrays, read_json(folder / "facts.json")
