"""Frames after login, as a relay reads them: `pyderp.relay.lane`, by each of its loops.

An input is a script for six connections that are logged in: which one sends which bytes in which
chunks, whose socket is full, which one leaves. Every script is played by the fast lane, also with
the native walk if that is installed, and frame by frame, and every way must send each connection
the same bytes. At the end all connections leave, and the router must hold nothing of them.

A step is one byte and its arguments: the low three bits are the connection, the high five the kind.

    0-15   feed    length u16 ‖ bytes       one read of a socket
    16-17  fill    length u16               one read of so many bytes 04
    18-19  repeat  times u8 ‖ length u16 ‖ bytes
    20     pause   u8                       the kernel takes no more, and holds u8 KiB
    21     resume
    22     block                            the kernel takes the next write in part only
    23     leave
    24     join                             log in again
    25     keep-alive
    26     wait    u8                       tenths of a second
    27     claim                            another relay announces this connection's key, too
    28     unclaim
    29-31  flush                            a turn of the loop ends
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from pyderp.defaults import SEND_QUEUE_BYTES, SEND_QUEUE_DEPTH
from pyderp.errors import RemoteProtocolError
from pyderp.native import NativeUse, load
from pyderp.relay import lane
from pyderp.relay.backlog import MAX_UNSENT, PACKET_OVERHEAD
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.counters import Counters, DropReason
from pyderp.relay.router import Router
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    check_client_frame_untrusted,
)
from pyderp.wire.websocket import MAX_RECEIVED_MESSAGE

__all__ = ["KEYS", "TOKENS", "one_input"]

KEYS: Final = tuple(bytes((n,)) * 32 for n in (0x10, 0x20, 0x30, 0x30, 0x40, 0x50))
"""The connections' keys: two connections share one. The last two have mesh rights."""
OWN_KEY: Final = b"\x50" * 32
"""The relay's own key, which the last connection has: a relay may be in its own mesh list."""
_MESH: Final = (4, 5)
_REMOTE: Final = b"\x60" * 32

_MAX_FED: Final = 320 * 1024
"""Bytes fed in one script: enough to fill every queue, and few enough to stay fast."""
_FILLING: Final = b"\4"
"""Repeated, it is an illegal frame where one should begin; zeros would be thousands of empty
frames."""
_MAX_READ: Final = MAX_RECEIVED_MESSAGE
"""Bytes that the relay reads at once: half as many from a socket, all these from a websocket."""
_MAX_STEPS: Final = 400
_LARGEST: Final = FRAME_HEADER_LEN + 64 + MAX_PACKET_SIZE

TOKENS: Final = (
    *dict.fromkeys(KEYS),
    _REMOTE,
    *(bytes((kind, 0, 0, 0)) for kind in FrameType),
    b"\x04\0\0\0\x20",
    b"\x04\0\1\0\x20",
    b"\x04\0\1\0\x21",
    b"\x0a\0\0\0\x40",
    b"\x07\0\0\0\x01\x01",
    b"\x10\0\0\0\0",
    b"\x11\0\0\0\x20",
    b"\x12\0\0\0\x08",
    b"\x12\0\0\x03\xe8",
    b"\xff\xff\xff\xff\xff",
    "TS💬".encode(),
)

_LEGAL: Final = {
    FrameType.RECV_PACKET: range(32, 32 + MAX_PACKET_SIZE + 1),
    FrameType.KEEP_ALIVE: range(1),
    FrameType.PEER_GONE: range(33, 34),
    FrameType.PEER_PRESENT: range(52, 53),
    FrameType.PONG: range(8, 9),
}
"""The frames that a relay may send after login, and their lengths."""


