"""Between a byte stream and frames: what came and is not whole yet, and what is to leave.

Packets have faster paths. A relay reads them where the kernel put them (`pyderp.relay.lane`).
A client reads all that came at once (`PacketLane`) and queues all that it is given at once
(`SendQueue`); frame by frame the result is the same, here there are fewer steps for each.
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
    """Cuts a stream into frames, one pass a chunk.

    Args:
        limit: the largest payload accepted, in bytes; may be changed between frames.
    """

    __slots__ = ("_data", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Add a chunk and give each frame that is now whole, as (type byte, payload).

        The iterator must be used up before the next chunk.

        Raises:
            FrameTooLarge: a header announces more than `limit`; the stream is then useless.
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
    def missing(self) -> int:
        """Bytes until the next header is whole, or, behind a header, until its frame is."""
        held = len(self._data)
        if held < FRAME_HEADER_LEN:
            return FRAME_HEADER_LEN - held
        _, length = HEADER.unpack_from(self._data)
        return FRAME_HEADER_LEN + int(length) - held

    def __len__(self) -> int:
        """Bytes held of a frame that is not whole yet."""
        return len(self._data)


class PacketLane:
    """Reads whole RecvPacket frames, many in one pass.

    Args:
        limit: the largest payload accepted, in bytes.
    """

    __slots__ = ("_head", "_limit", "_size", "_source", "_sources")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One object a peer, not one a packet.
        self._sources: dict[bytes, NodePublic] = {}
        # Of the frame before: header and key as they came, what they mean.
        self._head = b""
        self._source = NodePublic(bytes(KEY_LEN))
        self._size = 0

    def take_untrusted(self, data: bytes, at: int, messages: list[Message]) -> int:
        """Append the packets from `at` on; where the first frame begins that is none.

        That is a frame of another type, a short or too large one, one that is not whole, or
        the end of `data`. Raises nothing.
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
    """Frames that a client has not written yet, in pieces; joined they are the stream."""

    __slots__ = ("_pieces", "packets", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes that wait."""
        self.packets = 0
        """Packets among the frames that wait."""

    def add(self, frame: bytes, *, packets: int = 0) -> None:
        """Queue a frame, or several in one piece.

        Args:
            packets: how many frames of it carry a packet.
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
            packets: they went through `as_packet`.
            limit: stop once more bytes than this wait.
            allowed: asked with the size of each frame; it is left out if that is false.

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
            # Head and packet stay apart: all is copied once, when it is joined for the write.
            pieces.append(head)
            pieces.append(packet)
            waiting += _HEAD + size
            if waiting > limit:
                break
        self.packets += (len(pieces) - before) // 2
        self.size = waiting
        return position + 1

    def take(self) -> list[bytes]:
        """All pieces, in order; the list is handed over and the queue is empty."""
        pieces, self._pieces = self._pieces, []
        self.size = self.packets = 0
        return pieces
