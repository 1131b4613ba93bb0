"""What the pages of a relay are told about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pyderp.admission.gate import Gate
from pyderp.certs.credential import CertificateInfo
from pyderp.relay.bootstrap import BootstrapCounters
from pyderp.relay.router import Router
from pyderp.server.conn.accept import AcceptGate
from pyderp.server.conn.context import Served
from pyderp.server.conn.kernel import memory_now
from pyderp.server.conn.limits import Limits
from pyderp.server.mesh.links import Mesh
from pyderp.server.services.stun import StunCounters
from pyderp.server.site.access import Access

__all__ = ["RelayView"]


@dataclass(kw_only=True)
class RelayView:
    """One relay, as far as its pages show it. All of it is live."""

    router: Router
    protocols: Callable[[], Collection[Served]]
    """All connections that are open."""

    access: Access
    dev: bool = False
    """Refusals say how to permit access."""

    version: str
    native: str = ""
    """The version of pyderp-fast, if it is used."""

    hostname: str = ""
    """What the certificate is for; empty: no TLS."""

    has_mesh_key: bool = False
    sender_cardinality: bool = True
    """Pages tell how many keys have written to a client."""

    limits: Limits | None = None
    """`None`: it was started without a file of limits."""

    stun: StunCounters | None = None
    """`None`: there is no STUN server."""

    bootstrap: BootstrapCounters | None = None
    """`None`: there is no bootstrap DNS."""

    admission: Gate | None = None
    """`None`: everybody is let in."""

    mesh: Mesh | None = None
    """`None`: it is in no mesh."""

    certificates: Callable[[], Sequence[CertificateInfo]] = list
    tls_requests: Mapping[str, int] = field(default_factory=dict)
    """HTTP requests by TLS version."""

    accepts: AcceptGate | None = None
    """`None`: nobody counts."""

    wall: Callable[[], float] = time.time
    """Seconds since 1970; what the router's clock says is something else."""

    started: float = 0.0
    """When the relay started, by `wall`; 0: now."""

    memory_at_start: int = field(default_factory=memory_now)
    """Bytes."""

    def __post_init__(self) -> None:
        """Fill in the start."""
        self.started = self.started or self.wall()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return max(self.wall() - self.started, 0.0)
