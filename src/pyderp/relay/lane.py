"""The fast lane: relays the packets of one read, run by run.

A relayed frame keeps its length: SendPacket is `04 ‖ length ‖ destination ‖ packet`,
RecvPacket is `05 ‖ length ‖ source ‖ packet`. So type and key are overwritten in the
receive buffer and the frame is ready to go. Neighbouring frames to one destination
are a run and leave as one slice: one copy, one look-up, one write. Only the inner loop runs once
a packet, so a change belongs outside of it whenever a run can share the work. That loop is in
`receive`, and in `walk` of the native part, which `receive_runs` calls.

`tests/property/test_lane_properties.py` proves that it delivers what `Router.on_frame`
does frame by frame. Run `bench/` before and after every change here.
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
"""Offset of the packet in a frame."""
_DISCO_FIRST: Final = DISCO_MAGIC[0]
_DISCO_LENGTH: Final = KEY_LEN + DISCO_MIN_LEN

_MOST_OTHERS: Final = 4096
"""Non-packet frames allowed per read. Without a limit one read could hold 26,000 and block the
loop for 0.1 s."""

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
    """Relay the frames of one read. The buffer is overwritten.

    Args:
        data: the receive buffer; it begins with the start of a frame.
        view: a memoryview of `data`.
        end: number of bytes in it.

    Returns:
        the number of bytes that were used; the rest is an incomplete frame.

    Raises:
        RemoteProtocolError: the client broke the protocol. The frames before were relayed.
    """
    if connection.skip:
        return _skip(router, connection, data, view, end)
    # Of several connections with one key the last to send gets its packets; a read is enough.
    if connection.is_dup and end >= FRAME_HEADER_LEN:
        router.registry.note_activity(connection)
    # Bound here, so that they are looked up once a read and not once a packet.
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
            # Whatever is not a whole SendPacket of an allowed size is left to `_other_frame`.
            if kind != _SEND_PACKET or stop > end or not _MIN_LENGTH <= length <= _MAX_LENGTH:
                break
            if key != run_key:
                if count:  # another destination: the run before is complete
                    _relay_run(router, connection, run_key, bytes(view[start:pos]), count)
                    packets += count
                    count = 0
                run_key = key
                start = pos
            # Nearly all packets are WireGuard's: comparing one byte first saves a call for them.
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
            # Once a read, not once a packet: all that stands from `begin` to `pos` is packets.
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
    """Relay the frames of one read as `receive` does, with the loop over packets in `walk`.

    Args:
        walk: rewrites the packets from a position on in place; returns where it stopped and the
            runs (`pyderp.native.Walk`).
    """
    if connection.skip:
        return _skip(router, connection, data, view, end)
    if connection.is_dup and end >= FRAME_HEADER_LEN:
        router.registry.note_activity(connection)
    pos = others = 0
    while True:
        # The counting below repeats that of `receive`: sharing it would cost a call a read.
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
    """Act on the frame at `pos`, whose header is complete; return where the next one starts.

    Returns `pos` while bytes of the frame are missing, and `end` if the rest is to be discarded.
    """
    kind, length = HEADER.unpack_from(data, pos)
    check_client_frame_untrusted(kind, length)
    if kind == FrameType.FORWARD_PACKET and not connection.can_mesh:
        router.on_frame(connection, kind, b"")  # raises before the payload is waited for
    start = pos + FRAME_HEADER_LEN
    stop = start + length
    if stop > end:
        if kind in _KNOWN_FRAMES:
            return pos
        # An unknown frame may be 4 GiB long: its bytes are discarded as they arrive.
        router.on_frame(connection, kind, b"")
        connection.skip = stop - end
        return end
    router.on_frame(connection, kind, bytes(view[start:stop]))
    # The frame may have ended this very connection (ClosePeer): the rest is then discarded.
    return end if connection.has_left else stop


def _relay_run(router: Router, connection: Connection, key: bytes, run: bytes, count: int) -> None:
    """Pass on a run of `count` frames, which are RecvPackets already, to its destination."""
    destination = router.registry.active.get(key)
    if destination is None:
        # No client here has the key. Each packet may have a reason of its own to be dropped.
        for frame in split_run(run):
            packet = frame[_PACKET:]
            router.forward_or_drop(connection, key, packet, disco=looks_like_disco(packet))
        return
    # A set that the connection holds itself: in the registry it would be a second look-up.
    destinations = connection.sent_to
    if destinations is None or destination not in destinations:
        connection.sent_to = router.registry.remember(connection.key, destination)
    size = len(run)
    # The first half is what `make_room` checks first; here it saves the call.
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
    # The socket is full: the queues hold single frames, so that the oldest can be dropped.
    for frame in split_run(run):
        router.enqueue(destination, frame, disco=looks_like_disco(frame[_PACKET:]))


def _skip(
    router: Router, connection: Connection, data: bytearray, view: memoryview, end: int
) -> int:
    skipped = min(connection.skip, end)
    connection.skip -= skipped
    if skipped == end:
        return end
    # `receive` expects a frame at the start of the buffer. This copy is made once a skipped frame.
    with view[skipped:end] as rest:
        shifted = bytearray(rest)
    with memoryview(shifted) as shifted_view:
        return skipped + receive(router, connection, shifted, shifted_view, len(shifted))
