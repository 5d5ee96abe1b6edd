"""Which code files may run: those whose path the user typed, none that a file names.

A run folder, a `config.json` or a recipe from somebody else can name a `.py` file beside it. Files run only within a
`trusting` block: the command opens it for the paths among its words, and for all files where `--trust-code` says so;
`create_model("net.py")` and the like open it for their argument, `load(folder, trust_code=True)` for all. A block ends
with the call that opened it, so that a path typed once is not trusted for good.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .errors import ZooError

LARGEST_CODE = 1 << 20  # bytes of a file that defines a model or data set
_ALLOWED: ContextVar[frozenset[Path] | None] = ContextVar("statezoo_trusted_code", default=frozenset())


@contextmanager
def trusting(files: Iterable[Path] = (), *, everything: bool = False) -> Iterator[None]:
    """Within this block the `files` (absolute, links resolved) may run, besides those of an enclosing block."""
    before = _ALLOWED.get()
    token = _ALLOWED.set(None if everything or before is None else before | frozenset(files))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def code_file(key: str) -> tuple[Path | None, str]:
    """The .py file that a name is the path of, links resolved, and the name in it ("net.py:wide"); None without one."""
    path, named, name = key.partition(".py:") if ".py:" in key else (key.removesuffix(".py"), key.endswith(".py"), "")
    if not named:
        return None, ""
    try:
        return Path(f"{path}.py").expanduser().resolve(), name
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a home that nobody has, a NUL
        raise ZooError(f"'{key[:200]}' is no path ({error}); check it") from error


def typed(*names: str):
    """A block in which the paths among names that the user typed may run."""
    return trusting(file for name in names if (file := code_file(name)[0]))


def read_code(file: Path) -> str:
    """The text of a code file."""
    if file.stat().st_size > LARGEST_CODE:
        raise ZooError(f"{file}: {file.stat().st_size} bytes are more than a file of code has; check the path")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ZooError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start}); mend the file") from error


def code_hash(text: str) -> str:
    """SHA-256 of a code file's text, which a run keeps."""
    return hashlib.sha256(text.encode()).hexdigest()


def import_code(file: Path, sha256: str):
    """The module of a trusted file whose text has this hash: that text runs, no compiled copy beside it."""
    allowed = _ALLOWED.get()
    if allowed is not None and file not in allowed:
        raise ZooError(
            f"{file}: is code from outside the zoo, and its path is not among the words of this command; read it, then "
            "add --trust-code (in Python trust_code=True)"
        )
    module = f"statezoo_file_{hashlib.sha256(f'{file}{sha256}'.encode()).hexdigest()[:12]}"
    if module in sys.modules:
        return sys.modules[module]
    text = read_code(file)
    if code_hash(text) != sha256:
        raise ZooError(f"{file}: was written anew while it was read; run the command again")
    made = sys.modules[module] = importlib.util.module_from_spec(importlib.util.spec_from_file_location(module, file))
    try:
        exec(compile(text, str(file), "exec"), made.__dict__)
    except BaseException:
        del sys.modules[module]
        raise
    return made
