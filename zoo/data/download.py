"""Downloads that end whole or not at all, resumed and checked by SHA-256; archives unpacked without trust in them.

Written on `requests`, which pooch requires: pooch hands out a finished file only, where a resume has to see the
answer's status and keep what came before a cut.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ..errors import ZooError
from ..files import hash_file, locked

TRIES = 3  # requests per address: the first, and two that go on behind a cut
TIMEOUT = (20, 60)  # seconds to connect, and between two blocks
FLOOR = 64 << 20  # bytes that any archive may unpack to: small files of one letter compress better than any ratio
# NotImplementedError: zipfile's word for a compression method that it does not know; UnicodeDecodeError: for a name
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, UnicodeDecodeError),
)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


class _Refused(Exception):
    """Why an address did not give the file; `again`: the same address may give it at the next request."""

    def __init__(self, reason: str, again: bool = False):
        super().__init__(reason)
        self.again = again


def download(addresses: Sequence[str], path: Path, *, sha256: str) -> Path:
    """Bring a file to `path` from the first of the http(s) `addresses` that gives it, and return `path`.

    What has arrived lies in `<path>.part` until the SHA-256 is right; the next call, or the next address, goes on
    from there. A file that is there already is returned without a request. `sha256` "" (a file whose hash nobody
    published) takes what comes and never resumes. Raises `ZooError` with the reason of every address: an HTTP error,
    an unreachable host, a web page in place of the file, a wrong hash (what came is deleted), a connection cut
    `TRIES` times (what came is kept); and where another file lies at `path`.
    """
    part = path.with_name(f"{path.name}.part")
    with locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            if sha256 and hash_file(path) != sha256:
                raise ZooError(f"{path}: is not the published file (SHA-256); move it away and run the command again")
            return path
        reasons = []
        for address in addresses:
            for left in reversed(range(TRIES)):
                try:
                    _request(address, part, sha256, html=path.suffix.lower() in (".html", ".htm"))
                except _Refused as refused:
                    if left and refused.again:
                        continue
                    reasons.append(f"{address} {refused}")
                    break
                os.replace(part, path)
                return path
        kept = sha256 and part.is_file()
        remedy = "run the command again to go on from there" if kept else "put the file there by hand or try later"
        raise ZooError(f"{path}: not downloaded: {'; '.join(reasons) or 'no address is known'}; {remedy}")


def _request(address: str, part: Path, sha256: str, html: bool) -> None:
    """Complete `part` by one request and check it; raises `_Refused`."""
    import requests

    # without a hash nothing tells whether bytes of an earlier day belong to this file
    have = part.stat().st_size if sha256 and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = requests.get(address, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise _Refused(f"is unreachable ({_root(error)})") from error
    with answer:
        status = answer.status_code
        if status == 200:
            have = 0  # the whole file, whatever was asked for
        elif status != 206 and not (status == 416 and have):
            raise _Refused(f"answered HTTP {status} {answer.reason}")
        if status != 416:  # 416: nothing lies behind what is here; the hash tells whether that is the file
            if answer.headers.get("Content-Type", "").lower().startswith("text/html") and not html:
                raise _Refused("answered with a web page (text/html) in place of the file")
            _receive(answer, part, have)
    with open(part, "rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = hash_file(part) if sha256 else ""
    page = head.startswith((b"<!doctype html", b"<html")) and not html
    if page or found != sha256:
        part.unlink()
        wrong = "a web page in place of the file" if page else f"a file with SHA-256 {found[:12]}…, not {sha256[:12]}…"
        raise _Refused(f"sent {wrong}", again=have > 0)  # the fault may lie in what was there: once more, from nothing


def _receive(answer, part: Path, have: int) -> None:
    """Append the body behind the first `have` bytes of `part`, shown on a terminal; raises `_Refused` on a cut."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress
    from urllib3.exceptions import HTTPError

    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else None
    columns = *Progress.get_default_columns(), DownloadColumn()
    progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with progress, open(part, "ab") as file:
        file.truncate(have)
        row = progress.add_task(part.stem, total=total, completed=have)
        cut = None
        try:
            # undecoded: some servers call a .gz file an encoding of its content, and the hash is that of the file
            for block in answer.raw.stream(1 << 17, decode_content=False):
                file.write(block)
                have += len(block)
                progress.update(row, completed=have)
        except HTTPError as error:
            cut = error
        file.flush()
        os.fsync(file.fileno())
    if cut or (total is not None and have < total):
        raise _Refused(f"broke off after {have} of {total or 'unknown'} bytes", again=True) from cut


