"""The fast lanes of a client: many RecvPacket frames in, many SendPacket frames out.

Frames read one by one give the same messages; here there are fewer steps for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pyderp.keys import KEY_LEN, NodePublic
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    BytesLike,
    FrameType,
    as_packet,
    pack_send_packet,
)
from pyderp.wire.messages import Message, ReceivedPacket

__all__ = ["PacketLane", "pack_send_packets"]

_HEAD: Final = FRAME_HEADER_LEN + KEY_LEN
_RECV_PACKET: Final = int(FrameType.RECV_PACKET)
_MAX_SOURCES: Final = 1024


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


def pack_send_packets(dst: NodePublic, packets: Iterable[BytesLike]) -> bytes:
    """04 SendPacket, a frame for each packet, in one piece.

    Raises:
        TypeError: a packet is not a bytes-like object.
        LocalProtocolError: a packet is larger than 64 KiB.
    """
    pieces: list[bytes] = []
    size = -1
    head = b""
    for given in packets:
        packet = given if type(given) is bytes else as_packet(given)
        if len(packet) != size:
            head = pack_send_packet(dst, packet)[:_HEAD]
            size = len(packet)
        pieces += (head, packet)
    return b"".join(pieces)
