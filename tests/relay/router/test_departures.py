"""Frames that are sent and packets that are counted when a connection ends."""

from __future__ import annotations

import pytest

from pyderp.relay import router as router_module
from pyderp.relay.delivery import MeshLink
from pyderp.wire.messages import PeerGone, Pong
from tests.relay.world import World, disco, gone, key, packet, public


class TestPeerGone:
    """A client gets PeerGone when a client that sent it packets leaves."""

    def test_only_clients_that_received_from_it_get_peer_gone(self, world: World) -> None:
        a, b, c = (world.join(name) for name in "abc")
        world.send(a, b, b"x")
        world.send(c, a, b"x")
        world.got(b)
        world.leave(a)
        assert world.got(b) == [gone("a")]
        assert world.got(c) == [], "it sent packets to the client that left, but received none"
        assert world.counters.peer_gone_disconnected == 1
        world.check()

    def test_a_second_departure_is_sent_again(self, world: World) -> None:
        """Go's relay does not send it the second time."""
        b = world.join("b")
        for _ in range(3):
            a = world.join("a")
            world.send(a, b, b"x", b"y")
            world.leave(a)
            assert world.got(b) == [packet("a", b"x"), packet("a", b"y"), gone("a")]
        world.leave(world.join("a"))
        assert world.got(b) == [], "it was here and silent"
        world.check()

    def test_no_peer_gone_is_sent_while_a_duplicate_stays(self, world: World) -> None:
        a1, a2, b = world.join("a"), world.join("a"), world.join("b")
        world.send(a1, b, b"x")
        world.got(b)
        world.leave(a1)
        assert world.got(b) == []
        world.leave(a2)
        assert world.got(b) == [gone("a")]

    def test_no_peer_gone_is_sent_while_another_relay_has_the_key(self, world: World) -> None:
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

    def test_no_peer_gone_is_sent_for_a_forwarder_while_the_key_is_here(self, world: World) -> None:
        link = MeshLink(lambda: None)
        a, b = world.join("a"), world.join("b")
        world.router.add_forwarder(key("a"), link)
        world.send(a, b, b"x")
        world.got(b)
        world.router.remove_forwarder(key("a"), link)
        assert world.got(b) == []
        world.leave(a)
        assert world.got(b) == [gone("a")]

    def test_a_client_that_received_a_forwarded_packet_gets_peer_gone_of_its_source(
        self, world: World
    ) -> None:
        r, b = world.join("relay 2", mesh=True), world.join("b")
        world.forward(r, "a", "b", b"x")
        a = world.join("a")
        world.got(b)
        world.leave(a)
        assert world.got(b) == [gone("a")]

    def test_peer_gone_for_a_stalled_client_is_sent_before_its_packets(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        b.block()
        world.send(a, b, b"x")
        world.leave(a)
        assert world.got(b) == []
        b.read()
        assert world.got(b) == [gone("a"), packet("a", b"x")]

    def test_a_new_connection_of_the_destination_gets_no_peer_gone(self, world: World) -> None:
        a, b = world.join("a"), world.join("b")
        world.send(a, b, b"x")
        world.leave(b)
        b = world.join("b")
        world.leave(a)
        assert world.got(b) == []
        world.check()


class TestSlowClient:
    """A client that does not read gets PeerGone while few control frames wait for it."""

    def test_peer_gone_frames_that_wait_are_bounded(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mesh peer may announce any number of sources."""
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
        received = world.got(b)
        assert [each for each in received if isinstance(each, PeerGone)] == [
            gone(f"far {i}") for i in range(3)
        ]
        world.check()


class TestDuplicates:
    """A key with several connections: the last that sent a frame gets its packets."""

    def test_the_newest_connection_is_active_until_another_sends_a_frame(
        self, world: World
    ) -> None:
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

    def test_packets_go_to_the_other_connection_when_one_leaves(self, world: World) -> None:
        s, w = world.join("s"), world.join("w", mesh=True)
        a1, a2 = world.join("a"), world.join("a")
        world.send(a1, s, b"x")
        world.watch(w)
        world.got(w), world.got(s)
        world.leave(a1)
        world.send(s, "a", b"x")
        assert world.got(a2) == [packet("s", b"x")]
        assert world.got(w) == world.got(s) == []


def test_no_state_remains_once_all_clients_have_left(world: World) -> None:
    """Whatever frames they sent, and in whatever order they leave."""
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
