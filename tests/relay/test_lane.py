"""The fast lane: runs of packets, incomplete frames, skipped frames, activity.

That it delivers what the plain path does, for any stream: `tests/property/test_lane_properties.py`.
"""

from __future__ import annotations

import pytest

from pyderp.errors import FrameTooLarge, RemoteProtocolError
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MeshLink
from pyderp.wire.frames import (
    DISCO_MAGIC,
    MAX_PACKET_SIZE,
    FrameType,
    frame_header,
    pack_close_peer,
    pack_forward_packet,
    pack_frame,
    pack_note_preferred,
    pack_ping,
    pack_send_packet,
    pack_watch_conns,
)
from pyderp.wire.messages import PeerPresent, Pong
from tests.relay.lanes import LANES
from tests.relay.world import World, disco, key, packet, public


@pytest.fixture(params=LANES)
def world(request: pytest.FixtureRequest) -> World:
    """A relay without clients, for each implementation of the lane."""
    return World(LANES[request.param])


def send(name: str, data: bytes) -> bytes:
    return pack_send_packet(public(name), data)


def recv(name: str, data: bytes) -> bytes:
    return pack_frame(FrameType.RECV_PACKET, key(name) + data)


class TestRuns:
    """Neighbouring packets to one destination are forwarded as one slice."""

    def test_each_run_is_one_slice_in_the_order_of_arrival(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.feed(a, *(send(n, b"%d" % i) for i, n in enumerate("bbbccb")))
        runs = [recv("a", b"0") + recv("a", b"1") + recv("a", b"2"), recv("a", b"5")]
        assert b.connection.out == runs
        assert c.connection.out == [recv("a", b"3") + recv("a", b"4")]
        assert (b.connection.out_packets, c.connection.out_packets) == (4, 2)
        assert b.connection.out_bytes == sum(map(len, runs))
        assert world.router.dirty == [b.connection, c.connection]
        world.flush()
        assert b.writes == [b"".join(runs)]
        world.check()

    def test_an_empty_packet_is_part_of_its_run(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"", b"x", b"")
        assert b.connection.out == [recv("a", b"") + recv("a", b"x") + recv("a", b"")]

    def test_another_frame_ends_a_run_and_the_next_starts_behind_it(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.feed(a, send("b", b"1"), pack_ping(b"12345678"), send("b", b"2"), send("b", b"3"))
        assert b.connection.out == [recv("a", b"1"), recv("a", b"2") + recv("a", b"3")]
        assert world.got(a) == [Pong(b"12345678")]

    def test_runs_of_several_senders_are_one_write(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.send(a, c, b"1", b"2")
        world.send(b, c, b"3")
        assert world.got(c) == [packet("a", b"1"), packet("a", b"2"), packet("b", b"3")]
        assert len(c.writes) == 1

    @pytest.mark.parametrize(
        ("data", "is_disco"),
        [
            (disco(), True),
            (disco() + bytes(1000), True),
            (disco()[:-1], False),
            (DISCO_MAGIC[:-1] + b"x" + bytes(100), False),
            (DISCO_MAGIC[:1] + bytes(100), False),
            (b"x" + disco(), False),
            (DISCO_MAGIC, False),
            (b"", False),
        ],
    )
    def test_disco_is_counted_by_magic_and_length(
        self, world: World, data: bytes, is_disco: bool
    ) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"other", data, b"other")
        assert world.counters.disco_received == is_disco
        world.flush()
        b.block()
        world.send(a, b, data)
        assert b.connection.backlog is not None
        assert len(b.connection.backlog.disco) == is_disco

    def test_the_destination_of_a_run_is_remembered_once(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.feed(a, *(send(name, b"x") for name in "bcbcb"))
        assert a.connection.sent_to == {b.connection, c.connection}
        assert a.connection.sent_to is world.registry.sent_to[a.key]

    def test_a_destination_may_leave_between_two_runs_of_one_read(self, world: World) -> None:
        r, b = world.join("r", mesh=True), world.join("b")
        world.feed(r, send("b", b"1"), pack_close_peer(public("b")), send("b", b"22"))
        assert b.closed
        assert world.drops() == {
            (DropReason.GONE_DISCONNECTED, "other"): (1, 1),
            (DropReason.UNKNOWN_DEST, "other"): (1, 2),
        }
        world.check()

    def test_runs_to_another_relay_are_cut_and_rewritten(self, world: World) -> None:
        link, a = MeshLink(lambda: None), world.join("a")
        link.connected = True
        world.router.add_forwarder(key("far"), link)
        data = [b"x", disco(), b"", bytes(MAX_PACKET_SIZE)]
        world.send(a, "far", *data)
        assert link.take() == [pack_forward_packet(public("a"), public("far"), d) for d in data]
        assert world.counters.packets_to_forward == 4


STREAM = [
    send("b", b""),
    send("b", b"data"),
    pack_ping(b"12345678"),
    send("b", disco()),
    pack_frame(0x77, b"unknown"),
    pack_note_preferred(True),
    send("a", bytes(300)),
]


class TestCuts:
    """A read may end at any byte."""

    def test_a_stream_cut_at_any_offset_is_the_same_stream(self) -> None:
        stream = b"".join(STREAM)
        for cut in range(len(stream) + 1):
            world = World()
            a, b = world.join("a"), world.join("b")
            world.feed(a, stream[:cut])
            world.feed(a, stream[cut:])
            assert a.tail == b""
            assert world.got(b) == [packet("a", d) for d in (b"", b"data", disco())]
            assert world.got(a) == [Pong(b"12345678"), packet("a", bytes(300))]
            assert world.counters.unknown_frames == 1
            assert world.counters.home_connections == 1
            world.check()

    def test_byte_by_byte_is_the_same_stream_too(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        for byte in b"".join(STREAM):
            world.feed(a, bytes([byte]))
        assert world.got(b) == [packet("a", d) for d in (b"", b"data", disco())]
        assert world.got(a) == [Pong(b"12345678"), packet("a", bytes(300))]
        assert world.counters.packets_received == 4
        assert world.counters.unknown_frames == 1

    @pytest.mark.parametrize("frame", [*STREAM[:4], *STREAM[5:]])
    def test_an_incomplete_frame_is_kept_unchanged(self, world: World, frame: bytes) -> None:
        a, b = world.join("a"), world.join("b")
        for size in range(len(frame)):
            world.feed(a, frame[:size])
            assert a.tail == frame[:size]
            a.tail = b""
            world.feed(a, send("b", b"x"), frame[:size])
            assert a.tail == frame[:size]
            a.tail = b""
        assert world.counters.packets_received == len(frame)
        assert world.got(a) == []
        assert len(world.got(b)) == len(frame)

    def test_an_empty_read_uses_no_byte(self, world: World) -> None:
        a = world.join("a")
        world.feed(a, b"")
        assert a.tail == b""


class TestSkip:
    """Unknown frames are discarded as they arrive, up to the length of the largest packet."""

    @pytest.mark.parametrize("kind", [0xFE, 0x77, 0x13, 0x02, 0x05, 0x14])
    def test_the_longest_unknown_frame_is_skipped_and_not_kept(
        self, world: World, kind: int
    ) -> None:
        a, b = world.join("a"), world.join("b")
        world.feed(a, send("b", b"before"), frame_header(kind, 65568))
        assert (a.tail, a.connection.skip) == (b"", 65568)
        world.feed(a, bytes(60_000))
        assert (a.tail, a.connection.skip) == (b"", 5568)
        world.feed(a, bytes(5568) + send("a", b"behind"))
        assert world.counters.unknown_frames == 1
        assert world.got(b) == [packet("a", b"before")]
        assert world.got(a) == [packet("a", b"behind")]

    @pytest.mark.parametrize("kind", [0xFE, 0x77, 0x13, 0x02, 0x05, 0x14])
    @pytest.mark.parametrize("length", [65569, 2**20, 2**32 - 1])
    def test_a_longer_unknown_frame_ends_the_connection_at_its_header(
        self, world: World, kind: int, length: int
    ) -> None:
        a, b = world.join("a"), world.join("b")
        with pytest.raises(FrameTooLarge) as caught:
            world.feed(a, send("b", b"before"), frame_header(kind, length))
        assert str(caught.value) == f"unknown frame type {kind} too large: {length} bytes"
        assert world.got(b)[0] == packet("a", b"before")

    @pytest.mark.parametrize("first", [5, 6, 40, 104])
    def test_frames_behind_a_skipped_one_are_relayed(self, world: World, first: int) -> None:
        a, b = world.join("a"), world.join("b")
        stream = pack_frame(0x77, send("b", b"inside").ljust(100, b"\x04"))
        world.feed(a, stream[:first])
        half = send("b", b"cut")[:-1]
        world.feed(a, stream[first:] + send("b", b"1") + send("b", b"2") + half)
        assert a.connection.skip == 0
        assert a.tail == half
        world.feed(a, b"t")
        assert world.got(b) == [packet("a", d) for d in (b"1", b"2", b"cut")]
        assert world.counters.unknown_frames == 1
        world.check()

    def test_a_skipped_frame_may_end_with_the_read(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.feed(a, frame_header(0x77, 10))
        world.feed(a, bytes(10))
        world.send(a, b, b"x")
        assert world.got(b) == [packet("a", b"x")]

    def test_two_frames_in_a_row_are_skipped(self, world: World) -> None:
        a = world.join("a")
        world.feed(a, frame_header(0x77, 10))
        world.feed(a, bytes(10) + frame_header(0x78, 7) + b"x")
        assert a.connection.skip == 6
        world.feed(a, bytes(6) + pack_frame(0x79))
        assert world.counters.unknown_frames == 3

    def test_an_error_behind_a_skipped_frame_is_raised(self, world: World) -> None:
        a = world.join("a")
        world.feed(a, frame_header(0x77, 10))
        with pytest.raises(RemoteProtocolError, match="short ping: 0"):
            world.feed(a, bytes(10) + pack_frame(FrameType.PING))


class TestRefusals:
    """Illegal frames are refused at their header."""

    @pytest.mark.parametrize(
        ("header", "text"),
        [
            (frame_header(FrameType.SEND_PACKET, 31), "short send packet frame"),
            (frame_header(FrameType.SEND_PACKET, 2**32 - 1), "data packet longer"),
            (frame_header(FrameType.FORWARD_PACKET, 65601), "data packet longer"),
            (frame_header(FrameType.FORWARD_PACKET, 100), "insufficient permissions"),
            (frame_header(FrameType.PING, 1001), "ping body too large"),
            (frame_header(FrameType.CLOSE_PEER, 2**31), "handleFrameClosePeer wrong size"),
            (frame_header(FrameType.WATCH_CONNS, 1), "handleFrameWatchConns wrong size"),
            (frame_header(FrameType.NOTE_PREFERRED, 2), "frameNotePreferred wrong size"),
        ],
    )
    def test_frames_before_the_header_count_and_the_payload_is_not_awaited(
        self, world: World, header: bytes, text: str
    ) -> None:
        a, b = world.join("a"), world.join("b")
        with pytest.raises(RemoteProtocolError, match=text):
            world.feed(a, send("b", b"1") + send("b", b"2") + header)
        assert world.got(b)[:2] == [packet("a", b"1"), packet("a", b"2")]
        assert world.counters.packets_received == 2
        world.check()

    def test_the_largest_packet_passes_and_one_byte_more_does_not(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        largest = bytes(MAX_PACKET_SIZE)
        world.send(a, b, largest)
        assert world.got(b) == [packet("a", largest)]
        with pytest.raises(RemoteProtocolError, match=r"longer \(65537\) than max of 65536"):
            world.feed(a, pack_frame(FrameType.SEND_PACKET, b.key + largest + b"x"))

    def test_mesh_frames_of_a_mesh_peer_may_be_cut_anywhere(self, world: World) -> None:
        r, a = world.join("r", mesh=True), world.join("a")
        frames = pack_forward_packet(public("far"), public("a"), b"x") + pack_watch_conns()
        for byte in frames:
            world.feed(r, bytes([byte]))
        assert world.got(a) == [packet("far", b"x")]
        assert [type(message) for message in world.got(r)] == [PeerPresent, PeerPresent]


class TestActivity:
    """Of several connections of a key, the last that sent a frame gets its packets."""

    @pytest.mark.parametrize(
        "frame",
        [
            pack_frame(0x77),
            pack_ping(b"12345678"),
            pack_note_preferred(False),
            send("nobody", b""),
            frame_header(FrameType.SEND_PACKET, 1000),
        ],
    )
    def test_a_header_of_any_frame_is_activity(self, world: World, frame: bytes) -> None:
        a1, a2 = world.join("a"), world.join("a")
        world.feed(a1, frame)
        assert world.registry.active == {a1.key: a1.connection}
        world.feed(a2, frame[:4])
        assert world.registry.active == {a1.key: a1.connection}, "half a header is no activity"
        world.feed(a2, frame[4:])
        assert world.registry.active == {a1.key: a2.connection}

    def test_bytes_inside_a_skipped_frame_do_not_count_as_activity(self, world: World) -> None:
        a1, a2 = world.join("a"), world.join("a")
        world.feed(a1, frame_header(0x77, 200))
        world.feed(a2, pack_frame(0x77))
        world.feed(a1, bytes(100))
        assert world.registry.active == {a1.key: a2.connection}
        world.feed(a1, bytes(100) + pack_frame(0x77))
        assert world.registry.active == {a1.key: a1.connection}

    def test_a_packet_to_the_own_key_returns_to_the_connection_that_sent_it(
        self, world: World
    ) -> None:
        a1, a2 = world.join("a"), world.join("a")
        world.send(a1, "a", b"x")
        assert world.got(a1) == [packet("a", b"x")]
        assert world.got(a2) == []


def test_only_the_given_bytes_of_a_buffer_are_read(world: World) -> None:
    """The buffer is shared, and larger than one read."""
    a, b = world.join("a"), world.join("b")
    data = bytearray(send("b", b"1") + send("b", b"2"))
    with memoryview(data) as view:
        for end in range(len(data) // 2, len(data)):
            fresh = send("b", b"1") + send("b", b"2")
            data[:] = fresh
            assert world.relaying(world.router, a.connection, data, view, end) == len(data) // 2
            assert data[len(data) // 2 :] == fresh[len(data) // 2 :]
    assert set(map(repr, world.got(b))) == {repr(packet("a", b"1"))}


def test_too_many_frames_without_packets_end_the_connection(world: World) -> None:
    client = world.join("a")
    unknown = b"\x7f\0\0\0\0"
    world.feed(client, unknown * 4096)
    with pytest.raises(RemoteProtocolError, match="no packets"):
        world.feed(client, unknown * 4097)


def test_received_bytes_are_those_of_the_packets_alone(world: World) -> None:
    """Without headers and keys, for the relay and for the connection, over all reads."""
    a, b, c = (world.join(name) for name in "abc")
    world.feed(a, send("b", bytes(10)), pack_ping(b"12345678"), send("c", b""), send("c", bytes(5)))
    world.feed(a, send("b", bytes(1000)))
    world.feed(c, send("b", bytes(7)))
    received = [(p.connection.packets_received, p.connection.bytes_received) for p in (a, b, c)]
    assert received == [(4, 1015), (0, 0), (1, 7)]
    assert (world.counters.packets_received, world.counters.bytes_received) == (5, 1022)
