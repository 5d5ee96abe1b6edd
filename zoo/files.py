"""Files appear whole or not at all: atomic writes, hashes, locks and the three folders the zoo uses.

What the system refuses while something is written (a full disk, a limit of file sizes, a folder without rights) is one
line that names the file and the remedy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from .errors import ZooError

LARGEST_JSON = 64 << 20  # bytes; parsed, text takes twelve times as much
DEEPEST_JSON, MOST_JSON = 64, 1_000_000  # levels, and lists and objects in all


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


FULL = "free space on that disk"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
    errno.EROFS: "make the disk writable",
    errno.ENOTDIR: "check the path, its rights and the disk",
    errno.EEXIST: "move the file away that stands where a folder is needed",
    errno.EISDIR: "move the folder away that stands where the file is to be",
}
#: what of these has no file of its own in the error: only the place that was being written can be named
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: torch, closing an archive that it could not write
UNFINISHED = r"inline_container.* unexpected pos |PytorchStreamWriter"


@contextmanager
def writing(path: Path | str, *, within: Path | None = None) -> Iterator[None]:
    """Within it, what the system refuses to write to `path` (or below `within`) is one line with a remedy.

    Errors about other files, and all that are none of the system's, pass as they are.
    """
    try:
        yield
    except Exception as error:
        number = _refused(error, (Path(path), *([] if within is None else [within])))
        if number is None:
            raise
        remedy, reason = REMEDIES.get(number, "check the path, its rights and the disk"), os.strerror(number)
        if not number:
            remedy, reason = f"{FULL}, raise the limit of file sizes (ulimit -f)", "it could not be written whole"
        raise ZooError(f"{path}: {reason}; {remedy}, or {_elsewhere(Path(path))}") from error


def _refused(error: BaseException, places: tuple[Path, ...]) -> int | None:
    """The system's number of an error that means `places` cannot be written (0: not told), None for any other."""
    if isinstance(error, OSError):
        if error.errno is None:  # numpy's own, of a short write
            return 0 if re.search(r"requested and \d+ written", str(error)) else None
        if error.filename is None:
            return error.errno if error.errno in NO_ROOM else None
        named = places[0] if isinstance(error.filename, int) else Path(os.fsdecode(error.filename))
        ours = any(
            named == place
            or named in place.parents
            or place in named.parents
            or named.name.startswith(f".{place.name}.")
            for place in places
        )
        return error.errno if ours else None
    if type(error).__module__.startswith("safetensors") and (told := re.search(r"\(os error (\d+)\)", str(error))):
        return int(told.group(1))
    if isinstance(error, RuntimeError) and re.search(UNFINISHED, str(error)):
        below = error.__context__
        return _refused(below, places) if isinstance(below, OSError) else 0
    return None


def _elsewhere(path: Path) -> str:
    """How to have it written somewhere else."""
    path = path.absolute()
    for variable, root in (("STATEZOO_CACHE", cache_root()), ("STATEZOO_RUNS", runs_root())):
        if path.is_relative_to(root.absolute()):
            return f"set {variable} to another folder"
    return "choose another folder"


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name only when the block ends without an error."""
    path = Path(path)
    temporary = None
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        temporary = Path(name)
        os.close(handle)
    try:
        with writing(path, within=temporary):
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the name, and the place of what was there, at the end."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with writing(path, within=temporary):
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean(folder: Path, *names: str) -> None:
    """Remove what killed processes left in `folder` while they wrote `names` (patterns) by the two functions above.

    The caller holds the lock of what bears these names, so that no other process writes them now.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(\.[^.]*)?", path.name)
        if not found or not any(fnmatch(found.group(1), name) for name in names):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif (found.group(2) or "") == Path(found.group(1)).suffix:  # a file's temporary ends as the file does
            path.unlink(missing_ok=True)


def sync(path: Path | str) -> None:
    """Put a file that is there, and its place in its folder, on the disk: a power cut takes neither away."""
    for place in (Path(path), Path(path).parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            with writing(path):
                os.fsync(handle)
        finally:
            os.close(handle)


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


def read_json(path: Path | str, *, largest: int | None = LARGEST_JSON, infinity: bool = False):
    """Read JSON of at most `largest` bytes (None: our own file, of any size); a broken file is an error that names it.

    Refused are a key that stands twice, NaN and infinity (where `infinity` does not admit it, which others write),
    numbers beyond 64 bits, and lists in lists without end.
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"{path}: no such file; check the path")
    if largest is not None and path.stat().st_size > largest:
        raise ZooError(f"{path}: {path.stat().st_size} bytes are more than such a file has ({largest}); get it anew")
    try:
        text = path.read_text(encoding="utf-8")
        if largest is not None and text.count("[") + text.count("{") > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON} lists and objects")
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=float if infinity else _number,
            parse_float=_number,
            parse_int=_number,
        )
        if largest is not None:
            _shallow(value)
        return value
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: not valid JSON ({error}); restore or delete the file") from error


def _once(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:80]!r} stands twice")
    return made


def _number(text: str) -> int | float:
    whole = text.lstrip("-").isdigit()
    if whole and len(text) <= 20 and -(1 << 63) <= int(text) < 1 << 64:
        return int(text)
    if not whole and math.isfinite(float(text)):
        return float(text)
    raise ValueError(f"the number {text[:40]} is not finite or beyond 64 bits")


def _shallow(value) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]  # fmt: skip
        if not level:
            return
    raise ValueError(f"it nests deeper than {DEEPEST_JSON} levels")


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
    if path.is_symlink():  # taking the lock would empty the file that it leads to
        raise ZooError(f"{path}: is a link, which no lock is; delete it")
    lock = filelock.FileLock(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise ZooError(busy or f"{path.parent} is in use by another process; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()
