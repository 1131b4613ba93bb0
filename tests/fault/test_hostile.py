"""Clients that send bytes other than the protocol's do not disturb a live pair beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.keys import NodePrivate
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire import frames
from pyderp.wire.client import ClientSession
from pyderp.wire.upgrade import upgrade_request
from tests.server.dial import (
    Client,
    Via,
    clients,
    connect,
    drained,
    hang_up,
    open_stream,
    passes,
    until_gone,
)
from tests.server.ways import NAME, over_tls
from tests.waiting import until

Attack = Callable[[pyderp.Relay, Via, random.Random], Awaitable[None]]

GET_DERP = upgrade_request("relay.test", "/derp", user_agent="tests")
GET_WEBSOCKET = (
    b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: derp\r\n\r\n"
)


def junk(rng: random.Random) -> bytes:
    """Random bytes; sometimes many, often ones with a meaning in some layer."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.choice((1, 5, 100, 5000, 200_000)))
    if kind == 1:  # a frame of any type with any length announced
        return struct.pack(">BI", rng.randrange(256), rng.getrandbits(32)) + rng.randbytes(100)
    if kind == 2:  # a frame of a known type and a plausible length
        size = rng.randrange(2000)
        return struct.pack(">BI", rng.randrange(0x16), size) + rng.randbytes(size)
    if kind == 3:
        return b"GET /" + rng.randbytes(20) + b" HTTP/1.1\r\n" + rng.randbytes(20) + b"\r\n\r\n"
    if kind == 4:  # the start of a TLS record or a websocket frame
        return rng.choice((b"\x16\x03\x01", b"\x17\x03\x03", b"\x82\xff", b"\x88\x80", b"\x89\x7f"))
    return bytes(rng.randrange(1, 300))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Valid bytes with a few of them changed, cut or doubled."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed))
        action = rng.randrange(3)
        if action == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del changed[at:]
            changed += b"\0"
        else:
            changed[at:at] = changed[at : at + 20]
    return bytes(changed)


async def leave(rng: random.Random, writer: asyncio.StreamWriter) -> None:
    """Leave in one of three ways: half-close, close, reset."""
    how = rng.randrange(3)
    sock = writer.get_extra_info("socket")
    # uvloop's transports raise RuntimeError once the relay has closed.
    with contextlib.suppress(OSError, RuntimeError):
        if how == 0 and writer.can_write_eof():
            writer.write_eof()
        elif how == 1 and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await hang_up(writer)


