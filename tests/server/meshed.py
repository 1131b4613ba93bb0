"""Meshed pyderp relays in one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from pyderp import ClientConfig, NetworkSettings, NodePrivate, PeerGone, PeerGoneReason, RelayConfig
from pyderp.keys import MeshKey, NodePublic
from pyderp.relay.counters import Counters
from pyderp.relay.registry import Forwarder
from pyderp.relay.router import Router
from pyderp.server.app.relay import Relay
from pyderp.server.mesh.links import Mesh, MeshStatus
from pyderp.wire.messages import Message
from tests.waiting import until

from . import dial

MESH = MeshKey(bytes(range(32)))
CLIENT = ClientConfig(network=NetworkSettings())
"""No proxy, whatever the environment of the tests says."""
RETRY = 0.02
DISCONNECTED, NOT_HERE = PeerGoneReason.DISCONNECTED, PeerGoneReason.NOT_HERE


@dataclass
class Node:
    """One relay and its mesh."""

    relay: Relay
    mesh: Mesh

    @property
    def router(self) -> Router:
        return self.relay._running().router

    @property
    def counters(self) -> Counters:
        return self.relay.counters

    @property
    def forwarded(self) -> tuple[int, int]:
        """Packets forwarded to the mesh, and packets that came from it."""
        return self.counters.packets_forwarded_out, self.counters.packets_forwarded_in

    def way(self, client: dial.Client | NodePublic) -> Forwarder | None:
        """Return the forwarder from here to a key on another relay, if there is one."""
        key = client if isinstance(client, NodePublic) else client.key
        return self.router.forwarders.get(key.raw)

    def has(self, client: dial.Client) -> bool:
        """Return whether a connection here has the client's key."""
        return client.key.raw in self.router.registry.active

    def status(self, url: str) -> MeshStatus:
        """Return the status of the link to one host."""
        (found,) = [status for status in self.mesh.status() if status.host == url]
        return found

    async def learns(self, *clients: dial.Client) -> None:
        """Wait until there is a forwarder for each of the clients."""
        await until(lambda: all(self.way(client) is not None for client in clients))


def config(**options: object) -> RelayConfig:
    """Return a relay's settings, with the mesh key unless another is given."""
    return RelayConfig(**{"mesh_key": MESH, **options})  # type: ignore[arg-type]  # any of them


def make_mesh(relay: Relay, client_config: ClientConfig = CLIENT, *, retry: float = RETRY) -> Mesh:
    """Return a mesh for a relay, with no hosts yet."""
    core = relay._running()
    return Mesh(
        core.router,
        relay.private_key,
        relay.config.mesh_key or MESH,
        schedule_flush=core.schedule_flush,
        client_config=client_config,
        retry=retry,
    )


@contextlib.asynccontextmanager
async def node(
    relay_config: RelayConfig | None = None,
    hosts: Sequence[str] = (),
    *,
    client_config: ClientConfig = CLIENT,
    retry: float = RETRY,
) -> AsyncIterator[Node]:
    """A relay in a mesh with hosts."""
    async with Relay(relay_config or config()) as relay:
        mesh = make_mesh(relay, client_config, retry=retry)
        try:
            mesh.set_hosts(hosts)
            yield Node(relay, mesh)
        finally:
            await mesh.aclose()


@contextlib.asynccontextmanager
async def meshed(count: int = 2) -> AsyncIterator[list[Node]]:
    """Start a full mesh; each relay's list contains itself, too, as an operator's would."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node()) for _ in range(count)]
        for each in nodes:
            each.mesh.set_hosts([other.relay.url for other in nodes])
        await linked(*nodes)
        yield nodes
        for each in nodes:  # before any relay stops, or the others would try it again
            await each.mesh.aclose()


async def linked(*nodes: Node) -> None:
    """Wait until all links are up."""
    await until(lambda: all(s.connected or s.is_self for each in nodes for s in each.mesh.status()))


@contextlib.asynccontextmanager
async def client_of(each: Node, private: NodePrivate | None = None) -> AsyncIterator[dial.Client]:
    """A client that is logged in."""
    client = await dial.connect(each.relay.address, private=private)
    try:
        yield client
    finally:
        await client.aclose()


async def messages_so_far(client: dial.Client) -> list[Message]:
    """Return all messages of a client up to now."""
    before = list(client.messages)
    client.messages.clear()
    data = os.urandom(8)
    client.session.send_ping(data)
    client.write()
    while getattr(message := await client.receive(), "data", None) != data:
        before.append(message)
    return before


async def expect_gone(client: dial.Client, key: NodePublic, reason: int) -> None:
    assert await client.wait_for(PeerGone) == PeerGone(key, reason)
