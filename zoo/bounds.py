"""What numbers the arguments of models, mixers and tasks may be, by name: one word means the same everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from .errors import BadArgument

PACKAGE = f"{__name__.partition('.')[0]}."
AT_LEAST_ONE = (
    "dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "width", "widths", "sizes", "dense", "project", "k",
    "code", "scales", "condition", "neighbours", "bins", "pairs", "intervals", "d_state", "d_conv", "d_ssm", "expand",
    "dt_rank", "n_ssm", "groups", "chunk", "qkv_block", "vocab_multiple", "num_items", "max_len",
    "vocab_size", "num_points", "num_categories", "in_channels", "height", "topk", "loss_chunk",
)  # fmt: skip
NOT_NEGATIVE = (
    "num_outputs", "num_features", "conv", "init_std", "shrink", "decay", "emd_points", "cd_l2", "cd_l1", "dcd",
    "cross_entropy", "dice",
)  # fmt: skip
POSITIVE = ("norm_eps", "radii", "dt_min", "dt_max", "dt_floor", "rate", "rope", "factor")
DROPOUTS = ("dropout", "attention_dropout", "time_dropout")
RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (AT_LEAST_ONE, lambda value: value >= 1, "give at least 1"),
    (NOT_NEGATIVE, lambda value: value >= 0, "give 0 or more"),
    (POSITIVE, lambda value: value > 0, "give more than 0"),
    (DROPOUTS, lambda value: 0 <= value < 1, "give a share from 0 to below 1"),
    (("masked",), lambda value: 0 < value <= 1, "give a share above 0, up to 1"),
    (("label_smoothing",), lambda value: 0 <= value <= 1, "give a share from 0 to 1"),
)


def check_numbers(cls: type, values: Mapping, where: str) -> None:
    """Raise `BadArgument` for a number, or a list with one, that means nothing; `where` begins the error.

    What an argument is by default always passes: 0 may stand for "none" there. Arguments that no class of the zoo
    takes mean what their author says.
    """
    defaults = {name: one.default for base in reversed(cls.__mro__) for name, one in _parameters(base).items()}
    ours = {name for base in cls.__mro__ if base.__module__.startswith(PACKAGE) for name in _parameters(base)}
    for names, fits, remedy in RULES:
        for name in names:
            value = values.get(name)
            if name not in values or name not in ours or _is(value, defaults.get(name, inspect.Parameter.empty)):
                continue
            many = isinstance(value, (list, tuple))
            shown = list(value) if many else value
            if many and not value or not all(fits(one) for one in (value if many else [value]) if _is_number(one)):
                raise BadArgument(f"{where}{name}={shown}: {remedy}")


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(vars(cls)["__init__"]).parameters if inspect.isfunction(vars(cls).get("__init__")) else {}


def _is(value: object, default: object) -> bool:
    value, default = (tuple(one) if isinstance(one, list) else one for one in (value, default))
    return type(value) is type(default) and value == default


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
