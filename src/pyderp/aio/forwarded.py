"""Whom a request comes from when trusted proxies stand before the relay."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

from pyderp.wire.http import Request

__all__ = ["client_address"]

_FOR: Final = re.compile(r'(?i)(?:^|[;,\s])for=("[^"]*"|[^;,\s]*)')
_MOST_HOPS: Final = 32


def client_address(
    request: Request, peer: tuple[str, int], trusts: Callable[[str], bool]
) -> tuple[str, int]:
    """The last address that a trusted proxy vouches for and that is no trusted proxy itself.

    Read from `X-Forwarded-For`, or else `Forwarded` (RFC 7239), from the right: what stands
    further left is the client's own word. An item that is no address ends the search.

    Args:
        peer: whom the connection comes from, a trusted proxy; the answer if no header helps.
        trusts: whether an address is a trusted proxy's.

    Returns:
        address and port; port 0: not told.
    """
    found = peer
    for item in reversed(_hops(request)[-_MOST_HOPS:]):
        hop = _parse(item)
        if hop is None:
            break
        found = hop
        if not trusts(hop[0]):
            break
    return found


def _hops(request: Request) -> list[str]:
    values = request.header_values(b"x-forwarded-for")
    if values:
        return [item.strip() for item in ",".join(values).split(",")]
    forwarded = ",".join(request.header_values(b"forwarded"))
    return [match.strip('"') for match in _FOR.findall(forwarded)]


def _parse(item: str) -> tuple[str, int] | None:
    host, port = item, ""
    if item.startswith("["):
        host, _, port = item[1:].partition("]")
        port = port.removeprefix(":")
    elif item.count(":") == 1:
        host, _, port = item.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return str(address), number if number <= 65535 else 0
