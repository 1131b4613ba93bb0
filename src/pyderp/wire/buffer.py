"""Buffers between a byte stream and frames: incomplete frames that arrived, frames to be written.

Packets have faster paths. A relay reads them where the kernel put them (`pyderp.relay.lane`). A
client reads all packets of a chunk in one pass (`PacketLane`) and queues a list of packets in one
(`SendQueue`). The results are those of `FrameBuffer` and `pack_frame`, with less work a packet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pyderp.errors import FrameTooLarge
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER, FrameType, send_packet_head
from pyderp.wire.messages import Message, ReceivedPacket

__all__ = ["FrameBuffer", "PacketLane", "SendQueue"]

_HEAD: Final = FRAME_HEADER_LEN + KEY_LEN
"""Bytes of a SendPacket or RecvPacket frame before its packet."""
_RECV_PACKET: Final = int(FrameType.RECV_PACKET)
_MAX_SOURCES: Final = 1024


class FrameBuffer:
    """Cuts a stream into frames.

    Args:
        limit: the largest payload accepted, in bytes; may be changed between frames.
    """

    __slots__ = ("_data", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Add a chunk; yield each frame that is complete now, as (type byte, payload).

        The iterator must be exhausted before the next call.

        Raises:
            FrameTooLarge: a header announces more than `limit`. The stream cannot be read on.
        """
        buffer = self._data
        buffer += data
        pos = 0
        end = len(buffer)
        try:
            while end - pos >= FRAME_HEADER_LEN:
                kind, length = HEADER.unpack_from(buffer, pos)
                if length > self.limit:
                    raise FrameTooLarge(
                        f"unexpectedly large frame of {length} bytes returned, "
                        f"limit is {self.limit}",
                        frame_type=kind,
                    )
                start = pos + FRAME_HEADER_LEN
                if end - start < length:
                    break
                pos = start + length
                yield kind, bytes(buffer[start:pos])
        finally:
            del buffer[:pos]

    @property
    def held(self) -> bytes:
        """The bytes of an incomplete frame, or of one that is too large."""
        return bytes(self._data)

    @property
    def missing(self) -> int:
        """Bytes that are missing until the next header, or the frame behind it, is complete."""
        held = len(self._data)
        if held < FRAME_HEADER_LEN:
            return FRAME_HEADER_LEN - held
        _, length = HEADER.unpack_from(self._data)
        return FRAME_HEADER_LEN + int(length) - held

    def __len__(self) -> int:
        """Bytes held of an incomplete frame."""
        return len(self._data)


class PacketLane:
    """Reads complete RecvPacket frames, many in one pass.

    Args:
        limit: the largest payload accepted, in bytes.
    """

    __slots__ = ("_head", "_limit", "_size", "_source", "_sources")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One NodePublic for each peer instead of one for each packet.
        self._sources: dict[bytes, NodePublic] = {}
        # Header and key of the last frame, as bytes, with the peer and frame size they stand for.
        self._head = b""
        self._source = NodePublic(bytes(KEY_LEN))
        self._size = 0

    @property
    def used(self) -> bool:
        """Whether a RecvPacket frame has begun at all."""
        return bool(self._head)

    def take_untrusted(self, data: bytes, at: int, messages: list[Message]) -> int:
        """Append the packets from `at` on; return where the first frame begins that is left.

        Left is a frame of another type, one that is too short or too large, an incomplete one,
        or the end of `data`. Raises nothing.
        """
        end = len(data)
        append = messages.append
        last, source, size = self._head, self._source, self._size
        while end - at >= _HEAD:
            body = at + _HEAD
            head = data[at:body]
            # Most packets are from the same peer and of the same size as the one before.
            if head != last:
                kind, length = HEADER.unpack_from(head)
                if kind != _RECV_PACKET or not KEY_LEN <= length <= self._limit:
                    break
                size = FRAME_HEADER_LEN + length
                raw = head[FRAME_HEADER_LEN:]
                source = self._sources.get(raw) or self._new_source(raw)
                last = head
            if size > end - at:
                break
            at += size
            append(ReceivedPacket(source, data[body:at]))
        self._head, self._source, self._size = last, source, size
        return at

    def _new_source(self, raw: bytes) -> NodePublic:
        if len(self._sources) == _MAX_SOURCES:
            self._sources.clear()
        source = self._sources[raw] = NodePublic(raw)
        return source


class SendQueue:
    """Frames that a client has yet to write, in pieces which joined are the stream."""

    __slots__ = ("_pieces", "packets", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes in the queue."""
        self.packets = 0
        """Packets in the queue."""

    def add(self, frame: bytes, *, packets: int = 0) -> None:
        """Queue one or several whole frames.

        Args:
            packets: how many of them carry a packet.
        """
        self._pieces.append(frame)
        self.size += len(frame)
        self.packets += packets

    def add_packets(
        self,
        dst: NodePublic,
        packets: Sequence[bytes],
        start: int = 0,
        limit: float = math.inf,
        allowed: Callable[[int], bool] | None = None,
    ) -> int:
        """Queue a SendPacket frame for each packet from position `start` on.

        Args:
            packets: as `as_packet` returns them.
            limit: stop once more than this many bytes are queued.
            allowed: called with the size of each frame; False leaves the frame out.

        Returns:
            the position after the last packet looked at.
        """
        pieces = self._pieces
        before, waiting = len(pieces), self.size
        position, size, head = start - 1, -1, b""
        for position in range(start, len(packets)):
            packet = packets[position]
            # Most packets are as large as the one before.
            if len(packet) != size:
                size = len(packet)
                head = send_packet_head(dst, size)
            if allowed is not None and not allowed(_HEAD + size):
                continue
            # Not joined here, so that each byte is copied only once, by the join before the write.
            pieces.append(head)
            pieces.append(packet)
            waiting += _HEAD + size
            if waiting > limit:
                break
        self.packets += (len(pieces) - before) // 2
        self.size = waiting
        return position + 1

    def take(self) -> list[bytes]:
        """Empty the queue; return its pieces in order."""
        pieces, self._pieces = self._pieces, []
        self.size = self.packets = 0
        return pieces
