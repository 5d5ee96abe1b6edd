"""All randomness is a pure function of what it is for: (seed, epoch, step, sample id), never of what ran before.

That is what makes a resumed run equal to an uninterrupted one, and a loader's order independent of its workers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*keys: int | str) -> int:
    """A 63-bit seed from any keys, the same on every machine: `derive(seed, "dropout", epoch, step)`."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*keys: int | str) -> np.random.Generator:
    """A numpy generator seeded with `derive(*keys)`."""
    return np.random.default_rng(derive(*keys))


def seed_all(*keys: int | str) -> None:
    """Seed every generator that a library may draw from by `derive(*keys)`: torch's, numpy's and Python's own."""
    import random

    import torch

    seed = derive(*keys)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
