"""Types of settings in words, for whoever gave a value of another one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .errors import ZooError, nearest

WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true, false", Path: "a path", type(None): "null",
    list: "a list", tuple: "a list", dict: "a mapping",
}  # fmt: skip


def has_words(hint: Any) -> bool:
    """Whether a type is a choice, or one of several types, which only words tell clearly."""
    return get_origin(hint) in (Union, UnionType) or any(True for _ in _choices(hint))


def of_another_type(where: str, hint: Any, value: object) -> ZooError:
    """The error for a value that a type does not take, with the nearest choice where there is one."""
    choices = list(_choices(hint))
    guess = nearest(value, choices) if isinstance(value, str) else None
    shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:97]}…"
    remedy = f"did you mean '{guess}'?" if guess else "give a value of that type"
    *others, last = dict.fromkeys(_in_words(hint))
    return ZooError(f"{where}: expected {', '.join(others)}{' or ' if others else ''}{last}, got {shown}; {remedy}")


def _in_words(hint: Any) -> Iterable[str]:
    """What a type takes, one text for each kind of value."""
    origin = get_origin(hint)
    if origin is Literal:
        yield from map(str, get_args(hint))
    elif origin in (Union, UnionType):
        for one in get_args(hint):
            yield from _in_words(one)
    elif origin in (list, tuple):
        inner = dict.fromkeys(word for one in get_args(hint) if one is not Ellipsis for word in _in_words(one))
        yield f"a list (each {' or '.join(inner)})"
    else:
        yield from WORDS.get(origin or hint, getattr(hint, "__name__", str(hint))).split(", ")


def _choices(hint: Any) -> Iterable[str]:
    """The texts that a type is a choice of, alone or among others."""
    if get_origin(hint) is Literal:
        yield from (one for one in get_args(hint) if isinstance(one, str))
    for one in get_args(hint) if get_origin(hint) in (Union, UnionType, list, tuple) else ():
        yield from _choices(one)
