"""A fast start answered in HTTP: the same errors and websockets as without a fast start."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    NetworkSettings,
    ServerInfo,
    TLSConfig,
    UpgradeRejected,
    is_transient,
)
from pyderp.testing import FaultyRelay
from pyderp.wire.frames import FrameType, pack_frame, pack_server_key
from pyderp.wire.metacert import make_meta_certificate
from pyderp.wire.upgrade import switching_protocols
from tests.net.certificates import ROOT, certificate
from tests.waiting import until

from .fakes import DIRECT, PEER, RELAY, FakeRelay, Peer, bounded, fake_relay, packet_frame

META = make_meta_certificate(RELAY.public, now=datetime.now(UTC))
TRUSTING = ClientConfig(
    network=DIRECT,
    tls=TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,)),
)
SERVER = certificate("127.0.0.1", issuer=ROOT)
CALLS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "recv": lambda client: client.recv(),
    "receive_many": lambda client: client.receive_many(),
    "async for": lambda client: anext(client.messages()),
    "send": lambda client: client.send(PEER, b"x"),
    "send, reconnect": lambda client: client.send(PEER, b"x", reconnect=True),
    "send_many": lambda client: client.send_many(PEER, [b"x", b"y"]),
    "ping": lambda client: client.ping(),
    "send_pong": lambda client: client.send_pong(bytes(8)),
    "close_peer": lambda client: client.close_peer(PEER),
}


def tls() -> ssl.SSLContext:
    return SERVER.followed_by(META).server(ssl.TLSVersion.TLSv1_3)


@asynccontextmanager
async def client_and_relay() -> AsyncIterator[tuple[Client, FakeRelay]]:
    """Yield a client that knows the key of a relay by its certificate, and that relay."""
    async with (
        bounded(),
        fake_relay(tls()) as relay,
        Client.for_url(relay.url, config=TRUSTING) as client,
    ):
        yield client, relay


async def fast(client: Client, relay: FakeRelay) -> Peer:
    """A fast start: the client is connected before the relay has sent a byte."""
    await client.connect()
    peer = await relay.accept()
    assert b"Derp-Fast-Start: 1" in await peer.head()
    return peer


def trusting(relay: FaultyRelay, **changes: Any) -> ClientConfig:
    roots = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(relay.ca_file,))
    return ClientConfig(network=NetworkSettings(), tls=roots, **changes)


@pytest.mark.parametrize("which", CALLS)
async def test_each_call_raises_a_connect_error(which: str) -> None:
    """With status, body and advice; `is_transient` knows the status."""
    async with fake_relay(tls()) as relay, bounded():
        url = relay.url.replace("/derp", "/derpx")
        async with Client.for_url(url, config=TRUSTING) as client:
            peer = await fast(client, relay)
            peer.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nno, no")
            await until(lambda: not client.connected)
            with pytest.raises(ConnectError) as caught:
                await CALLS[which](client)
            (cause,) = caught.value.attempts
            assert isinstance(cause, UpgradeRejected)
            assert (cause.status, cause.body) == (403, "no, no")
            assert "path is /derpx; that of relays is /derp" in str(caught.value)
            assert not is_transient(caught.value)
            assert client.stats.disconnects == {"upgrade": 1}


@pytest.mark.parametrize("step", [1, 4, 5, 6, 1000])
async def test_an_answer_in_pieces_is_read(step: int) -> None:
    """Also while a call waits; its end need not come."""
    answer = b"HTTP/1.1 503 Later\r\nContent-Length: 100\r\n\r\nno, no"

    async with client_and_relay() as (client, relay):
        peer = await fast(client, relay)
        receiving = asyncio.create_task(client.recv())
        for at in range(0, len(answer), step):
            peer.say(answer[at : at + step])
            await peer.writer.drain()
            await asyncio.sleep(0)
        if step == 5:
            peer.hang_up()
        with pytest.raises(ConnectError, match="503 Later: no, no") as caught:
            await receiving
        assert is_transient(caught.value)


@pytest.mark.parametrize("answer", [b"HTTP/nonsense\r\n\r\n", b"HTTP/1.1 "])
async def test_an_incomplete_answer_is_an_error(answer: bytes) -> None:
    async with client_and_relay() as (client, relay):
        peer = await fast(client, relay)
        peer.say(answer)
        peer.hang_up()
        with pytest.raises(ConnectError, match="answer is not HTTP"):
            await client.recv()


async def test_the_next_connect_awaits_the_answer() -> None:
    """The one after it does not, if it is an upgrade."""
    async with client_and_relay() as (client, relay):
        peer = await fast(client, relay)
        peer.say(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectError, match="503 Later"):
            await client.recv()
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        assert b"Fast-Start" not in await peer.head()
        peer.say(switching_protocols(RELAY.public))
        await peer.client_info()
        await connecting
        peer.hang_up()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await fast(client, relay)


async def test_a_relay_that_answers_101() -> None:
    """Whatever comes before the 101: the call connects again without a fast start."""
    async with client_and_relay() as (client, relay):
        peer = await fast(client, relay)
        receiving = asyncio.create_task(client.recv())
        peer.say(switching_protocols(RELAY.public), pack_server_key(RELAY.public))
        peer = await relay.accept()
        await peer.head()
        peer.say(switching_protocols(RELAY.public))
        await peer.client_info()
        assert peer.key is not None
        await asyncio.sleep(0)
        peer.say(pack_frame(FrameType.KEEP_ALIVE))
        await receiving


@pytest.mark.parametrize(
    "before", [pack_server_key(RELAY.public), packet_frame(b"x")], ids=["greeting", "packet"]
)
async def test_bytes_after_a_frame_are_not_read_as_an_http_answer(before: bytes) -> None:
    """They are a broken stream, even if they look like HTTP."""
    async with client_and_relay() as (client, relay):
        peer = await fast(client, relay)
        peer.say(before, b"HTTP/1.1 403 No\r\n\r\n")
        if before == packet_frame(b"x"):
            await client.recv()
        with pytest.raises(ConnectionClosed, match="unexpectedly large frame"):
            await client.recv()


@pytest.mark.parametrize("status", [404, 426])
@pytest.mark.parametrize("first", ["recv", "ping", "send"])
async def test_the_call_goes_on_over_a_websocket(status: int, first: str) -> None:
    async with bounded(), FaultyRelay(tls=True) as relay:
        relay.http_status(status, count=2)
        async with Client.for_url(relay.url, config=trusting(relay)) as client:
            await client.connect()
            await until(lambda: not client.connected)
            if first != "recv":
                await CALLS[first](client)
            assert isinstance(await client.recv(), ServerInfo)
            assert client.stats.websocket_fallbacks == 1


@pytest.mark.parametrize("status", [403, 429, 503])
async def test_other_answers_lead_to_no_websocket(status: int) -> None:
    async with bounded(), FaultyRelay(tls=True) as relay:
        relay.http_status(status)
        async with Client.for_url(relay.url, config=trusting(relay)) as client:
            await client.connect()
            with pytest.raises(ConnectError, match=f"upgrade refused: {status}"):
                await client.recv()
            assert isinstance(await client.recv(), ServerInfo)
            assert client.stats.websocket_fallbacks == 0
