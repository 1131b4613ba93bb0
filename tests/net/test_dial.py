from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from typing import Any

import pytest

from pyderp.errors import ConfigError, DialError, ProxyError
from pyderp.maps.region import DERPNode
from pyderp.net import dial as dial_module
from pyderp.net.dial import dial_host, dial_node
from pyderp.net.dns import DNSCache
from pyderp.net.settings import NetworkSettings

from .proxy_servers import FakeConnectProxy, FakeSocksProxy
from .ways_out import Names, Sockets, carries, closed_port, echo, fixed, serving

HOST = "derp.example.com"
NODE = DERPNode(name="900a", region_id=900, host_name=HOST)
SOCKS_NAME = [
    (b"\x05\x01\x00", b"\x05\x00"),
    (b"\x05\x01\x00\x03\x10derp.example.com\x00\x07", b"\x05\x00\x00\x01" + bytes(6)),
]
SOCKS_V4 = [
    SOCKS_NAME[0],
    (b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x07", SOCKS_NAME[1][1]),
]
SOCKS_V6 = [
    SOCKS_NAME[0],
    (b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x07", SOCKS_NAME[1][1]),
]
NO_NAMES = Names({})
"""A resolver that must not be asked."""


# The host of a URL


async def test_a_host_is_dialled_at_its_address() -> None:
    sockets = Sockets()
    async with serving(echo) as port:
        link = await dial_host(HOST, port, settings=sockets.watch(), resolver=fixed("127.0.0.1"))
        await carries(link)
        assert link.remote_address == ("127.0.0.1", port)
        link.abort()
    await sockets.closed()
    assert len(sockets.all) == 1


async def test_a_host_is_looked_up_by_the_system_by_default() -> None:
    async with serving(echo) as port:
        link = await dial_host("localhost", port, settings=NetworkSettings())
        await carries(link)
        link.abort()


async def test_the_next_address_is_dialled_if_the_first_refuses() -> None:
    """IPv6 refuses, IPv4 does not."""
    sockets = Sockets()
    async with serving(echo) as port:
        link = await dial_host(
            HOST, port, settings=sockets.watch(), resolver=fixed("::1", "127.0.0.1")
        )
        await carries(link)
        link.abort()
    assert [sock.family for sock in sockets.all] == [socket.AF_INET6, socket.AF_INET]


async def test_the_error_of_a_host_has_the_failure_of_each_address() -> None:
    port = closed_port()
    with pytest.raises(DialError) as caught:
        await dial_host(
            HOST, port, settings=NetworkSettings(), resolver=fixed("127.0.0.1", "127.0.0.2")
        )
    first = f"connect to 127.0.0.1:{port}: Connection refused"
    second = f"connect to 127.0.0.2:{port}: Connection refused"
    assert str(caught.value) == f"dial of {HOST}: {first}"
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert [str(e) for e in caught.value.__cause__.exceptions] == [first, second]


async def test_a_failed_look_up_of_a_host_is_a_dial_error() -> None:
    names = Names({HOST: OSError("no network")})
    with pytest.raises(DialError) as caught:
        await dial_host(HOST, 1, settings=NetworkSettings(), resolver=names)
    assert str(caught.value) == f"look-up of '{HOST}': no network"
    assert caught.value.__cause__ is names.answers[HOST]
    assert names.asked == [(HOST, socket.AF_UNSPEC)]


async def test_a_host_in_the_cache_is_dialled_at_its_primary_address_first() -> None:
    sockets, names = Sockets(), Names({HOST: ["::1", "127.0.0.2", "127.0.0.1"]})
    cache = DNSCache(resolver=names)
    async with serving(echo) as port:
        for _ in range(2):
            link = await dial_host(
                HOST, port, settings=sockets.watch(), dns_cache=cache, resolver=NO_NAMES
            )
            assert link.remote_address == ("127.0.0.1", port)
            link.abort()
    assert len(names.asked) == 1
    # No server listens on 127.0.0.2; the IPv6 address comes second.
    assert [sock.family for sock in sockets.all[:2]] == [socket.AF_INET, socket.AF_INET6]


async def test_a_failure_of_the_cache_is_final_without_a_proxy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "pyderp.net")
    cache = DNSCache(resolver=Names({HOST: []}))
    with pytest.raises(DialError) as caught:
        await dial_host(
            HOST, 1, settings=NetworkSettings(debug_dns=True), dns_cache=cache, resolver=NO_NAMES
        )
    assert str(caught.value) == f'no IPs for "{HOST}" found'
    assert caplog.messages == [f'dnscache: {HOST}: no IPs for "{HOST}" found']


async def test_a_socks_proxy_needs_no_cache() -> None:
    proxy = FakeSocksProxy(SOCKS_NAME)
    async with serving(proxy) as port:
        settings = NetworkSettings(all_proxy=f"socks5://127.0.0.1:{port}")
        cache = DNSCache(resolver=NO_NAMES)
        link = await dial_host(HOST, 7, settings=settings, dns_cache=cache)
        await carries(link)
        link.abort()
    assert len(proxy.received) == 2


@pytest.mark.parametrize(("scheme", "setting"), [("ws", "http_proxy"), ("wss", "https_proxy")])
async def test_a_websocket_goes_through_the_proxy_of_its_scheme(scheme: str, setting: str) -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        other = {"http_proxy": "https_proxy", "https_proxy": "http_proxy"}[setting]
        proxies: dict[str, Any] = {
            setting: f"127.0.0.1:{port}",
            other: f"127.0.0.1:{closed_port()}",
        }
        settings = NetworkSettings(**proxies, all_proxy="socks5://127.0.0.1:1")
        link = await dial_host(HOST, 7, settings=settings, scheme=scheme)
        await carries(link)
        link.abort()
    assert proxy.heads[0].startswith(b"CONNECT derp.example.com:7 HTTP/1.1\r\n")


@pytest.mark.parametrize("scheme", [None, "http", "https"])
async def test_only_websockets_use_http_proxies(scheme: str | None) -> None:
    unused = f"127.0.0.1:{closed_port()}"
    settings = NetworkSettings(http_proxy=unused, https_proxy=unused)
    async with serving(echo) as port:
        link = await dial_host(
            HOST, port, settings=settings, scheme=scheme, resolver=fixed("127.0.0.1")
        )
        link.abort()


@pytest.mark.parametrize("entry", [HOST, "*", f"{HOST}:PORT"])
async def test_no_proxy_keeps_a_websocket_from_all_proxies(entry: str) -> None:
    unused = f"127.0.0.1:{closed_port()}"
    async with serving(echo) as port:
        settings = NetworkSettings(
            https_proxy=unused,
            all_proxy=f"socks5://{unused}",
            no_proxy=entry.replace("PORT", str(port)),
        )
        link = await dial_host(
            HOST, port, settings=settings, scheme="wss", resolver=fixed("127.0.0.1")
        )
        link.abort()


async def test_a_websocket_without_a_proxy_of_its_own_takes_socks() -> None:
    async with serving(FakeSocksProxy(SOCKS_NAME)) as port:
        settings = NetworkSettings(all_proxy=f"socks5://127.0.0.1:{port}")
        link = await dial_host(HOST, 7, settings=settings, scheme="wss")
        await carries(link)
        link.abort()


async def test_an_explicit_proxy_overrides_and_has_no_exceptions() -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        settings = NetworkSettings(
            proxy=f"http://127.0.0.1:{port}",
            https_proxy="127.0.0.1:1",
            all_proxy="socks5://127.0.0.1:1",
            no_proxy="*",
        )
        for host in (HOST, "127.0.0.1"):
            link = await dial_host(host, 7, settings=settings)
            await carries(link)
            link.abort()
        link = await dial_node(NODE, 7, settings=settings)
        await carries(link)
        link.abort()
    targets = [head.split()[1] for head in proxy.heads]
    assert targets == [b"derp.example.com:7", b"127.0.0.1:7", b"derp.example.com:7"]


async def test_an_explicit_proxy_goes_before_those_of_the_environment() -> None:
    proxy, unused = FakeConnectProxy(), f"127.0.0.1:{closed_port()}"
    async with serving(proxy) as port:
        settings = NetworkSettings(
            proxy=f"127.0.0.1:{port}", https_proxy=unused, all_proxy=f"socks5://{unused}"
        )
        (await dial_host(HOST, 7, settings=settings)).abort()
        (await dial_host(HOST, 7, settings=settings, scheme="wss")).abort()
        (await dial_node(NODE, 7, settings=settings)).abort()
    assert len(proxy.heads) == 3


async def test_a_refusal_of_the_proxy_stays_a_proxy_error() -> None:
    async with serving(FakeConnectProxy(b"HTTP/1.1 403 No\r\n\r\n")) as port:
        settings = NetworkSettings(proxy=f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(ProxyError) as caught:
            await dial_host(HOST, 7, settings=settings)
    assert str(caught.value) == (
        f"dial of {HOST}: invalid response status from HTTP proxy "
        f"http://***@127.0.0.1:{port} on CONNECT to {HOST}:7: 403 No"
    )


async def test_a_bad_explicit_proxy_is_a_config_error() -> None:
    settings = NetworkSettings(proxy="ftp://p")
    with pytest.raises(ConfigError):
        await dial_host(HOST, 7, settings=settings)
    with pytest.raises(ConfigError):
        await dial_node(NODE, 7, settings=settings)


# A node of a region


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_node_with_addresses_needs_no_dns(address: str) -> None:
    field, other = ("ipv6", "ipv4") if ":" in address else ("ipv4", "ipv6")
    fields: dict[str, Any] = {field: address, other: "none"}
    node = replace(NODE, **fields)
    async with serving(echo, address) as port:
        link = await dial_node(node, port, settings=NetworkSettings(), resolver=NO_NAMES)
        await carries(link)
        assert link.remote_address is not None
        assert link.remote_address[0] == address
        link.abort()


async def test_a_node_without_addresses_is_looked_up_for_each_family() -> None:
    names = Names({HOST: {socket.AF_INET: ["127.0.0.1"], socket.AF_INET6: []}})
    async with serving(echo) as port:
        link = await dial_node(NODE, port, settings=NetworkSettings(), resolver=names)
        await carries(link)
        link.abort()
    assert sorted(names.asked) == [(HOST, socket.AF_INET), (HOST, socket.AF_INET6)]


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "asked"),
    [
        ("", "none", [socket.AF_INET]),
        ("none", "", [socket.AF_INET6]),
        ("", "bogus", [socket.AF_INET]),
        ("", "127.0.0.1", [socket.AF_INET]),
        ("::1", "", [socket.AF_INET6]),
    ],
)
async def test_a_field_that_is_no_address_of_its_family_turns_the_family_off(
    ipv4: str, ipv6: str, asked: list[socket.AddressFamily]
) -> None:
    names = Names({HOST: OSError("no network")})
    node = replace(NODE, ipv4=ipv4, ipv6=ipv6)
    with pytest.raises(DialError, match=r"look-up of 'derp\.example\.com': no network"):
        await dial_node(node, 1, settings=NetworkSettings(), resolver=names)
    assert [family for _, family in names.asked] == asked


