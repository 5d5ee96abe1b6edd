"""Downloads are whole or absent, resumed and checked; archives cannot write outside their folder."""

import bz2
import gzip
import hashlib
import io
import lzma
import multiprocessing
import os
import socket
import stat
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from statezoo.zoo.data import download as module
from statezoo.zoo.data.base import Dataset
from statezoo.zoo.data.download import download, extract
from statezoo.zoo.errors import ZooError
from urllib3 import HTTPResponse

BODY = np.random.default_rng(0).bytes(1_000_003)
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers a path by the function that the test gave for it; logs (path, Range header, bytes sent)."""

    def do_GET(self):
        entry = [self.path, self.headers["Range"], 0]
        self.server.log.append(entry)
        self.server.pages[self.path](self, entry)

    def give(self, entry, body, status=200, kind="application/octet-stream", length=None, **headers):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        entry[2] = len(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    """A server with `pages` (path to function), `log`, and `at(path)` for addresses."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.log = {}, []
    server.at = lambda path: f"http://127.0.0.1:{server.server_address[1]}{path}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def resumable(body=BODY, cuts=(), **options):
    """A page that honours Range; the nth request stops after `cuts[n]` bytes where there is such a number."""
    cuts = list(cuts)

    def page(handler, entry):
        begin = int(entry[1].removeprefix("bytes=").removesuffix("-")) if entry[1] else 0
        if begin and begin >= len(body):
            return handler.give(entry, b"<html>no such range</html>", 416, "text/html")
        rest = body[begin:]
        sent = rest[: cuts.pop(0)] if cuts else rest
        span = {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
        handler.give(entry, sent, 206 if begin else 200, length=len(rest), **span, **options)

    return page


def fixed(body=BODY, status=200, **options):
    """A page that sends one thing whatever was asked for."""
    return lambda handler, entry: handler.give(entry, body, status, **options)


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def refusal(addresses, path, sha256=SHA):
    """The one-line error of a download that fails."""
    with pytest.raises(ZooError) as caught:
        download(addresses, path, sha256=sha256)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ") and all(address in text for address in addresses)
    return text


# downloads ------------------------------------------------------------------------------------------------------------


def test_a_file_is_brought_once_and_then_not_asked_for(web, tmp_path):
    web.pages["/a.bin"] = resumable()
    path = tmp_path / "deep" / "a.bin"
    assert download([web.at("/a.bin")], path, sha256=SHA) == path
    assert path.read_bytes() == BODY and visible(path.parent) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask(), "others may read it as any file of the user"
    assert download([web.at("/a.bin")], path, sha256=SHA) == path
    assert web.log == [["/a.bin", None, len(BODY)]]


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_another_file_in_its_place_is_refused_and_kept(web, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(ZooError, match=r"a\.bin: is not the published file \(SHA-256\); move it away"):
        download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and not web.log


def test_a_cut_is_resumed_within_the_call_and_no_byte_is_sent_twice(web, tmp_path):
    web.pages["/a.bin"] = resumable(cuts=[300_000, 400_000])
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert [entry[1:] for entry in web.log] == [
        [None, 300_000],
        ["bytes=300000-", 400_000],
        ["bytes=700000-", len(BODY) - 700_000],
    ]
    assert (tmp_path / "a.bin").read_bytes() == BODY and visible(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("counts", [True, False], ids=["urllib3 2", "urllib3 1"])
def test_a_truncated_answer_is_refused_and_the_next_call_resumes(web, tmp_path, monkeypatch, counts):
    stream = HTTPResponse.stream

    def uncounted(self, *args, **options):  # as before urllib3 2, where a short body ends like a whole one
        self.enforce_content_length = False
        return stream(self, *args, **options)

    if not counts:
        monkeypatch.setattr(HTTPResponse, "stream", uncounted)
    web.pages["/a.bin"] = resumable(cuts=[100_000, 100_000, 100_000])
    text = refusal([web.at("/a.bin")], tmp_path / "a.bin")
    assert f"broke off after 300000 of {len(BODY)} bytes; run the command again to go on from there" in text
    assert visible(tmp_path) == ["a.bin.part"] and (tmp_path / "a.bin.part").read_bytes() == BODY[:300_000]
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert web.log[-1][1] == "bytes=300000-" and sum(entry[2] for entry in web.log) == len(BODY)
    assert (tmp_path / "a.bin").read_bytes() == BODY and visible(tmp_path) == ["a.bin"]


def test_an_answer_of_unstated_length_that_breaks_off_is_resumed(web, tmp_path):
    def chunked(handler, entry):
        if entry[1]:
            return resumable()(handler, entry)
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n" % (70_000, BODY[:70_000]))  # and no last chunk

    web.pages["/a.bin"] = chunked
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert [entry[1] for entry in web.log] == [None, "bytes=70000-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_the_second_address_goes_on_where_the_first_broke_off(web, tmp_path):
    web.pages["/one"], web.pages["/two"] = resumable(cuts=[10_000, 0, 0]), resumable()
    download([web.at("/one"), web.at("/two")], tmp_path / "a.bin", sha256=SHA)
    assert web.log[-1] == ["/two", "bytes=10000-", len(BODY) - 10_000]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("part", "page", "asked"),
    [
        (BODY[:5000], fixed(), ["bytes=5000-"]),  # answers 200: Range is ignored
        (BODY + b"more", resumable(), [f"bytes={len(BODY) + 4}-", None]),  # 416: the part is longer than the file
        (b"x" * 5000, resumable(), ["bytes=5000-", None]),  # the part was of another file
        (BODY, resumable(), [f"bytes={len(BODY)}-"]),  # 416: killed before the rename, everything is here
        (b"<html>" * 9, resumable(), ["bytes=54-", None]),  # an older tool kept an error page
    ],
    ids=["ignored", "too long", "other", "complete", "page"],
)
def test_a_part_that_cannot_be_resumed_is_started_over(web, tmp_path, part, page, asked):
    web.pages["/a.bin"] = page
    (tmp_path / "a.bin.part").write_bytes(part)
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert [entry[1] for entry in web.log] == asked
    assert (tmp_path / "a.bin").read_bytes() == BODY and visible(tmp_path) == ["a.bin"]


def test_a_server_that_sends_another_range_is_asked_from_the_beginning(web, tmp_path):
    wrong = fixed(BODY[7:], 206, Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
    web.pages["/a.bin"] = lambda handler, entry: (wrong if entry[1] else fixed())(handler, entry)
    (tmp_path / "a.bin.part").write_bytes(BODY[:5000])
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    assert [entry[1] for entry in web.log] == ["bytes=5000-", None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"please log in", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE HTML><p>please log in", "application/octet-stream"),
        (b"<html lang='en'>please log in", None),
    ],
    ids=["by type", "by doctype", "by tag"],
)
def test_a_web_page_is_refused(web, tmp_path, body, kind):
    web.pages["/a.bin"] = fixed(body, kind=kind)
    text = refusal([web.at("/a.bin")], tmp_path / "a.bin", hashlib.sha256(body).hexdigest())
    assert "a web page" in text and "put the file there by hand" in text
    assert visible(tmp_path) == []
    download([web.at("/a.bin")], tmp_path / "a.html", sha256=hashlib.sha256(body).hexdigest())
    assert (tmp_path / "a.html").read_bytes() == body, "where a page is what was asked for, it is taken"


def test_a_wrong_hash_is_refused_and_deleted(web, tmp_path):
    web.pages["/a.bin"] = fixed(b"another release")
    text = refusal([web.at("/a.bin")], tmp_path / "a.bin")
    assert f"sent a file with SHA-256 {hashlib.sha256(b'another release').hexdigest()[:12]}…, not {SHA[:12]}…" in text
    assert visible(tmp_path) == [] and len(web.log) == 1, "a whole wrong file is not asked for again"


def test_every_address_is_tried_and_every_reason_named(web, tmp_path):
    web.pages |= {"/gone": fixed(b"", 404), "/down": fixed(b"", 503), "/old": fixed(b"old"), "/login": fixed(b"<html>")}
    with socket.socket() as reserved:  # bound but not listening: nobody answers there
        reserved.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{reserved.getsockname()[1]}/a.bin"
        addresses = [dead, *map(web.at, web.pages), "ftp://127.0.0.1/a.bin"]
        text = refusal(addresses, tmp_path / "a.bin")
        assert f"{dead} is unreachable ([Errno" in text and "HTTPConnectionPool" not in text
        for reason in ("Connection refused", "HTTP 404 Not Found", "HTTP 503", "SHA-256", "a web page", "ftp://"):
            assert reason in text
        web.pages["/good"] = resumable()
        download([*addresses, web.at("/good")], tmp_path / "a.bin", sha256=SHA)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    with pytest.raises(ZooError, match="no address is known"):
        download([], tmp_path / "b.bin", sha256=SHA)


def test_without_a_published_hash_nothing_is_resumed(web, tmp_path):
    web.pages["/a.bin"] = resumable(cuts=[1000])
    (tmp_path / "a.bin.part").write_bytes(b"x" * 5000)
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256="")
    assert [entry[1] for entry in web.log] == [None, None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_the_file_itself_is_asked_for_and_kept(web, tmp_path):
    """The published hash is that of the file: not of its compressed transfer, and not of what a .gz holds."""
    packed = fixed(gzip.compress(BODY), Content_Encoding="gzip")
    web.pages["/a.bin"] = lambda handler, entry: (
        packed if "gzip" in handler.headers.get("Accept-Encoding", "gzip") else fixed()
    )(handler, entry)
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    body = gzip.compress(b"content")  # some servers state that a .gz file is its content, encoded
    web.pages["/a.gz"] = fixed(body, Content_Encoding="gzip")
    download([web.at("/a.gz")], tmp_path / "a.gz", sha256=hashlib.sha256(body).hexdigest())
    assert (tmp_path / "a.gz").read_bytes() == body


def test_two_processes_download_once(web, tmp_path):
    def slow(handler, entry):
        time.sleep(0.3)  # so that both are there before one is done
        resumable()(handler, entry)

    web.pages["/a.bin"] = slow
    arguments = {"args": ([web.at("/a.bin")], tmp_path / "a.bin"), "kwargs": {"sha256": SHA}}
    children = [multiprocessing.get_context("fork").Process(target=download, **arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert len(web.log) == 1 and (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(web, tmp_path, monkeypatch, capsys, terminal):
    web.pages["/a.bin"] = resumable()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    download([web.at("/a.bin")], tmp_path / "a.bin", sha256=SHA)
    shown = capsys.readouterr()
    assert shown.out == "" and ("a.bin" in shown.err) is terminal and bool(shown.err) is terminal


# archives -------------------------------------------------------------------------------------------------------------


def make_zip(path, members):
    """`members`: name to bytes, or to (bytes, unix mode)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(content, tuple):
                content, mode = content
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def make_tar(path, members, mode="w"):
    """`members`: name to bytes, or to (tar type, link target)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def refused(archive, match, **limits):
    """Refused in one line that names the archive, with nothing left behind."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ZooError, match=match) as caught:
        extract(archive, archive.parent / "out", **limits)
    assert str(caught.value).startswith(f"{archive}: ") and "\n" not in str(caught.value)
    assert sorted(archive.parent.rglob("*")) == before


MEMBERS = {"set/a.csv": b"a,b\n1,2\n", "set/deep/b.bin": BODY[:100_000], "c": b""}


@pytest.mark.parametrize("suffix", [".zip", *module.TARS])
def test_archives_are_unpacked(tmp_path, suffix):
    compression = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "tbz2": "bz2", "xz": "xz", "txz": "xz"}
    archive = tmp_path / f"set{suffix.upper() if suffix == '.tgz' else suffix}"
    kind = compression.get(suffix.rpartition(".")[2], "")
    make_zip(archive, MEMBERS) if suffix == ".zip" else make_tar(archive, MEMBERS, f"w:{kind}")
    files = extract(archive, tmp_path / "new" / "out")
    assert files == [tmp_path / "new" / "out" / name for name in MEMBERS]
    assert [file.read_bytes() for file in files] == list(MEMBERS.values())
    assert visible(tmp_path / "new") == ["out"]
    with pytest.raises(ZooError, match="out: is there already; delete it"):
        extract(archive, tmp_path / "new" / "out")


def test_a_single_gz_is_unpacked(tmp_path):
    (tmp_path / "genome.fa.gz").write_bytes(gzip.compress(BODY))
    (file,) = extract(tmp_path / "genome.fa.gz", tmp_path / "out")
    assert file == tmp_path / "out" / "genome.fa" and file.read_bytes() == BODY


def test_folders_and_files_that_the_system_writes_are_fine(tmp_path):
    """As `tar` and `zip` write them: './', folders of their own, unix modes."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        (tmp_path / "src" / "empty").mkdir(parents=True)
        (tmp_path / "src" / "x").write_bytes(b"x")
        archive.add(tmp_path / "src", arcname=".")
    assert extract(tmp_path / "a.tar", tmp_path / "a") == [tmp_path / "a" / "x"]
    assert (tmp_path / "a" / "empty").is_dir()
    make_zip(tmp_path / "b.zip", {"d/": (b"", stat.S_IFDIR | 0o755), "d/x": (b"x", stat.S_IFREG | 0o644)})
    assert extract(tmp_path / "b.zip", tmp_path / "b") == [tmp_path / "b" / "d" / "x"]


PATHS = ["../x", "a/../../x", "a/..", "/etc/x", "C:/x", "c:x", "..\\x", "a\\..\\..\\x"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_path_that_leads_out_is_refused(tmp_path, make, name):
    archive = make(tmp_path / ("a.zip" if make is make_zip else "a.tar"), {"good": b"1", name: b"2"})
    refused(archive, r"refused, its member .* leads out of the folder; nothing was unpacked")


def test_a_name_with_a_nul_is_refused(tmp_path):
    data = make_zip(tmp_path / "a.zip", {"good.csv_evil": b"1"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"good.csv_evil", b"good.csv\0evil"))
    refused(tmp_path / "a.zip", "leads out of the folder")


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path, kind):
    refused(make_tar(tmp_path / "a.tar", {"good": b"1", "bad": (kind, "good")}), "'bad' is a link or device")


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"good": b"1", "bad": (b"/etc/passwd", stat.S_IFLNK | 0o777)})
    refused(archive, "'bad' is a link or device")


UNDER = [{"a": b"1", "a/b": b"2"}, {"a": b"1", "a/b/c": b"2"}, {"a/b": b"1", "a": b"2"}]


@pytest.mark.parametrize("members", UNDER, ids=["under", "deeper", "over"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path, make, members):
    refused(make(tmp_path / ("a.zip" if make is make_zip else "a.tar"), members), r"lists 'a(/b)*(/c)?' twice")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_listed_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    refused(tmp_path / "a.zip", "lists 'a' twice")


def test_bombs_are_refused_by_bytes_written(tmp_path, monkeypatch):
    zeros = bytes(300_000)
    (tmp_path / "one.gz").write_bytes(gzip.compress(zeros))
    archives = [
        make_zip(tmp_path / "a.zip", {"a": zeros[:150_000], "b": zeros[:150_000]}),
        make_tar(tmp_path / "a.tar.xz", {"a": zeros[:150_000], "b": zeros[:150_000]}, "w:xz"),
        tmp_path / "one.gz",
    ]
    for archive in archives:
        refused(archive, "it unpacks to more than 299999 bytes", max_bytes=299_999)
    for i, archive in enumerate(archives):  # far beyond the ratio, but small: no bomb
        assert sum(f.stat().st_size for f in extract(archive, tmp_path / f"ok{i}", max_ratio=2)) == len(zeros)
    monkeypatch.setattr(module, "FLOOR", 200_000)
    for archive in archives:
        refused(archive, "it unpacks to more than 200000 bytes", max_ratio=2)


def test_the_floor_ends_a_bomb_of_the_stated_ratio(tmp_path):
    """Without any change of the limits: 70 MB of zeros, compressed more than a thousandfold."""
    small = tmp_path / "a.tar.bz2"
    with tarfile.open(small, "w:bz2") as archive:
        info = tarfile.TarInfo("a")
        info.size = 70 << 20
        archive.addfile(info, io.BytesIO(bytes(70 << 20)))
    assert small.stat().st_size * 1000 < 64 << 20
    refused(small, f"it unpacks to more than {64 << 20} bytes")


def test_a_header_that_understates_its_size_does_not_help(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"a": bytes(300_000)}).read_bytes())
    size = (300_000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(tmp_path / "a.zip", "cannot be unpacked|unpacks to more", max_bytes=1000)


# compresses, so that its code can be damaged, but not to nothing
NUMBERS = b"".join(b"%d," % n for n in np.random.default_rng(1).integers(0, 1000, 50_000))


def damaged(data, at):
    assert len(data) > at + 1000
    return data[:at] + b"damaged!" * 8 + data[at + 64 :]


BROKEN = {
    "text.zip": lambda zipped, tar: b"not an archive",
    "text.tar": lambda zipped, tar: b"not an archive",
    "text.tar.gz": lambda zipped, tar: b"not an archive",
    "text.gz": lambda zipped, tar: b"not an archive",
    "cut.zip": lambda zipped, tar: zipped[:-30],
    "content.zip": lambda zipped, tar: damaged(zipped, 30_000),
    "method.zip": lambda zipped, tar: zipped.replace(b"\x08\0", b"\x09\0"),
    "cut.tar": lambda zipped, tar: tar[: len(tar) // 2],
    "between.tar": lambda zipped, tar: tar[: tar.index(b"set/deep")],  # which tarfile takes for the end
    "header.tar": lambda zipped, tar: damaged(tar, tar.index(b"set/deep") + 100),  # this too
    "cut.gz": lambda zipped, tar: gzip.compress(tar)[:-1000],
    "cut.tar.gz": lambda zipped, tar: gzip.compress(tar)[:-1000],
    "cut.tar.bz2": lambda zipped, tar: bz2.compress(tar)[:-1000],
    "cut.tar.xz": lambda zipped, tar: lzma.compress(tar)[:-1000],
    "code.gz": lambda zipped, tar: gzip.compress(tar)[:10] + b"\x07" * 50,  # no such kind of block
    "content.gz": lambda zipped, tar: damaged(gzip.compress(tar), 30_000),
    "content.tar.bz2": lambda zipped, tar: damaged(bz2.compress(tar), 30_000),
    "content.tar.xz": lambda zipped, tar: damaged(lzma.compress(tar), 30_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_refused(tmp_path, name):
    members = {"set/a.csv": b"a,b\n1,2\n", "set/deep/b.bin": NUMBERS}
    whole = make_zip(tmp_path / "a.zip", members), make_tar(tmp_path / "a.tar", members)
    (tmp_path / name).write_bytes(BROKEN[name](*(path.read_bytes() for path in whole)))
    refused(tmp_path / name, r"cannot be unpacked \(.+\); delete it and get it again")


@pytest.mark.parametrize("suffix", [".zip", ".gz", *module.TARS])
@pytest.mark.parametrize(
    "more", [b"\0" * 7, b"x", b"PK\x05\x06", b"\x1f\x8b", b"evil" * 99], ids=lambda more: more[:3].hex()
)
def test_bytes_behind_the_end_are_refused(tmp_path, suffix, more):
    compression = {"gz": gzip, "tgz": gzip, "bz2": bz2, "tbz2": bz2, "xz": lzma, "txz": lzma}.get(
        suffix.rpartition(".")[2]
    )
    data = make_tar(tmp_path / "plain.tar", MEMBERS).read_bytes()
    if suffix == ".zip":
        data = make_zip(tmp_path / "plain.zip", MEMBERS).read_bytes()
    data = compression.compress(data) if compression else data
    (tmp_path / f"a{suffix}").write_bytes(data + more)
    if suffix == ".tar" and not more.strip(b"\0"):
        assert len(extract(tmp_path / "a.tar", tmp_path / "out")) == 3, "zeros fill up the tape"
        return
    refused(tmp_path / f"a{suffix}", "bytes lie behind its end|cannot be unpacked")
    if suffix == ".gz":  # members of one stream are one file, as everywhere
        (tmp_path / "b.gz").write_bytes(data + compression.compress(b"more") + compression.compress(b""))
        (file,) = extract(tmp_path / "b.gz", tmp_path / "b")
        assert file.read_bytes() == compression.decompress(data) + b"more"
        (tmp_path / "c.gz").write_bytes(data + compression.compress(b"") * 2000)
        refused(tmp_path / "c.gz", "bytes lie behind its end")


def test_bytes_before_a_zip_are_refused(tmp_path):
    data = make_zip(tmp_path / "a.zip", MEMBERS).read_bytes()
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + data)
    refused(tmp_path / "a.zip", "bytes lie before its first entry")


def test_entries_that_overlap_are_refused(tmp_path):
    """Two entries of one content, and one within another: how a small zip holds terabytes."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1" * 100)
        archive.writestr("b", b"1" * 100)
        archive.filelist[1].header_offset = archive.filelist[0].header_offset
    refused(tmp_path / "a.zip", "overlaps|cannot be unpacked")
    inner = make_zip(tmp_path / "inner.zip", {"b": b"2" * 100}).read_bytes()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a", inner)
        within = zipfile.ZipFile(io.BytesIO(inner)).infolist()[0]
        within.header_offset = 30 + len("a")
        archive.filelist.append(within)
        archive.NameToInfo["b"] = within
    refused(tmp_path / "b.zip", "'a' overlaps with another")


def test_an_entry_of_two_sizes_is_refused(tmp_path):
    data = make_zip(tmp_path / "a.zip", {"a": b"1" * 300_000}).read_bytes()
    first = data.index((300_000).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(data[:first] + (7).to_bytes(4, "little") + data[first + 4 :])
    refused(tmp_path / "a.zip", "'a' is of two sizes")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_no_disk_takes_are_refused(tmp_path, make):
    for number, name in enumerate(("x" * 256, "é" * 128, "d/" * 1100 + "x", "a\nb", "\x1b[2J", "a\u202eb")):
        archive = make(tmp_path / f"{number}{'.zip' if make is make_zip else '.tar'}", {"good": b"1", name: b"2"})
        refused(archive, "has a name that is too long or holds control codes")


def test_names_that_older_systems_wrote_are_taken(tmp_path):
    info = tarfile.TarInfo("caf\udce9")
    with tarfile.open(tmp_path / "a.tar", "w", errors="surrogateescape") as archive:
        archive.addfile(info)
    assert [os.fsencode(file.name) for file in extract(tmp_path / "a.tar", tmp_path / "out")] == [b"caf\xe9"]


def test_an_archive_in_an_archive_stays_a_file(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"x": bytes(1000)}).read_bytes()
    (file,) = extract(make_zip(tmp_path / "a.zip", {"inner.zip": inner}), tmp_path / "out")
    assert file.read_bytes() == inner and visible(tmp_path / "out") == ["inner.zip"]


def test_more_files_than_a_disk_likes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 20)
    refused(make_zip(tmp_path / "a.zip", {str(i): b"" for i in range(21)}), "holds more than 20 files")


def test_an_xz_that_asks_for_all_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LZMA_MEMORY", 1 << 20)
    make_tar(tmp_path / "a.tar.xz", MEMBERS, "w:xz")
    refused(tmp_path / "a.tar.xz", "cannot be unpacked .*[Mm]emory")


def test_a_sparse_file_of_a_tar_is_refused(tmp_path):
    """A header of 512 bytes that writes a terabyte of zeros."""
    info = tarfile.TarInfo("hole")
    info.size, info.type = 1 << 40, tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    refused(tmp_path / "a.tar", "refused|cannot be unpacked")


def test_other_files_and_encrypted_archives_are_refused(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    refused(tmp_path / "a.rar", r"no archive that can be read; valid: \.zip, \.tar")
    data = bytearray(make_zip(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", "is encrypted; unpack it by hand")


def test_a_full_disk_is_not_called_a_broken_archive(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", {"a": b"1"})
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        extract(archive, tmp_path / "out")


# the whole way --------------------------------------------------------------------------------------------------------

TABLE = b"user,item,time\n1,2,3\n"


class Zipped(Dataset):
    domain, tasks, group, license = "recsys", ("next_item",), "user/time", "none"
    homepage = "https://example.org/set"
    files = {"table.csv": hashlib.sha256(TABLE).hexdigest()}


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_dataset_fetches_its_file_out_of_an_archive(web, tmp_path, monkeypatch, suffix):
    name, members = f"set{suffix}", {"set-1.0/README": b"read me", "set-1.0/table.csv": TABLE}
    packed = tmp_path / name
    make_zip(packed, members) if suffix == ".zip" else make_tar(packed, members, "w:gz")
    web.pages[f"/{name}"] = resumable(packed.read_bytes(), cuts=[50])
    monkeypatch.setattr(Zipped, "urls", {name: (web.at("/nowhere"), web.at(f"/{name}"))})
    monkeypatch.setattr(Zipped, "archives", {name: hashlib.sha256(packed.read_bytes()).hexdigest()})
    web.pages["/nowhere"] = fixed(b"", 404)
    data = Zipped(root=tmp_path / "root")
    assert data.fetch() == tmp_path / "root"
    assert (tmp_path / "root" / "table.csv").read_bytes() == TABLE
    assert visible(tmp_path / "root") == [name, "table.csv"]
    assert data.manifest() == Zipped.files
    asked = len(web.log)
    data.fetch()
    data.require()
    assert len(web.log) == asked, "what is there is not asked for"
    (tmp_path / "root" / "table.csv").unlink()
    data.require()
    assert len(web.log) == asked and (tmp_path / "root" / "table.csv").read_bytes() == TABLE


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"table.csv": TABLE + b"4,5,6\n"}, r"set\.zip: its table\.csv is not the published one \(SHA-256\)"),
        ({"other.csv": TABLE}, r"set\.zip: holds no table\.csv; the source has changed"),
        ({"../table.csv": TABLE}, r"set\.zip: refused, its member '\.\./table\.csv' leads out"),
    ],
    ids=["hash", "missing", "climbing"],
)
def test_a_dataset_refuses_a_wrong_member(web, tmp_path, monkeypatch, members, match):
    body = make_zip(tmp_path / "set.zip", members).read_bytes()
    web.pages["/set.zip"] = resumable(body)
    monkeypatch.setattr(Zipped, "urls", {"set.zip": (web.at("/set.zip"),)})
    monkeypatch.setattr(Zipped, "archives", {"set.zip": hashlib.sha256(body).hexdigest()})
    with pytest.raises(ZooError, match=match):
        Zipped(root=tmp_path / "root").require()
    assert visible(tmp_path / "root") == ["set.zip"] and not (tmp_path / "table.csv").exists()


def test_an_archive_without_a_hash_is_judged_by_its_members(web, tmp_path, monkeypatch):
    """ml-100k's way: the release's file is known, the archive around it is not."""
    body = {"wrong": b"4,5,6\n", "right": TABLE}
    monkeypatch.setattr(Zipped, "urls", {"set.zip": (web.at("/set.zip"),)})
    for name, content in body.items():
        web.pages["/set.zip"] = fixed(make_zip(tmp_path / f"{name}.zip", {"table.csv": content}).read_bytes())
        data = Zipped(root=tmp_path / "root")
        if name == "wrong":
            with pytest.raises(ZooError, match="not the published one"):
                data.fetch()
            assert visible(tmp_path / "root") == [], "kept, it would be refused again for ever"
        else:
            data.fetch()
            assert (tmp_path / "root" / "table.csv").read_bytes() == TABLE


def test_a_dataset_that_cannot_be_fetched_names_folder_and_reason(web, tmp_path, monkeypatch):
    web.pages["/table.csv"] = fixed(b"<html>", kind="text/html")
    monkeypatch.setattr(Zipped, "urls", {"table.csv": (web.at("/table.csv"),)})
    with pytest.raises(ZooError, match=r"root/table\.csv: not downloaded: .*web page .*; put the file there by hand"):
        Zipped(root=tmp_path / "root").require()
    assert visible(tmp_path / "root") == []
