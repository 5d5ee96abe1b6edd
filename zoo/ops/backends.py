"""Backends: several implementations behind one op, chosen by declared predicates.

An op registers its backends in order of preference; the first whose predicate has no objection serves. `explain` tells
why the others did not, `use_backend` (or `STATEZOO_BACKEND`, read when this module is imported) forces one, with a
ValueError where it cannot serve. Names, the same for every op:

    reference   the definition: a loop over steps, any floating dtype, differentiable by autograd
    torch       blocked or chunked torch code, fast anywhere; the one that exported programs contain
    inductor    the blocks of `torch` compiled by inductor; taken under torch.compile, or when forced
    cpp, triton, mamba-ssm   optional kernels
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BadArgument, ZooError, unknown
from .transforms import FORWARD_MODE, within_forward_mode

NAMES = ("reference", "torch", "inductor", "cpp", "triton", "mamba-ssm")


class Call(NamedTuple):
    """What a predicate may look at: device type, dtype, number of steps, and the options that are in use."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    steps: int = 1024
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """One implementation; `objection(call)` is the reason why it cannot serve, or None."""

    name: str
    run: Callable
    objection: Callable[[Call], str | None]
    automatic: Callable[[Call], str | None]


_BACKENDS: dict[str, list[Backend]] = {}
_serving: set[str] | None = None
_held: dict[str, str] | None = None
_forced: str | None = os.environ.get("STATEZOO_BACKEND") or None


def _none(call: Call) -> None:
    return None


def only_by_force(call: Call) -> str | None:
    """The objection of a reference to being chosen, where another backend can serve."""
    return None if FORWARD_MODE in call.options else "slow; forced in tests"


def no_tangents(call: Call) -> str | None:
    """The objection of a backend whose gradient is written by hand."""
    return f"its gradient is written by hand and serves no {FORWARD_MODE}" if FORWARD_MODE in call.options else None


def register(
    op: str,
    name: str,
    run: Callable,
    objection: Callable[[Call], str | None] = _none,
    automatic: Callable[[Call], str | None] = _none,
) -> None:
    """Add a backend to `op`, behind those there are. `automatic` objects to being chosen, but not to being forced."""
    if name not in NAMES:
        raise unknown("backend", name, NAMES)
    _BACKENDS.setdefault(op, []).append(Backend(name, run, objection, automatic))


def choose(op: str, call: Call) -> Callable:
    """The implementation that serves `call`."""
    for backend in _BACKENDS[op]:
        if _forced is not None and backend.name == _forced:
            reason = backend.objection(call)
            if reason is not None:
                raise BadArgument(f"backend '{_forced}' cannot serve {op}: {reason}; force another or none")
            return _noted(op, call, backend)
        if _forced is None and backend.objection(call) is None and backend.automatic(call) is None:
            return _noted(op, call, backend)
    if _forced is not None:
        raise _missing(op)
    raise BadArgument(f"{op}: no backend serves {call}; `zoo doctor` lists them with reasons")


def _noted(op: str, call: Call, backend: Backend) -> Callable:
    if _serving is not None:
        _serving.add(backend.name)
    if _held is not None and not torch.compiler.is_compiling():
        options = " with " + ", ".join(call.options) if call.options else ""
        key = f"{op} of {call.steps} steps{options} ({call.device}, {str(call.dtype).removeprefix('torch.')})"
        if _held.setdefault(key, backend.name) != backend.name:
            raise _another(op, call, key, backend.name)
    return backend.run


def _another(op: str, call: Call, key: str, name: str) -> ZooError:
    then = _held[key]
    return ZooError(
        f"{key} was served by '{then}', now by '{name}' ({then}: {explain(op, call)[then]}), which rounds differently; "
        f"make '{then}' serve again (`zoo doctor`, STATEZOO_BACKEND), or start a new run"
    )


@contextmanager
def held(known: dict[str, str]) -> Iterator[None]:
    """Within it `known` takes what serves each call, and a call that another backend served before is refused."""
    global _held
    before, _held = _held, known
    try:
        yield
    finally:
        _held = before


@contextmanager
def serving() -> Iterator[set[str]]:
    """Gives a set that takes the name of every backend that serves an op within the block."""
    global _serving
    before, _serving = _serving, set()
    try:
        yield _serving
    finally:
        _serving = before


def _missing(op: str) -> BadArgument:
    if _forced not in NAMES:
        return BadArgument(str(unknown("backend", str(_forced), NAMES)))
    have = ", ".join(backend.name for backend in _BACKENDS[op])
    return BadArgument(f"backend '{_forced}' does not exist for {op}; it has {have}: force one of them or none")


def call_of(x: Tensor, steps: int, **options) -> Call:
    """The Call of an op whose leading input is `x`; options that are None or False do not count."""
    given = tuple(name for name, value in options.items() if value is not None and value is not False)
    return Call(x.device.type, x.dtype, steps, (*given, FORWARD_MODE) if within_forward_mode() else given)


def full_precision(device: str) -> AbstractContextManager:
    """Within it autocast casts nothing: it would take products of a scan in bfloat16, in each backend other ones."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@contextmanager
def fast_row(x: Tensor) -> Iterator[None]:
    """Within it torch's own kernel multiplies one row of bfloat16 on a CPU: it reads weights faster than oneDNN's."""
    row = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() == x.shape[-1]
    if torch.compiler.is_compiling() or not row or not torch.backends.mkldnn.enabled:
        yield
        return
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def explain(op: str, call: Call | None = None) -> dict[str, str]:
    """Every backend name with the reason why it does not serve `call`, or "chosen" or "could serve"."""
    call = call or Call()
    if op not in _BACKENDS:
        raise unknown("op", op, _BACKENDS)
    have, chosen, told = {backend.name: backend for backend in _BACKENDS[op]}, False, {}
    for backend in _BACKENDS[op]:
        reason = backend.objection(call) or (None if _forced == backend.name else backend.automatic(call))
        if reason is None and _forced not in (None, backend.name):
            reason = f"'{_forced}' is forced"
        told[backend.name] = reason or ("could serve" if chosen else "chosen")
        chosen = chosen or reason is None
    return {name: told[name] if name in have else "not available" for name in NAMES}


def ops() -> list[str]:
    """Names of all ops with backends."""
    for module in pkgutil.iter_modules(import_module(__package__).__path__):
        if not module.name.startswith("_"):  # kernels, imported where they serve
            import_module(f"{__package__}.{module.name}")
    return sorted(_BACKENDS)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend for every op within the block (None: choose freely)."""
    global _forced
    if name is not None and name not in NAMES:
        raise BadArgument(str(unknown("backend", name, NAMES)))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