@pytest.mark.parametrize(
    ("name", "ipv4", "ipv6"),
    [
        (HOST, "none", "none"),
        (HOST, "::1", "127.0.0.1"),
        (HOST, "127.0.0.01", "none"),
        ("127.0.0.1", "none", ""),  # the name is an address of the family that is off
        ("::1", "", "none"),
    ],
)
@pytest.mark.parametrize("all_proxy", ["", "socks5://127.0.0.1:1"])
async def test_a_node_with_both_families_off_is_an_error(
    name: str, ipv4: str, ipv6: str, all_proxy: str
) -> None:
    node = replace(NODE, host_name=name, ipv4=ipv4, ipv6=ipv6)
    settings = NetworkSettings(all_proxy=all_proxy)
    with pytest.raises(DialError) as caught:
        await dial_node(node, 1, settings=settings, resolver=NO_NAMES)
    assert str(caught.value) == "both IPv4 and IPv6 are explicitly disabled for node"


@pytest.mark.parametrize("name", ["127.0.0.1", "::1"])
async def test_a_name_that_is_an_address_is_dialled_by_its_family_alone(name: str) -> None:
    sockets, node = Sockets(), replace(NODE, host_name=name)
    async with serving(echo, name) as port:
        link = await dial_node(node, port, settings=sockets.watch(), resolver=NO_NAMES)
        await carries(link)
        link.abort()
    assert len(sockets.all) == 1


