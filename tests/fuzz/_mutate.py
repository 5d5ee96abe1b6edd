"""Broken copies of a file, the same for every run: bytes and spans changed, numbers made huge, words exchanged."""

import os
import re
from collections.abc import Iterator

import numpy as np

COUNT = int(os.environ.get("STATEZOO_FUZZ", "200"))  # mutants of each sample
WORDS = [
    *(
        b"0",
        b"-1",
        b"1",
        b"255",
        b"256",
        b"65536",
        b"4294967295",
        b"99999999999",
        b"9" * 30,
        b"1e400",
        b"-1e39",
        b"1.5",
    ),
    *(b"nan", b"inf", b"1_0", b"0x10", b"\xd9\xa3", b"", b" ", b"\n", b"\r\n", b"\0", b",", b";", b"\t", b"#", b"\\\n"),
]
EXTREMES = [
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\xff" * 7 + b"\x7f",
    b"\0" * 8,
    b"\x80" + b"\0" * 7,
    b"\0" * 7 + b"\x80",
]


def mutants(data: bytes, count: int = COUNT, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of `data`, each with one to three mutations."""
    for number in range(count):
        rng = np.random.default_rng((seed, number, len(data)))
        copy = data
        for _ in range(int(rng.integers(1, 4))):
            copy = MUTATIONS[rng.integers(len(MUTATIONS))](copy, rng)
        yield copy


def _place(data: bytes, rng) -> int:
    """Anywhere, or as often within the first bytes, where headers are."""
    return int(rng.integers(min(len(data), 400) if rng.random() < 0.5 else len(data))) if data else 0


def _span(data: bytes, rng) -> tuple[int, int]:
    start = _place(data, rng)
    return start, start + int(rng.integers(1, 2 ** int(rng.integers(1, 8))))


def _flip(data, rng):
    at = _place(data, rng)
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :] if data else data


def _delete(data, rng):
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _insert(data, rng):
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def _repeat(data, rng):
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _truncate(data, rng):
    return data[: _place(data, rng)]


def _extreme(data, rng):
    at, size = _place(data, rng), int(rng.choice([1, 2, 4, 8]))
    value = EXTREMES[rng.integers(len(EXTREMES))]
    return data[:at] + (value[:size] if rng.random() < 0.5 else value[-size:]) + data[at + size :]


def _word(data, rng):
    """A number or word of the text becomes another of the file, or one of WORDS."""
    found = list(re.finditer(rb"[-+.0-9A-Za-z_]+", data[:20_000]))
    if not found:
        return data
    one, other = (found[rng.integers(len(found))] for _ in range(2))
    word = other[0] if rng.random() < 0.3 else WORDS[rng.integers(len(WORDS))]
    return data[: one.start()] + word + data[one.end() :]


def _number(data, rng):
    """The same for numbers alone, of which there are few in a header."""
    found = list(re.finditer(rb"(?<![A-Za-z])[0-9]+", data[:400]))
    if not found:
        return data
    one = found[rng.integers(len(found))]
    return data[: one.start()] + WORDS[rng.integers(12)] + data[one.end() :]


def _swap(data, rng):
    """Two spans change places."""
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data


MUTATIONS = (_flip, _delete, _insert, _repeat, _truncate, _extreme, _word, _word, _number, _number, _swap)
