"""Measurements over TCP: the HTTPS latency of a region, and the check for a captive portal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from pyderp.addresses import bracketed, unmapped
from pyderp.client.config import ClientConfig
from pyderp.client.connect import dial_region_tls
from pyderp.errors import RemoteProtocolError
from pyderp.maps.region import DERPRegion
from pyderp.net.link import Link, link_over_socket
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import connect_socket
from pyderp.netcheck.captive import Endpoint, is_captive
from pyderp.wire.httpreply import HttpExchange, HttpReply

__all__ = ["exchange", "finds_captive_portal", "https_latency"]

_CHECK: Final = "/derp/latency-check"
_MAX_STATUS: Final = 299
_CAPTIVE_TIMEOUT: Final = 3.0
_HTTP_PORT: Final = 80


async def exchange(
    link: Link, host: str, target: str, headers: Sequence[tuple[str, str]] = ()
) -> tuple[HttpReply, int]:
    """Send one GET over a connected link, and read at most 8 KiB of the answer's body.

    Returns:
        the head of the answer, and the nanoseconds from the request to the end of the head.

    Raises:
        RemoteProtocolError: the answer is not HTTP, or is cut short.
        OSError: the connection broke.
    """
    http = HttpExchange(host, target, headers=headers)
    began = time.perf_counter_ns()
    elapsed = 0
    link.write(http.request)
    while not http.finished:
        data = await link.read()
        http.receive_data_untrusted(data)
        if http.reply is not None and not elapsed:
            elapsed = time.perf_counter_ns() - began
    assert http.reply is not None
    return http.reply, elapsed


async def https_latency(region: DERPRegion, config: ClientConfig) -> tuple[int, int]:
    """Measure how long a request to a region's relay takes, after the TLS handshake.

    Returns:
        nanoseconds, and the IP version of the connection, 4 or 6.

    Raises:
        DerpError, OSError: no relay of the region can be reached, or it answers with an error.
    """
    link, node = await dial_region_tls(region, config=config)
    try:
        reply, elapsed = await exchange(link, bracketed(node.host_name), _CHECK)
        if reply.status > _MAX_STATUS:
            raise RemoteProtocolError(f"{_CHECK} is answered with {reply.status}")
        remote = link.remote_address
        version = 4 if remote is None else unmapped(ip_address(remote[0])).version
        return elapsed, version
    finally:
        link.abort()


async def finds_captive_portal(endpoints: Sequence[Endpoint], settings: NetworkSettings) -> bool:
    """Return whether a captive portal answers for any of the endpoints.

    An endpoint that does not answer in HTTP within 3 s does not count as one.
    """
    outcomes = await asyncio.gather(*(_is_captive(each, settings) for each in endpoints))
    return any(outcomes)


async def _is_captive(endpoint: Endpoint, settings: NetworkSettings) -> bool:
    try:
        async with asyncio.timeout(_CAPTIVE_TIMEOUT):
            sock = await connect_socket(endpoint.address, _HTTP_PORT, settings=settings)
            link = await link_over_socket(sock)
            try:
                target = endpoint.target(int(time.time()))
                reply, _ = await exchange(link, endpoint.address, target, endpoint.headers)
            finally:
                link.abort()
    except (OSError, RemoteProtocolError):
        return False
    return is_captive(endpoint, reply)
