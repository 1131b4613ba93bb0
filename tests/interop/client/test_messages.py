"""Messages between clients and a relay once they are connected."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from pathlib import Path

import pytest

from pyderp import (
    Client,
    LocalProtocolError,
    NodePublic,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    Pong,
    ReceivedPacket,
    ServerInfo,
)
from tests.interop.relays import KINDS, OLDER, Kind, Relay, Setup, each_derper, running
from tests.waiting import until

from .support import (
    BOUND,
    MESH,
    GetRelay,
    clients,
    config,
    deliver,
    key,
    next_of,
    node,
    plain_region,
    region,
    settled,
    url,
    within,
)

BIGGEST = 65536
PACKETS = 2000
WINDOW = 24
"""Packets under way; derper drops what is more than 32 behind."""
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(32 + 24)
"""The start of what Tailscale's nodes send to find each other; only that is answered."""

both = pytest.mark.parametrize("kind", KINDS)


def client_of(relay: Relay, **changes: object) -> Client:
    return Client.for_url(url(relay), config=config(relay, **changes))


@both
async def test_packets_reach_their_destination_only(kind: Kind, relays: GetRelay) -> None:
    """Of three clients, 0 sends to 1 and 1 to 2; the first message of the relay to each is
    ServerInfo."""
    relay = relays(kind, "plain")

    three = [client_of(relay) for _ in range(3)]
    async with clients(*three):
        for client in three:
            assert isinstance(await within(client.recv()), ServerInfo)
        keys = [client.self_public_key for client in three]
        await three[0].send(keys[1], b"hello 0->1")
        assert await within(three[1].recv()) == ReceivedPacket(keys[0], b"hello 0->1")
        await three[1].send(keys[2], b"hello 1->2")
        assert await within(three[2].recv()) == ReceivedPacket(keys[1], b"hello 1->2")
        for client in three:
            assert await settled(client) == []


@both
@pytest.mark.parametrize(
    ("setup", "websocket"),
    [("plain", False), ("named", False), ("plain", True), ("named", True)],
    ids=["http", "https", "ws", "wss"],
)
async def test_packets_of_all_sizes_arrive_whole(
    kind: Kind, setup: Setup, websocket: bool, relays: GetRelay
) -> None:
    """From nothing to 64 KiB, both ways; the client refuses a byte more."""
    relay = relays(kind, setup)

    a, b = (client_of(relay, websocket=websocket) for _ in range(2))
    async with clients(a, b):
        for size in (0, 1, 2047, 2048, 16384, 32767, BIGGEST - 1, BIGGEST):
            packet = random.randbytes(size)
            await deliver(a, b, packet)
            await deliver(b, a, packet)
        with pytest.raises(LocalProtocolError, match="packet too big: 65537"):
            await a.send(b.self_public_key, bytes(BIGGEST + 1))
        await deliver(a, b)
        assert a.generation == b.generation == 1


@both
@pytest.mark.parametrize("setup", ["plain", "named"])
async def test_thousands_of_packets_arrive_in_order(
    kind: Kind, setup: Setup, relays: GetRelay
) -> None:
    """In both directions at once, unchanged."""
    relay = relays(kind, setup)

    async def one_way(source: Client, target: Client, seed: int) -> None:
        rng = random.Random(seed)
        room = asyncio.Semaphore(WINDOW)
        sent, received = hashlib.sha256(), hashlib.sha256()

        async def send() -> None:
            for _ in range(PACKETS):
                await room.acquire()
                packet = rng.randbytes(rng.randrange(1500))
                sent.update(len(packet).to_bytes(4, "big") + packet)
                await source.send(target.self_public_key, packet)

        async def receive() -> None:
            got = 0
            while got < PACKETS:
                for message in await target.receive_many():
                    if isinstance(message, ReceivedPacket):
                        assert message.source == source.self_public_key
                        received.update(len(message.data).to_bytes(4, "big") + message.data)
                        got += 1
                        room.release()

        async with asyncio.timeout(2 * BOUND), asyncio.TaskGroup() as group:
            group.create_task(send())
            group.create_task(receive())
        assert received.digest() == sent.digest()

    a, b = client_of(relay), client_of(relay)
    async with clients(a, b), asyncio.TaskGroup() as group:
        group.create_task(one_way(a, b, 1))
        group.create_task(one_way(b, a, 2))
    assert a.stats.packets_sent == b.stats.packets_received == PACKETS


@both
async def test_a_flood_waits_for_the_relay(kind: Kind, relays: GetRelay) -> None:
    """A sender that is faster than the relay waits; the client drops no packet."""
    relay = relays(kind, "plain")

    a, b = client_of(relay), client_of(relay)
    async with clients(a, b):
        packets = [bytes(8192)] * 500
        await within(a.send_many(b.self_public_key, packets))
        await within(a.ping())
        assert (a.stats.packets_sent, a.stats.packets_dropped) == (500, 0)


@both
async def test_pings_are_answered(kind: Kind, relays: GetRelay) -> None:
    """With and without a receiving task; the pong to a bare ping is a message."""
    relay = relays(kind, "plain")

    client = client_of(relay)
    async with clients(client):
        assert 0 < await client.ping() < 5
        assert isinstance(await within(client.recv()), ServerInfo)
        receiving = asyncio.create_task(client.recv())
        for _ in range(5):  # one by one: a relay answers no more than one at a time
            assert 0 < await client.ping() < 5
        assert not receiving.done()
        await client.send_ping(b"12345678")
        assert await within(receiving) == Pong(b"12345678")


