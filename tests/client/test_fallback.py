"""A client whose upgrade is refused uses a websocket, and logs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectError,
    DERPNode,
    DERPRegion,
    NetworkSettings,
    Relay,
    ServerInfo,
    UpgradeRejected,
)
from pyderp.client import fallback
from pyderp.client.connect import HttpRoute

from .fakes import Log, bounded, fake_relay

AUTOMATIC = ClientConfig(network=NetworkSettings(use_derp_http=True))


class Proxy:
    """Passes websockets on to a relay, and answers upgrades to DERP as the test says."""

    def __init__(self, relay: Relay, answer: str, *, websockets: bool = True) -> None:
        self._relay = relay
        self._answer = answer
        self._websockets = websockets
        self.asked: list[str] = []
        """The protocol that each connection requested."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/derp"

    @property
    def region(self) -> DERPRegion:
        node = DERPNode(
            name="1a", region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", derp_port=self.port
        )
        return DERPRegion(region_id=1, region_code="x", nodes=(node,))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            websocket = b"upgrade: websocket" in head.lower()
            self.asked.append("websocket" if websocket else "derp")
            if websocket and self._websockets:
                await self._pass_on(head, reader, writer)
            else:
                answer = f"HTTP/1.1 {self._answer}\r\nContent-Length: 2\r\n\r\nno"
                writer.write(answer.encode())
                await writer.drain()
        writer.close()

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream, out = await asyncio.open_connection(*self._relay.address)
        out.write(head)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
            target.close()

        await asyncio.gather(copy(reader, out), copy(upstream, writer))


@contextlib.asynccontextmanager
async def behind(answer: str, *, websockets: bool = True) -> AsyncIterator[Proxy]:
    async with Relay() as relay:
        proxy = Proxy(relay, answer, websockets=websockets)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()


@pytest.mark.parametrize("region", [False, True], ids=["url", "region"])
@pytest.mark.parametrize(
    "answer", ["400 Bad Request", "404 Not Found", "426 Upgrade Required", "501 Not Implemented"]
)
async def test_a_refused_upgrade_leads_to_a_websocket(answer: str, region: bool) -> None:
    """It is logged and counted; the next connect uses a websocket at once."""
    async with bounded(), behind(answer) as proxy:
        client = (
            Client.for_region(proxy.region, config=AUTOMATIC)
            if region
            else Client.for_url(proxy.url, config=AUTOMATIC)
        )
        async with client:
            with Log("pyderp.client") as log:
                assert isinstance(await client.recv(), ServerInfo)
            assert any(f"upgrade refused: {answer}" in line for line in log.lines)
            assert any("connected by websocket, as no upgrade" in line for line in log.lines)
            assert proxy.asked == ["derp", "websocket"]
            assert client.stats.websocket_fallbacks == 1
            assert client._life.connection is not None
            client._life.forget(client._life.connection, sending=False)
            await client.connect()
            assert proxy.asked == ["derp", "websocket", "websocket"]
            assert client.stats.websocket_fallbacks == client.stats.connects == 2


async def test_the_next_upgrade_is_tried_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "MEMORY", -1.0)

    async with (
        bounded(),
        behind("426 Upgrade Required") as proxy,
        Client.for_url(proxy.url, config=AUTOMATIC) as client,
    ):
        await client.connect()
        assert client._life.connection is not None
        client._life.forget(client._life.connection, sending=False)
        await client.connect()
        assert proxy.asked == ["derp", "websocket"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        "200 OK",
        "301 Moved",
        "401 Unauthorized",
        "403 Forbidden",
        "407 Proxy Authentication Required",
        "429 Too Many Requests",
        "500 Oh",
        "503 Later",
        "511 Network Authentication Required",
    ],
)
async def test_other_answers_lead_to_no_websocket(answer: str) -> None:
    """They are about the client's rights or the moment, and hold for a websocket, too."""
    async with (
        bounded(),
        behind(answer) as proxy,
        Client.for_url(proxy.url, config=AUTOMATIC) as client,
    ):
        with pytest.raises(ConnectError, match=answer[:3]):
            await client.connect()
        assert proxy.asked == ["derp"]


async def test_the_fallback_can_be_switched_off() -> None:
    config = ClientConfig(network=NetworkSettings(), websocket=False)
    async with (
        bounded(),
        behind("426 Upgrade Required") as proxy,
        Client.for_url(proxy.url, config=config) as client,
    ):
        with pytest.raises(ConnectError, match="426"):
            await client.connect()
        assert proxy.asked == ["derp"]


async def test_the_error_has_both_failures() -> None:
    """The error is that of the upgrade; a note has that of the websocket; neither is remembered."""
    async with (
        bounded(),
        behind("404 Not Found", websockets=False) as proxy,
        Client.for_url(proxy.url, config=AUTOMATIC) as client,
    ):
        with pytest.raises(ConnectError, match="404 Not Found") as caught:
            await client.connect()
        (cause,) = caught.value.attempts
        assert isinstance(cause, UpgradeRejected)
        assert cause.__notes__ == ["and no websocket: the same answer"]
        assert client.stats.websocket_fallbacks == 0
        route = client._life.route
        assert isinstance(route, HttpRoute)
        assert not route.fallback._until


async def test_a_websocket_that_hangs_does_not_hide_the_refusal() -> None:
    config = ClientConfig(network=NetworkSettings(), connect_timeout=0.5)
    async with (
        bounded(),
        fake_relay() as relay,
        Client.for_url(relay.url, config=config) as client,
    ):
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await peer.head()
        peer.say(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno")
        with pytest.raises(ConnectError, match=r"trying a websocket after: .*404 No: no"):
            await connecting
