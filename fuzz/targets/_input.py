"""Layout of inputs: a mode byte, four bytes with the sizes of chunks, the payload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["HEAD", "PRIVATE_CLIENT", "PRIVATE_SERVER", "counting_bytes", "cut", "split_input"]

HEAD: Final = 5
"""Bytes before the payload."""

# The keys of the protocol's published test vectors, so that these can be seeds unchanged.
PRIVATE_CLIENT: Final = bytes(range(0x01, 0x21))
PRIVATE_SERVER: Final = bytes(range(0x41, 0x61))


def split_input(data: bytes) -> tuple[int, bytes, bytes]:
    """Returns mode, chunk sizes and payload; the mode of an empty input is 0."""
    mode = data[0] if data else 0
    return mode, data[1:HEAD], data[HEAD:]


def cut(payload: bytes, sizes: bytes) -> Iterator[bytes]:
    """Cut a payload into the chunks in which it arrives; the sizes are used in turn.

    A size of 0 means all the rest; 1 to 127 are bytes; 128 and more mean (size - 127) * 64 bytes.
    """
    pos = turn = 0
    while pos < len(payload):
        size = sizes[turn % len(sizes)] if sizes else 0
        turn += 1
        if size == 0:
            yield payload[pos:]
            return
        step = size if size < 128 else (size - 127) * 64
        yield payload[pos : pos + step]
        pos += step


def counting_bytes(n: int) -> bytes:
    """Returns fixed bytes in place of random ones, so that a finding can be repeated."""
    return bytes(i & 0xFF for i in range(n))
