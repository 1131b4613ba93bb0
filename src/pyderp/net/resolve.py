"""Names to IP addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv6Address
from typing import Final, TypeAlias

from pyderp.addresses import IPAddress, parse_ip, unmapped
from pyderp.errors import DialError, NameNotFound
from pyderp.singleflight import SingleFlight

__all__ = ["Resolver", "lookup", "system_resolver"]

Resolver: TypeAlias = Callable[[str, socket.AddressFamily], Awaitable[Sequence[IPAddress]]]
"""Gives the addresses of a host name, best first: of one family, or of both for AF_UNSPEC.
It may raise `OSError`, which `socket.gaierror` and `TimeoutError` are."""

_asking: Final[SingleFlight[tuple[int, str, int], list[IPAddress]]] = SingleFlight(keep=True)
"""For all event loops: as long as a look-up runs, its loop lives, and its `id` is no other's."""


async def system_resolver(host: str, family: socket.AddressFamily) -> list[IPAddress]:
    """Ask the system (`getaddrinfo`, in a thread of the event loop's).

    Cancelling returns at once; the thread ends when the system gives up. Until then, who asks
    for the same again waits for the same answer: no host ever takes a second thread.
    """
    loop = asyncio.get_running_loop()
    found = await _asking.get(
        (id(loop), host, family), lambda: _ask(host, family), name=f"pyderp look-up of {host}"
    )
    if found is None:  # not by us: the event loop ends
        raise DialError(f"look-up of {host!r}: cancelled")
    return list(found)


async def _ask(host: str, family: socket.AddressFamily) -> list[IPAddress]:
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, None, family=family, type=socket.SOCK_STREAM
    )
    found: dict[IPAddress, None] = {}
    for _, _, _, _, address in infos:
        ip = ipaddress.ip_address(address[0])
        zone = address[3] if len(address) == 4 else 0
        if zone and isinstance(ip, IPv6Address) and ip.scope_id is None:
            ip = IPv6Address(f"{ip}%{zone}")
        found[ip] = None
    return list(found)


async def lookup(
    host: str, *, family: socket.AddressFamily = socket.AF_UNSPEC, resolver: Resolver | None = None
) -> list[IPAddress]:
    """The addresses of `host`, at least one; an IP address is its own.

    Args:
        resolver: by default `system_resolver`.

    Raises:
        NameNotFound: there are none.
        DialError: it cannot be found out.
    """
    literal = parse_ip(host)
    if literal is not None:
        return [literal]
    try:
        found = await (resolver or system_resolver)(host, family)
    except OSError as e:
        reason = e.strerror or str(e) or type(e).__name__
        error = NameNotFound if _says_none(e) else DialError
        raise error(f"look-up of {host!r}: {reason}") from e
    except ValueError as e:  # labels too long or empty, zero bytes
        raise NameNotFound(f"{host!r} is not a host name: {e}") from e
    if not found:
        raise NameNotFound(f'no IPs for "{host}" found')
    return [unmapped(ip) for ip in found]


def _says_none(error: OSError) -> bool:
    return isinstance(error, NameNotFound) or (
        isinstance(error, socket.gaierror) and error.errno in _NONE
    )


# Where there is no EAI_NODATA, as on BSD, EAI_NONAME means both.
_NONE: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