async def test_the_first_failure_is_reported_and_all_are_kept() -> None:
    node, port = replace(NODE, ipv4="127.0.0.1"), closed_port()
    names = Names({HOST: OSError("no network")})
    sockets = Sockets()
    with pytest.raises(DialError) as caught:
        await dial_node(node, port, settings=sockets.watch(), resolver=names)
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    texts = [str(e) for e in group.exceptions]
    assert str(caught.value) == texts[0]
    assert sorted(texts) == [
        f"connect to 127.0.0.1:{port}: Connection refused",
        f"look-up of '{HOST}': no network",
    ]
    await sockets.closed()


async def test_ipv4_waits_for_a_preferred_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_module, "PREFERENCE", 3600.0)
    node, sockets = replace(NODE, ipv4="127.0.0.1", ipv6="::1"), Sockets()
    async with serving(echo, "::1") as port:
        link = await dial_node(node, port, settings=sockets.watch(), prefer_ipv6=True)
        await carries(link)
        link.abort()
    assert [sock.family for sock in sockets.all] == [socket.AF_INET6]


@pytest.mark.parametrize("ipv6", ["::1", "none", ""])
async def test_ipv4_does_not_wait_for_an_ipv6_that_failed_or_is_missing(
    monkeypatch: pytest.MonkeyPatch, ipv6: str
) -> None:
    monkeypatch.setattr(dial_module, "PREFERENCE", 3600.0)
    node = replace(NODE, ipv4="127.0.0.1", ipv6=ipv6)
    names = Names({HOST: []})
    async with serving(echo) as port:
        link = await dial_node(
            node, port, settings=NetworkSettings(), prefer_ipv6=True, resolver=names
        )
        await carries(link)
        link.abort()