class Peer:
    """A connection and its socket, as `pyderp.server.conn.protocol` would have them."""

    def __init__(self, router: Router, number: int, now: float) -> None:
        self.router = router
        self.got = bytearray()
        self.tail = b""
        self.is_open = True
        self.blocks = False
        self.held = 0
        self.ended = ""
        self.connection = Connection(
            KEYS[number],
            self,
            number=number,
            peer=("192.0.2.1", 1000 + number),
            connected_at=now,
            can_mesh=number in _MESH,
            not_ideal=number == 1,
        )
        router.login(self.connection)

    def send(self, chunks: list[bytes]) -> bool:
        """Take frames (`Sink`), and check that each is whole and legal."""
        assert self.is_open, "written to after it left"
        data = b"".join(chunks)
        pos = 0
        while pos < len(data):
            assert len(data) - pos >= FRAME_HEADER_LEN, "a header is cut"
            kind, length = HEADER.unpack_from(data, pos)
            assert kind in _LEGAL, f"frame type {kind:#x} sent to a client"
            assert length in _LEGAL[kind], f"frame of type {kind:#x} and length {length} sent"
            pos += FRAME_HEADER_LEN + length
        assert pos == len(data), "a frame is cut"
        self.got += data
        if self.blocks:
            self.blocks = False
            self.held = len(data)
            self.router.pause(self.connection, len(data))
        return True

    def unsent_size(self) -> int:
        """Returns the size of the write that blocked (`Sink`)."""
        return self.held

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Leave now (`Sink`)."""
        if self.is_open:
            self.is_open = False
            self.ended = detail
            self.tail = b""
            self.router.leave(self.connection)
            self.router.settle(self.connection, self.held)

    def check_queues(self) -> None:
        """Check that the queues for this connection are within their bounds."""
        connection = self.connection
        # Frames that are no packets come on top, one for each event that caused them.
        assert connection.out_bytes <= MAX_UNSENT
        backlog = connection.backlog
        if backlog is not None:
            assert len(backlog.data) <= SEND_QUEUE_DEPTH
            assert len(backlog.disco) <= SEND_QUEUE_DEPTH
            assert backlog.data.size == sum(map(len, backlog.data))
            assert backlog.disco.size == sum(map(len, backlog.disco))
            assert backlog.data.size + backlog.disco.size <= SEND_QUEUE_BYTES
            unsent = connection.sink.unsent_size()
            assert all(behind < unsent for behind, _, _ in backlog.in_flight)


class FastReader:
    """Reads with the fast lane.

    Args:
        receive: one of the lane's loops.
    """

    def __init__(self, receive: lane.Receive) -> None:
        self._receive = receive

    def read(self, peer: Peer, data: bytes) -> bytes:
        """Read what arrived; returns the bytes of an incomplete frame."""
        buffer = bytearray(data)
        with memoryview(buffer) as view:
            used = self._receive(peer.router, peer.connection, buffer, view, len(buffer))
        assert 0 <= used <= len(data)
        if peer.is_open:
            assert buffer[used:] == data[used:], "bytes not used up were changed"
            assert len(data) - used < _LARGEST, "more than one frame is held"
        return bytes(buffer[used:])


class PlainReader:
    """Reads frame by frame: what the lane must do, without its optimizations."""

    @staticmethod
    def read(peer: Peer, data: bytes) -> bytes:
        """Read what arrived; returns the bytes of an incomplete frame."""
        connection, router = peer.connection, peer.router
        pos = min(connection.skip, len(data))
        connection.skip -= pos
        if connection.is_dup and len(data) - pos >= FRAME_HEADER_LEN:
            router.registry.note_activity(connection)
        while peer.is_open and len(data) - pos >= FRAME_HEADER_LEN:
            kind, length = HEADER.unpack_from(data, pos)
            check_client_frame_untrusted(kind, length)
            if kind == FrameType.FORWARD_PACKET and not connection.can_mesh:
                router.on_frame(connection, kind, b"")  # refused before its payload has come
            stop = pos + FRAME_HEADER_LEN + length
            if stop > len(data) and kind in lane._KNOWN_FRAMES:
                break
            router.on_frame(connection, kind, data[pos + FRAME_HEADER_LEN : stop])
            connection.skip = max(0, stop - len(data))
            pos = stop
        return data[pos:]


class Link:
    """Another relay of the mesh, which takes two packets of three."""

    def __init__(self) -> None:
        self.packets = 0

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        """Take a packet (`Forwarder`)."""
        assert len(src) == len(dst) == 32
        assert len(packet) <= MAX_PACKET_SIZE
        self.packets += 1
        return DropReason.MESH_LINK_FULL if self.packets % 3 == 0 else None


def _lanes() -> list[lane.Receive]:
    native = load(NativeUse.AUTO)
    return [
        lane.receive,
        *([] if native is None else [partial(lane.receive_runs, native.walk)]),
    ]


_LANES: Final = _lanes()


class World:
    """A router and six connections."""

    def __init__(self, reader: FastReader | PlainReader) -> None:
        self.now = 0.0
        self.router = Router(OWN_KEY, lambda: self.now)
        self.reader = reader
        self.link = Link()
        self.router.add_forwarder(_REMOTE, self.link)
        self.past: list[Peer] = []
        self.peers = [Peer(self.router, number, 0.0) for number in range(len(KEYS))]
        self.fed = 0
        self.steps = 0
        self.since_flush = 0
        self.is_exact = True

    def feed(self, index: int, data: bytes) -> None:
        """Have the relay read these bytes from a socket."""
        peer = self.peers[index]
        if not peer.is_open:
            return
        self.fed += len(data)
        data = peer.tail + data
        if self.since_flush + len(data) > MAX_UNSENT:
            self._flush()
        self.since_flush += len(data)
        size = self.router.registry.size
        try:
            tail = self.reader.read(peer, data)
        except RemoteProtocolError as e:
            peer.end(EndReason.PROTOCOL_ERROR, How.NOW, str(e))
            tail = b""
        if peer.is_open:
            peer.tail = tail
        if len(data) > MAX_UNSENT:
            # What such a read causes is written in parts, cut between runs or between frames. If
            # a connection left in the middle, it did not get the same bytes in both ways.
            self.is_exact = self.is_exact and self.router.registry.size == size
            self.check_queues()
            self._flush()

    def check_queues(self) -> None:
        """Check that all queues are within their bounds."""
        for peer in self.peers:
            peer.check_queues()

    def _flush(self) -> None:
        self.since_flush = 0
        self.router.flush()

    def step(self, what: int, index: int, number: int) -> None:
        """Carry out a step other than bytes."""
        peer = self.peers[index]
        self.steps += 1
        if what == 24 and not peer.is_open:
            self.past.append(peer)
            self.peers[index] = Peer(self.router, index, self.now)
        elif what == 26:
            self.now += number / 10
        elif what == 27:
            self.router.add_forwarder(KEYS[index], self.link)
        elif what == 28:
            self.router.remove_forwarder(KEYS[index], self.link)
        elif what >= 29:
            self._flush()
        elif peer.is_open:
            self._step_of(peer, what, number)

    def _step_of(self, peer: Peer, what: int, number: int) -> None:
        if what == 20:
            # A socket becomes full by a write, so nothing may be left to write before.
            self._flush()
            self.router.pause(peer.connection, number * 1024)
        elif what == 21 and peer.connection.paused:
            self.router.resume(peer.connection)
        elif what == 22:
            peer.blocks = True
            # A socket that becomes full in the middle of a run takes a whole run or nothing with
            # the lane, and single frames without. So different packets may be dropped then.
            self.is_exact = False
        elif what == 23:
            peer.end(EndReason.CLIENT_CLOSED, How.NOW, "left")
        elif what == 25:
            self.router.keep_alive(peer.connection)

    def end(self) -> None:
        """Have all connections leave, and check that the router holds nothing of them."""
        router = self.router
        for peer in self.peers:
            peer.end(EndReason.CLIENT_CLOSED, How.NOW, "left")
            router.remove_forwarder(peer.connection.key, self.link)
        router.remove_forwarder(_REMOTE, self.link)
        router.flush()
        registry = router.registry
        assert not registry.active, "keys are still routed"
        assert not registry.duplicates
        assert not registry.watchers, "a watcher is left"
        assert not registry.sent_to, "senders of a connection that left are still remembered"
        assert not router.forwarders
        assert not router.dirty
        assert registry.size == registry.not_ideal == 0
        assert router.counters.home_connections == 0
        for peer in self.past + self.peers:
            connection = peer.connection
            assert not connection.out
            assert connection.out_bytes == connection.out_packets == 0
            assert not connection.backlog, "a connection that left still has a queue"
        self._check_counters(router.counters)
        self._check_output()

    def _check_counters(self, counters: Counters) -> None:
        dropped = sum(map(counters.dropped, DropReason))
        arrived = counters.packets_received + counters.packets_forwarded_in
        left = counters.packets_sent + counters.packets_to_forward + dropped
        assert arrived == left, f"{arrived} packets came and {left} went"

    def _check_output(self) -> None:
        # In the worst case five bytes, WatchConns, are answered with a frame for each connection,
        # and each login and end is sent to all watchers and all connections with packets of it.
        size = sum(len(peer.got) for peer in self.past + self.peers)
        present = FRAME_HEADER_LEN + 52
        comings = 2 * (len(self.past) + len(self.peers)) + self.steps
        bound = self.fed + (self.fed // FRAME_HEADER_LEN + comings) * len(KEYS) * present
        assert size <= bound, f"{size} bytes out for {self.fed} bytes in"


def _steps(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields the steps: kind, connection, a number, bytes to be fed."""
    pos = fed = 0
    for _ in range(_MAX_STEPS):
        if pos >= len(data):
            return
        what, index = data[pos] >> 3, data[pos] & 7
        pos += 1
        number, chunk = 0, b""
        if what < 20:
            times = 1
            if what >= 18:
                times = int.from_bytes(data[pos : pos + 1])
                pos += 1
            size = int.from_bytes(data[pos : pos + 2])
            pos += 2
            if what in (16, 17):
                chunk = _FILLING * size
            else:
                chunk = data[pos : pos + size] * times
                pos += size
            chunk = chunk[: min(_MAX_READ, _MAX_FED - fed)]
            fed += len(chunk)
        elif what in (20, 26):
            number = int.from_bytes(data[pos : pos + 1])
            pos += 1
        yield what, index % len(KEYS), number, chunk


