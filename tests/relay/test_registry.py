"""Connections by key: duplicates with the last-writer rule, and the destinations of each source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.relay import registry as registry_module
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.counters import Counters
from pyderp.relay.registry import Duplicates, Registry
from tests.relay.world import Peer, World, key


class NoSink:
    """A sink for connections that are never written to."""

    def send(self, chunks: list[bytes]) -> bool:
        raise AssertionError(chunks)

    def unsent_size(self) -> int:
        raise AssertionError("nothing was sent")

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        raise AssertionError(reason)


def connect(name: str = "k", *, not_ideal: bool = False) -> Connection:
    return Connection(key(name), NoSink(), not_ideal=not_ideal)


@pytest.fixture
def registry() -> Registry:
    return Registry(Counters())


def dup_gauges(registry: Registry) -> tuple[int, int]:
    """Return the number of keys with several connections, and of all their connections."""
    members = [len(duplicates.members) for duplicates in registry.duplicates.values()]
    return len(members), sum(members)


class TestDuplicates:
    """The tables of Go's TestServerDupClients, policy lastWriterIsActive."""

    def test_one_comes_and_goes(self, registry: Registry) -> None:
        c1 = connect()
        registry.add(c1)
        assert registry.active == {c1.key: c1}
        assert dup_gauges(registry) == (0, 0)
        assert not c1.is_dup
        assert registry.remove(c1)
        assert registry.active == {}
        assert registry.size == 0
        assert not c1.is_dup

    def test_small_overlap_replacement(self, registry: Registry) -> None:
        c1, c2 = connect(), connect()
        registry.add(c1)
        registry.add(c2)
        assert registry.active[c1.key] is c2
        assert dup_gauges(registry) == (1, 2)
        assert c1.is_dup
        assert c2.is_dup
        assert not registry.remove(c1)
        assert registry.active[c1.key] is c2
        assert not c2.is_dup
        assert dup_gauges(registry) == (0, 0)
        assert registry.counters.dup_client_conn_total == 1
        assert registry.remove(c2)
        assert registry.active == {}

    def test_concurrent_dups_three_parties_last_writer(self, registry: Registry) -> None:
        c1, c2, c3 = connect(), connect(), connect()
        for c in (c1, c2, c3):
            registry.add(c)
        assert dup_gauges(registry) == (1, 3)
        assert registry.active[c1.key] is c3
        for c in (c1, c2, c3, c2, c1):
            registry.note_activity(c)
            assert registry.active[c1.key] is c
        assert not registry.remove(c1)
        assert registry.active[c1.key] is c2, "the last that sent a frame before"
        assert dup_gauges(registry) == (1, 2)
        assert not registry.remove(c3)
        assert registry.active[c1.key] is c2
        assert dup_gauges(registry) == (0, 0)
        assert registry.counters.dup_client_conn_total == 2

    def test_when_the_active_connection_leaves_the_other_takes_over(
        self, registry: Registry
    ) -> None:
        c1, c2 = connect(), connect()
        registry.add(c1)
        registry.add(c2)
        assert not registry.remove(c2)
        assert registry.active[c1.key] is c1
        assert not c1.is_dup

    def test_the_second_connection_counts_as_sender_only_after_its_first_frame(
        self, registry: Registry
    ) -> None:
        c1, c2, c3 = connect(), connect(), connect()
        for c in (c1, c2, c3):
            registry.add(c)
        registry.remove(c3)
        assert registry.active[c1.key] is c1

    def test_a_connection_that_sent_nothing_takes_over_if_it_is_the_last(
        self, registry: Registry
    ) -> None:
        c1, c2 = connect(), connect()
        registry.add(c1)
        registry.add(c2)
        registry.note_activity(c1)
        registry.remove(c1)
        assert registry.active[c1.key] is c2

    def test_a_takeover_by_sending_is_reported_once(self, registry: Registry) -> None:
        taken: list[Connection] = []
        c1, c2 = connect(), connect()
        registry.add(c1)
        registry.add(c2)
        registry.note_activity(c1)
        registry.on_takeover = taken.append
        for c in (c1, c2, c2, c1):
            registry.note_activity(c)
        assert taken == [c2, c1]

    def test_all_connections_are_listed_those_of_a_key_together(self, registry: Registry) -> None:
        a1, b, a2 = connect("a"), connect("b"), connect("a")
        for c in (a1, b, a2):
            registry.add(c)
        assert list(registry.connections()) == [a1, a2, b]

    def test_connections_of_a_key_are_listed_oldest_first(self, registry: Registry) -> None:
        cs = [connect() for _ in range(3)]
        assert registry.connections_of(cs[0].key) == []
        for i, c in enumerate(cs):
            registry.add(c)
            assert registry.connections_of(c.key) == cs[: i + 1]
        registry.note_activity(cs[0])
        assert registry.connections_of(cs[0].key) == cs


