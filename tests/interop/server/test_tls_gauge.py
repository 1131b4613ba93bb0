"""The gauge of connections over TLS goes up with each, and down when it ends, as in derper.

derper counts an HTTP connection only while it answers a request; pyderp counts it while it is open.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.interop.relays import Kind, Relay, running
from tests.server import dial

from .support import BOUND, Answer, both, request

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GAUGE = re.compile(r'^derper_tls_active_version\{version="1.3"\} (\d+)$', re.MULTILINE)


@dataclass
class Watched:
    """A relay with TLS, and ways to it."""

    relay: Relay
    tls: ssl.SSLContext

    @property
    def address(self) -> tuple[str, int]:
        return self.relay.address, self.relay.port

    def via(self, *, websocket: bool = False) -> dial.Via:
        return dial.Via(tls=self.tls, server_name="localhost", websocket=websocket)

    async def open(self, start: bytes) -> Stream:
        reader, writer = await dial.open_stream(self.address, self.via())
        writer.write(start)
        return reader, writer

    async def refused(self, start: bytes) -> bytes:
        """What the relay sends before it closes."""
        reader, writer = await self.open(start)
        said = await dial.drained(reader)
        await dial.hang_up(writer)
        return said

    async def gauge(self) -> int:
        """Connections, without the one of this request."""
        said = await self.refused(request("/debug/varz", host="localhost"))
        answer = Answer.parse(said)
        assert answer.status == 200
        found = GAUGE.search(answer.body.decode())
        assert found, "the relay does not count TLS"
        return int(found[1]) - 1

    async def becomes(self, count: int) -> None:
        """Wait: a relay notices an end a little later, also that of the previous request."""
        async with asyncio.timeout(BOUND):
            while await self.gauge() != count:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.02)


async def watch(watched: Watched) -> None:
    open_http = 1 if watched.relay.kind == "pyderp" else 0
    async with AsyncExitStack() as stack:
        await watched.becomes(0)
        client = await dial.connect(watched.address, via=watched.via())
        await watched.becomes(1)
        websocket = await dial.connect(watched.address, via=watched.via(websocket=True))
        await watched.becomes(2)

        # HTTP that is kept alive, after its answer
        reader, writer = await watched.open(b"GET /derp/probe HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stack.push_async_callback(dial.hang_up, writer)
        async with asyncio.timeout(BOUND):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await watched.becomes(2 + open_http)
        # ... and one without a request yet
        _, silent = await watched.open(b"")
        stack.push_async_callback(dial.hang_up, silent)
        await watched.becomes(2 + 2 * open_http)
        # ... and one without a handshake
        _, raw = await dial.open_stream(watched.address)
        stack.push_async_callback(dial.hang_up, raw)
        await watched.becomes(2 + 2 * open_http)
        for each in (writer, silent, raw):
            await dial.hang_up(each)
        await watched.becomes(2)

        await see_refusals(watched)
        await watched.becomes(2)
        await websocket.aclose()
        await watched.becomes(1)
        await client.aclose()
        await watched.becomes(0)


async def see_refusals(watched: Watched) -> None:
    host = b"Host: localhost\r\n"
    upgrade = b"GET /derp HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
    assert b" 426 " in await watched.refused(request("/derp", host="localhost"))
    assert b" 400 " in await watched.refused(b"no HTTP\r\n\r\n")
    # A frame that is not a ClientInfo; a ClientInfo that does not open.
    assert b" 101 " in await watched.refused(upgrade + b"\x06\0\0\0\0")
    assert b" 101 " in await watched.refused(upgrade + b"\x02\0\0\0\x60" + b"\x07" * 96)
    # A websocket that does not speak DERP: it gets an error, and closes.
    reader, writer = await watched.open(
        b"GET /derp HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        b"Sec-WebSocket-Protocol: derp-of-old\r\n\r\n"
    )
    async with asyncio.timeout(BOUND):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"derp subprotocol")
    await dial.hang_up(writer)


@both
def test_the_gauge_follows_each_connection(kind: Kind, tmp_path: Path) -> None:
    with running(kind, "named", tmp_path) as relay:
        tls = ssl.create_default_context(cafile=str(tmp_path / "localhost.crt"))
        asyncio.run(watch(Watched(relay, tls)))
