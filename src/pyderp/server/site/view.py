"""What the pages of a relay are told about it, and which requesters may see `/debug/`.

This machine may, Tailscale addresses may, and what the operator names. An address is not enough:
a page from elsewhere, in the browser of a person who may see `/debug/`, may ask under its own
name, which its name server has just pointed at this relay (DNS rebinding). To the browser that is
the page's own site, and it lets the page read. So the name must be the relay's.
"""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, TypeVar

from pyderp.addresses import IPAddress, parse_ip
from pyderp.certs.credential import CertificateInfo, CertificateState
from pyderp.config import DebugAccess, RelayConfig
from pyderp.relay.bootstrap import BootstrapCounters
from pyderp.relay.connection import Connection
from pyderp.relay.router import Router
from pyderp.server.conn.accept import AcceptGate
from pyderp.server.conn.context import Served
from pyderp.server.conn.kernel import memory_now
from pyderp.server.services.stun import StunCounters
from pyderp.server.trouble import Trouble
from pyderp.wire.http import Request, Response, text_response

if TYPE_CHECKING:  # a relay whose settings leave them out does without; a mesh brings the client
    from pyderp.admission.gate import Gate
    from pyderp.server.conn.limits import Limits
    from pyderp.server.mesh.links import Mesh

__all__ = ["Access", "RelayView", "refusal", "slices"]

T = TypeVar("T")

_SLICE: Final = 50
"""Connections looked at in one turn of the loop, for about 2 ms."""
_MOST_IN_HOST: Final = 300
"""Characters of a Host header; names have 253 at most."""

_TAILSCALE: Final = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
_CHROMEOS: Final = ip_network("100.115.92.0/23")
"""Virtual machines of ChromeOS have these; Tailscale never gives them out."""


class Access:
    """Decides whether a requester may see `/debug/` (`tsweb.AllowDebugAccess`).

    Args:
        config: who may, beside this machine and Tailscale addresses.
        names: returns the names that the relay has now; `*.` begins one for all names one level
            below.
    """

    __slots__ = ("_config", "_extra", "_known", "_names")

    def __init__(self, config: DebugAccess, *, names: Callable[[], Iterable[str]] = tuple) -> None:
        self._config = config
        self._extra = _address(config.allow_ip)
        machine = _plain_name(socket.gethostname())
        self._known = {"localhost", machine, machine.partition(".")[0]}
        self._known.update(map(_plain_name, config.hosts))
        self._names = names

    def allows(self, request: Request) -> bool:
        """Whether this request may be answered.

        The key opens it from anywhere and under any name, with GET only: a page from elsewhere
        does not know it. Otherwise address and name count, and a request that an untrusted
        proxy forwarded has no address.
        """
        return self._has_key(request) or (
            self._allows_address(request) and self._knows_host(request)
        )

    def refuses_host(self, request: Request) -> bool:
        """Whether only the name under which it asks keeps this request out."""
        return self._allows_address(request) and not self._knows_host(request)

    def _allows_address(self, request: Request) -> bool:
        address = None if request.forwarded else _address(request.remote)
        return address is not None and (
            address.is_loopback
            or (any(address in net for net in _TAILSCALE) and address not in _CHROMEOS)
            or address == self._extra
            or any(address in net for net in self._config.trusted)
        )

    def _knows_host(self, request: Request) -> bool:
        given = request.header(b"host")
        if not given:
            return True  # HTTP/1.0, which no browser speaks
        if len(given) > _MOST_IN_HOST:
            return False
        host = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
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


@dataclass(kw_only=True)
class RelayView:
    """One relay, as far as its pages show it. All but its settings is live."""

    config: RelayConfig
    router: Router
    protocols: Collection[Served]
    """All connections that are open."""

    access: Access
    version: str
    accepts: AcceptGate
    bootstrap: BootstrapCounters
    tls_requests: Mapping[str, int]
    """HTTP requests by TLS version."""

    native: str = ""
    """The version of pyderp-fast, if it is used."""

    limits: Limits | None = None
    stun: StunCounters | None = None
    admission: Gate | None = None
    mesh: Mesh | None = None
    certificates: Callable[[], Sequence[CertificateInfo]] = list
    certificate_states: Callable[[], Sequence[CertificateState]] = list
    """One for each name that a certificate is wanted for."""

    stun_trouble: Callable[[], str] = str
    """Returns why STUN is not answered though it should be; empty: it is, or is off."""

    more_troubles: Callable[[], Iterable[Trouble]] = tuple
    """What is wrong with the program that runs the relay."""

    wall: Callable[[], float] = time.time
    """Seconds since 1970; what the router's clock says is something else."""

    started: float = 0.0
    """When the relay started, by `wall`; 0: now."""

    memory_at_start: int = field(default_factory=memory_now)
    """Bytes."""

    _began: float = field(init=False)
    """When the relay started, by the router's clock."""

    def __post_init__(self) -> None:
        """Fill in the start."""
        wall = self.wall()
        self.started = self.started or wall
        self._began = self.router.clock() - max(wall - self.started, 0.0)

    @property
    def uptime(self) -> float:
        """Seconds since the start, whatever became of the system's clock meanwhile."""
        return self.router.clock() - self._began

    def senders(self, connection: Connection) -> int:
        """How many other keys have written to a client; 0 if pages do not tell that."""
        heard_from = connection.heard_from if self.config.sender_cardinality else None
        return len(heard_from or ())


def slices(connections: Iterable[T]) -> Iterator[list[T]]:
    """The connections that are open now, some at a time: let others work after each.

    Those that end meanwhile may be among them.
    """
    everything = list(connections)
    for start in range(0, len(everything), _SLICE):
        yield everything[start : start + _SLICE]


def refusal(request: Request, access: Access, *, dev: bool) -> Response:
    """The answer to a requester that may not see a page.

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
    # A zone (%eth0) says nothing about the requester.
    return parse_ip(text.partition("%")[0])


def _plain_name(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _matches(own: str, name: str) -> bool:
    return name.partition(".")[2] == own[2:] if own.startswith("*.") else name == own
