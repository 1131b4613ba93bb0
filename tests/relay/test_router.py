"""Frames of clients and their answers: packets, pings, homes, NotHere, permissions."""

from __future__ import annotations

import pytest

from pyderp.errors import FrameTooLarge, RemoteProtocolError
from pyderp.relay.counters import DropReason
from pyderp.wire.frames import (
    DISCO_MAGIC,
    MAX_PACKET_SIZE,
    FrameType,
    pack_frame,
    pack_health,
    pack_note_preferred,
    pack_ping,
    pack_restarting,
)
from pyderp.wire.messages import Health, KeepAlive, Pong, Restarting
from tests.relay.world import Peer, World, disco, key, message_of, not_here, packet


class TestPackets:
    """SendPacket to a connected client, or to an unknown key."""

    def test_a_packet_reaches_only_its_destination(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.send(a, b, b"hello")
        assert world.got(b) == [packet("a", b"hello")]
        world.send(b, c, b"on")
        assert world.got(c) == [packet("b", b"on")]
        assert world.got(a) == world.got(b) == world.got(c) == []
        world.check()

    @pytest.mark.parametrize("size", [0, 1, 61, 62, MAX_PACKET_SIZE])
    def test_every_legal_size_is_delivered_also_to_the_own_key(
        self, world: World, size: int
    ) -> None:
        a = world.join("a")
        data = (DISCO_MAGIC + bytes(MAX_PACKET_SIZE))[:size]
        world.send(a, a, data)
        assert world.got(a) == [packet("a", data)]

    def test_packets_and_their_bytes_are_counted_in_both_directions(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"12345", disco(), b"")
        assert world.counters.packets_received == 3
        assert world.counters.bytes_received == 5 + len(disco())
        assert world.counters.disco_received == 1
        assert world.counters.packets_sent == 0, "not before it is written"
        world.flush()
        assert world.counters.packets_sent == 3
        assert world.counters.bytes_sent == 5 + len(disco())

    @pytest.mark.parametrize("data", [b"", b"data", disco(), disco()[:-1], b"X" + disco()])
    def test_a_packet_to_an_unknown_key_is_dropped_and_counted_by_kind(
        self, world: World, data: bytes
    ) -> None:
        a = world.join("a")
        world.send(a, "nobody", data)
        kind = "disco" if data == disco() else "other"
        assert world.drops() == {(DropReason.UNKNOWN_DEST, kind): (1, len(data))}
        assert world.got(a) == ([not_here("nobody")] if kind == "disco" else [])
        world.check()


class TestOneByOne:
    """`on_frame` with a whole SendPacket, which the lane otherwise relays by runs."""

    def test_a_packet_is_relayed_and_counted(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        for data in (b"data", disco()):
            world.router.on_frame(a.connection, FrameType.SEND_PACKET, b.key + data)
        assert world.got(b) == [packet("a", b"data"), packet("a", disco())]
        counters = world.counters
        assert (counters.packets_received, counters.disco_received) == (2, 1)
        assert counters.bytes_received == a.connection.bytes_received == 4 + len(disco())
        assert world.registry.sent_to == {a.key: {b.connection}}
        world.check()

    def test_a_packet_for_an_unknown_key_is_dropped(self, world: World) -> None:
        a = world.join("a")
        world.router.on_frame(a.connection, FrameType.SEND_PACKET, key("x") + disco())
        assert world.drops() == {(DropReason.UNKNOWN_DEST, "disco"): (1, len(disco()))}
        assert world.got(a) == [not_here("x")]
        world.check()


class TestLastFrames:
    """A connection that leaves while its transport stays open until all is written."""

    def leave(self, world: World, peer: Peer) -> list[bytes]:
        words = world.router.leave(peer.connection, write_rest=True)
        world.peers.remove(peer)
        world.router.settle(peer.connection, len(peer.unsent))
        world.check()
        return words

    def test_frames_of_this_turn_are_written_first(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"x")
        world.ping(b)
        assert self.leave(world, b) == []
        assert [message_of(frame) for frame in b.frames()] == [packet("a", b"x"), PONG]
        assert world.drops() == {}

    def test_frames_that_wait_are_returned_and_packets_that_wait_are_dropped(
        self, world: World
    ) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, b"x")
        world.router.send_control(b.connection, pack_health("ill"))
        assert self.leave(world, b) == [pack_health("ill")]
        assert b.writes == []
        assert world.drops() == {(DropReason.GONE_DISCONNECTED, "other"): (1, 1)}


class TestNotHere:
    """The limit of NotHere replies: one a second, three at once, for each connection."""

    def test_a_burst_of_disco_gets_three_replies_whatever_the_destinations(
        self, world: World
    ) -> None:
        a = world.join("a")
        for i in range(6):
            world.send(a, f"x{i}", disco())
        assert world.got(a) == [not_here("x0"), not_here("x1"), not_here("x2")]
        assert world.counters.peer_gone_not_here == 3
        assert world.counters.dropped(DropReason.UNKNOWN_DEST) == 6

    def test_one_more_reply_is_allowed_each_second(self, world: World) -> None:
        a = world.join("a")
        world.send(a, "x", *[disco()] * 4)
        assert len(world.got(a)) == 3
        world.now += 0.75
        world.send(a, "x", disco())
        assert world.got(a) == []
        world.now += 0.25
        world.send(a, "x", disco(), disco())
        assert world.got(a) == [not_here("x")]

    def test_no_more_than_three_replies_are_saved_up(self, world: World) -> None:
        a = world.join("a")
        world.now += 3600
        world.send(a, "x", *[disco()] * 10)
        assert len(world.got(a)) == 3

    def test_each_connection_has_its_own_limit(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, "x", *[disco()] * 10)
        world.send(b, "x", disco())
        assert len(world.got(a)) == 3
        assert world.got(b) == [not_here("x")]

    def test_data_packets_use_no_reply(self, world: World) -> None:
        a = world.join("a")
        world.send(a, "x", *[b"data"] * 10, disco())
        assert world.got(a) == [not_here("x")]


class TestPing:
    """Ping and pong."""

    @pytest.mark.parametrize("size", [8, 9, 1000])
    def test_a_pong_has_the_first_eight_bytes_of_the_ping(self, world: World, size: int) -> None:
        a = world.join("a")
        world.feed(a, pack_frame(FrameType.PING, b"abcdefgh" + bytes(size - 8)))
        assert world.got(a) == [Pong(b"abcdefgh")]

    def test_a_flood_of_pings_gets_one_pong_a_turn_and_keeps_the_connection(
        self, world: World
    ) -> None:
        a = world.join("a")
        for turn in range(3):
            world.feed(a, *(pack_ping(bytes([turn] * 7 + [i % 256])) for i in range(2000)))
            assert world.got(a) == [Pong(bytes([turn] * 7 + [0]))]
        assert world.counters.got_ping == 6000
        assert world.counters.sent_pong == 3

    def test_for_a_client_that_does_not_read_one_pong_waits(self, world: World) -> None:
        a = world.join("a")
        a.block()
        for _ in range(3):
            world.ping(a)
            world.flush()
        a.read()
        assert world.got(a) == [Pong(b"12345678")]
        world.ping(a, b"another!")
        assert world.got(a) == [Pong(b"another!")]


class TestHome:
    """NotePreferred: the gauge of homes, and moves."""

    def test_toggling_is_idempotent_and_leaving_counts_down(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        gauges = []
        for peer, preferred in [(a, True), (a, True), (b, True), (b, False), (b, False), (b, True)]:
            world.prefer(peer, preferred)
            gauges.append(world.counters.home_connections)
        assert gauges == [1, 1, 2, 1, 1, 2]
        world.leave(a)
        assert world.counters.home_connections == 1
        world.leave(b)
        assert world.counters.home_connections == 0
        assert (world.counters.home_moves_in, world.counters.home_moves_out) == (0, 0)

    def test_moves_count_only_later_than_five_seconds_after_login(self, world: World) -> None:
        a = world.join("a")
        moves = []
        for wait, preferred in [(5.0, True), (0.25, False), (1, True), (1, True), (1, False)]:
            world.now += wait
            world.prefer(a, preferred)
            moves.append((world.counters.home_moves_in, world.counters.home_moves_out))
        assert moves == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 2)]

    @pytest.mark.parametrize("value", [1, 2, 0x80, 0xFF])
    def test_any_other_byte_than_zero_means_preferred(self, world: World, value: int) -> None:
        a = world.join("a")
        world.feed(a, pack_frame(FrameType.NOTE_PREFERRED, bytes([value])))
        assert a.connection.preferred
        world.feed(a, pack_frame(FrameType.NOTE_PREFERRED, b"\0"))
        assert not a.connection.preferred