def _play(world: World, script: list[tuple[int, int, int, bytes]]) -> None:
    for what, index, number, chunk in script:
        if what < 20:
            world.feed(index, chunk)
        else:
            world.step(what, index, number)
        world.check_queues()


def one_input(data: bytes) -> None:
    """Play a script by the fast lane and frame by frame, and compare."""
    script = list(_steps(data))
    plain = World(PlainReader())
    _play(plain, script)
    for receive in _LANES:
        fast = World(FastReader(receive))
        _play(fast, script)
        _compare(fast, plain)
        fast.end()
    plain.end()


def _compare(fast: World, plain: World) -> None:
    # Only the lane limits the frames of one read that are no packets.
    flooded = any("frames in one read" in each.ended for each in fast.past + fast.peers)
    if not fast.is_exact or not plain.is_exact or flooded:
        return
    for a, b in zip(fast.past + fast.peers, plain.past + plain.peers, strict=True):
        assert a.ended == b.ended, f"{a.connection}: {a.ended!r} and {b.ended!r}"
        assert a.tail == b.tail
        assert a.got == b.got, f"{a.connection} got something else"
    for name in Counters.__slots__:
        counts = getattr(fast.router.counters, name), getattr(plain.router.counters, name)
        if isinstance(counts[0], int | list | dict):
            assert counts[0] == counts[1], f"{name}: {counts}"


assert PACKET_OVERHEAD == FRAME_HEADER_LEN + 32
