"""A dial that is cancelled in any turn of the event loop leaves no socket or task behind."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyderp.maps.region import DERPNode
from pyderp.net import tunnel
from pyderp.net.dial import dial_host, dial_node
from pyderp.net.dns import DNSCache
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import TLSConfig
from tests.server.certificates import write_pair

from .proxy_servers import FakeConnectProxy, FakeSocksProxy
from .ways_out import Sockets, cancelled_everywhere, echo, fixed, serving

HOST = "derp.example.com"
NODE = DERPNode(name="900a", region_id=900, host_name=HOST)
BOTH = fixed("127.0.0.1", "::1")
SOCKS = [
    (b"\x05\x02\x00\x02", b"\x05\x02"),
    (b"\x01\x04user\x04pass", b"\x01\x00"),
    (b"\x05\x01\x00\x03\x10derp.example.com\x01\xbb", b"\x05\x00\x00\x01" + bytes(6)),
]
Dial = Callable[[NetworkSettings], Coroutine[Any, Any, Link]]


def by_url(settings: NetworkSettings) -> Coroutine[Any, Any, Link]:
    return dial_host(HOST, 443, settings=settings)


def by_region(settings: NetworkSettings) -> Coroutine[Any, Any, Link]:
    return dial_node(NODE, 443, settings=settings)


async def check(dial: Callable[[], Coroutine[Any, Any, Link]], sockets: Sockets) -> None:
    turns = await cancelled_everywhere(dial, sockets)
    # Some dials were cancelled with a socket, and the last one was not cancelled.
    assert turns > 1
    assert len(sockets.all) > 1


@pytest.mark.parametrize("prefer_ipv6", [False, True])
@pytest.mark.parametrize("ipv4_only", [False, True])
async def test_a_cancelled_dial_of_a_node_leaves_nothing(
    prefer_ipv6: bool, ipv4_only: bool
) -> None:
    sockets = Sockets()
    node = replace(NODE, ipv6="none") if ipv4_only else NODE
    async with serving(echo) as port:

        def dial() -> Coroutine[Any, Any, Link]:
            return dial_node(
                node,
                port,
                settings=sockets.watch(),
                prefer_ipv6=prefer_ipv6,
                resolver=BOTH,
            )

        await check(dial, sockets)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_cancelled_dial_of_a_host_leaves_nothing(cached: bool) -> None:
    sockets = Sockets()
    async with serving(echo) as port:

        def dial() -> Coroutine[Any, Any, Link]:
            cache = DNSCache(resolver=BOTH) if cached else None
            return dial_host(HOST, port, settings=sockets.watch(), dns_cache=cache, resolver=BOTH)

        await check(dial, sockets)


@pytest.mark.parametrize("way", [by_url, by_region])
@pytest.mark.parametrize("tail", [b"", b"greeting"])
async def test_a_cancelled_dial_through_a_connect_proxy_leaves_nothing(
    way: Dial, tail: bytes
) -> None:
    sockets = Sockets()
    proxy = FakeConnectProxy(b"HTTP/1.1 200 OK\r\n\r\n" + tail)
    async with serving(proxy) as port:
        settings = sockets.watch(NetworkSettings(proxy=f"127.0.0.1:{port}"))
        await check(lambda: way(settings), sockets)


@pytest.mark.parametrize("way", [by_url, by_region])
async def test_a_cancelled_dial_through_a_connect_proxy_over_tls_leaves_nothing(
    way: Dial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pair(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "127.0.0.1.crt", tmp_path / "127.0.0.1.key")
    monkeypatch.setattr(tunnel, "_PROXY_TLS", TLSConfig(extra_roots=(root,)))
    sockets = Sockets()
    async with serving(FakeConnectProxy(), ssl=context) as port:
        settings = sockets.watch(NetworkSettings(proxy=f"https://127.0.0.1:{port}"))
        await check(lambda: way(settings), sockets)


@pytest.mark.parametrize("way", [by_url, by_region])
async def test_a_cancelled_dial_through_a_socks_proxy_leaves_nothing(way: Dial) -> None:
    sockets = Sockets()
    async with serving(FakeSocksProxy(SOCKS)) as port:
        url = f"socks5://user:pass@127.0.0.1:{port}"
        settings = sockets.watch(NetworkSettings(all_proxy=url))
        await check(lambda: way(settings), sockets)
