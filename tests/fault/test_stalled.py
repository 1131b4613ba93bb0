"""Clients that stop reading: they delay no other client, and memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.defaults import SEND_QUEUE_BYTES
from pyderp.keys import NodePrivate, NodePublic
from pyderp.relay.counters import DropReason
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire.client import ClientSession
from pyderp.wire.upgrade import upgrade_request
from tests.owntime import own_time
from tests.server.dial import BOUND, Client, Via, clients, connect, passes
from tests.server.ways import KINDS, way
from tests.waiting import until

PACKET = 64 * 1024


def waiting(core: ConnectionContext) -> list[int]:
    """Bytes that the relay holds for each client that does not read."""
    found = []
    for protocol in core.protocols:
        assert isinstance(protocol, RelayProtocol)
        connection = protocol.connection
        if connection is None or connection.backlog is None or protocol.transport is None:
            continue
        backlog = connection.backlog
        held = protocol.transport.get_write_buffer_size()
        found.append(held + backlog.data.size + backlog.disco.size)
    return found


async def until_closed(core: ConnectionContext, left: int, bound: float) -> None:
    """Wait until only `left` connections remain."""
    await until(lambda: len(core.protocols) <= left)


@asynccontextmanager
async def stalled_client(relay: pyderp.Relay, via: Via) -> AsyncIterator[Client]:
    """A client that is logged in and reads no more."""
    client = await connect(
        relay.address,
        via=Via(
            tls=via.tls,
            server_name=via.server_name,
            websocket=via.websocket,
            receive_buffer=4096,
        ),
    )
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        yield client
    finally:
        await client.aclose()


async def fill(relay: pyderp.Relay, sender: Client, stalled: Client) -> None:
    """Send until all buffers on the way to a client that does not read are full."""
    while not relay.counters.dropped(DropReason.QUEUE_HEAD):
        sender.send(stalled, bytes(PACKET))
        await sender.ping()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stalled_reader_costs_its_sender_and_others_nothing(
    kind: str, tls: ManualTLS
) -> None:
    config, via = way(kind, tls)

    async with (
        pyderp.Relay(config) as relay,
        clients(relay, 3, via=via) as (sender, first, second),
        stalled_client(relay, via) as stalled,
    ):
        core = relay._running()
        await fill(relay, sender, stalled)
        before = relay.counters.dropped(DropReason.QUEUE_HEAD)
        for _ in range(50):
            sender.send(stalled, bytes(PACKET))
            await sender.ping()
            await passes(first, second)
            await passes(sender, second)
            (held,) = waiting(core)
            assert held <= SEND_QUEUE_BYTES + 4096  # what TLS adds
        # A TLS client still reads into its own buffers for a moment.
        assert before + 44 <= relay.counters.dropped(DropReason.QUEUE_HEAD) <= before + 50


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stalled_reader_is_closed_and_its_lost_packets_counted(
    kind: str, tls: ManualTLS, caplog: pytest.LogCaptureFixture
) -> None:
    config, via = way(kind, tls)

    settings = RelayConfig(tls=config.tls, write_timeout=0.3)
    async with (
        pyderp.Relay(settings) as relay,
        clients(relay, 1, via=via) as (sender,),
        stalled_client(relay, via) as stalled,
    ):
        core = relay._running()
        await fill(relay, sender, stalled)
        await until_closed(core, 1, BOUND)
        counters = relay.counters
        assert counters.write_timeouts == 1
        assert relay.clients == 1
        lost = sum(map(counters.dropped, DropReason))
        assert counters.packets_sent + lost == counters.packets_received
        assert counters.dropped(DropReason.WRITE_TIMEOUT) >= 1
        assert counters.dropped(DropReason.GONE_DISCONNECTED) == 0
        assert counters.dropped(DropReason.WRITE_ERROR) == 0
    assert caplog.text.count("no byte taken for 0.3 s") == 1


async def test_a_slow_reader_gets_the_newest_packets_whole_and_in_order() -> None:
    async with (
        pyderp.Relay() as relay,
        clients(relay, 1) as (sender,),
        stalled_client(relay, Via()) as slow,
    ):
        for i in range(300):
            sender.send(slow, i.to_bytes(4, "big") + bytes(40_000))
            await sender.ping()
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got: list[int] = []
        while not got or got[-1] != 299:
            packet = await slow.packet()
            assert len(packet) == 40_004
            got.append(int.from_bytes(packet[:4], "big"))
        assert got == sorted(set(got))
        assert len(got) < 300
        assert relay.counters.dropped(DropReason.QUEUE_HEAD) == 300 - len(got)
        core = relay._running()
        assert not core.stalled
        assert not waiting(core)


# A thousand stalled clients


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def mute(relay: pyderp.Relay) -> tuple[socket.socket, NodePublic]:
    """A socket that logged in and is no longer read: it holds no memory of this process."""
    loop = asyncio.get_running_loop()
    private = NodePrivate.generate()
    session = ClientSession(private, random=os.urandom, server_key=relay.public_key)
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(sock, relay.address)
    request = upgrade_request("h", "/derp", user_agent="t", fast_start=True)
    await loop.sock_sendall(sock, request + b"".join(session.data_to_send()))
    await loop.sock_recv(sock, 45)
    return sock, private.public


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def chat(first: Client, second: Client, delays: list[float]) -> None:
    """Packets back and forth without end; records how long each round takes."""
    while True:
        begin = own_time()
        await passes(first, second)
        await passes(second, first)
        delays.append(own_time() - begin)
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_a_thousand_stalled_readers_cost_others_nothing_and_memory_is_bounded() -> None:
    count = 1000

    # None is closed before all are full, however long that takes.
    config = RelayConfig(write_timeout=60.0)
    async with (
        pyderp.Relay(config) as relay,
        clients(relay, 3) as (sender, first, second),
        AsyncExitStack() as stack,
    ):
        core = relay._running()
        mutes = []
        for _ in range(count):
            sock, key = await mute(relay)
            stack.callback(sock.close)
            mutes.append(key)
        await until(lambda: relay.clients >= count + 3)
        before = resident()
        delays: list[float] = []
        chatting = asyncio.ensure_future(chat(first, second, delays))
        packet = bytes(PACKET)
        most = 0
        for _ in range(8):
            for key in mutes:
                sender.session.send_packet(key, packet)
                sender.write()
                await sender.writer.drain()
            held = waiting(core)
            assert max(held, default=0) <= SEND_QUEUE_BYTES
            most = max(most, sum(held))
        await sender.ping()
        grown = resident() - before
        assert most > count * PACKET, "they did stall"
        assert grown < count * SEND_QUEUE_BYTES * 1.25 + (64 << 20)
        core.rules = replace(core.rules, write_timeout=1.0)
        await until_closed(core, 3, BOUND)
        assert relay.counters.write_timeouts == count
        chatting.cancel()
        await asyncio.wait([chatting])
        delays.sort()
        assert len(delays) > 20
        assert delays[len(delays) // 2] < 0.1
        assert delays[-1] < 1.0
        assert not core.stalled
        assert len(core.timers) == 3
