"""PCD v0.7, the format of the Point Cloud Library: ASCII, binary and binary_compressed.

Format: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ZooError
from .cloud_columns import MOST_COLUMNS, count_of, declared, twice
from .cloud_lzf import decompress
from .cloud_table import read_table

SIZES = {"F": (4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}
TYPES = {f"{kind}{size}": f"{kind.lower()}{size}" for kind, sizes in SIZES.items() for size in sizes}
HEADER = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS")


def read_pcd(file: Path) -> dict[str, np.ndarray]:
    """Columns by field name; a field of several numbers gives `name_0`, `name_1`, ..., packed colours r, g, b."""
    data = file.read_bytes()
    head, start = _header(file, data)
    kind = head["DATA"][0].lower()
    dtype, count = _dtype(file, head), _count(file, head)
    if kind == "ascii":
        columns = _ascii(file, data, start, dtype, count)
    elif kind == "binary":
        _same(file, len(data) - start, count * dtype.itemsize, "bytes of points")
        rows = np.frombuffer(data, dtype, count, start)
        columns = {name: rows[name].reshape(count, -1) for name in dtype.names}
    elif kind == "binary_compressed":
        columns = _compressed(file, data, start, dtype, count)
    else:
        raise ZooError(f"{file}: DATA {kind[:40]}; save it as ascii, binary or binary_compressed")
    return _spread(file, columns)


def _header(file: Path, data: bytes) -> tuple[dict[str, list[str]], int]:
    head, start, row = {}, 0, 0
    while "DATA" not in head:
        end, row = data.find(b"\n", start), row + 1
        words = data[start : max(end, 0)].decode("ascii", "replace").split()
        if end < 0 or (words and not words[0].startswith("#") and words[0] not in (*HEADER, "DATA")):
            raise ZooError(f"{file}: row {row}: no line of a PCD header ({', '.join(HEADER)}, DATA); write it anew")
        if words and not words[0].startswith("#"):
            if words[0] in head:
                raise ZooError(f"{file}: row {row}: {words[0]} occurs twice in its header; write the file anew")
            head[words[0]] = words[1:]
        start = end + 1
    missing = [name for name in ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA") if not head.get(name)]
    if missing:
        raise ZooError(f"{file}: its header has no {missing[0]}; write the file anew")
    return head, start


def _count(file: Path, head: dict[str, list[str]]) -> int:
    counts = {name: count_of((head[name] or [""])[0]) for name in ("POINTS", "WIDTH", "HEIGHT") if name in head}
    for name, count in counts.items():
        if count is None:
            raise ZooError(f"{file}: its header has no number of {name}; write the file anew")
    if len(counts) == 3 and counts["WIDTH"] * counts["HEIGHT"] != counts["POINTS"]:
        raise ZooError(
            f"{file}: WIDTH {counts['WIDTH']} times HEIGHT {counts['HEIGHT']} is not POINTS {counts['POINTS']}; the "
            "header is wrong, write the file anew"
        )
    return counts["POINTS"]


def _dtype(file: Path, head: dict[str, list[str]]) -> np.dtype:
    fields, counts = head["FIELDS"], head.get("COUNT") or ["1"] * len(head["FIELDS"])
    if not len(fields) == len(head["SIZE"]) == len(head["TYPE"]) == len(counts):
        raise ZooError(f"{file}: FIELDS, SIZE, TYPE and COUNT have different lengths; write the file anew")
    named = [name for name in fields if name != "_"]  # "_" is padding and may come several times
    if len({name.lower() for name in named}) < len(named):
        raise twice(file, named, "the field ")
    columns = []
    for i, (name, kind, size, word) in enumerate(zip(fields, head["TYPE"], head["SIZE"], counts, strict=True)):
        count = count_of(word)
        if f"{kind}{size}" not in TYPES or not count:
            raise ZooError(
                f"{file}: its SIZE, TYPE and COUNT name no numbers ('{name}' is {word[:20]} of {(kind + size)[:20]}); "
                "write the file anew"
            )
        # a name that no field can have, for there are no blanks in them
        columns.append((f" {i}" if name == "_" else name, f"<{TYPES[f'{kind}{size}']}", count))
    if len(fields) > MOST_COLUMNS or sum(count for *_, count in columns) > MOST_COLUMNS:
        raise ZooError(f"{file}: more than {MOST_COLUMNS} numbers a point; write the file anew")
    return np.dtype([(name, kind, (count,)) for name, kind, count in columns])


def _same(file: Path, have: int, want: int, what: str) -> None:
    if have != want:
        raise ZooError(f"{file}: holds {have} {what}, its header announces {want}; it is cut off, get it again")


def _ascii(file: Path, data: bytes, start: int, dtype: np.dtype, count: int) -> dict[str, np.ndarray]:
    lines = data[start:].decode("ascii", "replace").splitlines()
    rows = [row for row, line in enumerate(lines, data[:start].count(b"\n") + 1) if line.strip()]
    lines = [line for line in lines if line.strip()]
    _same(file, len(lines), count, "points")
    sizes = [int(dtype[name].shape[0]) for name in dtype.names]
    table = read_table(file, lines, rows, sum(sizes))
    columns, at = {}, 0
    for name, size in zip(dtype.names, sizes, strict=True):
        kind = dtype[name].base.str
        parts = [declared(file, name, table[:, i], kind, rows) for i in range(at, at + size) if name[0] != " "]
        columns[name] = np.stack(parts, 1) if parts else table[:, :0]
        at += size
    return columns


def _compressed(file: Path, data: bytes, start: int, dtype: np.dtype, count: int) -> dict[str, np.ndarray]:
    """The same from one LZF stream, in which each field's numbers of all points follow each other."""
    if len(data) < start + 8:
        raise ZooError(f"{file}: ends before its compressed points; it is cut off, get it again")
    packed, size = (int(one) for one in np.frombuffer(data, "<u4", 2, start))
    _same(file, len(data) - start - 8, packed, "compressed bytes")
    _same(file, size, count * dtype.itemsize, "bytes of points when unpacked")
    try:
        body = decompress(data[start + 8 :], size)
    except ValueError as error:
        raise ZooError(f"{file}: its compressed points are broken ({error}); get it again") from error
    columns, at = {}, 0
    for name in dtype.names:
        kind, (width,) = dtype[name].base, dtype[name].shape
        columns[name] = np.frombuffer(body, kind, count * width, at).reshape(count, width)
        at += count * width * kind.itemsize
    return columns


def _spread(file: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: list[tuple[str, np.ndarray]] = []
    for name, column in columns.items():
        if name[0] == " ":
            continue
        if name in ("rgb", "rgba") and column.itemsize == 4:  # three bytes in the bits of one number
            bits = np.ascontiguousarray(column[:, 0]).view(np.uint32)
            found += [(one, (bits >> at & 255).astype(np.float32)) for one, at in zip("rgb", (16, 8, 0), strict=True)]
        elif column.shape[1] == 1:
            found.append((name, column[:, 0]))
        else:
            found += [(f"{name}_{i}", part) for i, part in enumerate(column.T)]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise twice(file, names, "the field ")
    return dict(found)
