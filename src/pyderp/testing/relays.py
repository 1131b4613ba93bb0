"""Relays and clients that are ready when they are handed over."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pyderp.client.client import Client
from pyderp.client.config import ClientConfig
from pyderp.config import RelayConfig
from pyderp.net.settings import NetworkSettings
from pyderp.server.app.relay import Relay
from pyderp.testing.faults import FaultyRelay
from pyderp.wire.messages import ServerInfo

__all__ = ["client_pair", "relay"]


@contextlib.asynccontextmanager
async def relay(config: RelayConfig | None = None) -> AsyncIterator[Relay]:
    """A relay that serves; by default plain, with a new key, on a free port of 127.0.0.1."""
    async with Relay(config) as running:
        yield running


@contextlib.asynccontextmanager
async def client_pair(
    relay: Relay | FaultyRelay | str, *, config: ClientConfig | None = None
) -> AsyncIterator[tuple[Client, Client]]:
    """Two clients that can reach each other at once: both are logged in.

    Their first messages, ServerInfo, were read already. Leaving the block closes them.

    Args:
        relay: a relay, or the URL of one. Its certificate must be one that clients trust,
            but for `FaultyRelay(tls=True)`, whose pin is known here.
        config: of both clients; by default one that does not look at the environment.

    Raises:
        ConnectError: the relay is not there, or refuses.
        ConnectionClosed: it was there, and is not any more.
    """
    async with _client(relay, config) as one, _client(relay, config) as other:
        for client in (one, other):
            # The relay says this when it has registered the client.
            while not isinstance(await client.recv(), ServerInfo):
                pass
        yield one, other


def _client(relay: Relay | FaultyRelay | str, config: ClientConfig | None) -> Client:
    config = config or ClientConfig(network=NetworkSettings())
    if isinstance(relay, str):
        return Client.for_url(relay, config=config)
    if isinstance(relay, FaultyRelay) and relay.region.nodes[0].cert_name:
        return Client.for_region(relay.region, config=config)
    return Client.for_url(relay.url, config=config)
