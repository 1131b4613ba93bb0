"""Connections from a load balancer, whose PROXY header names the client's address."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address, ip_network

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.keys import NodePrivate
from pyderp.wire.client import ClientSession
from pyderp.wire.messages import ServerInfo
from pyderp.wire.upgrade import upgrade_request
from tests.server.app.test_relay import ask, get
from tests.server.dial import Client, drained, hang_up, open_stream, passes, until_gone
from tests.server.ways import over_tls
from tests.waiting import until

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\r\n"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21"
    + struct.pack(">H", 36)
    + ip_address("2001:db8::7").packed
    + ip_address("2001:db8::2").packed
    + struct.pack(">HH", 4711, 443)
)
LOCAL = b"PROXY UNKNOWN\r\n"
LOOPBACK = (ip_network("127.0.0.0/8"),)


def config(tls: ManualTLS | None = None) -> RelayConfig:
    return RelayConfig(proxy_protocol=True, trusted_proxies=LOOPBACK, tls=tls)


async def peers(relay: pyderp.Relay) -> set[tuple[str, int]]:
    return {each.peer for each in relay._running().router.registry.connections()}


@pytest.mark.parametrize(
    ("header", "peer"), [(V1, ("192.0.2.7", 4711)), (V2, ("2001:db8::7", 4711))]
)
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_clients_have_the_address_in_the_proxy_header(
    header: bytes, peer: tuple[str, int], pieces: int
) -> None:
    async with pyderp.Relay(config()) as relay:
        first = await _login(relay, header, pieces)
        second = await _login(relay, LOCAL, pieces)
        assert peer in await peers(relay)
        assert {host for host, _ in await peers(relay)} == {peer[0], ""}
        await passes(first, second)
        for each in (first, second):
            await each.aclose()
        await until_gone(relay)


async def _login(relay: pyderp.Relay, header: bytes, piece: int) -> Client:
    reader, writer = await open_stream(relay.address)
    private = NodePrivate.generate()
    session = ClientSession(private, random=lambda n: b"r" * n, server_key=relay.public_key)
    client = Client(reader, writer, private, session)
    request = upgrade_request("relay.test", "/derp", user_agent="tests", fast_start=True)
    data = header + request + b"".join(session.data_to_send())
    for start in range(0, len(data), piece if piece > 1 else 40):
        writer.write(data[start : start + (piece if piece > 1 else 40)])
        await writer.drain()
        await asyncio.sleep(0)
    await reader.readexactly(5 + 40)
    await client.wait_for(ServerInfo)
    return client


async def test_tls_starts_after_the_proxy_header(tls: ManualTLS) -> None:
    async with pyderp.Relay(config(tls)) as relay:
        via = over_tls()
        assert via.tls is not None
        reader, writer = await open_stream(relay.address)
        writer.write(V1)
        await writer.start_tls(via.tls, server_hostname=via.server_name)
        writer.write(get("/derp/probe"))
        assert (await drained(reader)).startswith(b"HTTP/1.1 200 OK")
        await hang_up(writer)


@pytest.mark.parametrize("data", [get("/derp/probe"), b"\x16\x03\x01\x02\0", b"PROXY junk\r\n"])
async def test_a_connection_without_a_proxy_header_is_closed(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with pyderp.Relay(config()) as relay:
        assert await ask(relay.address, data) == b""
        assert "PROXY header" in caplog.text
        assert relay.counters.protocol_errors == 1
        await until_gone(relay)


async def test_a_proxy_header_from_an_untrusted_address_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = RelayConfig(proxy_protocol=True, trusted_proxies=(ip_network("192.0.2.0/24"),))
    async with pyderp.Relay(other) as relay:
        assert await ask(relay.address, V1 + get("/derp/probe")) == b""
        assert "127.0.0.1 is not a trusted proxy" in caplog.text


async def test_a_silent_client_does_not_delay_the_end() -> None:
    async with pyderp.Relay(config()) as relay:
        reader, writer = await open_stream(relay.address)
        await _until_accepted(relay)
        await relay.aclose(drain=0)
        assert await drained(reader) == b""
        await hang_up(writer)


async def _until_accepted(relay: pyderp.Relay) -> None:
    await until(lambda: relay._running().protocols)
