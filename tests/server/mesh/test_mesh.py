"""Relays that forward to each other: what their clients see."""

from __future__ import annotations

import contextlib

import pytest

from pyderp import NodePrivate, PeerGone
from pyderp.relay import delivery
from pyderp.relay.counters import DropReason
from pyderp.wire.frames import DISCO_MAGIC, DISCO_MIN_LEN
from tests.server import dial
from tests.server.dial import passes
from tests.server.meshed import (
    DISCONNECTED,
    NOT_HERE,
    client_of,
    config,
    expect_gone,
    linked,
    meshed,
    messages_so_far,
    node,
)
from tests.waiting import until

DISCO = DISCO_MAGIC + bytes(DISCO_MIN_LEN)
UNKNOWN = NodePrivate.generate().public


async def test_packets_are_forwarded_both_ways() -> None:
    """Each crosses the link once; the destination sees the key of the original source."""
    async with meshed() as (left, right), client_of(left) as a, client_of(right) as b:
        await left.learns(b)
        await right.learns(a)
        await passes(a, b)
        assert (left.forwarded, right.forwarded) == ((1, 0), (0, 1))
        await passes(b, a)
        assert (left.forwarded, right.forwarded) == ((1, 1), (1, 1))
        assert left.counters.dropped(DropReason.UNKNOWN_DEST) == 0


async def test_a_client_connected_before_the_mesh_can_be_reached() -> None:
    async with node() as left, node() as right, client_of(left) as a, client_of(right) as b:
        left.mesh.set_hosts([right.relay.url])
        await left.learns(b)
        await passes(a, b)
        await left.mesh.aclose()


async def test_a_local_connection_is_preferred_to_a_remote_one() -> None:
    """While a key is connected here, it is reached here; afterwards where it still is.

    Its peers get PeerGone only when it is connected nowhere.
    """
    moving = NodePrivate.generate()

    async with meshed() as (left, right), client_of(left) as a:
        async with client_of(right, moving) as far:
            await left.learns(far)
            await passes(far, a)
            await passes(a, far)
            async with client_of(left, moving) as near:
                await passes(near, a)
                await passes(a, near)
                assert left.forwarded == (1, 1)
            await until(lambda: not left.has(near))
            await passes(a, far)
            assert left.forwarded == (2, 1)
            assert not [m for m in await messages_so_far(a) if isinstance(m, PeerGone)]
        await expect_gone(a, moving.public, DISCONNECTED)
        assert left.way(moving.public) is None


async def test_a_relay_that_restarts_is_linked_again() -> None:
    """While it is down, its keys are forgotten, and their peers get PeerGone."""
    key = NodePrivate.generate()

    async with node() as left, client_of(left) as a, contextlib.AsyncExitStack() as stack:
        right = await stack.enter_async_context(node(config(private_key=key)))
        address = "{}:{}".format(*right.relay.address)
        url = right.relay.url
        right.mesh.set_hosts([left.relay.url])
        left.mesh.set_hosts([url])
        await linked(left, right)
        b = await dial.connect(right.relay.address)
        await left.learns(b)
        await right.learns(a)
        await passes(b, a)
        await right.mesh.aclose()
        await right.relay.aclose(drain=0)
        await expect_gone(a, b.key, DISCONNECTED)
        await b.aclose()
        await until(lambda: not left.status(url).connected)
        assert left.status(url).peers == len(left.router.forwarders) == 0
        a.send(b, b"lost")
        await a.ping()
        assert left.counters.dropped(DropReason.UNKNOWN_DEST) == 1

        again = await stack.enter_async_context(
            node(config(private_key=key, address=address), [left.relay.url])
        )
        async with client_of(again, b.private) as b:
            await left.learns(b)
            await again.learns(a)
            await passes(a, b)
            await passes(b, a)
        await expect_gone(a, b.key, DISCONNECTED)  # a second time
        await left.mesh.aclose()


