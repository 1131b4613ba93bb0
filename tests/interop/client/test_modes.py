"""Every transport, by URL and by region, is the requested one and carries packets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple

import pytest

from pyderp import Client, ClientConfig, ConnectError, ServerInfo, dial_region_tls
from pyderp.net.websocket import WebSocketLink
from tests.interop.relays import KINDS, Kind, Relay, Setup
from tests.waiting import until

from .recorder import recording
from .support import (
    GetRelay,
    clients,
    config,
    deliver,
    next_of,
    node,
    plain_region,
    region,
    talk,
    url,
    within,
)

pytestmark = pytest.mark.parametrize("kind", KINDS)


class Mode(NamedTuple):
    setup: Setup
    websocket: bool = False


MODES = {
    "http": Mode("plain"),
    "https": Mode("named"),
    "pinned": Mode("pinned"),
    "ws": Mode("plain", websocket=True),
    "wss": Mode("named", websocket=True),
}


def client_of(relay: Relay, mode: Mode, way: str, *, port: int | None = None) -> Client:
    settings = config(relay, websocket=mode.websocket)
    if way == "url":
        if mode.setup == "pinned":
            # A URL cannot contain a pin: the self-signed certificate itself is trusted.
            root = relay.log.parent / f"{relay.address}.crt"
            settings = replace(settings, tls=replace(settings.tls, extra_roots=(root,)))
        return Client.for_url(url(relay, port=port), config=settings)
    if mode.setup == "plain":
        settings = replace(settings, network=plain_region())
    return Client.for_region(region(node(relay, port=port)), config=settings)


@pytest.mark.parametrize("way", ["url", "region"])
@pytest.mark.parametrize("name", MODES)
async def test_packets_pass_both_ways(kind: Kind, name: str, way: str, relays: GetRelay) -> None:
    """Two clients exchange packets, with TLS 1.3 and a websocket exactly where requested."""
    mode = MODES[name]
    relay = relays(kind, mode.setup)

    a, b = (client_of(relay, mode, way) for _ in range(2))
    async with clients(a, b):
        assert isinstance(await within(a.recv()), ServerInfo)
        await deliver(a, b, b"from a to b")
        await deliver(b, a, b"from b to a")
        version = None if a.tls_state is None else a.tls_state.version
        assert version == (None if mode.setup == "plain" else "TLSv1.3")
        assert isinstance(a._life.require().link, WebSocketLink) is mode.websocket
        assert a.server_public_key == b.server_public_key
        assert await a.ping() < 5


@pytest.mark.parametrize("way", ["url", "region"])
@pytest.mark.parametrize("name", ["https", "pinned"])
async def test_tls13_has_a_fast_start(kind: Kind, name: str, way: str, relays: GetRelay) -> None:
    """With a meta certificate, the client waits for nothing after the relay's part of the
    handshake."""
    mode = MODES[name]
    relay = relays(kind, mode.setup)

    async with recording(relay.port, hold=True) as recorder:
        a = client_of(relay, mode, way, port=recorder.port)
        b = client_of(relay, mode, way)
        async with a, clients(b):
            await within(a.connect())
            await until(lambda: recorder.passages[0].held)
            await deliver(a, b, b"before any answer")
            recorder.release()
            await next_of(a, ServerInfo)
            await deliver(b, a)


async def test_a_websocket_has_no_fast_start(kind: Kind, relays: GetRelay) -> None:
    """The connect waits for the answer, and fails if that is held back."""
    mode = MODES["wss"]
    relay = relays(kind, mode.setup)

    async with recording(relay.port, hold=True) as recorder:
        settings = config(relay, websocket=True, connect_timeout=0.5)
        async with Client.for_url(url(relay, port=recorder.port), config=settings) as client:
            with pytest.raises(ConnectError, match="waiting for the relay's answer"):
                await client.connect()
        assert recorder.passages[0].held


@pytest.mark.parametrize("way", ["url", "region"])
async def test_a_websocket_is_one_on_the_wire(kind: Kind, way: str, relays: GetRelay) -> None:
    """Request and answer are those of RFC 6455 with the subprotocol `derp`."""
    mode = MODES["ws"]
    relay = relays(kind, mode.setup)

    async with recording(relay.port) as recorder:
        a = client_of(relay, mode, way, port=recorder.port)
        b = client_of(relay, mode, way)
        await talk(a, b)
        passage = recorder.passages[0]
        request = bytes(passage.sent).partition(b"\r\n\r\n")[0].lower()
        answer = bytes(passage.received).partition(b"\r\n\r\n")[0].lower()
    assert request.startswith(b"get /derp http/1.1")
    assert b"upgrade: websocket" in request
    assert b"sec-websocket-protocol: derp" in request
    assert answer.startswith(b"http/1.1 101")
    assert b"sec-websocket-protocol: derp" in answer


@pytest.mark.parametrize("way", ["url", "region"])
async def test_plain_http_upgrades_to_derp(kind: Kind, way: str, relays: GetRelay) -> None:
    """Without TLS the request is `Upgrade: DERP`, without fast start."""
    mode = MODES["http"]
    relay = relays(kind, mode.setup)

    async with recording(relay.port) as recorder:
        a = client_of(relay, mode, way, port=recorder.port)
        await talk(a, client_of(relay, mode, way))
        passage = recorder.passages[0]
        request = bytes(passage.sent).partition(b"\r\n\r\n")[0]
    assert request.startswith(b"GET /derp HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{recorder.port}\r\n".encode() in request
    assert b"Upgrade: DERP" in request
    assert b"Derp-Fast-Start" not in request
    assert passage.received.startswith(b"HTTP/1.1 101 ")


async def test_probe_paths_are_answered(kind: Kind, relays: GetRelay) -> None:
    """Probes are answered with 200, and `/derp` without an upgrade with 426."""
    relay = relays(kind, "plain")

    async def status(path: str) -> bytes:
        reader, writer = await asyncio.open_connection(relay.address, relay.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return (await within(reader.readline())).split()[1]
        finally:
            writer.close()
            await writer.wait_closed()

    assert await status("/derp/probe") == b"200"
    assert await status("/derp/latency-check") == b"200"
    assert await status("/derp") == b"426"


async def test_dial_region_tls_returns_a_verified_stream_and_its_node(
    kind: Kind, relays: GetRelay
) -> None:
    relay = relays(kind, "pinned")

    wanted = node(relay)
    network = config(relay).network
    link, found = await dial_region_tls(region(wanted), config=ClientConfig(network=network))
    try:
        assert found is wanted
        assert link.remote_address == (relay.address, relay.port)
        link.write(b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await within(link.read())).startswith(b"HTTP/1.1 200")
    finally:
        link.abort()
