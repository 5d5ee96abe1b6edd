"""Layers that mix along the sequence, (B, L, D) to (B, L, D), under one protocol (`base.py`)."""

from __future__ import annotations

from importlib import import_module

from ..bounds import check_numbers
from ..errors import BadArgument, unknown

#: name in configs -> module and class
MIXERS = {
    "s6": ("s6", "S6"),
    "ssd": ("ssd", "SSD"),
    "s4d": ("s4d", "S4D"),
    "mlstm": ("mlstm", "MLSTM"),
    "slstm": ("slstm", "SLSTM"),
    "attention": ("attention", "Attention"),
    "short_conv": ("short_conv", "ShortConv"),
    "identity": ("identity", "Identity"),
}


def mixer_class(name: str) -> type:
    """The class of a mixer by its name in configs."""
    if name not in MIXERS:
        raise unknown("mixer", name, MIXERS)
    module, cls = MIXERS[name]
    return getattr(import_module(f"{__name__}.{module}"), cls)


def create_mixer(config: str | dict, dim: int, **defaults):
    """A mixer of width `dim` from its name, or from a mapping of `name` and constructor arguments.

    A per-layer list in a config is a list of such entries: `["s6", {"name": "attention", "heads": 8}]`.
    """
    config = {"name": config} if isinstance(config, str) else dict(config)
    if "name" not in config:
        raise BadArgument(f"mixer: expected a name or a mapping with 'name', got {config}")
    cls, given = mixer_class(config.pop("name")), {**defaults, **config}
    check_numbers(cls, {"dim": dim, **given}, f"mixer: {cls.__name__}: ")
    return cls(dim, **given)
