"""Kernels in C++: compiled where they are first used, once, into the cache folder, and loaded by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys

from .errors import ZooError
from .files import atomic, cache_root
from .foreign import below

NATIVE = "-march=native"


class Unavailable(Exception):
    """The kernel cannot be built here; the text says why and what to do."""


def build(name: str, source: str, flags: tuple[str, ...], *, native: bool = False) -> ctypes.CDLL:
    """The library of C++ `source`, compiled where the cache has none yet; else raise `Unavailable`.

    `native` takes all instructions that this machine has, where the compiler can tell them.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++")]
    if compiler == [None]:
        raise Unavailable("no C++ compiler found (install one, or name it in CXX)")
    try:
        machine = _machine(compiler) if native else None
        flags = flags if machine is None else (*flags, NATIVE)
        parts = [source, *flags, *compiler, sys.platform, platform.machine(), *([] if machine is None else [machine])]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        file = below(cache_root(), "kernels", f"{name}-{key[:16]}.so")
        if not file.exists():
            with atomic(file) as temporary:
                command = [*compiler, *flags, "-x", "c++", "-", "-o", str(temporary)]
                subprocess.run(command, input=source, text=True, capture_output=True, check=True)
        return ctypes.CDLL(str(file))
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(f"{shlex.join(compiler)} cannot build its kernel ({told[0]})") from error
    except (OSError, ZooError) as error:  # of the compiler, of the library, or of a cache that cannot be written
        raise Unavailable(f"its kernel cannot be built or loaded ({error})") from error


def _machine(compiler: list[str]) -> str | None:
    """What the compiler predefines for this machine, its vector instructions among it; None where it cannot tell.

    A cache folder may be shared by machines, and the code of one may be illegal on another.
    """
    command = [*compiler, NATIVE, "-x", "c++", "-dM", "-E", os.devnull]
    told = subprocess.run(command, text=True, capture_output=True, check=False)
    return told.stdout if told.returncode == 0 else None