@both
async def test_peer_gone_for_an_unknown_key(kind: Kind, relays: GetRelay) -> None:
    """Only packets that look like disco are answered."""
    relay = relays(kind, "plain")

    client = client_of(relay)
    absent = key().public
    async with clients(client):
        await client.send(absent, b"not disco")
        assert [m for m in await settled(client) if isinstance(m, PeerGone)] == []
        await client.send(absent, DISCO)
        gone = await next_of(client, PeerGone)
        assert gone == PeerGone(absent, PeerGoneReason.NOT_HERE)


@both
async def test_peer_gone_for_a_client_that_left(kind: Kind, relays: GetRelay) -> None:
    """Clients that received packets from it get the message."""
    relay = relays(kind, "plain")

    a, b = client_of(relay), client_of(relay)
    async with clients(a, b):
        await deliver(a, b)
        await a.aclose()
        gone = await next_of(b, PeerGone)
        assert gone == PeerGone(a.self_public_key, PeerGoneReason.DISCONNECTED)


async def home_gauge(relay: Relay) -> int:
    """How many clients have derper as their home."""
    reader, writer = await asyncio.open_connection(relay.address, relay.port)
    try:
        writer.write(b"GET /debug/vars HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = await within(reader.read())
    finally:
        writer.close()
        await writer.wait_closed()
    return int(
        json.loads(answer.partition(b"\r\n\r\n")[2])["derp"]["gauge_current_home_connections"]
    )


@each_derper
@pytest.mark.parametrize("websocket", [False, True], ids=["http", "ws"])
async def test_preferred_moves_the_home_gauge(
    derper: Kind, websocket: bool, relays: GetRelay
) -> None:
    """derper counts a home at once, again after a reconnect, and never after it is withdrawn."""
    relay = relays(derper, "plain")

    before = await home_gauge(relay)

    async def moved(client: Client) -> int:
        await client.ping()
        return await home_gauge(relay) - before

    async def moved_to(wanted: int, client: Client) -> None:
        # derper may take a while to notice that a connection has ended.
        async with asyncio.timeout(BOUND):
            while await moved(client) != wanted:
                pass

    client = client_of(relay, websocket=websocket)
    await client.note_preferred(True)
    other = client_of(relay, mesh_key=MESH)
    async with clients(client, other):
        assert await moved(client) == 1
        await client.note_preferred(True)
        assert await moved(client) == 1
        await client.note_preferred(False)
        assert await moved(client) == 0
        await client.note_preferred(True)
        assert await moved(client) == 1
        await other.close_peer(client.self_public_key)
        async for message in client:  # reconnects
            assert isinstance(message, ServerInfo)
            if client.generation == 2:
                break
        await moved_to(1, client)
        await client.aclose()
        await moved_to(0, other)


@both
async def test_a_watcher_sees_the_flags_of_each_peer(kind: Kind, relays: GetRelay) -> None:
    """Flags and address of each client: regular, prober, mesh peer, and not at its ideal node.

    And its name, which derper sends since v1.104.
    """
    relay = relays(kind, "plain")
    first = node(relay, name="900a", stun_only=True)
    second = node(relay, name="900b")
    flags = PeerPresentFlags

    plain = config(relay, network=plain_region())
    regular = Client.for_region(region(second), config=plain)
    not_ideal = Client.for_region(region(first, second), config=plain)
    prober = client_of(relay, is_prober=True, app_name="my app")
    watcher = client_of(relay, mesh_key=MESH, watch_connection_changes=True)
    expected = {
        regular: flags.REGULAR,
        not_ideal: flags.NOT_IDEAL,
        prober: flags.PROBER,
        watcher: flags.MESH_PEER,
    }
    async with clients(*expected):
        seen: dict[NodePublic, PeerPresent] = {}
        while not {c.self_public_key for c in expected} <= seen.keys():
            present = await next_of(watcher, PeerPresent)
            seen[present.peer] = present
        for client, wanted in expected.items():
            present = seen[client.self_public_key]
            assert present.flags == wanted
            assert (str(present.address), present.port) == client.local_address
            named = client is prober and kind != OLDER
            assert present.app_name == ("my app" if named else "")


@each_derper
async def test_rate_limit_of_derper_slows_the_sender(derper: Kind, tmp_path: Path) -> None:
    """derper's token bucket reads no faster than allowed: the sender waits, and no packet is
    lost."""
    limits = tmp_path / "rate.json"
    limits.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 200_000}))
    with running(derper, "plain", tmp_path, options=["-rate-config", str(limits)]) as relay:
        a, b = client_of(relay), client_of(relay)
        async with clients(a, b):
            loop = asyncio.get_running_loop()
            began = loop.time()
            # A bucket of 64 KiB, so that more than a second's worth remains.
            for number in range(5):
                await deliver(a, b, bytes([number]) * 60_000)
            assert 0.8 < loop.time() - began < 5
            assert (a.stats.packets_sent, a.stats.packets_dropped) == (5, 0)


@both
async def test_two_clients_of_one_key(kind: Kind, relays: GetRelay) -> None:
    """The newer connection of a key gets its packets; the older stays open."""
    relay = relays(kind, "plain")

    shared = key()
    older, newer = (
        Client.for_url(url(relay), private_key=shared, config=config(relay)) for _ in range(2)
    )
    sender = client_of(relay)
    async with clients(older, newer, sender):
        await newer.send(sender.self_public_key, b"I am active")
        await next_of(sender, ReceivedPacket)
        await deliver(sender, newer)
        await until(lambda: older.connected)
        assert [m for m in await settled(older) if isinstance(m, ReceivedPacket)] == []
