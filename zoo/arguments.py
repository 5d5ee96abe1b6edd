"""The arguments that an object is made with, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def given(cls: type, args: tuple, kwargs: Mapping) -> dict:
    """All arguments of a constructor, defaults included; keywords that it hands on stand by their own names.

    TypeError where the constructor would raise it.
    """
    signature = inspect.signature(cls.__init__)
    bound = signature.bind(None, *args, **kwargs)
    bound.apply_defaults()
    this, *others = signature.parameters.values()
    found = {one.name: bound.arguments[one.name] for one in others}
    for one in others:
        if one.kind is one.VAR_KEYWORD:
            found |= found.pop(one.name)
    return found
