"""Prediction rows on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import atomic
from ..stored import read_npz


def save_rows(path: Path, rows: dict[str, np.ndarray], slices: dict[str, dict[str, np.ndarray]] | None = None) -> None:
    """Write rows as a compressed `.npz` without pickle; the same rows give the same bytes.

    Columns of the further views of the test part stand beside them as `<slice>/<column>`.
    """
    further = {f"{view}/{name}": column for view, part in (slices or {}).items() for name, column in part.items()}
    rows = rows | further
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **{name: np.asarray(rows[name]) for name in sorted(rows)})


def load_rows(path: Path, view: str = "") -> dict[str, np.ndarray]:
    """Read what `save_rows` wrote: the rows of the test part, or of the slice `view`."""
    split = [(name.rpartition("/"), array) for name, array in read_npz(path).items()]
    return {name: array for (of, _, name), array in split if of == view}
