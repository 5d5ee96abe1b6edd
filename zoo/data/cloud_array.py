"""Clouds in numpy's `.npy`: an array (points, columns), or one with fields x, y, z and others. No pickle is opened."""

from __future__ import annotations

import tokenize
from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, Cloud, cloud_of
from .cloud_foreign import told
from .cloud_table import numbered

# what numpy's parser of a header raises for one that is no literal, or one of another thing
BROKEN = (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, OverflowError)


def read_npy(file: Path) -> Cloud:
    """A cloud from rows of x, y, z and further columns, or from fields by name, `label` among them."""
    with open(file, "rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"version {version}")
            shape, columnwise, dtype = read[version](stream)
        except BROKEN as error:
            raise ZooError(f"{file}: no array of numpy ({told(error)}); write the file anew") from error
        fields = dtype.names
        kinds = [dtype[name] for name in fields] if fields else [dtype]
        if len(shape) != (1 if fields else 2) or any(kind.kind not in "iuf" or kind.itemsize > 8 for kind in kinds):
            raise ZooError(
                f"{file}: an array of shape {shape[:4]} and type {str(dtype)[:60]}; save numbers (points, columns), or "
                "fields x, y, z"
            )
        width = len(fields) if fields else shape[1]
        if width > MOST_COLUMNS or width < 3:
            raise ZooError(
                f"{file}: {width} columns; save x, y, z and up to {MOST_COLUMNS - 3} more, one point per row"
            )
        size, wanted = file.stat().st_size - stream.tell(), shape[0] * dtype.itemsize * (1 if fields else width)
        if size != wanted:
            raise ZooError(f"{file}: holds {size} bytes of points, its header announces {wanted}; get it again")
        data = stream.read(wanted)
    if fields:
        rows = np.frombuffer(data, dtype)
        return cloud_of(file, {name: _native(rows[name]) for name in fields})
    table = np.frombuffer(data, dtype).reshape(shape, order="F" if columnwise else "C")
    return cloud_of(file, dict(zip(numbered(width), _native(table).T, strict=True)))


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))
