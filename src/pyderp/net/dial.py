"""Connects a byte stream to a relay: to the host of a URL, or to a node of a region."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final, TypeAlias

from pyderp.addresses import ip_literal
from pyderp.errors import DialError, FailureReason, ProxyError, text_beside, without_frames
from pyderp.maps.region import DERPNode
from pyderp.net.dns import DNSCache, Resolver
from pyderp.net.link import Link, link_over_socket
from pyderp.net.settings import (
    NetworkSettings,
    Proxy,
    connect_proxy_from_environment,
    explicit_proxy,
    socks_proxy_from_environment,
)
from pyderp.net.tcp import connect_to_any, connect_to_host, failure_reason, staggered_race
from pyderp.net.tunnel import connect_through_http, connect_through_socks

__all__ = ["dial_host", "dial_node"]

NODE_TIMEOUT: Final = 1.5
"""Seconds for DNS and TCP to one node [dialNodeTimeout]."""
PREFERENCE: Final = 0.2
"""Seconds by which IPv4 begins later if IPv6 is preferred."""
_MAX_PORT: Final = 65535
_Way: TypeAlias = tuple[socket.AddressFamily, str]
"""A family, and an address of that family or a host name."""
_HTTPS: Final = 443
"""Proxies of nodes are chosen as if for `https://HostName/`, whatever the port."""


async def dial_host(
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    dns_cache: DNSCache | None = None,
    resolver: Resolver | None = None,
    scheme: str | None = None,
) -> Link:
    """Connect to the host of a URL; cancelling leaves nothing open. No time limit here.

    Takes the first of these that is set: `settings.proxy`; for `ws` and `wss` HTTP_PROXY and
    HTTPS_PROXY; ALL_PROXY if it is SOCKS5; otherwise a direct connection to the first address
    that answers. A proxy gets the name and resolves it.

    Args:
        host: name or IP address.
        dns_cache: looks up `host` for a direct connection.
        resolver: looks up `host` if there is no cache, and the names of proxies; by default the
            system's.
        scheme: scheme of the URL.

    Raises:
        DialError: no connection; the text begins with `dial of <host>:` or contains the host.
            If several addresses were tried, its cause is an `ExceptionGroup` with all failures.
        ProxyError: the same, if a proxy refused.
        ConfigError: proxy, mark or device of `settings` cannot be used.
    """
    try:
        proxy = explicit_proxy(settings) or _environment_proxy(settings, scheme, host, port)
        if proxy is not None:
            return await _through(proxy, host, port, settings, resolver)
        if dns_cache is not None:
            found = await dns_cache.lookup(host, debug=settings.debug_dns)
            # The primary address first: `connect_to_any` begins with the first one's family.
            first = (found.primary, *(ip for ip in found.all if ip != found.primary))
            sock = await connect_to_any(first, port, settings=settings)
        else:
            sock = await connect_to_host(host, port, settings=settings, resolver=resolver)
        return await link_over_socket(sock)
    except OSError as e:
        raise _with_host(host, e) from (e.__cause__ or e)


def _with_host(host: str, error: OSError) -> DialError:
    """Returns an error with the host in its text, unless the text has it already."""
    kind = ProxyError if isinstance(error, ProxyError) else DialError
    text = short = str(error)
    if isinstance(error, DialError):
        short = text_beside(host, error)
    if short == text:
        text = f"dial of {host}: {text}"
    return kind(text, reason=failure_reason(error), host=host, short=short)


async def dial_node(
    node: DERPNode,
    port: int,
    *,
    settings: NetworkSettings,
    prefer_ipv6: bool = False,
    resolver: Resolver | None = None,
) -> Link:
    """Connect to a node of a region; cancelling leaves nothing open.

    IPv4 and IPv6 race, with the addresses in the node or else with those of its host name. An
    HTTP proxy (`settings.proxy` or HTTPS_PROXY) makes a tunnel to the host name, or to the node's
    address if it has no name. A SOCKS5 proxy (`settings.proxy` or ALL_PROXY) makes one connection
    to the node's address, or to its host name if it has no address.

    All of it has 1.5 s, unless there is an HTTP proxy: that has no time limit here.

    Args:
        port: TCP port of the relay.
        prefer_ipv6: IPv4 begins 200 ms later, or when IPv6 has failed.
        resolver: by default the system's.

    Raises:
        DialError: no connection; the text is that of the first failure, and all are in the
            `ExceptionGroup` that is its cause. Or the node has no usable port or host name.
        ProxyError: a proxy refused.
        ConfigError: proxy, mark or device of `settings` cannot be used.
    """
    _check(node, port)
    ways = _ways(node)
    host = _host_for_proxy(node, ways)
    proxy = explicit_proxy(settings) or connect_proxy_from_environment(
        settings, host, _HTTPS, tls=True
    )
    if proxy is not None and not proxy.is_socks:
        return await _through(proxy, host, port, settings, resolver)
    if not ways:
        raise _bad_map("both IPv4 and IPv6 are explicitly disabled for node")
    if prefer_ipv6:
        ways.reverse()
    proxy = proxy or _socks_for_node(settings, host, ways[0][1], port)
    try:
        async with asyncio.timeout(NODE_TIMEOUT):
            if proxy is not None:
                return await _through(proxy, ways[0][1], port, settings, resolver)
            delay = PREFERENCE if prefer_ipv6 else 0
            return await _race(ways, port, settings, resolver, delay=delay)
    except TimeoutError as e:
        raise _too_slow(node, port, ways, proxy) from without_frames(e)


async def _race(
    ways: Sequence[_Way],
    port: int,
    settings: NetworkSettings,
    resolver: Resolver | None,
    *,
    delay: float,
) -> Link:
    """Connect in each way, each `delay` seconds after the one before; the first to connect wins."""
    connect = partial(connect_to_host, port=port, settings=settings, resolver=resolver)
    attempts = [partial(connect, host, family=family) for family, host in ways]
    return await link_over_socket(await staggered_race(attempts, delay=delay))


def _host_for_proxy(node: DERPNode, ways: Sequence[_Way]) -> str:
    # A node without a name has an address. Go's client asks the proxy for an empty name, or
    # (v1.104) uses no proxy.
    return node.host_name or next((address for _, address in ways if address), "")


def _too_slow(node: DERPNode, port: int, ways: Sequence[_Way], proxy: Proxy | None) -> DialError:
    where = " and ".join(dict.fromkeys(host for _, host in ways))
    by_way_of = f" through proxy {proxy.redacted}" if proxy is not None else ""
    return DialError(
        f"node {node.name} ({where}, port {port}): "
        f"no connection{by_way_of} within {NODE_TIMEOUT:g} s",
        reason=FailureReason.TIMEOUT if proxy is None else FailureReason.PROXY_TIMEOUT,
    )


def _check(node: DERPNode, port: int) -> None:
    # Checked here, as event loops differ: one takes a port modulo 65536.
    if not 0 < port <= _MAX_PORT:
        raise _bad_map(f"node {node.name}: DERPPort {port} is not a port")
    name = node.host_name
    try:
        usable = name.isprintable() and " " not in name and name.encode("idna")
    except UnicodeError:
        usable = False
    if name and not usable and ip_literal(name) is None:
        raise _bad_map(f"node {node.name}: HostName {name!r} is not a host name")


def _bad_map(text: str) -> DialError:
    return DialError(text, reason=FailureReason.BAD_MAP)


def _ways(node: DERPNode) -> list[_Way]:
    """Returns the families that the node has, IPv4 first, each with an address or the host name."""
    ways = []
    for family, version, value in (
        (socket.AF_INET, 4, node.ipv4),
        (socket.AF_INET6, 6, node.ipv6),
    ):
        destination = value or node.host_name
        literal = ip_literal(destination)
        # A value that is not an address of the family turns the family off; maps use "none".
        if literal.version == version if literal is not None else not value:
            ways.append((family, destination))
    return ways


def _environment_proxy(
    settings: NetworkSettings, scheme: str | None, host: str, port: int
) -> Proxy | None:
    if scheme in ("ws", "wss"):
        proxy = connect_proxy_from_environment(settings, host, port, tls=scheme == "wss")
        if proxy is not None:
            return proxy
    return socks_proxy_from_environment(settings, host, port)


def _socks_for_node(
    settings: NetworkSettings, name: str, destination: str, port: int
) -> Proxy | None:
    """Returns ALL_PROXY if it is SOCKS5, unless the node's name or its address is exempt."""
    if socks_proxy_from_environment(settings, name, port) is None:
        return None
    return socks_proxy_from_environment(settings, destination, port)


async def _through(
    proxy: Proxy, host: str, port: int, settings: NetworkSettings, resolver: Resolver | None
) -> Link:
    try:
        if not proxy.is_socks:
            return await connect_through_http(
                proxy, host, port, settings=settings, resolver=resolver
            )
        sock = await connect_through_socks(proxy, host, port, settings=settings, resolver=resolver)
        return await link_over_socket(sock)
    except asyncio.CancelledError as e:
        # A time limit cancels, too. Its traceback then names the proxy that did not answer.
        e.add_note(f"waiting for proxy {proxy.redacted}")
        raise
