"""Errors that a user can act on: one line that says what, where, and what to do.

`ZooError` is for input, recipes and environment (exit code 2, no traceback); everything else is a failure of
the zoo itself (exit code 1). `unknown` words every "no such name" in the same way, with the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 4000  # characters of an error; lists of valid names need hundreds


def printable(text: str) -> str:
    """The text with line breaks and control codes as their escapes, so that it stays what a terminal shows of it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ZooError(Exception):
    """A mistake that the user can mend; its text is one line and ends with the remedy.

    Names out of files stand in it: a line break or a terminal's control code in one is shown as its escape.
    """

    def __init__(self, text: object = ""):
        text = str(text)
        text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
        super().__init__(printable(text))


class BadArgument(ZooError, ValueError):
    """An argument of an op, mixer or order that does not fit; names the argument, what was expected and what came."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None where nothing is close."""
    valid = list(valid)
    folded = {v.lower().replace("_", "-"): v for v in valid}
    wanted = name.lower().replace("_", "-")
    found = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.55)
    return folded[found[0]] if found else None


def unknown(what: str, name: str, valid: Iterable[str], where: str = "") -> ZooError:
    """The error for a name that is not among `valid`: suggests the nearest, else lists what there is."""
    valid = sorted(valid)
    name = name if len(name) <= 100 else f"{name[:97]}…"
    guess = nearest(name, valid)
    place = f" in {where}" if where else ""
    hint = f"did you mean '{guess}'?" if guess else f"valid: {', '.join(valid) if valid else 'none'}"
    return ZooError(f"unknown {what} '{name}'{place}; {hint}")
