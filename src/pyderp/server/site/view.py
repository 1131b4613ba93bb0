"""The data that the pages of a relay show, and which requesters may see `/debug/`.

Allowed are this machine, Tailscale addresses, and addresses that the operator names. But an allowed
address is not enough. A hostile web page in the browser of an allowed person may send a request to
the page's own host name, after its name server has changed the address of that name to this relay's
(DNS rebinding). The browser takes the answer for the page's own site, and lets the page read it. So
the request's Host must be a name of the relay.
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

if TYPE_CHECKING:  # a relay imports these only if its settings need them
    from pyderp.admission.gate import Gate
    from pyderp.server.conn.limits import Limits
    from pyderp.server.mesh.links import Mesh

__all__ = ["Access", "RelayView", "refusal", "slices"]

T = TypeVar("T")

_SLICE: Final = 50
"""Connections of one slice. A page spends about 2 ms on it in one turn of the loop."""
_MOST_IN_HOST: Final = 300
"""Characters of a Host header; names have 253 at most."""

_TAILSCALE: Final = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
_CHROMEOS: Final = ip_network("100.115.92.0/23")
"""Addresses of virtual machines on ChromeOS, which Tailscale does not use for nodes."""


class Access:
    """Decides whether a requester may see `/debug/` (`tsweb.AllowDebugAccess`).

    Args:
        config: the requesters beside this machine and Tailscale addresses.
        names: returns the current names of the relay; one that begins with `*.` stands for all
            names one level below.
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
        """Return whether the requester may see `/debug/`.

        A GET request with the key may, from any address and with any Host: a hostile web page
        does not know the key. Other requests need an allowed address and a name of the relay. A
        request that an untrusted proxy forwarded has no known address, and is refused.
        """
        return self._has_key(request) or (
            self._allows_address(request) and self._knows_host(request)
        )

    def refuses_host(self, request: Request) -> bool:
        """Return whether the request is refused only because of its Host."""
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
            return True  # only HTTP/1.0 has no Host, and no browser uses that
        if len(given) > _MOST_IN_HOST:
            return False
        host = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
        if _address(host) is not None:
            return True  # DNS rebinding needs a name
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
    """The data of one relay that its pages show. All but `config` changes as the relay works."""

    config: RelayConfig
    router: Router
    protocols: Collection[Served]
    """All open connections."""

    access: Access
    version: str
    accepts: AcceptGate
    bootstrap: BootstrapCounters
    tls_requests: Mapping[str, int]
    """HTTP requests by TLS version."""

    native: str = ""
    """The version of pyderp-fast; empty if it is not used."""

    limits: Limits | None = None
    stun: StunCounters | None = None
    admission: Gate | None = None
    mesh: Mesh | None = None
    certificates: Callable[[], Sequence[CertificateInfo]] = list
    certificate_states: Callable[[], Sequence[CertificateState]] = list
    """Returns the state for each name and address that needs a certificate."""

    stun_trouble: Callable[[], str] = str
    """Returns why STUN does not work; empty if it works, or is off."""

    more_troubles: Callable[[], Iterable[Trouble]] = tuple
    """Returns the troubles of the program that runs the relay."""

    wall: Callable[[], float] = time.time
    """Returns seconds since 1970. The router's clock is monotonic."""

    started: float = 0.0
    """When the relay started, by `wall`; 0 means now."""

    memory_at_start: int = field(default_factory=memory_now)
    """Bytes of memory that the process had when the relay started."""

    _began: float = field(init=False)
    """When the relay started, by the router's clock."""

    def __post_init__(self) -> None:
        """Compute the times of the start."""
        wall = self.wall()
        self.started = self.started or wall
        self._began = self.router.clock() - max(wall - self.started, 0.0)

    @property
    def uptime(self) -> float:
        """Seconds since the start, also if the system's clock was set meanwhile."""
        return self.router.clock() - self._began

    def senders(self, connection: Connection) -> int:
        """Return how many other keys have sent to a client; 0 if `sender_cardinality` is off."""
        received_from = connection.received_from if self.config.sender_cardinality else None
        return len(received_from or ())


def slices(connections: Iterable[T]) -> Iterator[list[T]]:
    """Yield the connections in lists of 50. Yield to the event loop after each list.

    Connections that end meanwhile are included.
    """
    everything = list(connections)
    for start in range(0, len(everything), _SLICE):
        yield everything[start : start + _SLICE]


def refusal(request: Request, access: Access, *, dev: bool) -> Response:
    """Return the answer to a requester that may not see `/debug/`.

    Args:
        access: the rules by which the request was refused.
        dev: whether the answer says how to permit access.
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
    # A zone (%eth0) names an interface of this machine, not the requester.
    return parse_ip(text.partition("%")[0])


def _plain_name(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _matches(own: str, name: str) -> bool:
    return name.partition(".")[2] == own[2:] if own.startswith("*.") else name == own