def _root(error: BaseException) -> BaseException:
    """The error beneath: 'Connection refused' rather than the pool that met it."""
    while error.__context__:
        error = error.__context__
    return error


def extract(archive: Path, folder: Path, *, max_bytes: int = 64 << 30, max_ratio: int = 1000) -> list[Path]:
    """Unpack a zip, tar (plain, gz, bz2, xz) or single .gz into the new `folder`; returns the files in its order.

    Raises `ZooError`, and leaves nothing behind, for a path that leads out of the folder, a link or device, a file
    listed twice, more than `max_bytes` or `max_ratio` times the archive's size (but `FLOOR` bytes are always
    admitted), and for a broken archive. Bytes are counted as they are written; headers are not believed.
    """
    if folder.exists():
        raise ZooError(f"{folder}: is there already; delete it or extract into another folder")
    allowed = min(max_bytes, max(max_ratio * archive.stat().st_size, FLOOR))
    names, written = [], 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        try:
            for name, stream in _members(archive):
                if re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/") or "\\" in name or "\0" in name:
                    raise _unsafe(archive, f"its member {name!r} leads out of the folder")
                target = content / name
                (target.parent if stream else target).mkdir(parents=True, exist_ok=True)
                if stream is None:
                    continue
                with open(target, "xb") as file:
                    while block := stream.read(1 << 20):
                        written += len(block)
                        if written > allowed:
                            raise _unsafe(archive, f"it unpacks to more than {allowed} bytes")
                        file.write(block)
                names.append(name)
        except (FileExistsError, NotADirectoryError) as error:
            raise _unsafe(archive, f"it lists {name!r} twice") from error
        except (*BROKEN, OSError) as error:
            # the disk's: those of gzip and bz2 carry no number, and EINVAL is zipfile's seek to where a lie leads
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = " ".join(str(error).split())[:200]  # tarfile has a line per compression, zipfile a whole header
            raise ZooError(f"{archive}: cannot be unpacked ({reason}); delete it and get it again") from error
        content.rename(folder)
    return [folder / name for name in names]


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every file, name and None of every folder; refuses all other kinds."""
    low = archive.name.lower()
    if low.endswith(".zip"):
        with zipfile.ZipFile(archive) as source:
            for info in source.infolist():
                # the name as it was written: `filename` has backslashes turned and ends at a NUL
                name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _unsafe(archive, f"its member {name!r} is a link or device")
                if info.flag_bits & 1:
                    raise ZooError(f"{archive}: is encrypted; unpack it by hand and put the files beside it")
                with source.open(info) as stream:
                    yield name, None if info.is_dir() else stream
    elif low.endswith(TARS):
        with tarfile.open(archive) as source:
            for info in source:
                if not (info.isfile() or info.isdir()):
                    raise _unsafe(archive, f"its member {info.name!r} is a link or device")
                yield info.name, source.extractfile(info)
            # tarfile takes a damaged header for the end, which is a block of zeros
            source.fileobj.seek(source.offset)
            if source.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends in the middle")
    elif low.endswith(".gz"):
        with gzip.open(archive) as stream:
            yield archive.stem, stream
    else:
        raise ZooError(f"{archive}: is no archive that can be read; valid: .zip, {', '.join(TARS)}, .gz")


def _unsafe(archive: Path, what: str) -> ZooError:
    return ZooError(f"{archive}: refused, {what}; nothing was unpacked, get it anew from its publisher")
