"""The settings of one section of a recipe, held against the constructor that takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .bounds import check_numbers
from .errors import ZooError, unknown
from .wording import has_words, of_another_type


def checked(section: str, cls: type, given: Mapping, skip: set[str], recipe_id: str) -> dict:
    """Check keys and types against the signature, and fill in defaults."""
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=skip, fail_untyped=False)
    valid = {action.dest: getattr(action, "_typehint", Any) for action in parser._actions if action.dest != "help"}
    parsed_of: dict = {}
    for key, value in given.items():
        where = f"recipe {recipe_id}: {section}.{key}"
        if key not in valid:
            raise unknown(
                "key", f"{section}.{key}", [f"{section}.{name}" for name in valid], where=f"recipe {recipe_id}"
            )
        # jsonargparse takes null for any type
        if value is None and valid[key] is not Any and type(None) not in get_args(valid[key]):
            raise ZooError(f"{where} may not be null; give a value, or leave the key out")
        if not _holds_plain_values(valid[key]):  # of a class or a function, which jsonargparse would import
            raise ZooError(f"{where} takes {valid[key]}, which no recipe can hold; leave it out")
        if type(value) in (int, float) and str(value) in get_args(valid[key]):
            value = str(value)  # YAML reads train.precision=32 as a number
        if valid[key] is not Any:  # nor does it see what may be anything, where it looks for names of classes
            parsed_of[key] = value
    try:
        parsed = parser.parse_object(Namespace(**parsed_of))
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        named = re.match(r'Parser key "?(\w+)', reason)
        told = [named[1]] if named and named[1] in given else []
        told += [key for key in given if f'"{key}"' in reason or f"'{key}'" in reason or f".{key}" in reason]
        bad = told[0] if told else ""
        if bad and has_words(valid[bad]):
            raise of_another_type(f"recipe {recipe_id}: {section}.{bad}", valid[bad], parsed_of[bad]) from error
        reason = re.sub(r"^Parser key \"?[\w.]+\"?: ", "", reason)
        raise ZooError(f"recipe {recipe_id}: {section}.{bad}: {reason[:200]}; give a value of that type") from error
    done = {key: _plain(given[key] if key in given and key not in parsed_of else parsed[key]) for key in valid}
    for key, value in done.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ZooError(f"recipe {recipe_id}: {section}.{key} is {value}; give a finite number")
    if section in ("model", "task"):
        check_numbers(cls, done, f"recipe {recipe_id}: {section}.")
    elif section == "train":
        cls(**done)  # it checks its numbers itself
    return done


def _holds_plain_values(hint: Any) -> bool:
    """Whether a type is one that YAML can write: numbers, texts, paths, choices, and lists and mappings of these."""
    if hint is Any or get_origin(hint) is Literal or hint in (type(None), Ellipsis):
        return True
    if get_args(hint):
        return all(map(_holds_plain_values, get_args(hint)))
    return isinstance(hint, type) and issubclass(hint, (int, float, str, Path, list, tuple, dict, set, Enum, Iterable))


def _plain(value):
    """YAML's own types, so that snapshots and hashes do not depend on tuples or paths."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "as_dict"):
        return {key: _plain(item) for key, item in value.as_dict().items()}
    return value
