"""Relays and pairs of clients are ready when they are handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyderp import (
    ClientConfig,
    ConnectError,
    ManualTLS,
    MeshKey,
    NetworkSettings,
    NodePublic,
    PeerPresent,
    ReceivedPacket,
    RelayConfig,
)
from pyderp.testing import FaultyRelay, client_pair, relay
from tests.conftest import Run


def test_a_relay_serves(run: Run, tmp_path: Path) -> None:
    """With the settings given; afterwards it is gone."""

    async def scenario() -> None:
        async with relay() as running:
            assert running.url.startswith("http://127.0.0.1:")
            url = running.url
        with pytest.raises(ConnectError):
            async with client_pair(url):
                pass
        config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"))
        async with relay(config) as running:
            assert running.url.startswith("https://127.0.0.1:")

    run(scenario())


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("by_url", [False, True])
def test_a_pair_is_reachable_at_once(run: Run, faulty: bool, by_url: bool) -> None:
    """The first message of each is the other's packet; afterwards both are closed."""

    async def scenario() -> None:
        async with FaultyRelay() if faulty else relay() as running:
            async with client_pair(running.url if by_url else running) as (a, b):
                await a.send(b.self_public_key, b"to b")
                await b.send(a.self_public_key, b"to a")
                assert await b.recv() == ReceivedPacket(a.self_public_key, b"to b")
                assert await a.recv() == ReceivedPacket(b.self_public_key, b"to a")
            for client in (a, b):
                assert client.connection_state == "closed"

    run(scenario())


def test_a_pair_over_tls(run: Run) -> None:
    """The pin of a relay with a certificate of its own is known."""

    async def scenario() -> None:
        async with FaultyRelay(tls=True) as running, client_pair(running) as (a, b):
            await a.send(b.self_public_key, b"to b")
            assert await b.recv() == ReceivedPacket(a.self_public_key, b"to b")
            assert a.tls_state is not None

    run(scenario())


def test_a_pair_has_its_settings(run: Run) -> None:
    """Both log in with the mesh key, so that both may watch."""
    key = MeshKey.parse("0123456789abcdef" * 4)
    config = ClientConfig(network=NetworkSettings(), mesh_key=key, watch_connection_changes=True)

    async def scenario() -> None:
        async with (
            relay(RelayConfig(mesh_key=key)) as running,
            client_pair(running, config=config) as pair,
        ):
            for client in pair:
                present: set[NodePublic] = set()
                while len(present) < 2:
                    message = await client.recv()
                    assert isinstance(message, PeerPresent)
                    present.add(message.peer)
                assert present == {each.self_public_key for each in pair}

    run(scenario())
