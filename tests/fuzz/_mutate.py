"""A small seeded mutator: bytes of a good file to bytes of bad ones. The same seed gives the same files.

`STATEZOO_FUZZ` files are made of each kind, 200 where it is not set; `make fuzz` asks for 10,000.
"""

import copy
import json
import os
import random
import resource
import signal
from contextlib import contextmanager

import yaml
from statezoo.zoo.errors import ZooError

COUNT = int(os.environ.get("STATEZOO_FUZZ", "200"))
SECONDS, MEMORY = 10, 1 << 30  # what reading one file may take, and what a test of many may add

NUMBERS = (
    b"0", b"-1", b"1", b"255", b"256", b"65535", b"2147483647", b"2147483648", b"4294967296", b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551616", b"99999999999999999999999999", b"1e308", b"1e999", b"-0.0", b"NaN",
    b"nan", b"inf", b"-Infinity", b"0x7fffffff", b"1_000", b"1,5", b"",
)  # fmt: skip
TOKENS = (
    b"null", b"true", b"~", b"{}", b"[]", b'""', b"'", b'"', b"\\", b"/", b"../", b"\x00", b"\n", b"\r\n", b"\t", b",",
    b":", b"::", b";", b"#", b"&a [*a]", b"*a", b"!!python/name:os.system", b"<<: ", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"net.py", b"class_path", b"PK\x03\x04", b"\x93NUMPY", b"<!doctype html>",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63 - 1, 2**64, 10**30, 0.5, -1.5, 1e308, float("nan"), float("inf"),
    "", "0", "nan", "x", "../x", "/etc/passwd", "a\nb", "\x00", "x" * 5000, "net.py", "é", [], {}, [[]], [None],
    [1, 2, 3], ["x"] * 3, {"a": 1}, {"class_path": "os.system"}, {"name": "x"}, [[[[[[]]]]]],
)  # fmt: skip


def mutants(data: bytes, seed: str, count: int = COUNT):
    """`count` variants of the bytes: one to four changes each."""
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        made = data
        for _ in range(draw.choice((1, 1, 2, 4))):
            made = draw.choice(CHANGES)(made, draw)
        yield made


def _place(data: bytes, draw: random.Random) -> int:
    """Anywhere, and as often near the beginning or the end, where headers lie."""
    size = max(len(data), 1)
    near = draw.randrange(min(256, size))
    return draw.choice((draw.randrange(size), near, size - 1 - near))


def _flip(data, draw):
    made, at = bytearray(data), _place(data, draw)
    for place in range(at, min(len(made), at + draw.choice((1, 1, 1, 4)))):
        made[place] ^= draw.choice((1 << draw.randrange(8), 0xFF, draw.randrange(256)))
    return bytes(made)


def _delete(data, draw):
    at = _place(data, draw)
    return data[:at] + data[at + draw.choice((1, 1, 2, 8, 64, 512)) :]


def _insert(data, draw):
    at = _place(data, draw)
    return data[:at] + draw.choice((draw.randbytes(draw.choice((1, 4, 32))), draw.choice(TOKENS))) + data[at:]


def _repeat(data, draw):
    at, size = _place(data, draw), draw.choice((1, 8, 64, 1024))
    return data[: at + size] + data[at : at + size] * draw.choice((1, 1, 3, 200)) + data[at + size :]


def _cut(data, draw):
    return data[: _place(data, draw)]


def _move(data, draw):
    one, other, size = _place(data, draw), _place(data, draw), draw.choice((1, 4, 16))
    return data[:one] + data[other : other + size] + data[one + size :]


def _number(data, draw):
    """A number in the text replaced, or four or eight bytes by a large one."""
    digits = [at for at in range(len(data)) if data[at : at + 1].isdigit()] if len(data) < 20_000 else []
    if digits and draw.random() < 0.8:
        at = end = draw.choice(digits)
        while data[end : end + 1].isdigit():
            end += 1
        return data[:at] + draw.choice(NUMBERS) + data[end:]
    at, size = _place(data, draw), draw.choice((2, 4, 8))
    value = draw.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 1 << (4 * size)))
    return data[:at] + value.to_bytes(size, draw.choice(("little", "big"))) + data[at + size :]


def _lines(data, draw):
    lines = data.split(b"\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    a, b = lines[one], lines[other]
    lines[one], lines[other] = draw.choice(((b, a), (b, b), (b"", a)))
    return b"\n".join(lines)


CHANGES = (_flip, _flip, _delete, _insert, _repeat, _cut, _move, _number, _number, _lines)


def swaps(value, seed: str, count: int = COUNT):
    """`count` variants of a JSON value, with values and keys of other kinds in one to three places."""
    for number in range(count):
        draw = random.Random(f"{seed}-swap-{number}")
        made = [copy.deepcopy(value)]
        for _ in range(draw.choice((1, 1, 1, 3))):
            _swap(made, draw)
        yield made[0]


def _swap(root: list, draw: random.Random) -> None:
    holder, key = root, 0
    for _ in range(draw.randrange(1, 7)):
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        holder, key = inner, draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    what = draw.randrange(8)
    if what == 0 and holder is not root:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", "", "a/b", "../x", "name", "é", "x" * 300))] = holder.pop(key)
    elif what == 2 and isinstance(holder, dict):
        holder[draw.choice(("new", "class_path", "__class__"))] = copy.deepcopy(draw.choice(VALUES))
    elif what == 3 and isinstance(holder, list) and holder is not root:
        holder.extend([copy.deepcopy(holder[key])] * draw.choice((1, 50)))
    else:
        holder[key] = copy.deepcopy(draw.choice(VALUES))


def json_files(data: bytes, seed: str, count: int = COUNT):
    """Mutants of a JSON file, half by bytes and half by structure."""
    half = count // 2
    yield from mutants(data, seed, half)
    for value in swaps(json.loads(data), seed, count - half):
        yield json.dumps(value).encode()


def yaml_files(data: bytes, seed: str, count: int = COUNT):
    """Mutants of a YAML file, half by bytes and half by structure."""
    half = count // 2
    yield from mutants(data, seed, half)
    for value in swaps(yaml.safe_load(data), seed, count - half):
        yield yaml.safe_dump(value, allow_unicode=True).encode()


# what is asked of a reader ------------------------------------------------------------------------------------------


def survives(call, *arguments) -> bool:
    """Whether `call` gives a result; a ZooError of one line is as good. Anything else, or a hang, fails the test."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call(*arguments)
        return True
    except ZooError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 5000, repr(text)
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _late(*_):
    raise AssertionError(f"a reader took more than {SECONDS} s")


@contextmanager
def limits():
    """A block in which hangs end, and whose memory may not grow by more than `MEMORY`."""
    before = signal.signal(signal.SIGALRM, _late)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert grown < MEMORY, f"reading grew the process by {grown >> 20} MB"
