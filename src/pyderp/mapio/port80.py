"""Asks port 80 of a relay as clients do to detect captive portals (`net/captivedetection`)."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from dataclasses import dataclass
from typing import Final

from pyderp.addresses import bracketed
from pyderp.errors import DerpError
from pyderp.net.dial import dial_host
from pyderp.net.dns import Resolver
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from pyderp.wire.httpreply import HttpExchange, HttpReply

__all__ = ["HTTP_PORT", "Port80", "ask_port_80"]

HTTP_PORT: Final = 80
_NO_CONTENT: Final = 204


@dataclass(frozen=True)
class Port80:
    """The result of a request for `/generate_204`."""

    fault: str = ""
    """Why the answer is not that of a relay; empty: it is."""
    silent: bool = False
    """There was no answer in HTTP; clients do not take that for a captive portal."""


async def ask_port_80(
    host: str,
    port: int,
    *,
    seconds: float,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
) -> Port80:
    """Request `/generate_204` with a challenge; a relay answers 204 and repeats the challenge.

    As in clients, proxies are not used and redirects are not followed.

    Args:
        host: name or IP address.
        port: TCP port; clients use 80.
        seconds: for the whole request.
    """
    challenge = f"pyderp-{secrets.token_hex(8)}"
    direct = dataclasses.replace(settings, proxy="", https_proxy="", http_proxy="", all_proxy="")
    try:
        async with asyncio.timeout(seconds):
            link = await dial_host(host, port, settings=direct, resolver=resolver)
            try:
                reply = await _exchange(link, bracketed(host), challenge)
            finally:
                link.abort()
    except TimeoutError:
        return Port80(f"no answer within {seconds:g} s", silent=True)
    except (DerpError, OSError) as e:
        return Port80(getattr(e, "strerror", None) or str(e) or type(e).__name__, silent=True)
    if reply.status != _NO_CONTENT:
        return Port80(f"it answers {reply.status}, and not {_NO_CONTENT}")
    if reply.header("x-tailscale-response") != f"response {challenge}":
        return Port80("it does not repeat the challenge in X-Tailscale-Response")
    return Port80()


async def _exchange(link: Link, host: str, challenge: str) -> HttpReply:
    headers = [("Connection", "close"), ("X-Tailscale-Challenge", challenge)]
    http = HttpExchange(host, "/generate_204", headers=headers)
    link.write(http.request)
    while http.reply is None:
        http.receive_data_untrusted(await link.read())
    return http.reply
