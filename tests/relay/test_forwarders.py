"""Forwarders: several for a key, the oldest is used; and the bounded queue to another relay."""

from __future__ import annotations

from itertools import chain

import pytest

from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MESH_QUEUE_BYTES, MESH_QUEUE_DEPTH, MeshLink
from pyderp.wire.frames import MAX_PACKET_SIZE, FrameType, pack_forward_packet
from tests.relay.world import World, disco, gone, key, packet, public


class Recorder:
    """A forwarder that takes everything, or nothing."""

    def __init__(self, refuse: DropReason | None = None) -> None:
        self.taken: list[tuple[bytes, bytes, bytes]] = []
        self.refuse = refuse

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        if self.refuse is None:
            self.taken.append((src, dst, packet))
        return self.refuse

    def __eq__(self, other: object) -> bool:
        """All are alike, and yet they are not the same."""
        return isinstance(other, Recorder)

    __hash__ = None  # type: ignore[assignment]


U1, U2, U3 = key("u1"), key("u2"), key("u3")


def multi(world: World) -> tuple[int, int, int]:
    """How often a key got a second forwarder, fell back to one, and was removed wrongly."""
    counters = world.counters
    return (
        counters.multiforwarder_created,
        counters.multiforwarder_deleted,
        counters.forwarder_delete_other_value,
    )


class TestRegistration:
    """The table of Go's TestForwarderRegistration."""

    def test_remove_of_what_is_not_there_changes_nothing(self, world: World) -> None:
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

    def test_remove_deletes(self, world: World) -> None:
        f1 = Recorder()
        world.router.add_forwarder(U1, f1)
        world.router.remove_forwarder(U1, f1)
        assert U1 not in world.router.forwarders
        assert len(world.router.forwarders) == 0

    def test_second_makes_a_multi_and_the_first_is_used(self, world: World) -> None:
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

    def test_a_third_is_no_new_multi_and_the_oldest_left_takes_over(self, world: World) -> None:
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
        assert router.forwarders.get(U1) is f3, "who comes again is the youngest"

    def test_local_key_keeps_its_place_when_its_last_forwarder_goes(self, world: World) -> None:
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
        assert multi(world) == (0, 0, 1), "gone altogether: nothing"

    def test_a_key_with_a_forwarder_survives_a_local_disconnect(self, world: World) -> None:
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
def test_what_a_forwarder_refuses_is_dropped_for_its_reason(
    world: World, reason: DropReason, data: bytes
) -> None:
    s = world.join("s")
    world.router.add_forwarder(U1, Recorder(refuse=reason))
    world.send(s, "u1", data)
    kind = "disco" if data == disco() else "other"
    assert world.drops() == {(reason, kind): (1, len(data))}
    assert world.counters.packets_to_forward == 0
    assert world.got(s) == [], "the key is known: no NotHere"


def test_the_last_forwarder_going_is_told_to_those_it_wrote_to(world: World) -> None:
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
    assert world.got(a) == [], "told once for what it heard"
    world.check()


class TestMeshLink:
    """The queue of frames to another relay."""

    def test_a_link_that_is_down_takes_nothing_and_wakes_nobody(self) -> None:
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_DOWN
        assert link.take() == []
        assert woken == []

    def test_frames_wait_in_order_and_only_the_first_wakes(self) -> None:
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        link.connected = True
        assert [link.forward(U1, U2, data) for data in (b"x", b"", disco())] == [None] * 3
        assert woken == [1]
        src, dst = public("u1"), public("u2")
        assert link.take() == [pack_forward_packet(src, dst, d) for d in (b"x", b"", disco())]
        assert link.take() == []
        assert link.forward(U1, U2, b"again") is None
        assert woken == [1, 1]

    def test_a_link_holds_so_many_frames_and_drops_the_newest(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        taken = [link.forward(U1, U2, b"%d" % i) for i in range(MESH_QUEUE_DEPTH + 1)]
        assert taken == [None] * MESH_QUEUE_DEPTH + [DropReason.MESH_LINK_FULL]
        assert link.take()[-1].endswith(b"%d" % (MESH_QUEUE_DEPTH - 1))
        assert link.forward(U1, U2, b"x") is None

    def test_a_link_holds_so_many_bytes(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        count = MESH_QUEUE_BYTES // (5 + 64 + MAX_PACKET_SIZE)
        for _ in range(2):
            for _ in range(count):
                assert link.forward(U1, U2, bytes(MAX_PACKET_SIZE)) is None
            assert link.forward(U1, U2, bytes(MAX_PACKET_SIZE)) is DropReason.MESH_LINK_FULL
            rest = MESH_QUEUE_BYTES - count * (5 + 64 + MAX_PACKET_SIZE) - (5 + 64)
            assert link.forward(U1, U2, bytes(rest + 1)) is DropReason.MESH_LINK_FULL
            assert link.forward(U1, U2, bytes(rest)) is None, "what fits still goes"
            frames = link.take()
            assert sum(map(len, frames)) == MESH_QUEUE_BYTES
            assert {frame[0] for frame in frames} == {FrameType.FORWARD_PACKET}

    def test_a_batch_stays_until_it_is_written(self) -> None:
        """The first frames that have so many bytes; the queue is no shorter meanwhile."""
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        link.connected = True
        assert link.batch(1000) == []
        for i in range(10):
            link.forward(U1, U2, b"%d" % i)
        assert [frame[-1:] for frame in link.batch(200)] == [b"0", b"1", b"2"]
        assert [frame[-1:] for frame in link.batch(210)] == [b"0", b"1", b"2"]
        link.written(3)
        assert [frame[-1:] for frame in link.batch(10**6)] == [b"%d" % i for i in range(3, 10)]
        link.written(7)
        assert link.batch(1) == []
        assert woken == [1]
        link.forward(U1, U2, bytes(MAX_PACKET_SIZE))
        assert woken == [1, 1]
        assert [len(frame) for frame in link.take()] == [5 + 64 + MAX_PACKET_SIZE]

    def test_what_is_being_written_counts_for_the_bounds(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        for i in range(MESH_QUEUE_DEPTH):
            link.forward(U1, U2, b"%d" % i)
        count = len(link.batch(700))
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_FULL
        link.written(count)
        assert [link.forward(U1, U2, b"x") for _ in range(count)] == [None] * count
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_FULL

    def test_the_packet_path_never_connects(self, world: World) -> None:
        link, s = MeshLink(lambda: pytest.fail("woken")), world.join("s")
        world.router.add_forwarder(U1, link)
        world.send(s, "u1", b"x", disco())
        assert not link.connected
        assert world.counters.dropped(DropReason.MESH_LINK_DOWN) == 2
        assert world.got(s) == []
        world.check()


def test_what_waits_when_a_link_breaks_is_dropped_and_counted(world: World) -> None:
    link = MeshLink(lambda: None)
    link.connected = True
    a = world.join("a")
    world.router.add_forwarder(U1, link)
    world.send(a, "u1", b"123", disco())
    world.router.disconnect_link(link)
    world.send(a, "u1", b"4567")
    assert world.drops() == {
        (DropReason.MESH_LINK_DOWN, "other"): (2, 7),
        (DropReason.MESH_LINK_DOWN, "disco"): (1, len(disco())),
    }
    assert link.take() == []
