"""Derived arrays on disk: made once, found by the hash of what they were made from, opened memory-mapped.

`$STATEZOO_CACHE/<dataset>/<hash>/`; two processes make an entry once (lock), a killed one leaves none (rename). An
entry that is not whole (a file gone, cut short or changed in form, facts that are others) is made anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import ZooError
from ..files import atomic_folder, cache_root, clean, hash_json, locked, read_json, write_json
from ..foreign import below
from ..stored import open_npy

Arrays = dict[str, np.ndarray]
CONTENTS = "contents.json"  #: what an entry holds: name -> [dtype, shape, bytes] and the hash of the facts


def cached(dataset: str, key: dict, build: Callable[[], tuple[Arrays, dict]]) -> tuple[Arrays, dict]:
    """The arrays and the JSON facts that `build()` returns, from the cache where `key` is known.

    `key` holds everything the result depends on: hashes of the files, the adapter's settings, the code's version.
    """
    folder = below(cache_root(), dataset, hash_json(key)[:24])
    with locked(folder.with_suffix(".lock")):
        clean(folder.parent, folder.name)
        if folder.exists():
            try:
                return fetch(folder)
            except Damaged as damage:
                say(f"{folder}: {damage}; the cache entry is made anew")
                folder.unlink() if folder.is_file() else None
        arrays, facts = build()
        store(folder, arrays, facts)
        del arrays  # read back memory-mapped, so that the first run holds no more than the later ones
        return fetch(folder)


def say(line: str) -> None:
    """Tell what was mended, beside what the command answers."""
    print(line, file=sys.stderr)


class Damaged(Exception):
    """A cache entry is not what was stored; the text says in which way."""


def store(folder: Path, arrays: Arrays, facts: dict) -> None:
    """Write a folder of `.npy` files and `facts.json`; it takes its name when complete."""
    with atomic_folder(folder) as temporary:
        files = {}
        for name, array in arrays.items():
            file = temporary / f"{name}.npy"
            np.save(file, array, allow_pickle=False)
            files[name] = [str(array.dtype), list(array.shape), file.stat().st_size]
        write_json(temporary / "facts.json", facts)
        contents = {"arrays": files, "facts_sha256": hash_json(read_json(temporary / "facts.json"))}
        write_json(temporary / CONTENTS, contents)


def fetch(folder: Path) -> tuple[Arrays, dict]:
    """Open what `store` wrote; arrays are memory-mapped and read-only. What is not whole raises `Damaged`."""
    if not (folder / CONTENTS).is_file():
        raise Damaged(f"it has no {CONTENTS}")
    try:
        contents, facts = read_json(folder / CONTENTS), read_json(folder / "facts.json", largest=None)
        whole = hash_json(facts) == contents["facts_sha256"]
        arrays = {name: _open(folder / f"{name}.npy", *form) for name, form in contents["arrays"].items()}
    except (ZooError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        raise Damaged(" ".join(str(error).split()) or type(error).__name__) from error
    if not whole:
        raise Damaged("facts.json is not what was stored")
    return arrays, facts


def _open(file: Path, dtype: str, shape: list[int], size: int) -> np.ndarray:
    if file.stat().st_size != size:
        raise Damaged(f"{file.name} has {file.stat().st_size} bytes, not {size}")
    array = open_npy(file)
    if [str(array.dtype), list(array.shape)] != [dtype, shape]:
        raise Damaged(f"{file.name} holds {array.dtype} {array.shape}, not {dtype} {tuple(shape)}")
    return array
