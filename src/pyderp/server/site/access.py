"""Who may see `/debug/`: this machine, Tailscale addresses, and whom the operator names.

An address is not enough: a page from elsewhere, in the browser of somebody who may see `/debug/`,
may ask under its own name, which its name server has just pointed at this relay (DNS rebinding).
To the browser that is the page's own site, and it lets the page read. So the name must be the
relay's.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Final

from pyderp.addresses import IPAddress, parse_ip
from pyderp.config import DebugAccess
from pyderp.wire.http import Request, Response, text_response

__all__ = ["Access", "refusal"]

_LOCALHOST: Final = "localhost"
_MOST_IN_HOST: Final = 300
"""Characters of a Host header; names have 253 at most."""

_TAILSCALE: Final = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
_CHROMEOS: Final = ip_network("100.115.92.0/23")
"""Virtual machines of ChromeOS have these; Tailscale never gives them out."""


class Access:
    """Decides whether a requester may see `/debug/` (`tsweb.AllowDebugAccess`).

    Args:
        config: who may, beside this machine and Tailscale addresses.
        names: gives the names that the relay has now; `*.` begins one for all names one level
            below.
    """

    __slots__ = ("_config", "_extra", "_known", "_names")

    def __init__(self, config: DebugAccess, *, names: Callable[[], Iterable[str]] = tuple) -> None:
        self._config = config
        self._extra = _address(config.allow_ip)
        machine = _plain_name(socket.gethostname())
        self._known = {_LOCALHOST, machine, machine.partition(".")[0]}
        self._known.update(map(_plain_name, config.hosts))
        self._names = names

    def allows(self, request: Request) -> bool:
        """Whether this request may be answered.

        The key opens it from anywhere and under any name, with GET only: a page from elsewhere
        does not know it. Otherwise address and name count, and a request that somebody untrusted
        forwarded has no address.
        """
        return self._has_key(request) or (
            self._allows_address(request) and self._knows_host(request)
        )

    def refuses_host(self, request: Request) -> bool:
        """Whether only the name under which it asks keeps this request out."""
        return self._allows_address(request) and not self._knows_host(request)

    def _allows_address(self, request: Request) -> bool:
        if request.forwarded:
            return False
        address = _address(request.remote)
        if address is None:
            return False
        return (
            address.is_loopback
            or _is_tailscale(address)
            or address == self._extra
            or any(address in network for network in self._config.trusted)
        )

    def _knows_host(self, request: Request) -> bool:
        given = request.header(b"host")
        if not given:
            return True  # HTTP/1.0, which no browser speaks
        if len(given) > _MOST_IN_HOST:
            return False
        host = _without_port(given)
        if _address(host) is not None:
            return True  # no name server was asked
        name = _plain_name(host)
        if not name:
            return False
        return name in self._known or any(_matches(_plain_name(own), name) for own in self._names())

    def _has_key(self, request: Request) -> bool:
        key = self._config.key
        if not key or request.method != "GET":
            return False
        given = request.query.get("debugkey", "")
        return hmac.compare_digest(given.encode(), key.encode())


def refusal(request: Request, access: Access, *, dev: bool) -> Response:
    """The answer to who may not see a page.

    Args:
        access: has refused it.
        dev: say how to permit access.
    """
    text = "debug access denied"
    if access.refuses_host(request):
        text += (
            " under this name; ask by the relay's IP address, its hostname or localhost, or add "
            "the name to the setting debug-hosts"
        )
        return text_response(403, text)
    if dev and not request.forwarded and _address(request.remote) is not None:
        text += f"; to permit access, set TS_ALLOW_DEBUG_IP={request.remote}"
    return text_response(403, text)


def _address(text: str) -> IPAddress | None:
    # A zone (%eth0) says nothing about who it is.
    return parse_ip(text.partition("%")[0])


def _is_tailscale(address: IPAddress) -> bool:
    return any(address in network for network in _TAILSCALE) and address not in _CHROMEOS


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _plain_name(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _matches(own: str, name: str) -> bool:
    return name.partition(".")[2] == own[2:] if own.startswith("*.") else name == own
