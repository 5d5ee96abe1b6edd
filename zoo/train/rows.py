"""Prediction rows on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import atomic


def save_rows(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Write rows as a compressed `.npz` without pickle; the same rows give the same bytes."""
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **{name: np.asarray(rows[name]) for name in sorted(rows)})


def load_rows(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_rows` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}
