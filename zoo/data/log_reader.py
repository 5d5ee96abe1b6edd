"""Reading interaction logs to int64 times and integer-coded ids, every row checked.

Ids are kept as the source writes them ("0054890" stays itself, 64-bit ids lose no digit). Times are whole numbers of
the source's unit or ISO 8601 strings (`log_times`), and stay int64 from here to the model: as float32, seconds near 1e9
are 64 apart and most users of MovieLens-100K change item order. `log_sources` has the formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ZooError, unknown
from .log_sources import Layout, chunks, decimal_id, empty
from .log_times import UNITS, find_zone, parse_times

#: 12.0, 1.5e7, 1,5E+07 and 1E+05 were ids once; 1e5 without a point or a sign may be a name
FLOAT_ID = (
    r"[\s\u00a0]*[+-]?(?:\d+[.,]\d*(?:[eE][+-]?\d+)?|[.,]\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]\d+)[\s\u00a0]*"
).replace(r"\u00a0", "\u00a0")


@dataclass(frozen=True)
class RawLog:
    """A log in file order: codes into the id lists, int64 times."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    users: list[str]
    items: list[str]
    files: tuple[tuple[Path, int, int], ...] = ()
    """For messages: each file with the number of its first event and that event's row."""

    def __len__(self) -> int:
        return len(self.time)

    def where(self, event: int) -> str:
        """File and row of an event, in words."""
        file, first, row = next(part for part in reversed(self.files) if part[1] <= event)
        return f"{file}: row {row + event - first}"


class _Coder:
    """Codes for ids in order of first appearance."""

    def __init__(self):
        self.codes: dict[str, int] = {}

    def __call__(self, ids) -> np.ndarray:
        import pandas as pd

        local, unique = pd.factorize(ids)
        known = self.codes
        return np.fromiter((known.setdefault(str(name), len(known)) for name in unique), np.int64, len(unique))[local]


def read_log(
    file: Path,
    columns: Mapping[str, str | int],
    *,
    separator: str = ",",
    header: bool = True,
    names: Sequence[str] = (),
    time_unit: str = "s",
    time_zone: str | None = None,
    future: bool = False,
) -> RawLog:
    """Read a log file, or a folder of its parts, whose `columns` say where `user`, `item` and `time` are.

    They are named as in the header, or in `names` where text has none, or numbered from 0 (`header=False`). `.parquet`
    and JSON lines (`.jsonl`, `.ndjson`) are read by name; anything else is UTF-8 text split at `separator`, one
    character, a doubled one ("::") or a name such as `tab`, with fields quoted where it is "," or ";". `.gz` is
    unpacked. `time_zone` holds for times without one; `future` admits times later than now. Raises `ZooError` with
    file, row (1 = first line) and remedy.
    """
    if time_unit not in UNITS:
        raise unknown("time unit", time_unit, UNITS)
    zone = None if time_zone is None else find_zone(time_zone)
    layout = Layout(columns, separator, header, tuple(names), time_unit, zone)
    user, item, files, events = _Coder(), _Coder(), [], 0
    users, items, times = [], [], []
    for part, row, chunk in chunks(file, layout):
        if not files or files[-1][0] != part:
            files.append((part, events, row))
        users.append(user(_ids(chunk["user"], "user", part, row)))
        items.append(item(_ids(chunk["item"], "item", part, row)))
        times.append(parse_times(chunk["time"], part, row, time_unit, future, zone))
        events += len(times[-1])
    if not events:
        raise empty(file)
    join = np.concatenate
    return RawLog(join(users), join(items), join(times), list(user.codes), list(item.codes), tuple(files))


def _ids(ids, role: str, file: Path, row: int):
    """Refuse missing ids and ids that went through a float."""
    empty = np.flatnonzero((ids == "").to_numpy())
    if len(empty):
        raise ZooError(f"{file}: row {row + empty[0]}: no {role} id; complete or delete the row")
    floats = ids.str.fullmatch(FLOAT_ID).to_numpy(dtype=bool)
    if floats.any():
        at = int(np.flatnonzero(floats)[0])
        raise decimal_id(file, row + at, role, ids.iloc[at])
    return ids
