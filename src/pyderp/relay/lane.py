"""The fast lane: from a receive buffer to the destinations, run by run. Handle with care.

A relayed frame keeps its length: SendPacket is `04 ‖ length ‖ destination ‖ packet`,
RecvPacket is `05 ‖ length ‖ source ‖ packet`. So type and key are overwritten in the
receive buffer and the frame is ready to go. Neighbouring frames to one destination
leave as one slice: one copy, one look-up, one write. Only the inner loop is per packet; whatever
can be done once a run is done there. It is in `receive`, and in `walk` of the native part,
which `receive_runs` calls.

`tests/property/test_lane_properties.py` proves that it delivers what `Router.on_frame`
does frame by frame. `bench/` says what it costs: run it before and after every change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from pyderp.errors import RemoteProtocolError
from pyderp.keys import KEY_LEN
from pyderp.native import Walk
from pyderp.relay.backlog import MAX_UNSENT, split_run
from pyderp.relay.connection import Connection
from pyderp.relay.router import Router
from pyderp.wire.frames import (
    DISCO_MAGIC,
    DISCO_MIN_LEN,
    FRAME_HEADER_LEN,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    check_client_frame_untrusted,
    looks_like_disco,
)

__all__ = ["Receive", "receive", "receive_runs"]

Receive: TypeAlias = Callable[[Router, Connection, bytearray, memoryview, int], int]

_HEADER_AND_KEY: Final = struct.Struct(f">BI{KEY_LEN}s")
_SEND_PACKET: Final = int(FrameType.SEND_PACKET)
_RECV_PACKET: Final = int(FrameType.RECV_PACKET)
_MIN_LENGTH: Final = KEY_LEN
_MAX_LENGTH: Final = KEY_LEN + MAX_PACKET_SIZE
_PACKET: Final = _HEADER_AND_KEY.size
"""Where the packet starts in a frame."""
_DISCO_FIRST: Final = DISCO_MAGIC[0]
_DISCO_LENGTH: Final = KEY_LEN + DISCO_MIN_LEN

_MOST_OTHERS: Final = 4096
"""A packet's share of work for each: 26,000 empty frames in one read would stop all for 0.1 s."""

_KNOWN_FRAMES: Final = frozenset(
    {
        FrameType.SEND_PACKET,
        FrameType.NOTE_PREFERRED,
        FrameType.FORWARD_PACKET,
        FrameType.WATCH_CONNS,
        FrameType.CLOSE_PEER,
        FrameType.PING,
    }
)


def receive(  # noqa: C901 (a call a read would cost as much as a packet)
    router: Router, connection: Connection, data: bytearray, view: memoryview, end: int
) -> int:
    """Relay what a connection sent. The buffer is overwritten.

    Args:
        data: the bytes, from the start of a frame.
        view: a memoryview of `data`.
        end: how many of them there are.

    Returns:
        how many were used up; the rest is an incomplete frame.

    Raises:
        RemoteProtocolError: the client broke the protocol. What came before was relayed.
    """
    if connection.skip:
        return _skip(router, connection, data, view, end)
    if connection.is_dup and end >= FRAME_HEADER_LEN:
        router.registry.note_activity(connection)
    unpack = _HEADER_AND_KEY.unpack_from
    pack = _HEADER_AND_KEY.pack_into
    source = connection.key
    pos = others = 0
    while True:
        begin = start = pos
        packets = disco = count = 0
        run_key = b""
        # The only loop that runs once a packet.
        while pos + _PACKET <= end:
            kind, length, key = unpack(data, pos)
            stop = pos + FRAME_HEADER_LEN + length
            if kind != _SEND_PACKET or stop > end or not _MIN_LENGTH <= length <= _MAX_LENGTH:
                break
            if key != run_key:
                if count:
                    _relay_run(router, connection, run_key, bytes(view[start:pos]), count)
                    packets += count
                    count = 0
                run_key = key
                start = pos
            if (
                length >= _DISCO_LENGTH
                and data[pos + _PACKET] == _DISCO_FIRST
                and data.startswith(DISCO_MAGIC, pos + _PACKET)
            ):
                disco += 1
            pack(data, pos, _RECV_PACKET, length, source)
            count += 1
            pos = stop
        if count:
            _relay_run(router, connection, run_key, bytes(view[start:pos]), count)
            packets += count
            size = pos - begin - packets * _PACKET
            counters = router.counters
            counters.packets_received += packets
            counters.bytes_received += size
            counters.disco_received += disco
            connection.packets_received += packets
            connection.bytes_received += size
        if end - pos < FRAME_HEADER_LEN:
            return pos
        stop = _other_frame(router, connection, data, view, pos, end)
        if stop == pos:
            return pos
        pos = stop
        others += 1
        if others > _MOST_OTHERS:
            raise RemoteProtocolError(f"more than {_MOST_OTHERS} frames in one read, no packets")


