"""Destinations that do not read: bounded, isolated, and without effect on others."""

from __future__ import annotations

import pytest

from pyderp.defaults import RECEIVE_BUFFER, SEND_QUEUE_BYTES
from pyderp.relay.backlog import MAX_RECV_FRAME, MAX_UNSENT
from pyderp.relay.counters import DropReason
from pyderp.wire.frames import KEEP_ALIVE_FRAME, MAX_PACKET_SIZE, pack_ping, pack_send_packet
from pyderp.wire.messages import Pong, ReceivedPacket
from tests.relay.world import Peer, World, disco, packet, public

FRAME = 5 + 32


def held(peer: Peer) -> int:
    """Return the bytes that the relay and the transport hold for a connection."""
    backlog = peer.connection.backlog
    waiting = 0 if backlog is None else backlog.data.size + backlog.disco.size
    return peer.connection.out_bytes + waiting + len(peer.unsent)


def numbered(*numbers: int) -> list[bytes]:
    return [b"%d" % n for n in numbers]


def data_of(world: World, peer: Peer) -> list[bytes]:
    return [m.data for m in world.got(peer) if isinstance(m, ReceivedPacket)]


def test_a_stalled_client_does_not_delay_others(world: World) -> None:
    """The twin of Go's TestSendFreeze."""
    a, frozen, c = world.join("a"), world.join("frozen"), world.join("c")
    frozen.stall()
    for i in range(500):
        world.send(a, frozen, bytes(1000))
        world.send(a, c, b"%d" % i)
        assert world.got(c) == [packet("a", b"%d" % i)]
    assert world.counters.dropped(DropReason.QUEUE_HEAD) == 500 - 1 - 32
    world.check()


