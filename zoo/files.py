"""Files appear whole or not at all: atomic writes, hashes, locks and the three folders the zoo uses."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ZooError


def data_root() -> Path:
    """Where data lie: `$STATEZOO_DATA`, else the platform's data folder; laid out `<root>/<domain>/<name>/`."""
    return _folder("STATEZOO_DATA", "data")


def cache_root() -> Path:
    """Where derived files lie (`$STATEZOO_CACHE`): safe to delete at any time."""
    return _folder("STATEZOO_CACHE", "cache")


def runs_root() -> Path:
    """Where runs are written: `$STATEZOO_RUNS`, else `./runs`."""
    return Path(os.environ.get("STATEZOO_RUNS") or "runs")


def _folder(variable: str, kind: str) -> Path:
    if os.environ.get(variable):
        return Path(os.environ[variable]).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("statezoo")) / kind


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical_json(value) -> str:
    """One text per value: sorted keys, no spaces, NaN refused; what hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path | str, value) -> None:
    """Write readable JSON atomically; NaN and infinity are refused, unknown is null."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str):
    """Read JSON; a broken file is an error that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ZooError(f"{path}: not valid JSON ({error}); restore or delete the file") from error


def hash_json(value) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(handle)


def _digest(handle) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hash_folder(folder: Path | str) -> str:
    """SHA-256 over the names and contents of all files below `folder`."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hash_json({path.relative_to(folder).as_posix(): hash_file(path) for path in files})


@contextmanager
def locked(path: Path | str, *, wait: float = -1, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path`; wait up to `wait` seconds (-1: for ever), then fail with the text `busy`."""
    import filelock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise ZooError(busy or f"{path.parent} is in use by another process; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()
