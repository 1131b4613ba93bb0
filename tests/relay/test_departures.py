"""What is told and counted when a connection ends."""

from __future__ import annotations

import pytest

from pyderp.relay import router as router_module
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MeshLink
from pyderp.wire.frames import KEEP_ALIVE_FRAME
from pyderp.wire.messages import PeerGone, Pong
from tests.relay.world import World, disco, gone, key, packet, public

FRAME = 5 + 32
"""Bytes of a RecvPacket around its packet."""


class TestPeerGone:
    """A client is told when someone who wrote to it left."""

    def test_only_who_received_from_it_is_told(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.send(a, b, b"x")
        world.send(c, a, b"x")
        world.got(b)
        world.leave(a)
        assert world.got(b) == [gone("a")]
        assert world.got(c) == [], "it wrote to the one that left, and never heard of it"
        assert world.counters.peer_gone_disconnected == 1
        world.check()

    def test_a_second_departure_is_told_again(self, world: World) -> None:
        """Go's relay stays silent the second time."""
        b = world.join("b")
        for _ in range(3):
            a = world.join("a")
            world.send(a, b, b"x", b"y")
            world.leave(a)
            assert world.got(b) == [packet("a", b"x"), packet("a", b"y"), gone("a")]
        world.leave(world.join("a"))
        assert world.got(b) == [], "it was here and silent"
        world.check()

    def test_nobody_is_told_while_a_duplicate_stays(self, world: World) -> None:
        a1, a2, b = world.join("a"), world.join("a"), world.join("b")
        world.send(a1, b, b"x")
        world.got(b)
        world.leave(a1)
        assert world.got(b) == []
        world.leave(a2)
        assert world.got(b) == [gone("a")]

    def test_nobody_is_told_while_another_relay_has_the_key(self, world: World) -> None:
        link = MeshLink(lambda: None)
        a, b = world.join("a"), world.join("b")
        world.router.add_forwarder(key("a"), link)
        world.send(a, b, b"x")
        world.got(b)
        world.leave(a)
        assert world.got(b) == []
        world.check()
        world.router.remove_forwarder(key("a"), link)
        assert world.got(b) == [gone("a")]
        world.check()

    def test_a_forwarder_that_goes_while_the_key_is_here_is_not_told(self, world: World) -> None:
        link = MeshLink(lambda: None)
        a, b = world.join("a"), world.join("b")
        world.router.add_forwarder(key("a"), link)
        world.send(a, b, b"x")
        world.got(b)
        world.router.remove_forwarder(key("a"), link)
        assert world.got(b) == []
        world.leave(a)
        assert world.got(b) == [gone("a")]

    def test_who_heard_only_the_key_of_a_forwarded_packet_is_told_of_that(
        self, world: World
    ) -> None:
        r, b = world.join("relay 2", mesh=True), world.join("b")
        world.forward(r, "a", "b", b"x")
        a = world.join("a")
        world.got(b)
        world.leave(a)
        assert world.got(b) == [gone("a")]

    def test_news_for_who_does_not_read_wait_before_its_packets(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, b"x")
        world.leave(a)
        assert world.got(b) == []
        b.read()
        assert world.got(b) == [gone("a"), packet("a", b"x")]

    def test_a_new_connection_of_the_destination_is_not_told(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"x")
        world.leave(b)
        b = world.join("b")
        world.leave(a)
        assert world.got(b) == []
        world.check()


class TestSlowClient:
    """A client that does not read hears of departures as long as few frames wait for it."""

    def test_peer_gone_frames_that_wait_are_bounded(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mesh peer may have any number of sources come and go."""
        monkeypatch.setattr(router_module, "MAX_PENDING_CONTROL", 3)
        relay, b = world.join("relay 2", mesh=True), world.join("b")
        link = MeshLink(lambda: None)
        b.block()
        for i in range(10):
            world.forward(relay, f"far {i}", "b", b"")
            world.router.add_forwarder(key(f"far {i}"), link)
            world.router.remove_forwarder(key(f"far {i}"), link)
        assert world.counters.peer_gone_disconnected == 3
        assert world.counters.peer_gone_not_sent == 7
        b.read()
        told = world.got(b)
        assert [each for each in told if isinstance(each, PeerGone)] == [
            gone(f"far {i}") for i in range(3)
        ]
        world.check()


class TestDuplicates:
    """A key on several connections: the last to speak gets its packets."""

    def test_the_newest_wins_and_any_frame_of_the_other_moves_traffic(self, world: World) -> None:
        s, a1, a2 = world.join("s"), world.join("a"), world.join("a")
        world.send(s, "a", b"1")
        world.feed(a1, bytes.fromhex("ff 00000000"))
        world.send(s, "a", b"2")
        world.ping(a2)
        world.send(s, "a", b"3")
        world.send(a1, "s", b"I")
        world.send(s, "a", b"4")
        assert world.got(a1) == [packet("s", b"2"), packet("s", b"4")]
        assert world.got(a2) == [packet("s", b"1"), Pong(b"12345678"), packet("s", b"3")]
        world.check()

    def test_traffic_of_the_one_that_left_goes_to_the_other(self, world: World) -> None:
        s, w = world.join("s"), world.join("w", mesh=True)
        a1, a2 = world.join("a"), world.join("a")
        world.send(a1, s, b"x")
        world.watch(w)
        world.got(w), world.got(s)
        world.leave(a1)
        world.send(s, "a", b"x")
        assert world.got(a2) == [packet("s", b"x")]
        assert world.got(w) == world.got(s) == []


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


def test_nothing_is_left_behind_once_all_have_left(world: World) -> None:
    """Whatever they did to each other, in whatever order they go."""
    names = ["a", "b", "b", "c", "c", "c"]
    for order in (list(range(8)), list(range(7, -1, -1)), [3, 1, 7, 0, 5, 2, 6, 4]):
        peers = [world.join(name, not_ideal=True) for name in names]
        peers += [world.join(name, mesh=True) for name in ("m", "n")]
        for peer in peers:
            for name in "abcmnx":
                world.send(peer, name, b"data", disco())
            world.prefer(peer, True)
        for relay in peers[-2:]:
            world.watch(relay)
            world.forward(relay, "far", "a", b"x")
        world.flush()
        for i in order:
            world.check()
            world.leave(peers[i])
        world.flush()
        world.check()
        registry = world.registry
        assert (registry.size, registry.not_ideal, world.counters.home_connections) == (0, 0, 0)
        assert not registry.active
        assert not registry.duplicates
        assert not registry.watchers
        assert not registry.sent_to
        assert not world.router.dirty
        assert public("a") not in registry.active
