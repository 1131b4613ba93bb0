"""The queues of a destination whose socket is full: bounded, the oldest packet is dropped first.

A run is several neighbouring frames in one bytes object.
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
    """Return a RecvPacket frame; `src` is the sender's raw key."""
    return b"".join((frame_header(FrameType.RECV_PACKET, KEY_LEN + len(packet)), src, packet))


def split_run(run: bytes) -> Iterator[bytes]:
    """Yield the frames of a run, each a copy: a queued one must not keep the run alive."""
    pos = 0
    while pos < len(run):
        _, length = HEADER.unpack_from(run, pos)
        stop = pos + FRAME_HEADER_LEN + length
        yield run[pos:stop]
        pos = stop


def packets_at_the_end(written: list[bytes], unsent: int) -> list[tuple[int, int, bool]]:
    """Find the packets that the last `unsent` bytes of a write belong to, last first.

    It returns numbers, not frames: the transport holds its own copy of those.

    Returns:
        for each packet: the bytes written after it, its size, whether it is disco.
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
"""Bytes handed to a transport at once: one more packet may be queued within SEND_QUEUE_BYTES."""
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
        """Add a frame that is not a packet."""
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

    Data and disco packets have a queue each, so that a flood of one cannot push out the other.
    Each holds at most `depth` packets, both together at most `limit` bytes; a queue loses packets
    to the other one only while it holds more than half of the bytes. A connection has a backlog
    only while something waits.
    """

    limit: int = SEND_QUEUE_BYTES
    """Bytes of packets that may wait; at least the largest packet fits."""
    depth: int = SEND_QUEUE_DEPTH
    """Packets that may wait in each of the two queues."""
    data: PacketQueue = field(default_factory=PacketQueue)
    disco: PacketQueue = field(default_factory=PacketQueue)
    changes: deque[bytes] = field(default_factory=deque)
    """PeerPresent and PeerGone frames for a watcher."""
    picture_waits: bool = False
    """The whole picture that a watcher asked for is still among `changes`."""
    control: list[bytes] = field(default_factory=list)
    """Pongs, PeerGone, KeepAlive. Each of their senders has a bound of its own."""
    since: float = 0.0
    """When the first packet began to wait, on the router's clock."""
    in_flight: list[tuple[int, int, bool]] = field(default_factory=list)
    """Packets that were written and that the kernel has yet to take, as `packets_at_the_end`
    returns them. They count as sent when the kernel has taken them."""

    def put(self, frame: bytes, *, disco: bool) -> list[tuple[bytes, bool]]:
        """Queue a RecvPacket frame; return the dropped frames, each with whether it is disco.

        If no room can be made, the frame itself is the last of them.
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
        """Empty the packet queues; return the frames, each with whether it is disco."""
        data = [(self.data.take(), False) for _ in range(len(self.data))]
        return data + [(self.disco.take(), True) for _ in range(len(self.disco))]

    def __bool__(self) -> bool:
        return bool(self.control or self.changes or self.data or self.disco)
