"""Deterministic splits by group, their hashes, and the assertion that no group crosses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ZooError
from ..files import hash_json
from ..seeding import derive


def by_group(groups: Sequence[str], fractions: Mapping[str, float], seed: int = 0) -> dict[str, np.ndarray]:
    """Assign whole groups to parts: indices per part, in the given order of samples.

    A group's rank depends on its name and the seed alone: another sample of a known group moves no other sample, a new
    group moves at most one group across each bound. `fractions` (for example `{"train": .7, "valid": .1, "test": .2}`)
    are met over groups, up to one group.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9:
        raise ZooError(f"split fractions {dict(fractions)} sum to {sum(fractions.values())}; they must sum to 1")
    names = np.asarray(groups, dtype=str)
    unique = sorted(set(names.tolist()), key=lambda name: derive(seed, "split", name))
    bounds = np.round(np.cumsum([0, *fractions.values()]) * len(unique)).astype(int)
    parts = {}
    for part, first, last in zip(fractions, bounds[:-1], bounds[1:], strict=True):
        parts[part] = np.flatnonzero(np.isin(names, unique[first:last]))
        if not len(parts[part]):
            raise ZooError(
                f"the {part} part of the split is empty ({len(unique)} groups); give more data or other fractions"
            )
    return parts


def assert_disjoint(groups: Mapping[str, np.ndarray], what: str) -> None:
    """Raise where a group occurs in two parts."""
    parts = {name: np.unique(np.asarray(values)) for name, values in groups.items()}
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = np.intersect1d(parts[one], parts[other], assume_unique=True)
            if len(both):
                raise ZooError(
                    f"leakage: {len(both)} {what} groups are both in {one} and {other} (first: {both[0]}); "
                    "split by whole groups"
                )


def split_hash(ids: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the sample ids of each part, in order."""
    return hash_json({part: np.asarray(values).tolist() for part, values in ids.items()})
