"""LZF, the compression of PCD files (M. Lehmann, liblzf): runs of bytes as they are, and copies of earlier ones.

A control byte below 32 announces that many bytes and one; any other a copy: its upper three bits give the length less
2 (7: a byte with more of it follows), its lower five and the next byte the distance less 1.
"""

from __future__ import annotations

MOST = 264 / 3  #: bytes that one byte becomes at most: a copy of 264 takes three


def decompress(data: bytes, size: int) -> bytes:
    """The `size` bytes that `data` stands for; ValueError where it stands for fewer or more, or for none."""
    out, at, end = bytearray(), 0, len(data)
    if size > end * MOST:
        raise ValueError(f"{end} bytes cannot become {size}")
    while at < end:
        control = data[at]
        at += 1
        if control < 32:
            if at + control + 1 > end:
                raise ValueError("it ends within a run")
            out += data[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if at + (length == 7) >= end:
                raise ValueError("it ends within a copy")
            if length == 7:
                length += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8 | data[at]) - 1
            at += 1
            if start < 0:
                raise ValueError("a copy begins before the first byte")
            piece = out[start : start + length + 2]
            while len(piece) < length + 2:  # it overlaps what it makes
                piece += piece[: length + 2 - len(piece)]
            out += piece
        if len(out) > size:
            raise ValueError(f"it becomes more than the {size} bytes announced")
    if len(out) != size:
        raise ValueError(f"it becomes {len(out)} bytes, {size} are announced")
    return bytes(out)
