"""A client's connection reaches each stage, over each transport, and ends there for each reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeAlias

import pytest

from pyderp import Client, ClientConfig, DerpError, NetworkSettings
from pyderp.net.tls import TLSConfig
from pyderp.tasks import cancel_and_wait, run_together
from tests.leftovers import none_left
from tests.net.certificates import ROOT

from . import peer as peers
from .peer import WAYS, Identities, Peer, Way, actions

Act: TypeAlias = Callable[[Peer], None]
Use: TypeAlias = Callable[[Client, asyncio.Event], Awaitable[None]]
"""A use of a client; the event is set when the peer has reached the stage."""

BOUND: Final = 20.0
SHORT: Final = 0.1
"""Seconds of a time limit that is meant to pass."""
DST: Final = peers.RELAY.public
TRUST: Final = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=[ROOT.pem()])


@pytest.fixture(scope="module")
def contexts() -> Identities:
    return Identities()


@pytest.fixture(autouse=True)
def trusted_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyderp.net.tunnel._PROXY_TLS", TRUST)


def config(way: Way, port: int) -> ClientConfig:
    scheme = {"http": "http", "https": "https", "socks": "socks5"}.get(way.proxy)
    return ClientConfig(
        tls=TRUST,
        websocket=way.websocket,
        network=NetworkSettings(proxy=f"{scheme}://127.0.0.1:{port}" if scheme else ""),
        connect_timeout=BOUND,
    )


async def one_ending(
    way: Way,
    stage: str,
    act: Act,
    use: Use,
    *,
    contexts: Identities,
    change: Callable[[ClientConfig], ClientConfig] = lambda c: c,
) -> None:
    """From nothing to nothing: a peer, a client, and how it is used."""
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()
    peer = Peer(
        way,
        stage,
        act,
        contexts=contexts,
        reached=lambda: loop.call_soon_threadsafe(reached.set),
    )
    scheme = "https" if way.tls else "http"
    client = Client.for_url(
        f"{scheme}://127.0.0.1:{peer.port}/derp", config=change(config(way, peer.port))
    )
    try:
        async with asyncio.timeout(BOUND):
            with contextlib.suppress(DerpError, OSError):
                await use(client, reached)
            await client.aclose()
    finally:
        peer.stop()
        for gone in list(peers.stalled):
            gone.set()
        peers.stalled.clear()
        while not peer.over:  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.001)


# Uses by the program


async def receive(client: Client, _: asyncio.Event) -> None:
    while True:
        await client.recv()


async def iterate(client: Client, _: asyncio.Event) -> None:
    async for _message in client.messages(reconnect=False):
        pass


async def send(client: Client, _: asyncio.Event) -> None:
    while True:
        await client.send(DST, b"x" * 30_000)


async def ping(client: Client, _: asyncio.Event) -> None:
    await client.connect()
    calls = (client.ping(), client.ping(), receive(client, _))
    await run_together(*(asyncio.create_task(quietly(call)) for call in calls))


async def everything(client: Client, reached: asyncio.Event) -> None:
    """Several callers share one connect and its end."""
    calls = (receive, send, send, ping)
    await run_together(*(asyncio.create_task(quietly(call(client, reached))) for call in calls))


async def quietly(call: Awaitable[object]) -> None:
    with contextlib.suppress(DerpError, OSError):
        await call


@contextlib.asynccontextmanager
async def under_way(client: Client, reached: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    """A task that uses the client, once the peer has reached the stage."""
    task = asyncio.create_task(everything(client, reached))
    there = asyncio.create_task(reached.wait())
    # On a busy machine a short time may pass before the peer has reached it.
    await asyncio.wait([task, there], return_when=asyncio.FIRST_COMPLETED)
    await cancel_and_wait([there])
    yield task
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def close(client: Client, reached: asyncio.Event) -> None:
    async with under_way(client, reached):
        await client.aclose()


async def cancel(client: Client, reached: asyncio.Event) -> None:
    async with under_way(client, reached) as task:
        task.cancel()


async def cancel_the_close(client: Client, reached: asyncio.Event) -> None:
    async with under_way(client, reached):
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        del closing


async def time_out(client: Client, reached: asyncio.Event) -> None:
    async with under_way(client, reached):
        pass


CAUSES_OF_OURS: Final = {
    "close": (peers.stay, close),
    "cancel": (peers.stay, cancel),
    "cancel the close": (peers.stay, cancel_the_close),
    "time-out": (peers.stay, time_out),
    "close while stalled": (peers.stall, close),
    "cancel while stalled": (peers.stall, cancel),
    "close while flooded": (peers.flood, close),
}


def short(config: ClientConfig) -> ClientConfig:
    return replace(config, connect_timeout=SHORT, receive_timeout=SHORT)


PLACES: Final = [(way, stage) for way in WAYS for stage in way.stages()]


USED: Final = [
    *((way, stage, receive) for way, stage in PLACES),
    *((way, stage, everything) for way, stage in PLACES if stage == "idle"),
]
"""An idle connection ends in the same ways while everything is called at once; a test of its own
each, for one has half a minute, also on a busy machine."""


@pytest.mark.parametrize(
    ("way", "stage", "use"), USED, ids=[f"{w.name}-{s}-{u.__name__}" for w, s, u in USED]
)
async def test_nothing_is_left_when_the_peer_ends_it(
    way: Way, stage: str, use: Use, contexts: Identities
) -> None:
    await one_ending(way, stage, peers.hang_up, receive, contexts=contexts)
    for act in actions(way, stage):
        async with none_left():
            await one_ending(way, stage, act, use, contexts=contexts)


@pytest.mark.parametrize(("way", "stage"), PLACES, ids=[f"{w.name}-{s}" for w, s in PLACES])
async def test_nothing_is_left_when_the_client_ends_it(
    way: Way, stage: str, contexts: Identities
) -> None:
    await one_ending(way, stage, peers.hang_up, receive, contexts=contexts)
    for cause, (act, use) in CAUSES_OF_OURS.items():
        if act is not peers.stay and stage != "idle":
            continue
        change = short if cause == "time-out" else (lambda c: c)
        async with none_left():
            await one_ending(way, stage, act, use, contexts=contexts, change=change)
