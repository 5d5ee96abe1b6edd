"""What an adapter adds to the zoo's own reading: its code and its settings, by which cached arrays are known.

Of the zoo's bases a version in the cache's key stands for the code. An adapter is one file that somebody edits while
trying: an edit, or another value of an argument that the bases do not know, must not meet the arrays of before.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
from pathlib import Path

from ..arguments import given
from ..errors import ZooError
from ..files import hash_file

ZOO = Path(__file__).resolve().parent.parent


def source(cls: type) -> Path | None:
    """The file that defines a class; None where there is none, as in a notebook."""
    try:
        file = Path(inspect.getfile(cls))
    except (TypeError, OSError):
        return None
    return file if file.is_file() else None


def adapted(cls: type) -> list[type]:
    """The classes of an adapter that are not of the zoo's bases, the last one first."""
    return [one for one in cls.__mro__[:-1] if (file := source(one)) is None or not file.resolve().is_relative_to(ZOO)]


def own_code(cls: type) -> list[str] | None:
    """Hashes of the files that define an adapter; None where one of its classes is in no file."""
    files = [source(one) for one in adapted(cls)]
    return None if None in files else sorted({hash_file(file) for file in files})


def own_settings(cls: type, args: tuple, kwargs: dict) -> dict[str, str]:
    """Hashes of the arguments that an adapter takes and the zoo's bases do not know."""
    mine = set(adapted(cls))
    known = {"self"}
    for one in cls.__mro__[:-1]:
        if one not in mine and "__init__" in vars(one):
            known |= set(inspect.signature(one.__init__).parameters)
    return {name: _hash(cls, name, value) for name, value in given(cls, args, kwargs).items() if name not in known}


def _hash(cls: type, name: str, value) -> str:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception as error:  # whatever the object's own code raises
        raise ZooError(
            f"{cls.__name__}: what it was given as {name}, a {type(value).__name__}, cannot be told from another; "
            "take text, numbers, lists or arrays"
        ) from error