def receive_runs(
    walk: Walk, router: Router, connection: Connection, data: bytearray, view: memoryview, end: int
) -> int:
    """Relay what a connection sent, as `receive` does, by a loop elsewhere.

    Args:
        walk: rewrites and collects the packets that stand at a position, run by run.
    """
    if connection.skip:
        return _skip(router, connection, data, view, end)
    if connection.is_dup and end >= FRAME_HEADER_LEN:
        router.registry.note_activity(connection)
    pos = others = 0
    while True:
        pos, runs, packets, size, disco = walk(data, pos, end, connection.key)
        if packets:
            for key, run, count in runs:
                _relay_run(router, connection, key, run, count)
            counters = router.counters
            counters.packets_received += packets
            counters.bytes_received += size
            counters.disco_received += disco
            connection.packets_received += packets
            connection.bytes_received += size
        if end - pos < FRAME_HEADER_LEN:
            return pos
        stop = _other_frame(router, connection, data, view, pos, end)
        if stop == pos:
            return pos
        pos = stop
        others += 1
        if others > _MOST_OTHERS:
            raise RemoteProtocolError(f"more than {_MOST_OTHERS} frames in one read, no packets")


def _other_frame(
    router: Router, connection: Connection, data: bytearray, view: memoryview, pos: int, end: int
) -> int:
    """Act on the frame at `pos`, whose header is there; gives where the next one starts.

    That is `pos` itself while bytes are missing, and `end` when the rest is for no one.
    """
    kind, length = HEADER.unpack_from(data, pos)
    check_client_frame_untrusted(kind, length)
    if kind == FrameType.FORWARD_PACKET and not connection.can_mesh:
        router.on_frame(connection, kind, b"")  # refused before its payload is awaited
    start = pos + FRAME_HEADER_LEN
    stop = start + length
    if stop > end:
        if kind in _KNOWN_FRAMES:
            return pos
        # An unknown frame may be 4 GiB long: it is thrown away as it comes.
        router.on_frame(connection, kind, b"")
        connection.skip = stop - end
        return end
    router.on_frame(connection, kind, bytes(view[start:stop]))
    # It may have had itself closed: what stands behind is for no one then.
    return end if connection.has_left else stop


def _relay_run(router: Router, connection: Connection, key: bytes, run: bytes, count: int) -> None:
    """Give `count` neighbouring frames, already RecvPackets, to the destination they share."""
    destination = router.registry.active.get(key)
    if destination is None:
        for frame in split_run(run):
            packet = frame[_PACKET:]
            router.forward_or_drop(connection, key, packet, disco=looks_like_disco(packet))
        return
    told = connection.sent_to
    if told is None or destination not in told:
        connection.sent_to = router.registry.remember(connection.key, destination)
    size = len(run)
    if (
        destination.backlog is None and destination.out_bytes + size <= MAX_UNSENT
    ) or router.make_room(destination, size):
        if not destination.dirty:
            destination.dirty = True
            router.dirty.append(destination)
        destination.out.append(run)
        destination.out_bytes += size
        destination.out_packets += count
        return
    for frame in split_run(run):
        router.enqueue(destination, frame, disco=looks_like_disco(frame[_PACKET:]))


def _skip(
    router: Router, connection: Connection, data: bytearray, view: memoryview, end: int
) -> int:
    skipped = min(connection.skip, end)
    connection.skip -= skipped
    if skipped == end:
        return end
    with view[skipped:end] as rest:
        shifted = bytearray(rest)
    with memoryview(shifted) as shifted_view:
        return skipped + receive(router, connection, shifted, shifted_view, len(shifted))
