"""What a connection did not get when it ended is counted: dropped, lost or sent."""

from __future__ import annotations

from pyderp.relay.counters import DropReason
from pyderp.wire.frames import KEEP_ALIVE_FRAME
from tests.relay.world import World, disco, packet

FRAME = 5 + 32
"""Bytes of a RecvPacket around its packet."""


class TestUndelivered:
    """Every packet that a connection did not get is counted, by kind and reason."""

    def test_what_was_to_leave_this_turn_is_gone(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"12", disco(), b"345")
        world.ping(b)
        world.leave(b)
        assert world.drops() == {
            (DropReason.GONE_DISCONNECTED, "other"): (2, 5),
            (DropReason.GONE_DISCONNECTED, "disco"): (1, len(disco())),
        }
        world.flush()
        assert b.writes == []
        assert world.counters.packets_sent == 0
        world.check()

    def test_who_left_is_sent_nothing_any_more(self, world: World) -> None:
        a = world.join("a")
        world.leave(a)
        world.router.keep_alive(a.connection)
        world.flush()
        assert a.writes == []

    def test_what_waited_is_gone(self, world: World) -> None:
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

    def test_what_the_transport_held_is_a_write_error(self, world: World) -> None:
        """Three packets are written, one and a half are taken, and two more wait."""
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
        assert world.counters.packets_sent == 1, "what was lost was not sent"
        world.check()

    def test_what_the_transport_held_of_a_later_batch_is_a_write_error(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, b"1", b"2")
        b.read(room=FRAME + 1)
        assert world.got(b) == [packet("a", b"1")]
        world.leave(b)
        assert world.drops() == {(DropReason.WRITE_ERROR, "other"): (1, 1)}
        world.check()

    def test_all_that_a_client_missed_is_a_write_timeout_if_it_took_no_byte(
        self, world: World
    ) -> None:
        """Three packets are written, one and a half are taken, and two more wait."""
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

    def test_what_was_taken_before_a_stall_is_no_error(self, world: World) -> None:
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

    def test_who_read_all_in_the_end_lost_nothing(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.stall()
        world.send(a, b, b"1")
        world.flush()
        b.read()
        assert world.got(b) == [packet("a", b"1")]
        world.leave(b)
        assert world.drops() == {}
        world.check()
