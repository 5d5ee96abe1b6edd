"""What does not fit into memory: one error for all the ways in which an allocation fails, with what to make smaller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ZooError

#: in the words of torch's allocators on a CPU and of the libraries below it on a GPU
FAILED = r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|_ALLOC_FAILED|_OUT_OF_MEMORY"


@contextmanager
def fits(what: str, *remedies: str) -> Iterator[None]:
    """Within it a failed allocation is one line: out of memory `what`, and the `remedies`."""
    try:
        yield
    except Exception as error:
        if not failed(error):
            raise
        *some, last = [remedy for remedy in remedies if remedy] or ["use a machine with more"]
        told = f"{', '.join(some)} or {last}" if some else last
        raise ZooError(f"out of memory {what}; {told}") from error


def failed(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on a CPU or a GPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and re.search(FAILED, str(error)) is not None
