"""Links that fail silently, and addresses that drop all packets: no call hangs.

The relay is in the hub of a private network and the client in one of its nodes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from pyderp import Client, ConnectError, ConnectionClosed, DERPNode, ReceivedPacket
from tests.interop.peers import need
from tests.interop.relays import KINDS, Kind, Relay, running
from tests.interop.tailscaled.namespaces import HUB_ADDRESS, Namespace, Network, private_network
from tests.interop.tailscaled.peers import need_namespaces
from tests.waiting import until

from .support import EACH_KIND_ONCE, clients, config, deliver, next_of, node, region, within

pytestmark = EACH_KIND_ONCE

BLACK_HOLE = "10.77.0.9"
"""An address of the hub, of which its firewall drops all that arrives."""
SILENCE = 0.8
"""Seconds after which these clients give a silent relay up."""

_CLONE_NEWNET = 0x40000000


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Sockets and processes of this thread in the block are in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(handle: int) -> None:
        if libc.setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    with ExitStack() as stack:
        handles = []
        for path in ("/proc/thread-self/ns/net", f"/run/netns/{namespace.name}"):
            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            handles.append(handle)
        own, other = handles
        enter(other)
        try:
            yield
        finally:
            enter(own)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """The private network, with a black hole."""
    need_namespaces()
    nft = str(need("nft"))
    with private_network() as made:
        ip("-n", made.hub.name, "address", "add", f"{BLACK_HOLE}/32", "dev", "lo")
        ip("-n", made.a.name, "route", "add", f"{BLACK_HOLE}/32", "via", "10.77.1.1")
        chain = f"type filter hook input priority 0; ip daddr {BLACK_HOLE} drop;"
        dropped = made.hub.run(nft, f"table inet t {{ chain c {{ {chain} }}; }}")
        assert dropped.returncode == 0, dropped.stderr
        yield made


@pytest.fixture(scope="module")
def hub_relays(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Kind, Relay]]:
    """Relays in the hub, with self-signed certificates."""
    with inside(network.hub), ExitStack() as stack:
        found = {
            kind: stack.enter_context(
                running(kind, "pinned", tmp_path_factory.mktemp(kind), address=HUB_ADDRESS)
            )
            for kind in KINDS
        }
        with inside(network.a):
            yield found


@pytest.fixture
def relay(kind: Kind, network: Network, hub_relays: dict[Kind, Relay]) -> Iterator[Relay]:
    """The relay; the test is inside node a, and all links are up again afterwards."""
    with inside(network.a):
        yield hub_relays[kind]
        link(network, "up")
        wait_until_reachable(hub_relays[kind])


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


def link(network: Network, state: str) -> None:
    """Take the hub's end of node a's link up or down; node a itself is not notified."""
    ip("-n", network.hub.name, "link", "set", "to-a", state)


def wait_until_reachable(relay: Relay) -> None:
    """Wait for the kernel, which may take a second to notice that a link is up."""
    for _ in range(50):
        with suppress(OSError):
            socket.create_connection((relay.address, relay.port), timeout=0.2).close()
            return
        time.sleep(0.02)
    raise AssertionError("the link does not come up")


def impatient(relay: Relay) -> Client:
    """A client with short timeouts."""
    return client_of(relay, receive_timeout=SILENCE, connect_timeout=SILENCE)


def client_of(relay: Relay, *nodes: DERPNode, **changes: object) -> Client:
    settings = config(relay, **{"receive_timeout": 20, **changes})
    return Client.for_region(region(*(nodes or (node(relay),))), config=settings)


async def endlessly(send: Callable[[bytes], Awaitable[None]]) -> None:
    """Send until that fails."""
    while True:
        await send(bytes(60_000))


async def test_a_receiver_gives_up_and_reconnects(network: Network, relay: Relay) -> None:
    """With the link down the receiver gives up in its time, and connects again when it is up."""
    receiver = impatient(relay)
    got: list[bytes] = []

    async def receive() -> None:
        async for message in receiver:
            if isinstance(message, ReceivedPacket):
                got.append(message.data)  # noqa: PERF401 (read meanwhile)

    async with receiver, asyncio.TaskGroup() as group:
        group.create_task(receive())
        await until(lambda: receiver.connected)
        await receiver.ping()
        link(network, "down")
        began = time.monotonic()
        await until(lambda: not receiver.connected)
        assert time.monotonic() - began < SILENCE + 2
        assert receiver.stats.disconnects["timeout"] == 1
        await until(lambda: receiver.stats.failed_connects > 0)
        link(network, "up")
        await until(lambda: receiver.connected)
        assert receiver.generation == 2
        sender = client_of(relay)
        async with clients(sender):
            await sender.send(receiver.self_public_key, b"after")
            await until(lambda: got == [b"after"])
        await receiver.aclose()


async def test_sends_into_a_dead_link_end_with_the_connection(
    network: Network, relay: Relay
) -> None:
    """A sender waits until the connection is given up, and then raises."""
    sender, target = impatient(relay), impatient(relay)
    async with clients(sender, target):
        link(network, "down")
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            await within(endlessly(partial(sender.send, target.self_public_key)))
        assert time.monotonic() - began < SILENCE + 2
        assert isinstance(caught.value.__cause__, TimeoutError)
        with pytest.raises(ConnectError) as failed:
            await within(sender.send(target.self_public_key, b"again"))
        assert "no answer within 0.8 s, connecting to node 900a" in str(failed.value)
        link(network, "up")
        with suppress(ConnectionClosed):
            await within(target.recv())
        await until(lambda: not target.connected)
        await asyncio.to_thread(wait_until_reachable, relay)
        await sender.connect()
        await sender.ping()
        assert sender.generation == 2


async def test_forwards_have_their_own_time_limit(
    network: Network, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward that cannot leave closes the connection, long before the receive timeout would."""
    monkeypatch.setattr("pyderp.client.connection.FORWARD_TIMEOUT", 0.3)

    sender = client_of(relay)
    async with clients(sender):
        link(network, "down")
        source, target = sender.self_public_key, client_of(relay).self_public_key
        with pytest.raises(ConnectionClosed, match=r"derp\.ForwardPacket"):
            await within(endlessly(partial(sender.forward_packet, source, target)))
        assert not sender.connected