def test_after_a_stall_the_newest_packets_arrive_in_order(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.stall()
    for i in range(100):
        world.send(a, b, b"%d" % i)
        world.flush()
    b.read()
    assert data_of(world, b) == numbered(0, *range(68, 100))
    assert world.drops() == {
        (DropReason.QUEUE_HEAD, "other"): (67, len(b"".join(numbered(*range(1, 68)))))
    }
    world.check()


@pytest.mark.parametrize("flood", [b"data", disco()])
def test_a_flood_of_one_kind_does_not_drop_the_other(world: World, flood: bytes) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    other = disco() if flood == b"data" else b"data"
    world.send(a, b, other)
    world.send(a, b, *[flood] * 1000)
    b.read()
    got = data_of(world, b)
    assert (got.count(other), got.count(flood)) == (1, 32)
    world.check()


@pytest.mark.parametrize("size", [0, 100, 1200, 9000, MAX_PACKET_SIZE])
@pytest.mark.parametrize("in_one_run", [False, True])
def test_memory_for_a_stalled_client_is_bounded(world: World, size: int, in_one_run: bool) -> None:
    a, b = world.join("a"), world.join("b")
    b.stall(100)
    count = RECEIVE_BUFFER // (FRAME + size)
    for _ in range(4):
        for part in [count] if in_one_run else [1] * min(count, 200):
            world.send(a, b, *[bytes(size)] * part)
            assert held(b) <= SEND_QUEUE_BYTES
        world.flush()
        assert held(b) <= SEND_QUEUE_BYTES
        world.check()


def test_bytes_in_the_transport_count_for_the_bound(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    for unsent, fit in [(0, 26), (100_000, 16), (MAX_UNSENT, 6), (10**9, 6)]:
        b.block(unsent)
        world.send(a, b, *[bytes(10_000 - FRAME)] * 32)
        backlog = b.connection.backlog
        assert backlog is not None
        assert backlog.limit == max(SEND_QUEUE_BYTES - unsent, MAX_RECV_FRAME)
        assert len(backlog.data) == fit
        b.read()
    world.check()


def test_a_turn_writes_early_so_that_one_more_packet_can_wait(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    for size in (MAX_PACKET_SIZE, MAX_PACKET_SIZE, MAX_UNSENT - 2 * MAX_RECV_FRAME - FRAME):
        world.send(a, b, bytes(size))
        assert b.writes == []
    assert b.connection.out_bytes == MAX_UNSENT
    world.send(a, b, b"", b"")
    assert [len(write) for write in b.writes] == [MAX_UNSENT], "written early, to make room"
    assert [len(run) for run in b.connection.out] == [2 * FRAME], "the run stays whole"
    assert data_of(world, b)[-2:] == [b"", b""]
    world.check()


def test_forwarded_packets_fill_a_turn_to_the_same_byte(world: World) -> None:
    r, b = world.join("r", mesh=True), world.join("b")
    for size in (MAX_PACKET_SIZE, MAX_PACKET_SIZE, MAX_UNSENT - 2 * MAX_RECV_FRAME - FRAME):
        world.forward(r, "far", "b", bytes(size))
    assert b.connection.out_bytes == MAX_UNSENT
    assert b.writes == []
    world.forward(r, "far", "b", b"")
    assert [len(write) for write in b.writes] == [MAX_UNSENT]
    assert b.connection.out_bytes == FRAME


def test_a_run_larger_than_the_bound_is_sent_in_parts(world: World) -> None:
    """A websocket message may be larger than a read of the socket."""
    a, b, c = world.join("a"), world.join("b"), world.join("c")
    b.stall()
    run = [bytes([i]) * 60_000 for i in range(20)]
    world.send(a, b, *run)
    world.send(a, c, *run)
    assert held(b) <= SEND_QUEUE_BYTES
    assert held(c) <= SEND_QUEUE_BYTES
    world.flush()
    assert held(b) <= SEND_QUEUE_BYTES
    assert data_of(world, c) == run
    b.read()
    assert data_of(world, b) == [*run[:3], *run[-1:]]
    world.check()


def test_the_socket_may_become_full_while_making_room(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.stall(FRAME)
    world.send(a, b, *[bytes(60_000)] * 3)
    world.send(a, b, b"1", b"2")
    world.send(a, b, b"3" * 30_000)
    assert len(b.writes) == 1
    backlog = b.connection.backlog
    assert backlog is not None
    assert backlog.limit == SEND_QUEUE_BYTES - len(b.unsent)
    assert held(b) <= SEND_QUEUE_BYTES
    b.read()
    assert [len(data) for data in data_of(world, b)] == [60_000] * 3 + [1, 1, 30_000]
    world.check()


def test_waiting_packets_are_sent_in_parts_as_the_socket_accepts_them(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    world.send(a, b, *(bytes([i]) * 8000 for i in range(32)))
    b.read(room=50_000)
    assert len(b.writes) == 1, "64 KiB and no more were handed over"
    got = data_of(world, b)
    b.read()
    got += data_of(world, b)
    assert [data[0] for data in got] == list(range(32))
    assert b.connection.backlog is None
    assert len(b.writes) == 4
    world.check()


def test_a_client_that_reads_again_gets_new_packets_after_the_old_ones(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    world.send(a, b, b"1")
    b.read()
    assert b.connection.backlog is None
    world.send(a, b, b"2")
    assert data_of(world, b) == numbered(1, 2)


def test_reading_again_without_waiting_packets_writes_nothing(world: World) -> None:
    b = world.join("b")
    b.block()
    b.read()
    assert b.writes == []
    assert b.connection.backlog is None


def test_queued_packets_do_not_keep_their_run_in_memory(world: World) -> None:
    """A queued slice of a run is a copy.

    Otherwise 32 small packets would keep 32 reads in memory.
    """
    a, b = world.join("a"), world.join("b")
    b.block()
    run = b"".join(pack_send_packet(public("b"), b"%03d" % i) for i in range(500))
    world.feed(a, run)
    backlog = b.connection.backlog
    assert backlog is not None
    assert len(backlog.data) == 32
    assert all(type(frame) is bytes and len(frame) == FRAME + 3 for frame in backlog.data)
    assert len(set(map(id, backlog.data))) == 32


def test_packets_of_a_stalled_sender_are_relayed_and_its_pong_waits(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    a.block()
    world.feed(a, pack_ping(b"12345678"))
    world.send(a, b, b"x")
    assert world.got(b) == [packet("a", b"x")]
    assert world.got(a) == []
    a.read()
    assert world.got(a) == [Pong(b"12345678")]


def test_a_pause_before_the_end_of_a_turn_queues_its_packets_in_order(world: World) -> None:
    """Something other than the router filled the socket. The bound must hold all the same."""
    a, b = world.join("a"), world.join("b")
    world.send(a, b, b"1", disco())
    world.router.send_control(b.connection, KEEP_ALIVE_FRAME)
    b.block()
    world.send(a, b, b"2")
    world.flush()
    assert world.got(b) == []
    assert not b.connection.out
    b.read()
    assert [p for p in data_of(world, b) if len(p) == 1] == numbered(1, 2)
    world.check()


def test_waiting_packets_are_counted_with_their_time_and_their_writes(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    world.send(a, b, b"1", b"2", b"3")
    world.now += 2.0
    b.read()
    assert data_of(world, b) == numbered(1, 2, 3)
    # Each of the three counts a tenth of a moving average.
    assert world.counters.average_queue_ms == pytest.approx(2000 * (1 - 0.9**3))
    writes = world.counters.buffered_write_frames
    assert (writes.count, writes.sum) == (1, 3)
