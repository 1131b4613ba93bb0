"""Runs: neighbouring frames in one piece of bytes, and how to take them apart again."""

from __future__ import annotations

from collections.abc import Iterator

from pyderp.keys import KEY_LEN
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    FrameType,
    frame_header,
    looks_like_disco,
)

__all__ = ["packets_at_the_end", "recv_frame", "split_run"]


def recv_frame(src: bytes, packet: bytes) -> bytes:
    """A RecvPacket frame, of a raw key."""
    return b"".join((frame_header(FrameType.RECV_PACKET, KEY_LEN + len(packet)), src, packet))


def split_run(run: bytes) -> Iterator[bytes]:
    """The single frames of a run, each a copy, so that none keeps the whole run alive."""
    pos = 0
    while pos < len(run):
        _, length = HEADER.unpack_from(run, pos)
        stop = pos + FRAME_HEADER_LEN + length
        yield run[pos:stop]
        pos = stop


def packets_at_the_end(written: list[bytes], unsent: int) -> list[tuple[int, int, bool]]:
    """The packets that the last `unsent` bytes of a write belong to, last first.

    Numbers and not the frames, because the transport has its own copy of those.

    Returns:
        of each: how many bytes were written behind it, its size, whether it is disco.
    """
    found: list[tuple[int, int, bool]] = []
    behind = 0
    for run in reversed(written):
        for frame in reversed(list(split_run(run))):
            if behind >= unsent:
                return found
            if frame[0] == FrameType.RECV_PACKET:
                packet = frame[FRAME_HEADER_LEN + KEY_LEN :]
                found.append((behind, len(packet), looks_like_disco(packet)))
            behind += len(frame)
    return found
