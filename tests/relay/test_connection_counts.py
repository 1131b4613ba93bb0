"""Each connection counts the packets that its client sent and that were written to it."""

from __future__ import annotations

import pytest

from .world import Peer, World, disco


def received(peer: Peer) -> tuple[int, int]:
    return peer.connection.packets_received, peer.connection.bytes_received


def sent(peer: Peer) -> tuple[int, int]:
    return peer.connection.packets_sent, peer.connection.bytes_sent


def test_only_packets_are_counted(world: World) -> None:
    a = world.join("a")
    world.ping(a)
    world.flush()
    assert received(a) == sent(a) == (0, 0)


def test_a_run_counts_for_the_sender_at_once_and_for_the_destination_when_written(
    world: World,
) -> None:
    a, b = world.join("a"), world.join("b")
    world.send(a, b, b"", b"12", disco())
    size = 2 + len(disco())
    assert received(a) == (3, size)
    assert sent(b) == (0, 0)
    world.flush()
    assert sent(b) == (3, size)
    assert received(b) == sent(a) == (0, 0)


def test_packets_to_an_unknown_key_count_for_their_sender(world: World) -> None:
    a = world.join("a")
    world.send(a, "nobody", b"12345")
    assert received(a) == (1, 5)


def test_runs_to_several_destinations_count_together_for_the_sender(world: World) -> None:
    a, b, c = (world.join(name) for name in "abc")
    world.send(a, b, b"1", b"22")
    world.send(a, c, b"333")
    world.send(c, b, b"4444")
    world.flush()
    assert received(a) == (3, 6)
    assert (sent(b), sent(c)) == ((3, 7), (1, 3))
    assert received(c) == (1, 4)


def test_forwarded_packets_count_for_the_mesh_connection(world: World) -> None:
    """The relay's `packets_received` does not include these, as upstream's does not."""
    mesh, b = world.join("m", mesh=True), world.join("b")
    world.forward(mesh, "far", "b", b"123", b"4")
    world.flush()
    assert received(mesh) == (2, 4)
    assert sent(b) == (2, 4)
    assert world.counters.packets_received == 0


def test_packets_that_waited_count_when_they_are_written(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    world.send(a, b, b"1", b"22")
    world.flush()
    assert sent(b) == (0, 0)
    b.read()
    assert sent(b) == (2, 3)


def test_dropped_packets_are_not_counted_as_sent(world: World) -> None:
    a, b = world.join("a"), world.join("b")
    b.block()
    world.send(a, b, *[b"x"] * 40)  # 32 may wait
    b.read()
    assert received(a) == (40, 40)
    assert sent(b) == (32, 32)


@pytest.mark.parametrize("active", [0, 1], ids=["older", "newer"])
def test_connections_of_one_key_are_counted_separately(world: World, active: int) -> None:
    a = world.join("a")
    pair = [world.join("b"), world.join("b")]
    world.ping(pair[active])
    world.send(a, "b", b"123")
    world.flush()
    assert sent(pair[active]) == (1, 3)
    assert sent(pair[1 - active]) == (0, 0)