async def test_a_hanging_ipv6_lets_ipv4_begin() -> None:
    """With a preference after 200 ms, without one at once."""
    node, names = replace(NODE, ipv4="127.0.0.1"), Names({HOST: None})
    async with serving(echo) as port:
        for prefer_ipv6 in (False, True):
            link = await dial_node(
                node,
                port,
                settings=NetworkSettings(),
                prefer_ipv6=prefer_ipv6,
                resolver=names,
            )
            await carries(link)
            link.abort()
    assert names.cancelled == 2


@pytest.mark.parametrize(("prefer_ipv6", "delay"), [(False, 0), (True, 0.2)])
async def test_the_second_family_starts_after_its_delay(
    monkeypatch: pytest.MonkeyPatch, prefer_ipv6: bool, delay: float
) -> None:
    seen: list[float] = []

    async def spy(_: object, *, delay: float) -> None:
        seen.append(delay)
        raise DialError("seen")

    monkeypatch.setattr(dial_module, "staggered_race", spy)
    with pytest.raises(DialError, match="seen"):
        await dial_node(NODE, 1, settings=NetworkSettings(), prefer_ipv6=prefer_ipv6)
    assert seen == [delay]


async def test_a_dial_of_a_node_lasts_a_second_and_a_half_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dial_module.NODE_TIMEOUT == 1.5
    monkeypatch.setattr(dial_module, "NODE_TIMEOUT", 0.01)
    names = Names({HOST: None})
    with pytest.raises(DialError) as caught:
        await dial_node(NODE, 443, settings=NetworkSettings(), resolver=names)
    assert str(caught.value) == (f"node 900a ({HOST}, port 443): no connection within 0.01 s")
    assert names.cancelled == 2

    async with serving(FakeSocksProxy([(bytes(99), b"")])) as port:
        settings = NetworkSettings(all_proxy=f"socks5://me:secret@127.0.0.1:{port}")
        node = replace(NODE, ipv4="192.0.2.1")
        with pytest.raises(DialError) as caught:
            await dial_node(node, 443, settings=settings)
    assert str(caught.value) == (
        f"node 900a (192.0.2.1 and {HOST}, port 443): no connection "
        f"through proxy socks5://***@127.0.0.1:{port} within 0.01 s"
    )


