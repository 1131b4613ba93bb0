"""A router with a clock that the test sets, and clients whose sockets are lists.

Tests read like traces: `world.send(a, b, b"x")`, `world.flush()`, `world.got(b) == [...]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.relay import lane
from pyderp.relay.backlog import PACKET_OVERHEAD
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.relay.router import Router
from pyderp.wire.frames import (
    DISCO_MAGIC,
    DISCO_MIN_LEN,
    FRAME_HEADER_LEN,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    PeerGoneReason,
    looks_like_disco,
    pack_close_peer,
    pack_forward_packet,
    pack_note_preferred,
    pack_ping,
    pack_send_packet,
    pack_watch_conns,
)
from pyderp.wire.messages import (
    Message,
    PeerGone,
    ReceivedPacket,
    Skipped,
    unpack_message_untrusted,
)

JUNK: Final = b"\x04\x00\x00\x00\x20" * 20
"""Bytes of a receive buffer behind those of a read: they must not be read."""

_LEGAL: Final = {
    FrameType.RECV_PACKET: range(KEY_LEN, KEY_LEN + MAX_PACKET_SIZE + 1),
    FrameType.KEEP_ALIVE: range(1),
    FrameType.PEER_GONE: range(33, 34),
    FrameType.PEER_PRESENT: range(52, 85),
    FrameType.PONG: range(8, 9),
    FrameType.HEALTH: range(2**32),
    FrameType.RESTARTING: range(8, 9),
}
"""Frames that a relay may send after login, and their payload lengths."""


def key(name: str) -> bytes:
    """Return the raw key of a client or relay, made from its name."""
    return (name.encode() * KEY_LEN)[:KEY_LEN]


def public(name: str) -> NodePublic:
    """Return the same key as an object."""
    return NodePublic(key(name))


def disco(mark: bytes = b"") -> bytes:
    """Return a packet that looks like disco, of the minimum length."""
    return DISCO_MAGIC + mark.ljust(DISCO_MIN_LEN - len(DISCO_MAGIC), b"-")


def packet(source: str, data: bytes) -> ReceivedPacket:
    """Return the message that the destination of a packet gets."""
    return ReceivedPacket(public(source), data)


def gone(name: str) -> PeerGone:
    """Return the PeerGone message of a peer that left."""
    return PeerGone(public(name), PeerGoneReason.DISCONNECTED)


def not_here(name: str) -> PeerGone:
    """Return the answer to disco for an unknown key."""
    return PeerGone(public(name), PeerGoneReason.NOT_HERE)


def frames_of(data: bytes) -> Iterator[bytes]:
    """Yield the frames in bytes from the relay; each must be complete, and legal for a server."""
    pos = 0
    while pos < len(data):
        kind, length = HEADER.unpack_from(data, pos)
        assert length in _LEGAL[FrameType(kind)], f"illegal frame: {kind}, {length} bytes"
        stop = pos + FRAME_HEADER_LEN + length
        assert stop <= len(data), "cut frame"
        yield data[pos:stop]
        pos = stop


def message_of(frame: bytes) -> Message:
    """Return the message that a client reads from a frame."""
    message = unpack_message_untrusted(frame[0], frame[FRAME_HEADER_LEN:])
    assert not isinstance(message, Skipped)
    return message


class Peer:
    """A client and its socket, seen from the relay: accepts bytes until it stalls."""

    connection: Connection

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.tail = b""
        """The start of an incomplete frame that the client sent."""
        self.writes: list[bytes] = []
        """Bytes from the relay, one entry for each write."""
        self.unsent = bytearray()
        """Bytes that the transport holds, because the kernel did not accept them."""
        self.room: int | None = None
        """Bytes that the kernel still accepts; `None`: any number."""
        self.blocked = False
        self.left = False
        self.closed: list[str] = []
        """Why the relay closed the connection."""
        self._taken = bytearray()

    @property
    def key(self) -> bytes:
        """The client's raw key."""
        return self.connection.key

    # The relay's side

    def send(self, chunks: list[bytes]) -> bool:
        """Accept frames, like a transport without a write buffer (`Sink`)."""
        assert not self.left, "written to after it left"
        data = b"".join(chunks)
        assert list(frames_of(data)), "an empty write"
        self.writes.append(data)
        self.unsent += data
        self._kernel_takes()
        if self.unsent and not self.blocked:
            self.block(len(self.unsent))
        return True

    def unsent_size(self) -> int:
        """Return the bytes that the kernel did not accept (`Sink`)."""
        return len(self.unsent)

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Leave at once (`Sink`)."""
        if not self.left:
            self.closed.append(detail)
            self.world.leave(self)

    def _kernel_takes(self) -> None:
        size = len(self.unsent) if self.room is None else min(self.room, len(self.unsent))
        if self.room is not None:
            self.room -= size
        self._taken += self.unsent[:size]
        del self.unsent[:size]

    # The client's side

    def stall(self, room: int = 0) -> None:
        """Read no more than `room` bytes; the relay notices at its next write."""
        self.room = room

    def block(self, unsent: int = 0) -> None:
        """Tell the router that the kernel accepts no more."""
        self.room = 0
        self.blocked = True
        self.world.router.pause(self.connection, unsent)

    def read(self, room: int | None = None) -> None:
        """Read again: `room` bytes, or everything."""
        self.room = room
        self._kernel_takes()
        if self.blocked and not self.unsent and room != 0:
            self.blocked = False
            self.world.router.resume(self.connection)

    def frames(self) -> list[bytes]:
        """Return the complete frames that arrived since the last call."""
        whole = 0
        while len(self._taken) - whole >= FRAME_HEADER_LEN:
            stop = whole + FRAME_HEADER_LEN + HEADER.unpack_from(self._taken, whole)[1]
            if stop > len(self._taken):
                break
            whole = stop
        data = bytes(self._taken[:whole])
        del self._taken[:whole]
        return list(frames_of(data))

    def __repr__(self) -> str:
        return f"<Peer {self.name}>"


class World:
    """A router, its clients and the clock.

    Args:
        relaying: the implementation of the lane.
    """

    def __init__(self, relaying: lane.Receive = lane.receive) -> None:
        self.relaying = relaying
        self.now = 1000.0
        self.router = Router(key("relay"), lambda: self.now)
        self.counters = self.router.counters
        self.registry = self.router.registry
        self.peers: list[Peer] = []
        """Clients that have not left."""
        self._joined: list[Connection] = []
        """All connections since the start."""

    # Clients log in, send and leave

    def join(
        self,
        name: str,
        *,
        mesh: bool = False,
        prober: bool = False,
        not_ideal: bool = False,
        address: tuple[str, int] = ("", 0),
    ) -> Peer:
        """Log a client in, with a key made from its name."""
        peer = Peer(self, name)
        peer.connection = Connection(
            key(name),
            peer,
            number=len(self.peers) + 1,
            peer=address,
            connected_at=self.now,
            can_mesh=mesh,
            is_prober=prober,
            not_ideal=not_ideal,
        )
        self.peers.append(peer)
        self._joined.append(peer.connection)
        self.router.login(peer.connection)
        return peer

    def leave(self, peer: Peer) -> None:
        """End a client's connection."""
        peer.left = True
        self.peers.remove(peer)
        self.router.leave(peer.connection)
        self.router.settle(peer.connection, len(peer.unsent))

    def give_up(self, peer: Peer) -> None:
        """Close a client that read no byte for too long."""
        self.router.give_up(peer.connection, len(peer.unsent))
        self.leave(peer)

    def feed(self, peer: Peer, *frames: bytes) -> None:
        """Pass one read from a client; an error ends its connection, as in the server."""
        try:
            self.receive(peer, b"".join(frames))
        except RemoteProtocolError:
            self.leave(peer)
            raise

    def receive(self, peer: Peer, data: bytes) -> None:
        """Pass bytes to the lane, in a buffer that is emptied afterwards."""
        held = peer.tail + data
        buffer = bytearray(held + JUNK)
        with memoryview(buffer) as view:
            used = self.relaying(self.router, peer.connection, buffer, view, len(held))
        assert 0 <= used <= len(held)
        assert buffer[used:] == held[used:] + JUNK, "changed bytes that it did not use"
        peer.tail = held[used:]
        buffer.clear()  # raises if anything still refers to the buffer

    def send(self, source: Peer, destination: Peer | str, *packets: bytes) -> None:
        """Send packets from a client to another, or to a name."""
        name = destination if isinstance(destination, str) else destination.name
        self.feed(source, *(pack_send_packet(public(name), data) for data in packets))

    def forward(self, relay: Peer, source: str, destination: str, *packets: bytes) -> None:
        """Forward packets of a client of another relay."""
        src, dst = public(source), public(destination)
        self.feed(relay, *(pack_forward_packet(src, dst, data) for data in packets))

    def ping(self, peer: Peer, data: bytes = b"12345678") -> None:
        """Send a ping from a client."""
        self.feed(peer, pack_ping(data))

    def prefer(self, peer: Peer, preferred: bool) -> None:
        """Set or clear the relay as home of a client."""
        self.feed(peer, pack_note_preferred(preferred))

    def watch(self, peer: Peer) -> None:
        """Send WatchConns from a mesh peer."""
        self.feed(peer, pack_watch_conns())

    def close_peer(self, peer: Peer, target: str) -> None:
        """Send ClosePeer from a mesh peer."""
        self.feed(peer, pack_close_peer(public(target)))

    # Results

    def flush(self) -> None:
        """End a turn of the loop."""
        self.router.flush()

    def got(self, peer: Peer) -> list[Message]:
        """Return the messages that a client got since the last call, this turn included."""
        self.flush()
        return [message_of(frame) for frame in peer.frames()]

    def drops(self) -> dict[tuple[DropReason, str], tuple[int, int]]:
        """Return all drops so far: (reason, kind) → (packets, bytes)."""
        return {at: (n, size) for at, (n, size) in self.counters.drops.items() if n or size}

    def waiting(self) -> int:
        """Return the number of packets that wait in the relay, or in a transport."""
        total = 0
        for peer in self.peers:
            total += peer.connection.out_packets
            if (backlog := peer.connection.backlog) is not None:
                total += len(backlog.data) + len(backlog.disco) + len(backlog.in_flight)
        return total

    def check(self) -> None:
        """Check that all tables and counters match, and that no packet is lost without a count."""
        self._check_registry()
        self._check_memory()
        self._check_connections()
        counters = self.counters
        arrived = counters.packets_received + counters.packets_forwarded_in
        dropped = sum(self.counters.dropped(reason) for reason in DropReason)
        sent = counters.packets_sent + counters.packets_to_forward
        assert arrived == sent + dropped + self.waiting()

    def _check_connections(self) -> None:
        """The counts of the connections add up to those of the relay."""
        counters = self.counters
        everyone = self._joined
        received = sum(c.packets_received for c in everyone)
        assert received == counters.packets_received + counters.packets_forwarded_in
        assert sum(c.packets_sent for c in everyone) == counters.packets_sent
        assert sum(c.bytes_sent for c in everyone) == counters.bytes_sent

    def _check_registry(self) -> None:
        registry = self.registry
        connections = [peer.connection for peer in self.peers]
        by_key: dict[bytes, list[Connection]] = {}
        for connection in connections:
            by_key.setdefault(connection.key, []).append(connection)
        assert registry.size == len(connections)
        assert registry.not_ideal == sum(c.not_ideal for c in connections)
        assert self.counters.home_connections == sum(c.preferred for c in connections)
        assert registry.active.keys() == by_key.keys()
        for raw, members in by_key.items():
            assert registry.active[raw] in members
            assert registry.connections_of(raw) == members
            assert (raw in registry.duplicates) == (len(members) > 1)
            assert {c.is_dup for c in members} == {len(members) > 1}
        assert registry.duplicates.keys() <= by_key.keys()
        assert set(registry.watchers) <= {c for c in connections if c.can_mesh}
        noted = (*connections, *registry.departed)
        pairs = {(source, c) for c in noted for source in c.received_from or ()}
        assert pairs == {(s, c) for s, targets in registry.sent_to.items() for c in targets}
        assert registry.pairs == len(pairs)
        assert all(c.has_left for c in registry.departed)
        for c in connections:  # the lane's set is the registry's
            assert c.sent_to is None or c.sent_to is registry.sent_to[c.key]
        for source, targets in registry.sent_to.items():
            assert targets or source in by_key or source in self.router.forwarders

    def _check_memory(self) -> None:
        for peer in self.peers:
            if (backlog := peer.connection.backlog) is None:
                continue
            assert backlog.data.size == sum(map(len, backlog.data))
            assert backlog.disco.size == sum(map(len, backlog.disco))
            assert len(backlog.data) <= 32
            assert len(backlog.disco) <= 32
            for frame in backlog.data:
                assert not looks_like_disco(frame[PACKET_OVERHEAD:])
            for frame in backlog.disco:
                assert looks_like_disco(frame[PACKET_OVERHEAD:])
