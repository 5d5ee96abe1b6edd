"""Run folders as they lie on the disk: what can be told of one before torch is imported."""

from __future__ import annotations

from pathlib import Path

from .errors import ZooError


def require_finished(run: Path) -> None:
    """Refuse a folder that is not that of a finished run."""
    for name in ("recipe.yaml", "model.safetensors", "record.json"):
        if not (run / name).is_file():
            raise ZooError(f"{run}: no {name}; give the folder of a finished run")


def require_begun(run: Path) -> None:
    """Refuse a folder that holds no run to go on with."""
    if not (run / "recipe.yaml").is_file():
        raise ZooError(f"{run}: no recipe.yaml, so no run to resume; check the path")
