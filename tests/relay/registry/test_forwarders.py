"""Forwarders: with several for a key the oldest is used; and the bounded queue to another relay."""

from __future__ import annotations

from itertools import chain

import pytest

from pyderp.relay.counters import DropReason
from pyderp.wire.frames import MAX_PACKET_SIZE
from tests.relay.world import World, disco, gone, key, packet


class Recorder:
    """A forwarder that accepts every packet, or refuses every packet."""

    def __init__(self, refuse: DropReason | None = None) -> None:
        self.taken: list[tuple[bytes, bytes, bytes]] = []
        self.refuse = refuse

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        if self.refuse is None:
            self.taken.append((src, dst, packet))
        return self.refuse

    def __eq__(self, other: object) -> bool:
        """Compare equal to all others, so that only identity tells them apart."""
        return isinstance(other, Recorder)

    __hash__ = None  # type: ignore[assignment]


U1, U2, U3 = key("u1"), key("u2"), key("u3")


def multi(world: World) -> tuple[int, int, int]:
    """Return how often a key got a second forwarder, fell back to one, and was removed wrongly."""
    counters = world.counters
    return (
        counters.multiforwarder_created,
        counters.multiforwarder_deleted,
        counters.forwarder_delete_other_value,
    )


class TestRegistration:
    """The table of Go's TestForwarderRegistration."""

    def test_removing_an_unknown_forwarder_changes_nothing(self, world: World) -> None:
        f1, f2 = Recorder(), Recorder()
        world.router.add_forwarder(U1, f1)
        world.router.add_forwarder(U2, f2)
        world.router.remove_forwarder(U2, f1)
        world.router.remove_forwarder(U3, f1)
        table = world.router.forwarders
        assert table.get(U1) is f1
        assert table.get(U2) is f2
        assert table.get(U3) is None
        assert len(table) == 2
        assert multi(world) == (0, 0, 1)

    def test_remove_deletes_the_entry(self, world: World) -> None:
        f1 = Recorder()
        world.router.add_forwarder(U1, f1)
        world.router.remove_forwarder(U1, f1)
        assert U1 not in world.router.forwarders
        assert len(world.router.forwarders) == 0

    def test_a_second_forwarder_makes_a_multi_and_the_first_is_used(self, world: World) -> None:
        f1, f2, f3 = Recorder(), Recorder(), Recorder()
        router = world.router
        router.add_forwarder(U1, f1)
        router.add_forwarder(U1, f1)
        assert multi(world) == (0, 0, 0)
        for _ in range(2):
            router.add_forwarder(U1, f2)
            assert multi(world) == (1, 0, 0)
        assert router.forwarders.get(U1) is f1
        router.remove_forwarder(U1, f3)
        assert multi(world) == (1, 0, 0), "no member: nothing, not even counted"
        router.remove_forwarder(U1, f1)
        assert multi(world) == (1, 1, 0)
        assert router.forwarders.get(U1) is f2

    def test_a_third_forwarder_does_not_count_again_and_the_oldest_left_is_used(
        self, world: World
    ) -> None:
        f1, f2, f3 = Recorder(), Recorder(), Recorder()
        router = world.router
        for f in (f1, f2, f3):
            router.add_forwarder(U1, f)
        assert multi(world) == (1, 0, 0)
        router.remove_forwarder(U1, f1)
        assert multi(world) == (1, 0, 0)
        assert router.forwarders.get(U1) is f2
        router.add_forwarder(U1, f1)
        router.remove_forwarder(U1, f2)
        assert router.forwarders.get(U1) is f3, "one that is added again is the newest"

    def test_a_local_key_stays_when_its_last_forwarder_is_removed(self, world: World) -> None:
        f = Recorder()
        a = world.join("u1")
        world.router.add_forwarder(U1, f)
        assert multi(world) == (0, 0, 0), "a local key and one forwarder are no multi"
        world.router.remove_forwarder(U1, f)
        assert world.registry.active == {U1: a.connection}
        assert U1 not in world.router.forwarders
        world.router.remove_forwarder(U1, f)
        assert multi(world) == (0, 0, 1), "local only: a value other than the forwarder"
        world.leave(a)
        assert world.registry.active == {}
        world.router.remove_forwarder(U1, f)
        assert multi(world) == (0, 0, 1), "an unknown key is not counted"

    def test_a_key_with_a_forwarder_is_reached_after_a_local_disconnect(self, world: World) -> None:
        f, s = Recorder(), world.join("s")
        a = world.join("u1")
        world.router.add_forwarder(U1, f)
        world.send(s, "u1", b"local")
        assert world.got(a) == [packet("s", b"local")]
        world.leave(a)
        world.send(s, "u1", b"remote")
        assert f.taken == [(s.key, U1, b"remote")]
        assert world.got(s) == []


def test_each_of_5000_packets_reaches_one_forwarder_while_they_come_and_go(world: World) -> None:
    """The twin of Go's TestMultiForwarder."""
    s = world.join("s")
    forwarders = [Recorder(), Recorder(), Recorder()]
    here = [False, False, False]
    for i in range(5000):
        for j, every in enumerate((1, 7, 11)):
            if j and i % every == 0 and here[j]:
                world.router.remove_forwarder(U1, forwarders[j])
                here[j] = False
            elif i % every == 0 and not here[j]:
                world.router.add_forwarder(U1, forwarders[j])
                here[j] = True
        if i % 5 == 0 and here[1]:
            world.router.remove_forwarder(U1, forwarders[0])
            here[0] = False
        world.send(s, "u1", i.to_bytes(2, "big"))
    numbers = [[int.from_bytes(data, "big") for _, _, data in f.taken] for f in forwarders]
    assert sorted(chain.from_iterable(numbers)) == list(range(5000))
    assert all(n == sorted(n) for n in numbers)
    assert all(len(n) > 200 for n in numbers), "each had its share"
    assert world.counters.packets_to_forward == 5000
    assert world.drops() == {}
    world.check()


@pytest.mark.parametrize("data", [b"", b"x", disco(), bytes(MAX_PACKET_SIZE)])
@pytest.mark.parametrize("reason", [DropReason.MESH_LINK_FULL, DropReason.MESH_LINK_DOWN])
def test_a_packet_that_a_forwarder_refuses_is_dropped_with_its_reason(
    world: World, reason: DropReason, data: bytes
) -> None:
    s = world.join("s")
    world.router.add_forwarder(U1, Recorder(refuse=reason))
    world.send(s, "u1", data)
    kind = "disco" if data == disco() else "other"
    assert world.drops() == {(reason, kind): (1, len(data))}
    assert world.counters.packets_to_forward == 0
    assert world.got(s) == [], "the key is known: no NotHere"


def test_removing_the_last_forwarder_sends_peer_gone(world: World) -> None:
    f1, f2 = Recorder(), Recorder()
    relay, a = world.join("relay 2", mesh=True), world.join("a")
    world.router.add_forwarder(key("far"), f1)
    world.router.add_forwarder(key("far"), f2)
    world.forward(relay, "far", "a", b"x")
    assert world.got(a) == [packet("far", b"x")]
    world.router.remove_forwarder(key("far"), f1)
    assert world.got(a) == []
    world.router.remove_forwarder(key("far"), f2)
    assert world.got(a) == [gone("far")]
    assert world.counters.peer_gone_disconnected == 1
    world.router.add_forwarder(key("far"), f1)
    world.router.remove_forwarder(key("far"), f1)
    assert world.got(a) == [], "no packet was received since the last PeerGone"
    world.check()
