"""A client that the program has dropped without closing it."""

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
async def test_it_is_named_and_its_connection_closed(relay: RelayThread) -> None:
    """At once: nothing of it waits for the cyclic collector."""
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
    """Never connected, closed, or its connection has ended."""
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


async def test_what_still_sends_keeps_the_connection(relay: RelayThread) -> None:
    """As a peer for sealed packets does."""
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


async def test_another_thread_may_drop_it(relay: RelayThread) -> None:
    """As the collector does, which runs where it likes."""
    async with bounded():
        kept = [Client.for_url(relay.url, config=CONFIG)]
        await kept[0].connect()
        with pytest.warns(ResourceWarning, match="unclosed"):
            await asyncio.to_thread(kept.clear)
        await gone(relay)


def test_at_the_end_of_the_program_it_is_named_as_well(relay: RelayThread) -> None:
    async def main() -> None:
        await Client.for_url(relay.url, config=CONFIG).connect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        asyncio.run(main())
    relay.wait_for_clients(0)
