"""What reading through a library of others needs: the import with its remedy, and its errors in one line."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..errors import ZooError

EXTRA = "formats"  #: of pyproject.toml


def needed(file: Path, module: str):
    """The module, or one line that names how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ZooError(
            f"{file}: reading {file.suffix.lower()} needs {module}, which cannot be imported "
            f"({told(error)}); pip install 'statezoo[{EXTRA}]'"
        ) from error


def told(error: BaseException) -> str:
    """An error's own words, in one line of moderate length."""
    return " ".join(str(error).split())[-160:] or type(error).__name__
