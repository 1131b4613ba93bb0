"""A relay's connection leaves nothing, wherever it ends and why.

A stage at which it ends, a cause and a way make a case; the collector is off, so a cycle shows.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.relay.ending import EndReason, How
from tests import leftovers
from tests.conftest import Run
from tests.server.dial import Client, Via, connect, hang_up, open_stream, until_gone
from tests.server.ways import KINDS, way

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Cause = Callable[[pyderp.Relay, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_GARBAGE = b"\x00garbage\r\n\r\n" * 8
_BAD_FRAME = b"\x12\x00\x00\x00\x01x"  # a ping of one byte


async def close(_: pyderp.Relay, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The client closes."""
    await hang_up(writer)


async def reset(_: pyderp.Relay, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The client's kernel resets."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def garbage(_: pyderp.Relay, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The client sends what is nothing."""
    writer.write(_GARBAGE)
    await hang_up(writer)


async def half_close(
    _: pyderp.Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """The client closes its half, and reads on to the end."""
    writer.write_eof()
    with suppress(OSError):
        await reader.read()
    await hang_up(writer)


def ended(how: How) -> Cause:
    """The relay ends it."""

    async def cause(
        relay: pyderp.Relay, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for protocol in list(relay._running().protocols):
            protocol.end(EndReason.STOPPED, how, "for a test")
        del protocol
        await hang_up(writer)

    return cause


async def timed_out(
    relay: pyderp.Relay, _: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Its deadline passes."""
    core = relay._running()
    for protocol in list(core.protocols):
        protocol.on_timer(core.loop.time())
    del protocol
    await hang_up(writer)


CAUSES = {
    "close": close,
    "reset": reset,
    "garbage": garbage,
    "half-close": half_close,
    "now": ended(How.NOW),
    "graceful": ended(How.GRACEFUL),
    "timer": timed_out,
}


async def silent(relay: pyderp.Relay, via: Via) -> Streams:
    """Connected, after TLS if there is any; nothing was said."""
    return await open_stream(relay.address, via)


async def in_the_head(relay: pyderp.Relay, via: Via) -> Streams:
    """In the middle of a request's head."""
    reader, writer = await open_stream(relay.address, via)
    writer.write(b"GET /derp HTTP/1.1\r\nHost: h\r\n")
    await writer.drain()
    return reader, writer


async def answered(relay: pyderp.Relay, via: Via) -> Streams:
    """Between two requests."""
    reader, writer = await open_stream(relay.address, via)
    writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def logged_in(relay: pyderp.Relay, via: Via) -> Streams:
    """Logged in, and a packet to itself is on its way."""
    client: Client = await connect(relay.address, via=via)
    client.session.send_packet(client.key, bytes(1000))
    client.write()
    return client.reader, client.writer


STAGES = {
    "silent": silent,
    "in the head": in_the_head,
    "answered": answered,
    "logged in": logged_in,
}


# asyncio's own TLS, which the client has here, cannot close a half.
CASES = [
    (kind, stage, cause)
    for kind in KINDS
    for stage in STAGES
    for cause in CAUSES
    if not (cause == "half-close" and "tls" in kind)
]


@pytest.mark.parametrize(("kind", "stage", "cause"), CASES)
def test_nothing_is_left(run: Run, kind: str, stage: str, cause: str, tls: ManualTLS) -> None:
    config, via = way(kind, tls)

    async def one(relay: pyderp.Relay) -> None:
        reader, writer = await STAGES[stage](relay, via)
        await CAUSES[cause](relay, reader, writer)
        del reader, writer
        await until_gone(relay)

    async def main() -> None:
        async with pyderp.Relay(RelayConfig(tls=config.tls)) as relay:
            await one(relay)
            async with leftovers.none_left():
                await one(relay)

    run(main())
