"""Which other relay of the mesh has a key, and the bounded queue on the way to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from pyderp.relay.counters import Counters, DropReason
from pyderp.wire.frames import FrameType, frame_header

__all__ = ["Forwarder", "ForwarderTable", "MeshLink"]

MESH_QUEUE_DEPTH: Final = 4096
MESH_QUEUE_BYTES: Final = 4 * 1024 * 1024


class Forwarder(Protocol):
    """A way to a key on another relay."""

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        """Take a packet on its way, at once; or say why it is dropped. Never blocks or connects."""


class ForwarderTable:
    """Remote keys and the relays that claim to have them; the oldest claim is used."""

    __slots__ = ("_counters", "_table")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._table: dict[bytes, list[Forwarder]] = {}

    def get(self, key: bytes) -> Forwarder | None:
        """The way to a key, or `None`."""
        forwarders = self._table.get(key)
        return forwarders[0] if forwarders else None

    def add(self, key: bytes, forwarder: Forwarder) -> None:
        """A relay has a key; saying so twice changes nothing."""
        forwarders = self._table.setdefault(key, [])
        if any(known is forwarder for known in forwarders):
            return
        forwarders.append(forwarder)
        if len(forwarders) == 2:
            self._counters.multiforwarder_created += 1

    def remove(self, key: bytes, forwarder: Forwarder, *, is_local: bool) -> bool:
        """A relay lost a key. Returns whether that was the last way to it.

        Args:
            is_local: a connection here has the key.
        """
        forwarders = self._table.get(key)
        if forwarders is None:
            if is_local:
                self._counters.forwarder_delete_other_value += 1
            return False
        for i, known in enumerate(forwarders):
            if known is forwarder:
                del forwarders[i]
                break
        else:
            if len(forwarders) == 1:
                self._counters.forwarder_delete_other_value += 1
            return False
        if len(forwarders) == 1:
            self._counters.multiforwarder_deleted += 1
        elif not forwarders:
            del self._table[key]
            return True
        return False

    def __contains__(self, key: bytes) -> bool:
        return key in self._table

    def __len__(self) -> int:
        return len(self._table)


class MeshLink:
    """The queue to one other relay, of ForwardPacket frames, for the task that writes them.

    Full or disconnected means dropped: a relay in trouble must not cost this one memory. A frame
    that is being written stays in the queue until it is `written`, so that it counts as dropped
    if the link breaks meanwhile.

    Args:
        wake: called when the queue gets its first frame.
    """

    __slots__ = ("_frames", "_size", "_wake", "connected")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._wake = wake
        self.connected = False

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        """Queue a packet, as `Forwarder.forward`."""
        if not self.connected:
            return DropReason.MESH_LINK_DOWN
        header = frame_header(FrameType.FORWARD_PACKET, len(src) + len(dst) + len(packet))
        frame = b"".join((header, src, dst, packet))
        if len(self._frames) >= MESH_QUEUE_DEPTH or self._size + len(frame) > MESH_QUEUE_BYTES:
            return DropReason.MESH_LINK_FULL
        self._frames.append(frame)
        self._size += len(frame)
        if len(self._frames) == 1:
            self._wake()
        return None

    def batch(self, size: int) -> list[bytes]:
        """The first frames, which stay queued: as many as it takes to have `size` bytes, or all."""
        frames = []
        for frame in self._frames:
            frames.append(frame)
            size -= len(frame)
            if size <= 0:
                break
        return frames

    def written(self, count: int) -> None:
        """The first `count` frames were written: take them out."""
        for _ in range(count):
            self._size -= len(self._frames.popleft())

    def take(self) -> list[bytes]:
        """Take out all queued frames."""
        frames = list(self._frames)
        self._frames.clear()
        self._size = 0
        return frames