class GoDupClientSet:
    """Go's `dupClientSet` and `clientSet`, with their send history."""

    def __init__(self) -> None:
        self.set: list[Connection] = []
        self.last: Connection | None = None
        self.history: list[Connection] = []
        self.active: Connection | None = None
        self.dup = False

    def register(self, c: Connection) -> None:
        was = self.active
        if was is None:
            self.set = [c]
        elif not self.dup:
            self.dup = True
            self.set = [was, c]
            self.last, self.history = c, [was]
        else:
            self.set.append(c)
            self.last = c
            self.history.append(c)
        self.active = c

    def note(self, c: Connection) -> None:
        if not self.dup:
            return
        self.last = self.active = c
        if self.history[-1:] != [c]:
            self.history.append(c)

    def unregister(self, c: Connection) -> None:
        self.set.remove(c)
        if not self.dup:
            self.active = None
            return
        history: list[Connection] = []
        for sender in self.history:
            if sender is not c and history[-1:] != [sender]:
                history.append(sender)
        self.history = history
        if self.last is c:
            self.last = history[-1] if history else None
        if len(self.set) == 1:
            self.dup = False
            self.active = self.set[0]
        else:
            self.active = self.last


@given(st.lists(st.tuples(st.sampled_from("+!-"), st.integers(0, 5)), max_size=40))
def test_takeovers_are_those_of_go_for_any_sequence_of_events(steps: list[tuple[str, int]]) -> None:
    registry, go = Registry(Counters()), GoDupClientSet()
    k = key("k")
    for what, number in steps:
        if what == "+":
            c = connect()
            registry.add(c)
            go.register(c)
        elif go.set:
            c = go.set[number % len(go.set)]
            if what == "-":
                assert registry.remove(c) == (len(go.set) == 1)
                go.unregister(c)
            else:
                if c.is_dup:
                    registry.note_activity(c)
                go.note(c)
        assert registry.active.get(k) is go.active
        assert registry.connections_of(k) == go.set
        assert all(c.is_dup == go.dup for c in go.set)
        assert dup_gauges(registry) == ((1, len(go.set)) if go.dup else (0, 0))
        assert registry.size == len(go.set)


def test_the_last_of_duplicates_is_the_last_that_sent_a_frame() -> None:
    c1, c2 = connect(), connect()
    duplicates = Duplicates(c1, c2)
    assert duplicates.last is c2
    duplicates.note(c1)
    assert duplicates.last is c1


def test_not_ideal_connections_are_counted_while_connected(registry: Registry) -> None:
    ideal, not_ideal = connect("a"), connect("b", not_ideal=True)
    registry.add(ideal)
    registry.add(not_ideal)
    assert (registry.size, registry.not_ideal) == (2, 1)
    registry.remove(not_ideal)
    assert (registry.size, registry.not_ideal) == (1, 0)


