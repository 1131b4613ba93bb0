"""Frames of mesh peers: WatchConns, ForwardPacket and ClosePeer."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from pyderp.defaults import MAX_PENDING_CHANGES
from pyderp.relay import registry as registry_module
from pyderp.relay import router as router_module
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MeshLink
from pyderp.wire.frames import (
    FrameType,
    PeerPresentFlags,
    pack_close_peer,
    pack_frame,
    pack_note_preferred,
    pack_send_packet,
    pack_watch_conns,
)
from pyderp.wire.messages import Message, PeerPresent, Pong
from tests.relay.world import Peer, World, disco, gone, key, not_here, packet, public


def present(name: str, flags: PeerPresentFlags = PeerPresentFlags.REGULAR) -> PeerPresent:
    """Return the PeerPresent message of a client of unknown address."""
    return PeerPresent(public(name), IPv6Address("::"), 0, flags)


def relay(name: str) -> PeerPresent:
    return present(name, PeerPresentFlags.MESH_PEER)


def watcher(world: World, name: str = "w") -> Peer:
    """Return another relay that watches and has read the first list."""
    peer = world.join(name, mesh=True)
    world.watch(peer)
    world.got(peer)
    return peer


class TestWatch:
    """WatchConns: connected clients, logins and departures."""

    def test_two_watchers_get_the_same_changes(self, world: World) -> None:
        """The twin of Go's TestWatch."""
        w1 = world.join("w1", mesh=True)
        world.watch(w1)
        assert world.got(w1) == [relay("w1")]
        c1 = world.join("c1")
        assert world.got(w1) == [present("c1")]
        c2 = world.join("c2")
        assert world.got(w1) == [present("c2")]
        w2 = world.join("w2", mesh=True)
        world.watch(w2)
        assert world.got(w1) == [relay("w2")]
        assert by_key(world.got(w2)) == by_key(
            [relay("w1"), relay("w2"), present("c1"), present("c2")]
        )
        world.leave(c1)
        assert world.got(w1) == world.got(w2) == [gone("c1")]
        assert world.counters.peer_gone_disconnected == 2
        world.leave(w1)
        assert world.got(w2) == [gone("w1")]
        world.leave(w2)
        world.leave(c2)
        assert world.counters.peer_gone_disconnected == 3
        world.check()

    def test_order_of_changes_is_the_order_of_events(self, world: World) -> None:
        w = watcher(world)
        a = world.join("a")
        world.leave(a)
        world.join("a")
        assert world.got(w) == [present("a"), gone("a"), present("a")]

    def test_a_repeated_watch_conns_repeats_the_list(self, world: World) -> None:
        w = watcher(world)
        world.join("a")
        world.watch(w)
        assert world.got(w) == [present("a"), relay("w"), present("a")]
        world.join("b")
        assert world.got(w) == [present("b")], "sent once, though it watches twice"

    def test_a_repeated_watch_conns_is_ignored_while_the_list_waits(self, world: World) -> None:
        w = watcher(world)
        world.join("a")
        w.block()
        world.got(w)
        for _ in range(1000):
            world.feed(w, pack_watch_conns())
        backlog = w.connection.backlog
        assert backlog is not None
        assert len(backlog.changes) <= 2 * len(world.router.registry.active)
        assert world.counters.watch_repeats_ignored == 999
        assert w.closed == []

    def test_every_duplicate_is_present_and_only_the_last_is_gone(self, world: World) -> None:
        w = watcher(world)
        a1, a2 = world.join("a"), world.join("a")
        assert world.got(w) == [present("a"), present("a")]
        late = world.join("late", mesh=True)
        world.watch(late)
        assert world.got(late).count(present("a")) == 1, "the list has one for each key"
        world.got(w)
        world.leave(a2)
        assert world.got(w) == []
        world.leave(a1)
        assert world.got(w) == [gone("a")]

    def test_a_watcher_with_the_relays_own_key_gets_nothing(self, world: World) -> None:
        own = world.join("relay", mesh=True)
        world.watch(own)
        world.join("a")
        assert world.got(own) == []
        assert not world.registry.watchers
        world.ping(own)
        assert world.got(own) == [Pong(b"12345678")], "it stays an ordinary connection"

    def test_a_watcher_still_gets_packets_and_in_order(self, world: World) -> None:
        w, a = watcher(world), world.join("a")
        world.send(a, w, b"1")
        world.join("b")
        world.send(a, w, b"2")
        assert world.got(w) == [present("a"), packet("a", b"1"), present("b"), packet("a", b"2")]
        world.check()

    def test_a_watcher_that_does_not_read_is_closed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert MAX_PENDING_CHANGES == 100_000
        monkeypatch.setattr(router_module, "MAX_PENDING_CHANGES", 10)
        w, reader = watcher(world, "w"), watcher(world, "reader")
        world.got(w)
        w.block()
        # The bound is raised by the number of connected keys: the two watchers.
        for _ in range((10 + 2) // 2):
            world.leave(world.join("x"))
            world.flush()
        assert w.closed == []
        world.leave(world.join("x"))
        assert w.closed == ["watcher does not keep up"]
        assert world.counters.watchers_closed == 1
        assert reader.closed == []
        assert gone("w") in world.got(reader)
        world.check()

    def test_a_watcher_whose_list_is_too_large_is_closed_at_watch_conns(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A whole list is always within the real bound; the test lowers the bound."""
        monkeypatch.setattr(router_module, "MAX_PENDING_CHANGES", -1)
        w = world.join("w", mesh=True)
        world.watch(w)
        assert w.closed == ["watcher does not keep up"]
        assert w.connection.backlog is None
        world.check()

    def test_a_full_list_may_wait_however_large_it_is(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(router_module, "MAX_PENDING_CHANGES", 3)
        w = world.join("w", mesh=True)
        names = [f"c{i}" for i in range(20)]
        for name in names:
            world.join(name)
        w.block()
        world.watch(w)
        assert w.closed == []
        w.read()
        assert world.got(w) == [relay("w"), *map(present, names)]

    def test_watchers_closed_because_of_each_others_departures_are_closed_once(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a = world.join("a")
        watchers = [watcher(world, name) for name in ("w1", "w2", "w3")]
        for w in watchers:
            world.got(w)
            w.block()
        monkeypatch.setattr(router_module, "MAX_PENDING_CHANGES", -4)
        world.leave(a)
        assert [w.closed for w in watchers] == [["watcher does not keep up"]] * 3
        assert world.counters.watchers_closed == 3
        world.flush()
        assert world.peers == []
        assert all(w.connection.backlog is None for w in watchers), "nothing waits for closed ones"
        world.check()


def by_key(messages: list[Message]) -> list[Message]:
    return sorted(messages, key=repr)


class TestForward:
    """ForwardPacket: one hop, to connections of this relay."""

    def test_the_destination_sees_the_source_and_not_the_relay(self, world: World) -> None:
        r, a = world.join("relay 2", mesh=True), world.join("a")
        world.forward(r, "far", "a", b"x", b"")
        assert world.got(a) == [packet("far", b"x"), packet("far", b"")]
        assert world.counters.packets_forwarded_in == 2
        assert world.counters.packets_received == 0
        assert world.counters.packets_sent == 2
        world.check()

    @pytest.mark.parametrize(
        "bound", ["MAX_FORWARDED_SOURCES", "MAX_REMOTE_SOURCES", "MAX_REMOTE_PAIRS"]
    )
    def test_packets_of_sources_beyond_the_bound_are_delivered_without_remembering_them(
        self, world: World, monkeypatch: pytest.MonkeyPatch, bound: str
    ) -> None:
        monkeypatch.setattr(registry_module, bound, 3)
        r, a = world.join("relay 2", mesh=True), world.join("a")
        for i in range(20):
            world.forward(r, f"far {i}", "a", b"x")
        assert world.got(a) == [packet(f"far {i}", b"x") for i in range(20)]
        noted = a.connection.received_from
        assert noted is not None
        assert len(noted) + world.counters.sources_not_noted == 20
        assert len(noted) <= 3 + len(world.router.registry.active)
        assert len(world.router.registry.sent_to) == len(noted)
        # A remembered source stays remembered.
        world.forward(r, "far 0", "a", b"y")
        assert len(noted) + world.counters.sources_not_noted == 20
        world.check()

    def test_a_forwarded_packet_is_never_forwarded_again(self, world: World) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        r = world.join("relay 2", mesh=True)
        world.router.add_forwarder(key("b"), link)
        world.forward(r, "far", "b", b"x")
        assert link.take() == []
        assert world.drops() == {(DropReason.UNKNOWN_DEST_ON_FWD, "other"): (1, 1)}
        assert world.got(r) == []
        world.check()

    def test_disco_forwarded_to_an_unknown_key_is_answered_with_not_here(
        self, world: World
    ) -> None:
        r = world.join("relay 2", mesh=True)
        world.forward(r, "far", "nobody", *[disco()] * 5)
        assert world.got(r) == [not_here("nobody")] * 3
        assert world.drops() == {
            (DropReason.UNKNOWN_DEST_ON_FWD, "disco"): (5, 5 * len(disco())),
        }

    def test_a_forwarded_packet_waits_in_the_queues_like_any_other(self, world: World) -> None:
        r, a = world.join("relay 2", mesh=True), world.join("a")
        a.block()
        world.forward(r, "far", "a", *(b"%d" % i for i in range(33)))
        world.forward(r, "far", "a", disco())
        assert world.drops() == {(DropReason.QUEUE_HEAD, "other"): (1, 1)}
        a.read()
        assert len(world.got(a)) == 33

    def test_a_local_connection_is_preferred_to_a_forwarder(self, world: World) -> None:
        """A local connection is preferred.

        When it ends, packets are forwarded again without PeerGone.
        """
        link = MeshLink(lambda: None)
        link.connected = True
        a = world.join("a")
        world.router.add_forwarder(key("b"), link)
        world.send(a, "b", b"1")
        b = world.join("b")
        world.send(a, "b", b"2")
        world.send(b, "a", b"3")
        assert world.got(b) == [packet("a", b"2")]
        world.leave(b)
        world.send(a, "b", b"4")
        assert world.got(a) == [packet("b", b"3")]
        assert [frame[-1:] for frame in link.take()] == [b"1", b"4"]
        world.router.remove_forwarder(key("b"), link)
        assert world.got(a) == [gone("b")]
        assert world.counters.packets_to_forward == 2
        world.check()


class Side:
    """One of two relays: its world, the link to the other, and the other's connection here."""

    def __init__(self, other: str) -> None:
        self.world = World()
        self.link = MeshLink(lambda: None)
        self.link.connected = True
        self.other = self.world.join(other, mesh=True)

    def carry(self, to: Side) -> None:
        """Deliver the frames that wait for the other relay."""
        to.world.feed(to.other, *self.link.take())


def test_a_packet_and_its_answer_cross_two_relays() -> None:
    """Each is counted once as forwarded out and once as forwarded in.

    NotHere removes the forwarder.
    """
    one, two = Side("relay 2"), Side("relay 1")
    a, b = one.world.join("a"), two.world.join("b")
    one.world.router.add_forwarder(b.key, one.link)
    two.world.router.add_forwarder(a.key, two.link)
    one.world.send(a, "b", b"ping")
    one.carry(two)
    two.world.send(b, "a", b"pong")
    two.carry(one)
    assert two.world.got(b) == [packet("a", b"ping")]
    assert one.world.got(a) == [packet("b", b"pong")]
    for side in (one, two):
        counters = side.world.counters
        assert (counters.packets_to_forward, counters.packets_forwarded_in) == (1, 1)
        assert (counters.packets_received, counters.packets_sent) == (1, 1)
    two.world.leave(b)
    one.world.send(a, "b", disco())
    one.carry(two)
    assert two.world.got(two.other) == [not_here("b")]
    one.world.router.remove_forwarder(b.key, one.link)
    assert one.world.got(a) == [gone("b")]
    one.world.check()
    two.world.check()


class TestClosePeer:
    """ClosePeer ends every connection of a key."""

    def test_all_duplicates_are_closed_and_others_are_not(self, world: World) -> None:
        r, a1, a2, b = world.join("r", mesh=True), *(world.join(name) for name in "aab")
        world.close_peer(r, "a")
        assert a1.closed == a2.closed == ["closed by a mesh peer"]
        assert b.closed == r.closed == []
        assert world.got(r) == []
        world.check()

    def test_closing_an_unknown_key_is_ignored(self, world: World) -> None:
        r = world.join("r", mesh=True)
        world.close_peer(r, "nobody")
        assert world.got(r) == []
        assert r.closed == []

    @pytest.mark.parametrize("behind", ["watch", "prefer", "send", "ask", "ping", "bad", "half"])
    def test_frames_behind_a_close_of_the_own_key_are_ignored(
        self, world: World, behind: str
    ) -> None:
        """Frames behind it in the same read must not change any state."""
        r, a = world.join("r", mesh=True), world.join("a")
        frames = {
            "watch": pack_watch_conns(),
            "prefer": pack_note_preferred(True),
            "send": pack_send_packet(public("a"), b"x"),
            "ask": pack_send_packet(public("nobody"), disco()),
            "ping": pack_frame(FrameType.PING, bytes(8)),
            "bad": pack_frame(FrameType.PING),
            "half": pack_frame(FrameType.PING, bytes(8))[:-1],
        }
        world.feed(r, pack_close_peer(public("r")), frames[behind])
        assert r.closed == ["closed by a mesh peer"]
        assert r.tail == b""
        world.join("b")
        assert world.got(a) == []
        assert r.writes == []
        assert world.counters.packets_received == 0
        world.check()


def test_packets_queued_when_a_link_breaks_are_dropped_and_counted(world: World) -> None:
    link = MeshLink(lambda: None)
    link.connected = True
    a = world.join("a")
    world.router.add_forwarder(key("u1"), link)
    world.send(a, "u1", b"123", disco())
    world.router.disconnect_link(link)
    world.send(a, "u1", b"4567")
    assert world.drops() == {
        (DropReason.MESH_LINK_DOWN, "other"): (2, 7),
        (DropReason.MESH_LINK_DOWN, "disco"): (1, len(disco())),
    }
    assert link.take() == []