class TestOther:
    """Keep-alive, control frames, unknown frames."""

    def test_a_client_that_does_not_read_gets_no_keep_alive(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.router.keep_alive(a.connection)
        world.router.keep_alive(b.connection)
        assert world.got(a) == [KeepAlive()]
        b.read()
        assert world.got(b) == []

    def test_control_frames_are_sent_and_wait_for_a_stalled_client(self, world: World) -> None:
        a = world.join("a")
        world.router.send_control(a.connection, pack_health("ill"))
        assert world.router.wants_flush
        assert world.got(a) == [Health("ill")]
        assert not world.router.wants_flush
        a.block()
        world.router.send_control(a.connection, pack_restarting(1.0, 60.0))
        assert world.got(a) == []
        a.read()
        assert world.got(a) == [Restarting(1.0, 60.0)]

    def test_unknown_frames_are_only_counted(self, world: World) -> None:
        a = world.join("a")
        for kind in (0, FrameType.RECV_PACKET, FrameType.PONG, FrameType.HEALTH, 0x16, 0xFF):
            world.feed(a, pack_frame(kind, b"whatever"))
        assert world.counters.unknown_frames == 6
        assert world.got(a) == []

    def test_one_turn_is_one_write_for_each_destination(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.send(a, c, b"1", b"2")
        world.send(b, c, b"3")
        world.ping(c)
        assert not c.writes
        assert world.got(c) == [packet("a", b"1"), packet("a", b"2"), packet("b", b"3"), PONG]
        assert len(c.writes) == 1


PONG = Pong(b"12345678")


def frame(kind: int, size: int) -> bytes:
    return pack_frame(kind, bytes(size))


LENGTH_ERRORS = [
    (FrameType.SEND_PACKET, 0, "short send packet frame"),
    (FrameType.SEND_PACKET, 31, "short send packet frame"),
    (FrameType.SEND_PACKET, 65569, "data packet longer (65537) than max of 65536"),
    (FrameType.FORWARD_PACKET, 63, "short forward packet frame"),
    (FrameType.FORWARD_PACKET, 65601, "data packet longer (65537) than max of 65536"),
    (FrameType.NOTE_PREFERRED, 0, "frameNotePreferred wrong size: 0, want 1"),
    (FrameType.NOTE_PREFERRED, 2, "frameNotePreferred wrong size: 2, want 1"),
    (FrameType.WATCH_CONNS, 1, "handleFrameWatchConns wrong size: 1, want 0"),
    (FrameType.CLOSE_PEER, 31, "handleFrameClosePeer wrong size: 31, want 32"),
    (FrameType.CLOSE_PEER, 33, "handleFrameClosePeer wrong size: 33, want 32"),
    (FrameType.PING, 7, "short ping: 7"),
    (FrameType.PING, 1001, "ping body too large: 1001"),
]


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize(("kind", "size", "text"), LENGTH_ERRORS)
def test_an_illegal_length_ends_the_connection(
    world: World, kind: FrameType, size: int, text: str, mesh: bool
) -> None:
    a = world.join("a", mesh=mesh)
    with pytest.raises(RemoteProtocolError) as caught:
        world.feed(a, frame(kind, size))
    assert str(caught.value) == text
    assert caught.value.frame_type == kind
    assert isinstance(caught.value, FrameTooLarge) == text.startswith("data packet longer")
    assert a.writes == []
    world.check()


@pytest.mark.parametrize(
    ("kind", "size"),
    [(FrameType.WATCH_CONNS, 0), (FrameType.CLOSE_PEER, 32), (FrameType.FORWARD_PACKET, 64)],
)
def test_mesh_frames_need_the_mesh_key(world: World, kind: FrameType, size: int) -> None:
    a, b = world.join("a"), world.join("\0")
    with pytest.raises(
        RemoteProtocolError, match=r"^insufficient permissions: .* mesh key may$"
    ) as caught:
        world.feed(a, frame(kind, size))
    assert caught.value.frame_type == kind
    assert a.writes == b.writes == []
    assert b.closed == []
    assert world.registry.active == {b.key: b.connection}
    world.feed(world.join("relay 2", mesh=True), frame(kind, size))
    world.check()


def test_frames_before_an_error_count(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    with pytest.raises(RemoteProtocolError):
        world.feed(a, pack_frame(4, b.key + b"last words"), pack_note_preferred(True), b"\x12" * 5)
    assert world.got(b)[0] == packet("a", b"last words")
    assert world.counters.home_connections == 0
    assert key("a") not in world.registry.active
    world.check()
