"""How pyderp's client is pointed at a relay, and steps that many tests share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from pyderp import (
    Client,
    ClientConfig,
    DERPNode,
    DERPRegion,
    MeshKey,
    Message,
    NetworkSettings,
    NodePrivate,
    ReceivedPacket,
    TLSConfig,
)
from tests.interop.relays import MESH_KEY, NEWER, OLDER, Kind, Relay, Setup

M = TypeVar("M")

EACH_KIND_ONCE = pytest.mark.parametrize(
    ("kind", "on_loop"),
    [(OLDER, "asyncio"), (NEWER, "uvloop"), ("pyderp", "uvloop")],
    indirect=["on_loop"],
)
"""All relays and both loops, in half the time of all combinations."""
MESH = MeshKey.parse(MESH_KEY)
DIRECT = NetworkSettings()
"""No proxies, with any environment of the tests."""
NO_ROOTS = TLSConfig(system_roots=False, builtin_roots=False)
BOUND = 10.0
"""Seconds that one step with a relay on the same machine may take."""

GetRelay = Callable[[Kind, Setup], Relay]


def config(relay: Relay, **changes: Any) -> ClientConfig:
    """Settings that trust this relay's certificate only."""
    roots = () if relay.ca is None else (relay.ca,)
    settings = ClientConfig(network=DIRECT, tls=replace(NO_ROOTS, extra_roots=roots))
    return replace(settings, **changes)


def plain_region() -> NetworkSettings:
    """Network settings for regions whose nodes speak no TLS."""
    return replace(DIRECT, use_derp_http=True)


def url(relay: Relay, *, port: int | None = None) -> str:
    scheme = "http" if relay.setup == "plain" else "https"
    host = relay.hostname if relay.setup == "named" else relay.address
    return f"{scheme}://{host}:{port or relay.port}/derp"


def node(relay: Relay, *, port: int | None = None, **changes: Any) -> DERPNode:
    """The relay as a node of region 900."""
    made = DERPNode(
        name="900a",
        region_id=900,
        host_name=relay.hostname if relay.setup == "named" else relay.address,
        ipv4=relay.address,
        ipv6="none",
        cert_name=relay.pin or "",
        derp_port=port or relay.port,
    )
    return replace(made, **changes)


def region(*nodes: DERPNode) -> DERPRegion:
    return DERPRegion(region_id=900, region_code="test", nodes=nodes)


@asynccontextmanager
async def clients(*made: Client) -> AsyncIterator[None]:
    """Connect clients until the relay knows them; close them at the end."""
    async with AsyncExitStack() as stack:
        for client in made:
            await stack.enter_async_context(client)
            await client.connect()
            await client.ping()  # connected only means that the login has left
        yield


async def within(awaitable: Awaitable[M], seconds: float = BOUND) -> M:
    async with asyncio.timeout(seconds):
        return await awaitable


async def next_of(client: Client, kind: type[M], seconds: float = BOUND) -> M:
    """The next message of a type; others before it are dropped."""
    async with asyncio.timeout(seconds):
        while not isinstance(message := await client.recv(), kind):
            pass
    return message


async def settled(client: Client) -> list[Message]:
    """All messages that the relay has for a client so far.

    The relay answers a ping after all that it has queued before.
    """
    data = os.urandom(8)
    await client.send_ping(data)
    messages: list[Message] = []
    async with asyncio.timeout(BOUND):
        while getattr(message := await client.recv(), "data", None) != data:
            messages.append(message)
    return messages


async def deliver(source: Client, target: Client, packet: bytes = b"hello") -> None:
    """Send a packet and wait for it to arrive."""
    await within(source.send(target.self_public_key, packet))
    got = await next_of(target, ReceivedPacket)
    assert got == ReceivedPacket(source.self_public_key, packet)


async def talk(a: Client, b: Client) -> None:
    """Send packets in both directions."""
    async with clients(a, b):
        await deliver(a, b, b"from a to b")
        await deliver(b, a, b"from b to a")


def key() -> NodePrivate:
    return NodePrivate.generate()
