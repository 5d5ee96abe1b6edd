"""PCD v0.7, the format of the Point Cloud Library: ASCII and binary read here, binary_compressed by open3d.

Format: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ZooError

KINDS = {"F": "f", "I": "i", "U": "u"}
HEADER = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS")


def read_pcd(file: Path) -> dict[str, np.ndarray]:
    """Columns by field name; a field of several numbers gives `name_0`, `name_1`, ..., packed colours r, g, b."""
    data = file.read_bytes()
    head, start = _header(file, data)
    kind = head["DATA"][0].lower()
    if kind == "binary_compressed":
        return _compressed(file)
    dtype, count = _dtype(file, head), int(head["POINTS"][0])
    body = data[start:]
    if kind == "ascii":
        from .cloud_reader import read_table

        lines = [line for line in body.decode("ascii", "replace").splitlines() if line.strip()]
        _same(file, len(lines), count, "points")
        width = sum(int(np.prod(dtype[name].shape)) for name in dtype.names)
        table = read_table(file, lines, data[:start].count(b"\n") + 1, width) if lines else np.zeros((0, width))
        columns, at = {}, 0
        for name in dtype.names:
            size = int(np.prod(dtype[name].shape))
            columns[name] = table[:, at : at + size].astype(dtype[name].base)
            at += size
    elif kind == "binary":
        _same(file, len(body), count * dtype.itemsize, "bytes of points")
        rows = np.frombuffer(body, dtype)
        columns = {name: rows[name].reshape(count, -1) for name in dtype.names}
    else:
        raise ZooError(f"{file}: DATA {kind}; save it as ascii, binary or binary_compressed")
    return _spread(columns)


def _header(file: Path, data: bytes) -> tuple[dict[str, list[str]], int]:
    head, start = {}, 0
    while "DATA" not in head:
        end = data.find(b"\n", start)
        words = data[start:end].decode("ascii", "replace").split()
        if end < 0 or (words and not words[0].startswith("#") and words[0] not in (*HEADER, "DATA")):
            raise ZooError(
                f"{file}: row {len(head) + 1}: no line of a PCD header ({', '.join(HEADER)}, DATA); write it anew"
            )
        if words and not words[0].startswith("#"):
            head[words[0]] = words[1:]
        start = end + 1
    missing = [name for name in ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA") if not head.get(name)]
    if missing or not head["POINTS"][0].isdecimal():
        raise ZooError(
            f"{file}: its header has no {missing[0] if missing else 'number of POINTS'}; write the file anew"
        )
    return head, start


def _dtype(file: Path, head: dict[str, list[str]]) -> np.dtype:
    fields, counts = head["FIELDS"], head.get("COUNT") or ["1"] * len(head["FIELDS"])
    if not len(fields) == len(head["SIZE"]) == len(head["TYPE"]) == len(counts):
        raise ZooError(f"{file}: FIELDS, SIZE, TYPE and COUNT have different lengths; write the file anew")
    try:
        columns = [
            # "_" is padding and may come several times
            (f"_{i}" if name == "_" else name, f"<{KINDS[kind]}{size}", (int(n),))
            for i, (name, kind, size, n) in enumerate(zip(fields, head["TYPE"], head["SIZE"], counts, strict=True))
        ]
        return np.dtype(columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ZooError(f"{file}: its SIZE, TYPE and COUNT name no numbers ({error}); write the file anew") from error


def _same(file: Path, have: int, want: int, what: str) -> None:
    if have != want:
        raise ZooError(f"{file}: holds {have} {what}, its header announces {want}; it is cut off, get it again")


def _spread(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, column in columns.items():
        if name.startswith("_"):
            continue
        if name in ("rgb", "rgba") and column.itemsize == 4:  # three bytes in the bits of one number
            bits = np.ascontiguousarray(column[:, 0]).view(np.uint32)
            found |= {
                colour: (bits >> shift & 255).astype(np.float32)
                for colour, shift in zip("rgb", (16, 8, 0), strict=True)
            }
        elif column.shape[1] == 1:
            found[name] = column[:, 0]
        else:
            found |= {f"{name}_{i}": part for i, part in enumerate(column.T)}
    return found


def _compressed(file: Path) -> dict[str, np.ndarray]:
    try:
        import open3d
    except ImportError as error:
        raise ZooError(
            f"{file}: compressed PCD needs open3d, which cannot be imported ({error}); save it as binary PCD or PLY"
        ) from error
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
    tensors = open3d.t.io.read_point_cloud(str(file)).point
    found = {name: tensors[name].numpy() for name in tensors}
    if "positions" not in found:
        raise ZooError(f"{file}: open3d finds no points in it; write the file anew")
    columns = dict(zip("xyz", found.pop("positions").T, strict=True))
    return columns | _spread({name: value.reshape(len(value), -1) for name, value in found.items()})