@pytest.mark.parametrize(
    "node",
    [
        NODE,
        replace(NODE, ipv4="192.0.2.1", ipv6="2001:db8::1"),
        replace(NODE, ipv4="none", ipv6="none"),
    ],
)
async def test_https_proxy_is_asked_for_the_host_name_whatever_the_addresses(
    node: DERPNode,
) -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        settings = NetworkSettings(
            https_proxy=f"http://127.0.0.1:{port}",
            http_proxy="127.0.0.1:1",
            all_proxy="socks5://127.0.0.1:1",
        )
        link = await dial_node(node, 8443, settings=settings)
        await carries(link)
        link.abort()
    assert proxy.heads == [
        b"CONNECT derp.example.com:8443 HTTP/1.1\r\nHost: derp.example.com:8443\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "target"),
    [
        ("192.0.2.1", "2001:db8::1", b"192.0.2.1:8443"),
        ("none", "2001:db8::1", b"[2001:db8::1]:8443"),
        ("", "2001:db8::1", b"[2001:db8::1]:8443"),
    ],
)
async def test_https_proxy_is_asked_for_the_address_of_a_node_without_a_host_name(
    ipv4: str, ipv6: str, target: bytes
) -> None:
    proxy = FakeConnectProxy()
    node = replace(NODE, host_name="", ipv4=ipv4, ipv6=ipv6)
    async with serving(proxy) as port:
        settings = NetworkSettings(https_proxy=f"http://127.0.0.1:{port}")
        link = await dial_node(node, 8443, settings=settings)
        await carries(link)
        link.abort()
    assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, target)]


async def test_no_proxy_exempts_a_node_without_a_host_name_by_its_address() -> None:
    async with serving(echo) as port:
        settings = NetworkSettings(https_proxy="http://127.0.0.1:1", all_proxy="socks5://[::1]:1")
        node = replace(NODE, host_name="", ipv4="127.0.0.1", ipv6="none")
        link = await dial_node(node, port, settings=settings)
        await carries(link)
        link.abort()


async def test_an_http_proxy_has_no_time_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_module, "NODE_TIMEOUT", -1.0)
    async with serving(FakeConnectProxy()) as port:
        settings = NetworkSettings(https_proxy=f"127.0.0.1:{port}")
        (await dial_node(NODE, 443, settings=settings)).abort()
    with pytest.raises(DialError, match="no connection within -1 s"):
        await dial_node(NODE, 443, settings=NetworkSettings(), resolver=Names({HOST: None}))


@pytest.mark.parametrize(
    ("no_proxy", "used"),
    [("", True), (HOST, False), (f"{HOST}:443", False), (f"{HOST}:8443", True)],
)
async def test_no_proxy_of_nodes_is_compared_with_port_443(no_proxy: str, used: bool) -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as proxy_port, serving(echo) as port:
        settings = NetworkSettings(https_proxy=f"127.0.0.1:{proxy_port}", no_proxy=no_proxy)
        node = replace(NODE, ipv4="127.0.0.1", ipv6="none")
        link = await dial_node(node, port, settings=settings)
        link.abort()
    assert bool(proxy.heads) is used


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "prefer_ipv6", "script"),
    [
        ("", "", False, SOCKS_NAME),
        ("", "", True, SOCKS_NAME),
        ("192.0.2.1", "2001:db8::1", False, SOCKS_V4),
        ("192.0.2.1", "2001:db8::1", True, SOCKS_V6),
        ("none", "2001:db8::1", False, SOCKS_V6),
        ("none", "", False, SOCKS_NAME),
    ],
)
@pytest.mark.parametrize("setting", ["proxy", "all_proxy", "https_proxy"])
async def test_socks_proxy_gets_one_connection_to_the_nodes_address(
    ipv4: str,
    ipv6: str,
    prefer_ipv6: bool,
    script: list[tuple[bytes, bytes]],
    setting: str,
) -> None:
    proxy, sockets = FakeSocksProxy(script), Sockets()
    async with serving(proxy) as port:
        proxies: dict[str, Any] = {setting: f"socks5://127.0.0.1:{port}"}
        settings = NetworkSettings(**proxies)
        node = replace(NODE, ipv4=ipv4, ipv6=ipv6)
        link = await dial_node(
            node,
            7,
            settings=sockets.watch(settings),
            prefer_ipv6=prefer_ipv6,
            resolver=NO_NAMES,
        )
        await carries(link)
        link.abort()
    assert proxy.received == [expected for expected, _ in script]
    assert len(sockets.all) == 1


