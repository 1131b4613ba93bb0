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
    linked,
    meshed,
    news,
    node,
    told_gone,
    until,
)

DISCO = DISCO_MAGIC + bytes(DISCO_MIN_LEN)
NOBODY = NodePrivate.generate().public


async def test_forwards_both_ways() -> None:
    """A packet and its answer cross once each; it is the source that the destination sees."""
    async with meshed() as (left, right), client_of(left) as a, client_of(right) as b:
        await left.learns(b)
        await right.learns(a)
        await passes(a, b)
        assert (left.forwarded, right.forwarded) == ((1, 0), (0, 1))
        await passes(b, a)
        assert (left.forwarded, right.forwarded) == ((1, 1), (1, 1))
        assert left.counters.dropped(DropReason.UNKNOWN_DEST) == 0


async def test_a_client_that_was_there_before_the_mesh() -> None:
    """Clients that were connected before the link was made can be reached through it."""
    async with node() as left, node() as right, client_of(left) as a, client_of(right) as b:
        left.mesh.set_hosts([right.relay.url])
        await left.learns(b)
        await passes(a, b)
        await left.mesh.aclose()


async def test_local_before_remote_and_back() -> None:
    """Packets reach a key here while it is connected here, and then at the other relay. PeerGone
    is sent only when the key is gone everywhere."""
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
            assert not [m for m in await news(a) if isinstance(m, PeerGone)]
        await told_gone(a, moving.public, DISCONNECTED)
        assert left.way(moving.public) is None


async def test_a_relay_that_dies_and_returns() -> None:
    """Its keys are forgotten, clients that got packets from them get PeerGone, and all returns."""
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
        await told_gone(a, b.key, DISCONNECTED)
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
        await told_gone(a, b.key, DISCONNECTED)  # told again, though told before
        await left.mesh.aclose()


async def test_three_relays_and_no_loops() -> None:
    """Every client reaches every other in one hop, once."""
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
            source.send(NOBODY, DISCO)
            await told_gone(source, NOBODY, NOT_HERE)
        assert [each.forwarded for each in nodes] == [(2, 2)] * 3
        for client in clients:
            assert await news(client) == []


async def test_a_key_on_two_other_relays() -> None:
    """A packet goes to one of them, the first that had it; then to the one that is left."""
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
                assert await news(leaves) == []
            # One forwarder less, of which no client gets a frame.
            await until(lambda: here.counters.multiforwarder_deleted >= 1)
            await passes(a, stays)
        assert first.forwarded == (0, 0)


async def test_relays_that_send_each_other_for_a_key() -> None:
    """Each believes that the other has it, as may be for a moment: the packet is dropped after
    one hop, and the belief is mended."""
    async with meshed() as (left, right), client_of(left) as a:
        for each in (left, right):
            (neighbour,) = [n for n, _ in each.mesh._loops.values() if n._link.connected]
            neighbour._present.add(NOBODY.raw)
            each.router.add_forwarder(NOBODY.raw, neighbour._link)
        a.send(NOBODY, DISCO)
        await until(lambda: left.way(NOBODY) is None)
        assert (left.forwarded, right.forwarded) == ((1, 0), (0, 1))
        assert right.counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 1
        assert right.counters.peer_gone_not_here == 1
        a.send(NOBODY, DISCO)
        await told_gone(a, NOBODY, NOT_HERE)
        assert left.forwarded == (1, 0)


async def test_full_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the queue to another relay is dropped, counted, and no harm done."""
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


async def test_many_packets_in_order() -> None:
    """A flood crosses in batches; nothing is lost while the queues hold, nor out of order."""
    async with meshed() as (left, right), client_of(left) as a, client_of(right) as b:
        await left.learns(b)
        for start in range(0, 2000, 20):
            for number in range(start, start + 20):
                a.session.send_packet(b.key, number.to_bytes(2, "big") * 500)
            a.write()
            for number in range(start, start + 20):
                assert await b.packet() == number.to_bytes(2, "big") * 500
        assert (left.forwarded, right.forwarded) == ((2000, 0), (0, 2000))


async def test_the_last_way_is_gone() -> None:
    """A disco packet to a client that left another relay is answered with NOT_HERE."""
    async with meshed() as (left, right), client_of(left) as a:
        async with client_of(right) as b:
            await left.learns(b)
            await passes(b, a)
        await told_gone(a, b.key, DISCONNECTED)
        a.send(b, DISCO)
        await told_gone(a, b.key, NOT_HERE)