async def test_a_ping_into_a_dead_link_ends_with_the_connection(
    network: Network, relay: Relay
) -> None:
    client = impatient(relay)
    async with clients(client):
        link(network, "down")
        with pytest.raises(ConnectionClosed):
            await within(client.ping())


async def test_a_short_break_is_survived(network: Network, relay: Relay) -> None:
    """TCP repeats the lost bytes, on the same connection."""
    sender, target = (client_of(relay) for _ in range(2))
    async with clients(sender, target):
        await deliver(sender, target)
        link(network, "down")
        await sender.send(target.self_public_key, b"during the break")
        await asyncio.sleep(0)
        link(network, "up")
        assert (await next_of(target, ReceivedPacket)).data == b"during the break"
        assert sender.generation == target.generation == 1


async def test_close_does_not_wait_for_a_dead_link(network: Network, relay: Relay) -> None:
    """Closing takes a second at most, even with megabytes that cannot leave."""
    client = client_of(relay)
    await client.connect()
    await client.ping()
    link(network, "down")
    with suppress(TimeoutError):
        await within(endlessly(partial(client.send, client.self_public_key)), 0.2)
    began = time.monotonic()
    await client.aclose()
    assert time.monotonic() - began < 4


async def test_a_first_address_that_drops_packets_leads_to_the_second_node(
    network: Network, relay: Relay
) -> None:
    """After 1.5 s without an answer."""
    swallowed = node(relay, ipv4=BLACK_HOLE)
    client = client_of(relay, swallowed, node(relay))
    other = client_of(relay)
    async with client:
        began = time.monotonic()
        await client.connect()
        assert 1.4 < time.monotonic() - began < 4
        await client.ping()
        async with clients(other):
            await deliver(client, other)
            await deliver(other, client)


async def test_a_family_without_a_route_is_skipped(network: Network, relay: Relay) -> None:
    """IPv4 is used at once where there is no route for IPv6."""
    both = node(relay, ipv6="2001:db8::1")
    client = client_of(relay, both, prefer_ipv6=lambda: True)
    async with client:
        began = time.monotonic()
        await client.connect()
        assert time.monotonic() - began < 1
