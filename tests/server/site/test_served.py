"""Which requests see which pages of a running relay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

import pyderp
from pyderp.config import DebugAccess, RelayConfig
from tests.server import dial

PROXIED = "127.0.0.0/8"


async def fetch(relay: pyderp.Relay, target: str, *headers: str, method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection(*relay.address)
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await dial.drained(reader)
    await dial.hang_up(writer)
    return answer


def config(*, debug: DebugAccess | None = None, proxied: bool = False) -> RelayConfig:
    proxies = (ip_network(PROXIED),) if proxied else ()
    return RelayConfig(debug=debug or DebugAccess(), trusted_proxies=proxies)


OUTSIDER = "X-Forwarded-For: 8.8.8.8"
TAILNET = "X-Forwarded-For: 100.100.100.100"
SPOOFED = "X-Forwarded-For: 127.0.0.1, 8.8.8.8"
BY_KEY = config(debug=DebugAccess(key="k"))
BY_ADDRESS = config(debug=DebugAccess(allow_ip="8.8.8.8"), proxied=True)
BY_NETWORK = config(debug=DebugAccess(trusted=(ip_network("8.0.0.0/8"),)), proxied=True)

MATRIX: Sequence[tuple[str, RelayConfig, str, str, list[str], bool]] = (
    ("loopback", config(), "GET", "", [], True),
    ("loopback, HEAD", config(), "HEAD", "", [], True),
    ("forwarded by an untrusted proxy", config(), "GET", "", ["X-Forwarded-For: 127.0.0.1"], False),
    ("forwarded, other header", config(), "GET", "", ["Forwarded: for=127.0.0.1"], False),
    ("a key", BY_KEY, "GET", "?debugkey=k", [OUTSIDER], True),
    ("a key, HEAD", BY_KEY, "HEAD", "?debugkey=k", [OUTSIDER], False),
    ("a wrong key", BY_KEY, "GET", "?debugkey=x", [OUTSIDER], False),
    ("proxied outsider", config(proxied=True), "GET", "", [OUTSIDER], False),
    ("proxied tailnet", config(proxied=True), "GET", "", [TAILNET], True),
    ("proxied, spoofed", config(proxied=True), "GET", "", [SPOOFED], False),
    ("one more address", BY_ADDRESS, "GET", "", [OUTSIDER], True),
    ("one more address, not proxied", BY_KEY, "GET", "", [OUTSIDER], False),
    ("a trusted network", BY_NETWORK, "GET", "", [OUTSIDER], True),
)


@pytest.mark.parametrize(
    ("settings", "method", "query", "headers", "allowed"),
    [row[1:] for row in MATRIX],
    ids=[row[0] for row in MATRIX],
)
async def test_debug_access(
    settings: RelayConfig, method: str, query: str, headers: list[str], allowed: bool
) -> None:
    async with pyderp.Relay(settings) as relay:
        for page in ("/debug/", "/debug/varz"):
            answer = await fetch(relay, page + query, *headers, method=method)
            assert answer.startswith(b"HTTP/1.1 200 " if allowed else b"HTTP/1.1 403 ")
        home = await fetch(relay, "/" + query, *headers, method=method)
        assert home.startswith(b"HTTP/1.1 200 ")
        if method == "GET":
            assert (b'href="/debug/"' in home) is allowed


async def test_every_page_shows_connected_clients() -> None:
    async with pyderp.Relay() as relay, dial.clients(relay, 2) as (a, b):
        await dial.passes(a, b)
        index = await fetch(relay, "/debug/")
        assert b"<b>Connections:</b> 2<" in index
        check = await fetch(relay, "/debug/check")
        assert check.endswith(b"\r\n\r\nderp.Server ConsistencyCheck okay")
        varz = await fetch(relay, "/debug/varz")
        assert b"\nderp_packets_sent 1\n" in varz
        everything = await fetch(relay, "/debug/vars")
        assert b'"packets_sent": 1' in everything
        table = await fetch(relay, "/debug/connections")
        for client in (a, b):
            assert f"<td>{client.key}</td>".encode() in table
        assert (await fetch(relay, "/debug/pprof/")).startswith(b"HTTP/1.1 404 ")