async def say(rng: random.Random, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send in one piece or several; the relay may have closed already."""
    with contextlib.suppress(OSError, RuntimeError):
        while data:
            size = rng.choice((1, 10, 1000, len(data), len(data)))
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await writer.drain()


async def on_connect(relay: pyderp.Relay, _: Via, rng: random.Random) -> None:
    """On the bare TCP connection, whatever the port speaks."""
    writer = (await open_stream(relay.address))[1]
    await say(rng, writer, junk(rng))
    await leave(rng, writer)


async def instead_of_a_request(relay: pyderp.Relay, via: Via, rng: random.Random) -> None:
    _, writer = await open_stream(relay.address, via)
    await say(rng, writer, rng.choice((junk(rng), mutated(rng, GET_DERP))))
    await leave(rng, writer)


async def instead_of_a_login(relay: pyderp.Relay, via: Via, rng: random.Random) -> None:
    _, writer = await open_stream(relay.address, via)
    session = ClientSession(NodePrivate.generate(), random=os.urandom, server_key=relay.public_key)
    login = b"".join(session.data_to_send())
    request = rng.choice((GET_DERP, GET_WEBSOCKET))
    await say(rng, writer, request + rng.choice((junk(rng), mutated(rng, login))))
    await leave(rng, writer)


async def instead_of_frames(relay: pyderp.Relay, via: Via, rng: random.Random) -> None:
    client = await connect(relay.address, via=via)
    client.session.send_packet(client.key, rng.randbytes(100))
    client.session.send_ping(bytes(8))
    client.session.note_preferred(True)
    good = b"".join(client.session.data_to_send())
    await say(rng, client.writer, rng.choice((junk(rng), mutated(rng, good))))
    await leave(rng, client.writer)


async def inside_a_websocket(relay: pyderp.Relay, via: Via, rng: random.Random) -> None:
    client = await connect(
        relay.address, via=Via(tls=via.tls, server_name=via.server_name, websocket=True)
    )
    assert client.websocket is not None
    if rng.randrange(2):
        client.websocket.send_binary(junk(rng))
    else:
        client.websocket.send_text(b"text")
    data = b"".join(client.websocket.data_to_send())
    await say(rng, client.writer, rng.choice((data, mutated(rng, data), junk(rng))))
    await leave(rng, client.writer)


ATTACKS: list[Attack] = [
    on_connect,
    instead_of_a_request,
    instead_of_a_login,
    instead_of_frames,
    inside_a_websocket,
]


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_junk_at_any_stage_reaches_no_client_and_leaves_nothing(
    tls: ManualTLS, attack: Attack, encrypted: bool
) -> None:
    config = RelayConfig(tls=tls if encrypted else None)
    via = over_tls() if encrypted else Via()

    async with pyderp.Relay(config) as relay:
        async with clients(relay, via=via) as (first, second):
            for seed in range(25):
                await attack(relay, via, random.Random(seed))
                await passes(first, second)
            await passes(second, first)
        await until_gone(relay)
        core = relay._running()
        assert relay.clients == 0
        assert not core.timers
        assert not core.stalled
        assert not core.router.registry.active
        assert not core.router.registry.sent_to
        assert not core.router.registry.watchers


async def test_a_bad_peer_is_logged_once_with_its_address_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with pyderp.Relay() as relay, clients(relay, 1) as (client,):
            port = client.writer.get_extra_info("sockname")[1]
            client.writer.write(frames.pack_frame(frames.FrameType.PING, b"short"))
            await client.closed()
            assert relay.counters.protocol_errors == 1
            lines = [each.getMessage() for each in caplog.records]
            assert lines == [
                f"client 1 127.0.0.1:{port} {client.key.short()} closed: short ping: 5"
            ]

    caplog.set_level(logging.INFO)
    await main()


@pytest.mark.parametrize("length", [65569, 0xFFFFFFFF])
async def test_an_unknown_frame_that_is_too_long_is_not_awaited(
    caplog: pytest.LogCaptureFixture, length: int
) -> None:
    async with pyderp.Relay() as relay, clients(relay, 2) as (first, second):
        first.writer.write(struct.pack(">BI", 0xFE, length))
        with pytest.raises((EOFError, ConnectionError)):
            await first.packet()
        assert f"closed: unknown frame type 254 too large: {length} bytes" in caplog.text
        assert relay.counters.protocol_errors == 1
        await passes(second, second)


async def test_unknown_frames_are_discarded_as_they_come() -> None:
    async with pyderp.Relay() as relay, clients(relay, 2) as (first, second):
        core = relay._running()
        for _ in range(50):
            first.writer.write(struct.pack(">BI", 0x7F, 65568) + bytes(65568))
            await first.writer.drain()
        first.writer.write(struct.pack(">BI", 0x7F, 65568) + bytes(60000))
        await first.writer.drain()
        (protocol,) = (
            each for each in core.protocols if isinstance(each, RelayProtocol) and each.number == 1
        )
        assert not protocol.tail
        await passes(second, second)
        assert relay.clients == 2


async def test_a_thousand_half_open_connections_are_all_forgotten() -> None:
    async with pyderp.Relay() as relay, clients(relay) as (first, second):
        streams = [await open_stream(relay.address) for _ in range(200)]
        for i, (_, writer) in enumerate(streams):
            writer.write(GET_DERP[: i % len(GET_DERP)])
        await passes(first, second)
        for _, writer in streams:
            await hang_up(writer)
        core = relay._running()
        await until(lambda: len(core.protocols) <= 2)
        assert len(core.timers) == 2


async def test_a_client_that_resets_ends_only_its_own_connection() -> None:
    async with pyderp.Relay() as relay, clients(relay) as (first, second):
        for _ in range(20):
            victim: Client = await connect(relay.address)
            first.send(victim, bytes(60000))
            sock = victim.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await victim.aclose()
            first.send(victim, bytes(60000))
        await passes(first, second)


async def test_a_request_that_never_ends_is_refused() -> None:
    async with pyderp.Relay() as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: " + NAME.encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"a" * 10_000)
                await writer.drain()
        answer = await drained(reader)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
        await hang_up(writer)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1
