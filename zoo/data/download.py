"""Downloads that end whole or not at all, resumed and checked by SHA-256; archives unpacked without trust in them.

Written on `requests`, which pooch requires: pooch hands out a finished file only, where a resume has to see the
answer's status and keep what came before a cut.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import re
import stat
import struct
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
MOST = 1_000_000  # files of one archive: names without content fill a disk too
BUFFER, PACKED = 1 << 20, 1 << 16  # bytes at once, as they are and compressed
EMPTY = 1000  # members of a compressed stream that hold nothing; a tool or two writes one at the end
LZMA_MEMORY = 512 << 20  # bytes of the dictionary that an .xz may ask for; the strongest preset of `xz` asks for 65 MB
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
    admitted), entries that overlap, bytes before or behind the archive, and for a broken one. Bytes are counted as
    they are written; headers are not believed. An archive within the archive stays the file that it is.
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
            for number, (name, stream) in enumerate(_members(archive)):
                if re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/") or "\\" in name or "\0" in name:
                    raise _unsafe(archive, f"its member {name[:200]!r} leads out of the folder")
                if not _writable(name):
                    told = f"its member {name[:80]!r} has a name that is too long or holds control codes"
                    raise _unsafe(archive, told)
                if number == MOST:
                    raise _unsafe(archive, f"it holds more than {MOST} files")
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
        except ZooError:
            raise
        except Exception as error:  # on bytes that are no archive, the libraries' readers raise every class there is
            # the disk's: those of gzip and bz2 carry no number, and EINVAL is zipfile's seek to where a lie leads
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__  # tarfile's has a line per compression
            raise ZooError(f"{archive}: cannot be unpacked ({reason}); delete it and get it again") from error
        content.rename(folder)
    return [folder / name for name in names]


def _writable(name: str) -> bool:
    """Whether a disk takes the path and a terminal shows it; bytes that are no UTF-8 pass, as in old files."""
    plain = all(letter.isprintable() or "\udc80" <= letter <= "\udcff" for letter in name)
    return plain and len(name) <= 2000 and max(map(len, os.fsencode(name).split(b"/"))) <= 255


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every file, name and None of every folder; refuses all other kinds."""
    low = archive.name.lower()
    if low.endswith(".zip"):
        with zipfile.ZipFile(archive) as source:
            check_layout(archive, source)
            for info in source.infolist():
                # the name as it was written: `filename` has backslashes turned and ends at a NUL
                name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _unsafe(archive, f"its member {name[:200]!r} is a link or device")
                if info.flag_bits & 1:
                    raise ZooError(f"{archive}: is encrypted; unpack it by hand and put the files beside it")
                with source.open(info) as stream:
                    yield name, None if info.is_dir() else stream
    elif low.endswith(TARS):
        with _opened(archive, low.rpartition(".")[2]) as plain, tarfile.open(fileobj=plain, mode="r:") as source:
            for info in source:
                if not (info.isfile() or info.isdir()) or info.issparse():
                    raise _unsafe(archive, f"its member {info.name[:200]!r} is a link or device")
                yield info.name, source.extractfile(info)
            # tarfile takes a damaged header for the end, which is a block of zeros and whatever fills up the tape
            plain.seek(source.offset)
            if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends in the middle")
            while block := plain.read(BUFFER):
                if block.strip(b"\0"):
                    raise _unsafe(archive, "bytes lie behind its end")
    elif low.endswith(".gz"):
        with _opened(archive, "gz") as stream:
            yield archive.stem, stream
    else:
        raise ZooError(f"{archive}: is no archive that can be read; valid: .zip, {', '.join(TARS)}, .gz")


def check_layout(archive: Path, source: zipfile.ZipFile) -> None:
    """Refuse a zip that is not one entry behind the other, each as large as the list says, and then the list."""
    with open(archive, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 22 - len(source.comment)))
        if file.read(4) != b"PK\x05\x06":
            raise _unsafe(archive, "bytes lie behind its end")
        entries = sorted(source.infolist(), key=lambda info: info.header_offset)
        starts = [info.header_offset for info in entries] + [source.start_dir]
        if starts[0] != 0:
            raise _unsafe(archive, "bytes lie before its first entry")
        for info, following in zip(entries, starts[1:], strict=True):
            file.seek(info.header_offset)
            mark, flags, packed, unpacked, name, extra = struct.unpack("<4s2xH10xIIHH", file.read(30))
            if mark != b"PK\x03\x04" or info.header_offset + 30 + name + extra + info.compress_size > following:
                raise _unsafe(archive, f"its member {info.filename[:200]!r} overlaps with another")
            stated = ((packed, info.compress_size), (unpacked, info.file_size))
            # of a stream the sizes stand behind it, large ones in a field of their own
            if not flags & 8 and any(here not in (there, 0xFFFFFFFF) for here, there in stated):
                raise _unsafe(archive, f"its member {info.filename[:200]!r} is of two sizes")


DECODERS = {
    "gz": (lambda: zlib.decompressobj(wbits=31), b"\x1f\x8b"),
    "bz2": (bz2.BZ2Decompressor, b"BZh"),
    "xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY), b"\xfd7zXZ"),
}
DECODERS |= {"tgz": DECODERS["gz"], "tbz2": DECODERS["bz2"], "txz": DECODERS["xz"]}


def _opened(archive: Path, suffix: str) -> IO[bytes]:
    """The bytes of a file, or those that a compressed one unpacks to."""
    plain = open(archive, "rb")
    return io.BufferedReader(_Unpacked(plain, *DECODERS[suffix]), BUFFER) if suffix in DECODERS else plain


class _Unpacked(io.RawIOBase):
    """A compressed stream, member by member; unlike those of gzip, bz2 and lzma it takes nothing else behind one.

    Going back starts from the beginning, as it does there.
    """

    def __init__(self, source: IO[bytes], decoder, magic: bytes):
        self.source, self.decoder, self.magic = source, decoder, magic
        self._rewind()

    def _rewind(self) -> None:
        self.source.seek(0)
        self.place, self.packed, self.inner = 0, b"", self.decoder()
        self.begun, self.empty = 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        place += self.place if whence == os.SEEK_CUR else 0
        if place < self.place:
            self._rewind()
        while self.place < place and self.readinto(bytearray(min(BUFFER, place - self.place))):
            pass
        return self.place

    def readinto(self, buffer) -> int:
        while True:
            if self.inner.eof:
                self.empty += self.place == self.begun
                self.packed = self.inner.unused_data or self.source.read(PACKED)
                if not self.packed:
                    return 0
                if len(self.packed) < len(self.magic):
                    self.packed += self.source.read(PACKED)
                if not self.packed.startswith(self.magic) or self.empty > EMPTY:
                    raise ValueError("bytes lie behind its end")
                self.begun, self.inner = self.place, self.decoder()
            waiting = self.packed or not getattr(self.inner, "needs_input", True)
            if not waiting:
                self.packed = self.source.read(PACKED)
            ended = not (waiting or self.packed)
            made = self.inner.decompress(self.packed, len(buffer))  # at the end too: zlib may hold something back
            self.packed = getattr(self.inner, "unconsumed_tail", b"")
            if ended and not made and not self.inner.eof:
                raise EOFError("it ends in the middle")
            if made:
                buffer[: len(made)] = made
                self.place += len(made)
                return len(made)

    def close(self) -> None:
        self.source.close()
        super().close()


def _unsafe(archive: Path, what: str) -> ZooError:
    return ZooError(f"{archive}: refused, {what}; nothing was unpacked, get it anew from its publisher")
