"""Packets that a connection did not get when it ended are counted: dropped, lost or sent."""

from __future__ import annotations

from pyderp.relay.counters import DropReason
from pyderp.wire.frames import KEEP_ALIVE_FRAME
from tests.relay.world import World, disco, packet

FRAME = 5 + 32
"""Bytes of a RecvPacket around its packet."""


class TestUndelivered:
    """Every packet that a connection did not get is counted by kind and reason."""

    def test_packets_of_this_turn_are_gone_disconnected(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"12", disco(), b"345")
        world.ping(b)
        world.leave(b)
        assert world.drops() == {
            (DropReason.GONE_DISCONNECTED, "other"): (2, 5),
            (DropReason.GONE_DISCONNECTED, "disco"): (1, len(disco())),
        }
        # A connection that has left holds nothing, whatever asks it later.
        assert b.connection.out == []
        assert b.connection.out_bytes == b.connection.out_packets == 0
        world.flush()
        assert b.writes == []
        assert world.counters.packets_sent == 0
        world.check()

    def test_a_client_that_left_is_sent_nothing(self, world: World) -> None:
        a = world.join("a")
        world.leave(a)
        world.router.keep_alive(a.connection)
        world.flush()
        assert a.writes == []

    def test_packets_in_the_queues_are_gone_disconnected(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, *[b"12"] * 32, *[disco()] * 32)
        world.leave(b)
        assert world.drops() == {
            (DropReason.GONE_DISCONNECTED, "other"): (32, 64),
            (DropReason.GONE_DISCONNECTED, "disco"): (32, 32 * len(disco())),
        }
        assert b.connection.backlog is None
        world.check()

    def test_packets_in_the_transport_are_write_errors(self, world: World) -> None:
        """Three packets are written, the kernel accepts one and a half, and two more wait."""
        a, b = world.join("a"), world.join("b")
        b.stall(FRAME + 10 + (FRAME + len(disco())) // 2)
        world.send(a, b, bytes(10), disco(), bytes(20))
        world.flush()
        world.send(a, b, b"w", b"w")
        assert world.counters.packets_sent == 1
        world.leave(b)
        assert world.drops() == {
            (DropReason.WRITE_ERROR, "other"): (1, 20),
            (DropReason.WRITE_ERROR, "disco"): (1, len(disco())),
            (DropReason.GONE_DISCONNECTED, "other"): (2, 2),
        }
        assert world.counters.packets_sent == 1, "lost packets do not count as sent"
        world.check()

    def test_packets_of_a_later_batch_in_the_transport_are_write_errors(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, b"1", b"2")
        b.read(room=FRAME + 1)
        assert world.got(b) == [packet("a", b"1")]
        world.leave(b)
        assert world.drops() == {(DropReason.WRITE_ERROR, "other"): (1, 1)}
        world.check()

    def test_all_undelivered_packets_are_write_timeouts_if_no_byte_was_read(
        self, world: World
    ) -> None:
        """Three packets are written, the kernel accepts one and a half, and two more wait."""
        a, b = world.join("a"), world.join("b")
        b.stall(FRAME + 10 + (FRAME + len(disco())) // 2)
        world.send(a, b, bytes(10), disco(), bytes(20))
        world.flush()
        world.send(a, b, b"w", disco())
        world.give_up(b)
        assert world.drops() == {
            (DropReason.WRITE_TIMEOUT, "other"): (2, 21),
            (DropReason.WRITE_TIMEOUT, "disco"): (2, 2 * len(disco())),
        }
        assert world.counters.packets_sent == 1
        assert b.connection.backlog is None
        world.check()

    def test_packets_accepted_before_a_stall_do_not_count_as_dropped(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"1")
        world.flush()
        b.stall()
        world.router.keep_alive(b.connection)
        world.flush()
        assert b.unsent == KEEP_ALIVE_FRAME
        world.leave(b)
        assert world.drops() == {}
        assert world.counters.packets_sent == 1

    def test_a_client_that_finally_read_everything_has_no_drops(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.stall()
        world.send(a, b, b"1")
        world.flush()
        b.read()
        assert world.got(b) == [packet("a", b"1")]
        world.leave(b)
        assert world.drops() == {}
        world.check()


def test_presence_changes_are_freed_when_a_watcher_leaves_with_packets_in_its_transport(
    world: World,
) -> None:
    """A transport may take long to close. Until then only what it holds stays in memory."""
    a, watcher = world.join("a"), world.join("r", mesh=True)
    world.watch(watcher)
    world.flush()
    watcher.stall()
    world.send(a, watcher, b"in the transport")
    world.flush()
    world.join("b")
    backlog = watcher.connection.backlog
    assert backlog is not None
    assert backlog.changes
    assert backlog.in_flight
    world.router.leave(watcher.connection)
    assert not backlog, "nothing waits any more"
    assert len(backlog.in_flight) == 1
    world.router.settle(watcher.connection, len(watcher.unsent))
    assert world.drops() == {(DropReason.WRITE_ERROR, "other"): (1, len(b"in the transport"))}