@pytest.mark.parametrize(
    ("host", "ipv4", "no_proxy"),
    [
        (HOST, "127.0.0.1", ""),
        ("localhost", "", ""),
        (HOST, "127.0.0.1", HOST),
        ("h.test", "", "127.0.0.0/8,.test"),
    ],
)
async def test_exempt_nodes_are_dialled_without_socks(host: str, ipv4: str, no_proxy: str) -> None:
    settings = NetworkSettings(all_proxy=f"socks5://127.0.0.1:{closed_port()}", no_proxy=no_proxy)
    async with serving(echo) as port:
        node = replace(NODE, host_name=host, ipv4=ipv4, ipv6="none")
        link = await dial_node(node, port, settings=settings, resolver=fixed("127.0.0.1"))
        await carries(link)
        link.abort()


async def test_the_losers_socket_is_closed() -> None:
    sockets, node = Sockets(), replace(NODE, ipv4="127.0.0.1", ipv6="::1")
    async with serving(echo) as port:
        for _ in range(20):
            link = await dial_node(node, port, settings=sockets.watch())
            still_open = [sock for sock in sockets.all if sock.fileno() != -1]
            assert len(still_open) == 1
            link.abort()
            await sockets.closed()
            assert len(asyncio.all_tasks()) <= 3  # the client's, and two of the server


# Nodes that cannot be dialled


def never(sock: socket.socket) -> None:
    raise AssertionError(f"nothing should be connected: {sock}")


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1", "socks5://127.0.0.1:1"])
@pytest.mark.parametrize("port", [99999, -5, 65536, 65536 + 443])
async def test_a_bad_port_is_reported_before_any_connect(port: int, proxy: str) -> None:
    settings = NetworkSettings(proxy=proxy, before_connect=never)
    node = replace(NODE, ipv4="127.0.0.1", derp_port=port)
    with pytest.raises(DialError, match=f"^node 900a: DERPPort {port} is not a port$"):
        await dial_node(node, port, settings=settings, resolver=NO_NAMES)


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1", "socks5://127.0.0.1:1"])
@pytest.mark.parametrize("name", ["a\r\nb", "a b", "a\0b", "x" * 64, "a..b", "\udc80"])
async def test_a_bad_host_name_is_reported_before_any_connect(name: str, proxy: str) -> None:
    settings = NetworkSettings(proxy=proxy, before_connect=never)
    node = replace(NODE, host_name=name, ipv4="127.0.0.1")
    with pytest.raises(DialError) as caught:
        await dial_node(node, 443, settings=settings, resolver=NO_NAMES)
    assert str(caught.value) == f"node 900a: HostName {name!r} is not a host name"


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_timeout_names_the_silent_proxy(scheme: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with serving(silent) as port:
        settings = NetworkSettings(proxy=f"{scheme}://me:secret@127.0.0.1:{port}")
        for dialling in (
            dial_host(HOST, 7, settings=settings),
            dial_node(NODE, 7, settings=settings),
        ):
            task = asyncio.ensure_future(dialling)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.1):
                    await task
            cause = caught.value.__cause__
            assert cause is not None
            assert cause.__notes__ == [f"waiting for proxy {scheme}://***@127.0.0.1:{port}"]
