"""Ways to cut a stream into the chunks that a socket may deliver."""

from __future__ import annotations


def byte_by_byte(data: bytes) -> list[bytes]:
    """Return one chunk for each byte."""
    return [data[at : at + 1] for at in range(len(data))]


def cut_everywhere(data: bytes) -> list[list[bytes]]:
    """Return the stream in two chunks, cut at each offset, and in one."""
    return [[data[:at], data[at:]] for at in range(1, len(data))] + [[data]]


def chunkings(data: bytes) -> list[list[bytes]]:
    """Return the stream in one chunk, in two cut at each offset, and byte by byte."""
    return [*cut_everywhere(data), byte_by_byte(data)]
