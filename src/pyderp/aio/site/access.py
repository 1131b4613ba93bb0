"""Who may see `/debug/`: this machine, Tailscale addresses, and whom the operator names."""

from __future__ import annotations

import hmac
from ipaddress import ip_network
from typing import Final

from pyderp.addresses import IPAddress, parse_ip
from pyderp.config import DebugAccess
from pyderp.wire.http import Request, Response, text_response

__all__ = ["Access", "refusal"]

_TAILSCALE: Final = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
_CHROMEOS: Final = ip_network("100.115.92.0/23")
"""Virtual machines of ChromeOS have these; Tailscale never gives them out."""


class Access:
    """Decides whether a requester may see `/debug/` (`tsweb.AllowDebugAccess`).

    Args:
        config: who may, beside this machine and Tailscale addresses.
    """

    __slots__ = ("_config", "_extra")

    def __init__(self, config: DebugAccess) -> None:
        self._config = config
        self._extra = _address(config.allow_ip)

    def allows(self, request: Request) -> bool:
        """Whether this request may be answered.

        The key opens it from anywhere, with GET only. Otherwise the address counts, and a
        request that somebody untrusted forwarded has none.
        """
        if self._has_key(request):
            return True
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

    def _has_key(self, request: Request) -> bool:
        key = self._config.key
        if not key or request.method != "GET":
            return False
        given = request.query.get("debugkey", "")
        return hmac.compare_digest(given.encode(), key.encode())


def refusal(request: Request, *, dev: bool) -> Response:
    """The answer to who may not see a page.

    Args:
        dev: say how to permit access.
    """
    text = "debug access denied"
    if dev and not request.forwarded and _address(request.remote) is not None:
        text += f"; to permit access, set TS_ALLOW_DEBUG_IP={request.remote}"
    return text_response(403, text)


def _address(text: str) -> IPAddress | None:
    # A zone (%eth0) says nothing about who it is.
    return parse_ip(text.partition("%")[0])


def _is_tailscale(address: IPAddress) -> bool:
    return any(address in network for network in _TAILSCALE) and address not in _CHROMEOS