class TestMemory:
    """Which clients received from which source: no entry stays behind."""

    def test_a_source_is_remembered_once_on_both_sides(self, registry: Registry) -> None:
        c = connect()
        destinations = registry.remember(b"s", c)
        assert registry.remember(b"s", c) is destinations
        assert destinations == {c}
        assert c.received_from == {b"s"}

    def test_left_region_returns_each_destination_once_and_forgets_both_sides(
        self, registry: Registry
    ) -> None:
        c, other = connect("a"), connect("b")
        registry.remember(b"s", c)
        registry.remember(b"s", other)
        registry.remember(b"t", c)
        assert registry.left_region(b"s") in ([c, other], [other, c])
        assert registry.left_region(b"s") == []
        assert c.received_from == {b"t"}
        assert other.received_from == set()
        registry.remember(b"s", c)
        assert registry.left_region(b"s") == [c], "a second departure is reported again"

    def test_left_region_does_not_return_a_connection_that_left(self, registry: Registry) -> None:
        a, b = connect("a"), connect("b")
        registry.add(a)
        registry.add(b)
        registry.remember(b"s", a)
        registry.remember(b"s", b)
        a.has_left = True
        registry.remove(a)
        assert registry.left_region(b"s") == [b]
        assert registry.pairs == 0
        registry.forget_departed()
        assert not registry.departed

    def test_a_turn_forgets_a_bounded_number_of_sources(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of one connection that received from many sources, and of many that leave in one turn."""
        monkeypatch.setattr(registry_module, "_FORGET_A_TURN", 10)
        connections = [connect(name) for name in "abcde"]
        for connection in connections:
            registry.add(connection)
            for i in range(25 if connection is connections[0] else 5):
                registry.remember(b"%d" % i, connection)
        assert registry.pairs == 45
        for connection in connections:
            connection.has_left = True
            registry.remove(connection)
        assert registry.pairs == 45, "a departure itself forgets nothing"
        left = []
        while registry.departed:
            registry.forget_departed()
            left.append(registry.pairs)
        assert left == [35, 25, 15, 5, 0]
        assert registry.sent_to == {}
        assert all(connection.received_from is None for connection in connections)

    @pytest.mark.parametrize(
        "bound", ["MAX_FORWARDED_SOURCES", "MAX_REMOTE_SOURCES", "MAX_REMOTE_PAIRS"]
    )
    def test_forwarded_sources_are_noted_up_to_each_bound(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch, bound: str
    ) -> None:
        monkeypatch.setattr(registry_module, bound, 3)
        c = connect()
        for source in (b"1", b"2", b"3", b"4", b"1"):
            registry.remember_forwarded(source, c)
        assert c.received_from == {b"1", b"2", b"3"}
        assert registry.counters.sources_not_noted == 1

    def test_the_empty_set_of_a_source_that_is_not_connected_is_removed(
        self, registry: Registry
    ) -> None:
        a = connect("a")
        registry.add(a)
        registry.remember(b"s", a)
        registry.remove(a)
        registry.forget_departed()
        assert registry.sent_to == {}

    def test_the_empty_set_of_a_connected_source_stays_shared_with_it(self, world: World) -> None:
        """Its connection holds the set. A new set in the registry would get out of step."""
        s, a = world.join("s"), world.join("a")
        world.send(s, a, b"x")
        world.leave(a)
        world.check()
        world.flush()
        world.check()
        a = world.join("a")
        world.send(s, a, b"y")
        world.check()
        assert world.registry.sent_to == {s.key: {a.connection}}

    def test_inconsistent_entries_do_not_make_a_departure_fail(self, registry: Registry) -> None:
        """This cannot happen. If it does, a departure must still complete."""
        a = connect("a")
        registry.add(a)
        registry.sent_to[b"s"] = {a}
        assert registry.left_region(b"s") == [a]
        a.received_from = {b"t"}
        assert registry.remove(a)
        registry.forget_departed()

    def test_a_client_that_sent_to_itself_leaves_no_entry(self, world: World) -> None:
        a = world.join("a")
        world.send(a, a, b"x")
        assert world.registry.sent_to == {a.key: {a.connection}}
        world.leave(a)
        world.flush()
        assert world.registry.sent_to == {}

    def test_duplicates_share_the_destinations_of_their_key(self, world: World) -> None:
        a1, a2 = world.join("a"), world.join("a")
        b, c = world.join("b"), world.join("c")
        world.send(a1, b, b"x")
        world.send(a2, c, b"x")
        world.send(a1, c, b"x")
        destinations = {b.connection, c.connection}
        assert world.registry.sent_to == {key("a"): destinations}
        all_peers: list[Peer] = [a1, a2, b, c]
        for peer in all_peers:
            world.leave(peer)
            world.check()
        world.flush()
        assert world.registry.sent_to == {}


def test_the_order_of_senders_is_that_of_their_latest_frames(registry: Registry) -> None:
    """An earlier frame of the same connection does not count any more."""
    c1, c2, c3 = connect(), connect(), connect()
    for c in (c1, c2, c3):
        registry.add(c)
    for c in (c2, c3, c1):
        registry.note_activity(c)
    registry.remove(c1)
    assert registry.active[c1.key] is c3, "c3 sent before c2, and once more after it"


def test_a_watcher_that_leaves_is_no_watcher_any_more(registry: Registry) -> None:
    watcher, other = connect("a"), connect("b")
    for connection in (watcher, other):
        registry.add(connection)
        registry.watchers[connection] = None
    registry.remove(watcher)
    assert list(registry.watchers) == [other]
