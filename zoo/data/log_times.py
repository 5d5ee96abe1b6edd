"""Times of logs: whole numbers of a unit, exactly, from integers, decimals, ISO 8601, and timestamps of Parquet.

A time without a time zone is a moment only where `time_zone` says which: a name of the IANA database (Europe/Berlin) or
UTC. Where clocks are put back an hour of local time occurs twice, and where they are put forward one does not exist;
such a time is refused.
"""

from __future__ import annotations

import re
import time as clock
from datetime import datetime, timezone, tzinfo
from decimal import Decimal
from pathlib import Path

import numpy as np

from ..errors import ZooError, nearest

#: Decimal reads underscores and digits of other scripts too
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def find_zone(name: str) -> tzinfo:
    """The time zone of a name; an unknown one fails with the nearest."""
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        guess = nearest(name, zoneinfo.available_timezones())
        hint = f"did you mean '{guess}'?" if guess else "give a name such as Europe/Berlin, or UTC"
        raise ZooError(f"data.time_zone={name}: no such time zone; {hint}") from error


def parse_times(times, file: Path, row: int, unit: str, future: bool, zone: tzinfo | None) -> np.ndarray:
    """int64 times in `unit` of a column of text, whose first is in `row` of `file`.

    Whole numbers, decimals with zero fraction, or ISO 8601, with its time zone or in `zone`.
    """
    # up to 18 digits, or nanoseconds of 19 that int64 holds
    whole = times.str.fullmatch(r"[+-]?(?:[0-9]{1,18}|[0-8][0-9]{18})").to_numpy(dtype=bool)
    values = np.zeros(len(times), np.int64)
    values[whole] = times[whole].astype("int64")
    for at in np.flatnonzero(~whole):
        values[at] = _odd_time(times.iloc[at], f"{file}: row {row + at}", unit, zone)
    negative = np.flatnonzero(values < 0)
    if len(negative):
        at = negative[0]
        raise ZooError(
            f"{file}: row {row + at}: negative time {times.iloc[at]}; times count from 1970-01-01, mend the row"
        )
    latest = clock.time() + 86_400
    late = np.flatnonzero(values > latest * UNITS[unit])
    if len(late) and not future:
        at = late[0]
        # a finer unit is likely where it makes the number a moment between 1975 and now
        finer = next((name for name, size in UNITS.items() if latest / 10 < values[at] / size <= latest), None)
        hint = f"if it counts {finer}, set data.time_unit={finer}" if finer else "mend the row"
        raise ZooError(
            f"{file}: row {row + at}: time {times.iloc[at]} lies in the future; {hint}, or admit it by data.future=true"
        )
    return values


def parse_moment(moment: int | str, where: str, unit: str, zone: str | None) -> int:
    """One moment, as a setting states it, in whole numbers of `unit`."""
    found = None if zone is None else find_zone(zone)
    return _odd_time(str(moment), where, unit, found, "give a moment, as a whole number or ISO 8601")


def _odd_time(text: str, where: str, unit: str, zone: tzinfo | None, remedy: str = "mend the row") -> int:
    """A time that is no plain integer, exactly: a decimal without fraction, or ISO 8601."""
    if re.fullmatch(NUMBER, text.strip(" ")):
        number = Decimal(text)
        if abs(number) >= 1 << 63:
            raise ZooError(f"{where}: time '{text}' does not fit into 64 bits; {remedy}")
        if number.as_tuple().exponent > 0:  # 1.5E+09 may have been any of a hundred million seconds
            raise ZooError(
                f"{where}: time '{text}' does not write its last digits, so that moments that differ are one; export "
                "times as whole numbers"
            )
        if number != number.to_integral_value():
            raise ZooError(
                f"{where}: time '{text}' has a fraction; give whole numbers and say their unit by data.time_unit"
            )
        return int(number)
    # the fraction is taken apart, because datetime cuts it off behind six digits
    split = re.fullmatch(r"(.+[T ]\d\d:?\d\d:?\d\d)[.,](\d+)(.*)", text, re.ASCII)
    stem, fraction, offset = split.groups() if split else (text, "0", "")
    try:
        if not text.isascii():
            raise ValueError("digits that are not those of ASCII")
        stamp = datetime.fromisoformat((stem + offset).replace("Z", "+00:00"))
    except ValueError as error:
        raise ZooError(f"{where}: time '{text}' is neither a whole number nor ISO 8601; {remedy}") from error
    if stamp.tzinfo is None:
        stamp = in_zone(stamp, zone, f"{where}: time '{text}'")
    past = stamp - datetime(1970, 1, 1, tzinfo=timezone.utc)
    part, rest = divmod(int(fraction) * UNITS[unit], 10 ** len(fraction))
    if rest:
        fits = next((name for name, size in UNITS.items() if int(fraction) * size % 10 ** len(fraction) == 0), None)
        remedy = f"set data.time_unit={fits}" if fits else "round it"
        raise ZooError(f"{where}: time '{text}' is finer than data.time_unit={unit}; {remedy}")
    ticks = (past.days * 86_400 + past.seconds) * UNITS[unit] + part
    if abs(ticks) >= 1 << 63:
        raise ZooError(f"{where}: time '{text}' does not fit into 64 bits as {unit}; set a coarser data.time_unit")
    return ticks


