"""A client that the program drops without closing it."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest

from pyderp import Client, ClientConfig, ConnectionClosed
from pyderp.testing import RelayThread

from .fakes import DIRECT, PEER, bounded

CONFIG = ClientConfig(network=DIRECT)


@pytest.fixture
def relay() -> Iterator[RelayThread]:
    with RelayThread() as relay:
        yield relay


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def gone(relay: RelayThread) -> None:
    await asyncio.to_thread(relay.wait_for_clients, 0)


@pytest.mark.usefixtures("collector_off")
async def test_a_dropped_client_is_named_and_its_connection_closed(relay: RelayThread) -> None:
    """At once, without the cyclic collector."""
    async with bounded():
        client = Client.for_url(relay.url, config=CONFIG)
        await client.connect()
        short = client.self_public_key.short().replace("[", r"\[").replace("+", r"\+")
        with pytest.warns(ResourceWarning, match=f"unclosed <pyderp.Client {short} url="):
            del client
        await gone(relay)


async def test_what_was_sent_before_still_leaves(relay: RelayThread) -> None:
    async with bounded(), Client.for_url(relay.url, config=CONFIG) as other:
        await other.connect()
        client = Client.for_url(relay.url, config=CONFIG)
        await client.connect()
        await client.send(other.self_public_key, b"last words")
        with pytest.warns(ResourceWarning):
            del client
        await other.recv()
        assert getattr(await other.recv(), "data", None) == b"last words"


async def test_no_warning_without_a_connection(relay: RelayThread) -> None:
    """Clients that never connected, are closed, or lost their connection."""
    async with bounded():
        Client.for_url(relay.url, config=CONFIG)
        closed = Client.for_url(relay.url, config=CONFIG)
        await closed.connect()
        await closed.aclose()
        ended = Client.for_url(relay.url, config=CONFIG)
        await ended.connect()
        await ended.recv()
        relay.cut()
        with pytest.raises(ConnectionClosed):
            await ended.recv()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del closed, ended


async def test_an_object_that_still_sends_keeps_the_connection(relay: RelayThread) -> None:
    """Such as a peer for sealed packets."""
    async with bounded():
        client = Client.for_url(relay.url, config=CONFIG)
        await client.connect()
        sealed = client.sealed(PEER)
        del client
        await sealed.send(b"x")
        await asyncio.to_thread(relay.wait_for_clients, 1)
        with pytest.warns(ResourceWarning):
            del sealed
        await gone(relay)


async def test_the_last_reference_may_go_in_another_thread(relay: RelayThread) -> None:
    """The collector runs in any thread."""
    async with bounded():
        kept = [Client.for_url(relay.url, config=CONFIG)]
        await kept[0].connect()
        with pytest.warns(ResourceWarning, match="unclosed"):
            await asyncio.to_thread(kept.clear)
        await gone(relay)


def test_a_client_at_the_end_of_the_program_is_named(relay: RelayThread) -> None:
    async def main() -> None:
        await Client.for_url(relay.url, config=CONFIG).connect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        asyncio.run(main())
    relay.wait_for_clients(0)
