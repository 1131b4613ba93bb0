"""What waits for a destination whose socket takes no more: bounded, oldest dropped first.

What waits are runs: neighbouring frames in one piece of bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pyderp.defaults import SEND_QUEUE_BYTES, SEND_QUEUE_DEPTH
from pyderp.keys import KEY_LEN
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    frame_header,
    looks_like_disco,
)

__all__ = ["Backlog", "Batch", "packets_at_the_end", "recv_frame", "split_run"]


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


PACKET_OVERHEAD: Final = FRAME_HEADER_LEN + KEY_LEN
MAX_RECV_FRAME: Final = PACKET_OVERHEAD + MAX_PACKET_SIZE
MAX_UNSENT: Final = SEND_QUEUE_BYTES - MAX_RECV_FRAME
"""Bytes handed to a transport at once: with one more packet queued, still within the bound."""
_BATCH_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Batch:
    """Frames taken out of a backlog, ready to be written."""

    chunks: list[bytes] = field(default_factory=list)
    changes: int = 0
    """Presence changes among the frames."""
    size: int = 0
    packets: int = 0
    packet_bytes: int = 0

    def add(self, frame: bytes) -> None:
        """Add a frame that is no packet."""
        self.chunks.append(frame)
        self.size += len(frame)

    def add_packet(self, frame: bytes) -> None:
        """Add a RecvPacket frame."""
        self.add(frame)
        self.packets += 1
        self.packet_bytes += len(frame) - PACKET_OVERHEAD


class PacketQueue(deque[bytes]):
    """RecvPacket frames, and how many bytes they are."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def put(self, frame: bytes) -> None:
        """Add a frame as the newest."""
        self.append(frame)
        self.size += len(frame)

    def take(self) -> bytes:
        """Take out the oldest frame."""
        frame = self.popleft()
        self.size -= len(frame)
        return frame


@dataclass(slots=True, eq=False)
class Backlog:
    """The queues of one destination: data and disco packets, presence changes, other frames.

    Data and disco are kept apart, so that a flood of one cannot push out the other: each
    holds at most `depth` packets, both together at most `limit` bytes, and
    only a queue that has more than half of them gives way to the other.
    It exists only while something waits.
    """

    limit: int = SEND_QUEUE_BYTES
    """Bytes of packets that may wait, at least one packet's."""
    depth: int = SEND_QUEUE_DEPTH
    """Packets that may wait in each of the two."""
    data: PacketQueue = field(default_factory=PacketQueue)
    disco: PacketQueue = field(default_factory=PacketQueue)
    changes: deque[bytes] = field(default_factory=deque)
    """PeerPresent and PeerGone frames for a watcher."""
    picture_waits: bool = False
    """All of a picture that the watcher asked for is still among the changes."""
    control: list[bytes] = field(default_factory=list)
    """Pongs, PeerGone, KeepAlive: bounded by what causes them."""
    since: float = 0.0
    """When it began to wait, on the router's clock."""
    in_flight: list[tuple[int, int, bool]] = field(default_factory=list)
    """Packets that the kernel did not take yet: bytes written behind each, its size, whether
    it is disco. They count as sent once it did."""

    def put(self, frame: bytes, *, disco: bool) -> list[tuple[bytes, bool]]:
        """Queue a RecvPacket frame; returns the frames dropped for it, each with its kind.

        The frame itself is among them, as the last, if no room could be made.
        """
        dropped: list[tuple[bytes, bool]] = []
        own, other = (self.disco, self.data) if disco else (self.data, self.disco)
        if len(own) >= self.depth:
            dropped.append((own.take(), disco))
        while own.size + other.size + len(frame) > self.limit:
            if 2 * other.size > self.limit:
                dropped.append((other.take(), not disco))
            elif own:
                dropped.append((own.take(), disco))
            else:
                dropped.append((frame, disco))
                return dropped
        own.put(frame)
        return dropped

    def take(self) -> Batch:
        """Take out about 64 KiB: control frames, changes, then packets of both kinds in turn."""
        batch = Batch()
        for frame in self.control:
            batch.add(frame)
        self.control.clear()
        if self.changes and batch.size < _BATCH_BYTES:
            self.picture_waits = False
        while self.changes and batch.size < _BATCH_BYTES:
            batch.add(self.changes.popleft())
            batch.changes += 1
        while (self.data or self.disco) and batch.size < _BATCH_BYTES:
            if self.disco:
                batch.add_packet(self.disco.take())
            if self.data:
                batch.add_packet(self.data.take())
        return batch

    def drain_packets(self) -> list[tuple[bytes, bool]]:
        """Empty the packet queues; returns the frames, each with its kind."""
        data = [(self.data.take(), False) for _ in range(len(self.data))]
        return data + [(self.disco.take(), True) for _ in range(len(self.disco))]

    def __bool__(self) -> bool:
        return bool(self.control or self.changes or self.data or self.disco)
