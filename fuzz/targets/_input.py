"""How inputs are laid out: a mode byte, four bytes that say how the rest arrives, the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["HEAD", "PRIVATE_CLIENT", "PRIVATE_SERVER", "counting_bytes", "cut", "split_input"]

HEAD: Final = 5
"""Bytes before the payload."""

# The keys of the protocol's published test vectors, so that those are seeds as they stand.
PRIVATE_CLIENT: Final = bytes(range(0x01, 0x21))
PRIVATE_SERVER: Final = bytes(range(0x41, 0x61))


def split_input(data: bytes) -> tuple[int, bytes, bytes]:
    """Mode, chunk sizes and payload; what is missing is zero."""
    mode = data[0] if data else 0
    return mode, data[1:HEAD], data[HEAD:]


def cut(payload: bytes, sizes: bytes) -> Iterator[bytes]:
    """Cut a payload into the chunks it arrives in; the sizes are used in turn.

    A size is 0: all the rest; up to 127: so many bytes; more: so many times 64 beyond that.
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
    """Stands in for randomness: a finding must happen again."""
    return bytes(i & 0xFF for i in range(n))