async def test_three_relays_forward_without_loops() -> None:
    """Every client reaches every other in one hop, and each packet arrives once."""
    async with meshed(3) as nodes, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(each)) for each in nodes]
        for each, own in zip(nodes, clients, strict=True):
            await each.learns(*(c for c in clients if c is not own))
        for source in clients:
            for destination in clients:
                await passes(source, destination)
        assert [each.forwarded for each in nodes] == [(2, 2)] * 3
        # A packet for an unknown key is dropped, and forwarded to no relay.
        for source in clients:
            source.send(UNKNOWN, DISCO)
            await expect_gone(source, UNKNOWN, NOT_HERE)
        assert [each.forwarded for each in nodes] == [(2, 2)] * 3
        for client in clients:
            assert await messages_so_far(client) == []


async def test_a_key_on_two_other_relays_is_reached_by_one_of_them() -> None:
    """Packets go to the relay that had the key first; when it leaves there, to the other one."""
    twice = NodePrivate.generate()

    async with meshed(3) as (here, first, second), client_of(here) as a:
        async with client_of(second, twice) as stays:
            await here.learns(stays)
            created = here.counters.multiforwarder_created
            async with client_of(first, twice) as leaves:
                await until(lambda: here.counters.multiforwarder_created > created)
                for number in range(10):
                    a.send(twice.public, bytes((number,)))
                await a.ping()
                await until(lambda: first.forwarded[1] + second.forwarded[1] == 10)
                assert here.forwarded == (10, 0)
                assert [await stays.packet() for _ in range(10)] == [
                    bytes((number,)) for number in range(10)
                ]
                assert await messages_so_far(leaves) == []
            # One forwarder less, of which no client gets a frame.
            await until(lambda: here.counters.multiforwarder_deleted >= 1)
            await passes(a, stays)
        assert first.forwarded == (0, 0)


async def test_two_relays_that_each_believe_the_other_has_a_key_make_no_loop() -> None:
    """Both may be wrong for a moment.

    The packet is dropped after one hop, and the stale forwarder is removed.
    """
    async with meshed() as (left, right), client_of(left) as a:
        for each in (left, right):
            (neighbour,) = [n for n, _ in each.mesh._loops.values() if n._link.connected]
            neighbour._present.add(UNKNOWN.raw)
            each.router.add_forwarder(UNKNOWN.raw, neighbour._link)
        a.send(UNKNOWN, DISCO)
        await until(lambda: left.way(UNKNOWN) is None)
        assert (left.forwarded, right.forwarded) == ((1, 0), (0, 1))
        assert right.counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 1
        assert right.counters.peer_gone_not_here == 1
        a.send(UNKNOWN, DISCO)
        await expect_gone(a, UNKNOWN, NOT_HERE)
        assert left.forwarded == (1, 0)


async def test_packets_beyond_the_mesh_queue_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "MESH_QUEUE_DEPTH", 5)

    async with meshed() as (left, right), client_of(left) as a, client_of(right) as b:
        await left.learns(b)
        for number in range(20):
            a.session.send_packet(b.key, bytes((number,)))
        a.write()
        assert [await b.packet() for _ in range(5)] == [bytes((n,)) for n in range(5)]
        await a.ping()
        assert left.counters.dropped(DropReason.MESH_LINK_FULL) == 15
        assert left.forwarded == (5, 0)
        assert right.forwarded == (0, 5)
        await passes(a, b)


async def test_a_flood_of_packets_is_forwarded_in_order() -> None:
    """It crosses in batches; nothing is lost while the queues hold it."""
    async with meshed() as (left, right), client_of(left) as a, client_of(right) as b:
        await left.learns(b)
        for start in range(0, 2000, 20):
            for number in range(start, start + 20):
                a.session.send_packet(b.key, number.to_bytes(2, "big") * 500)
            a.write()
            for number in range(start, start + 20):
                assert await b.packet() == number.to_bytes(2, "big") * 500
        assert (left.forwarded, right.forwarded) == ((2000, 0), (0, 2000))


async def test_a_disco_packet_to_a_client_that_left_another_relay_gets_not_here() -> None:
    async with meshed() as (left, right), client_of(left) as a:
        async with client_of(right) as b:
            await left.learns(b)
            await passes(b, a)
        await expect_gone(a, b.key, DISCONNECTED)
        a.send(b, DISCO)
        await expect_gone(a, b.key, NOT_HERE)
