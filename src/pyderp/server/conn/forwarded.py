"""Whom a request comes from when trusted proxies stand before the relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.wire.http import Request

__all__ = ["client_address"]

_MOST_HOPS: Final = 32


def client_address(
    request: Request, peer: tuple[str, int], trusts: Callable[[str], bool]
) -> tuple[str, int] | None:
    """The last address that a trusted proxy vouches for and that is no trusted proxy itself.

    Read from `X-Forwarded-For`, from the right: what stands further left is the client's own
    word. `Forwarded` (RFC 7239) is not read: a proxy that writes the one header passes the
    other on as the client made it, and nobody can tell which one to believe.

    Args:
        peer: whom the connection comes from, a trusted proxy; the answer if there is no header.
        trusts: whether an address is a trusted proxy's.

    Returns:
        address and port; port 0: not told. `None`: a proxy does not say who it was, or what it
        says cannot be read; the client is then certainly not the proxy itself.
    """
    hops = _hops(request)
    if hops is None:
        return peer
    for item in reversed(hops[-_MOST_HOPS:]):
        hop = _parse(item)
        if hop is None or not trusts(hop[0]):
            return hop
    # All are trusted: it comes from the one furthest away, if that is the first.
    return _parse(hops[0]) if 0 < len(hops) <= _MOST_HOPS else None


def _hops(request: Request) -> list[str] | None:
    values = request.header_values(b"x-forwarded-for")
    return [item.strip() for item in ",".join(values).split(",")] if values else None


def _parse(item: str) -> tuple[str, int] | None:
    host, port = item, ""
    if item.startswith("["):
        host, _, port = item[1:].partition("]")
        port = port.removeprefix(":")
    elif item.count(":") == 1:
        host, _, port = item.partition(":")
    address = parse_ip(host)
    if address is None:
        return None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return str(address), number if number <= 65535 else 0