def in_zone(local: datetime, zone: tzinfo | None, what: str) -> datetime:
    """The moment of a time without a zone, in UTC; `what` begins the error for one that is no moment."""
    if zone is None:
        raise ZooError(f"{what} has no time zone; add one (Z or +00:00), or say it by data.time_zone=NAME")
    try:
        early, late = (local.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1))
    except OverflowError as error:  # the first and the last day of the calendar
        raise ZooError(f"{what} lies outside of the years 1 to 9999 in UTC; mend the row") from error
    if early == late:
        return early
    there = early.astimezone(zone).replace(tzinfo=None) == local
    happens = "occurs twice" if there else "does not exist"
    raise ZooError(f"{what} {happens} in data.time_zone={zone}, where clocks are changed; give times with their zone")


def ticks_of(stamps, file: Path, row: int, unit: str):
    """Parquet timestamps as whole numbers of `unit`, exactly."""
    import pyarrow as pa

    have, want = UNITS[stamps.type.unit], UNITS[unit]
    ticks = stamps.cast(pa.int64()).fill_null(0).to_numpy()
    scaled = ticks // max(have // want, 1) * max(want // have, 1)
    inexact = scaled // max(want // have, 1) * max(have // want, 1) != ticks  # a fraction lost, or 64 bits left
    if inexact.any():
        at = int(np.flatnonzero(inexact)[0])
        raise ZooError(
            f"{file}: row {row + at}: time {stamps[at]} is no whole number of 64 bits in data.time_unit={unit}; "
            f"set data.time_unit={stamps.type.unit}"
        )
    return pa.array(scaled, mask=stamps.is_null().to_numpy(zero_copy_only=False))


def whole_floats(times, file: Path, row: int):
    """Float times as integers: exact up to the mantissa only, for float32 seconds near 1e9 are 64 apart."""
    import pyarrow as pa
    import pyarrow.compute as pc

    last = 2.0 ** {16: 11, 32: 24, 64: 53}[times.type.bit_width]
    values = times.to_numpy(zero_copy_only=False).astype(np.float64)
    beyond = np.flatnonzero(np.abs(values) > last)
    if len(beyond):
        raise ZooError(
            f"{file}: row {row + beyond[0]}: a {times.type} cannot tell time {times[beyond[0]]} from its neighbours; "
            "store times as int64"
        )
    # one that is not whole keeps its text, by which it is refused
    wide = pa.array(values, from_pandas=True)  # pyarrow computes nothing with 16 bits
    return times if pc.any(pc.not_equal(pc.floor(wide), wide)).as_py() else wide.cast(pa.int64())


def in_unit(times: np.ndarray, have: str, want: str) -> np.ndarray:
    """int64 times of the unit `have` in whole numbers of `want`: what is finer than it is cut off."""
    scaled = times // max(UNITS[have] // UNITS[want], 1)
    factor = max(UNITS[want] // UNITS[have], 1)
    if len(times) and np.abs(times).max() > np.iinfo(np.int64).max // factor:
        raise ZooError(f"times in {have} do not fit into 64 bits in {want}, which the model counts in; mend the rows")
    return scaled * factor
