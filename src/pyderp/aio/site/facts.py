"""What the pages of a relay are told about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from pyderp.aio.site.access import Access
from pyderp.aio.site.process import memory_now
from pyderp.certs.source import CertificateInfo
from pyderp.keys import NodePublic
from pyderp.relay.connection import Connection
from pyderp.relay.limits import RateConfig
from pyderp.relay.router import Router

if TYPE_CHECKING:
    from pyderp.admission.verdict import AdmissionCounters
    from pyderp.aio.stun import StunCounters
    from pyderp.relay.bootstrap import BootstrapCounters

__all__ = [
    "AcceptCounts",
    "Admission",
    "Facts",
    "Links",
    "MeshLinkStatus",
    "Served",
]


class Served(Protocol):
    """An accepted connection, logged in or not."""

    @property
    def connection(self) -> Connection | None:
        """What the router knows it as; `None` before the login."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """Its transport; `None` once it is gone."""

    @property
    def websocket(self) -> object | None:
        """What puts its bytes into a websocket; `None`: nothing does."""

    @property
    def tls_version(self) -> str:
        """Such as `1.3`; empty: plain, or not yet agreed on."""


class AcceptCounts(Protocol):
    """What became of connections before anything was read from them."""

    accepted: int
    rejected: int
    shed: int


class RateLimits(Protocol):
    """How fast clients may send."""

    waited: int
    """Times that a client had to wait."""

    @property
    def config(self) -> RateConfig:
        """Today's limits."""

    @property
    def waiting(self) -> Collection[object]:
        """Connections that are not read from at the moment."""


class Admission(Protocol):
    """Who decides which clients may come in."""

    @property
    def counters(self) -> AdmissionCounters:
        """What it has counted."""

    def label(self, key: NodePublic) -> str:
        """What the key file calls a client; empty: nothing."""

    async def check_self(self) -> str | None:
        """Whether it would let this machine in; `None`: yes, otherwise why not."""


class MeshLinkStatus(Protocol):
    """The link to one other relay."""

    @property
    def host(self) -> str:
        """As it was configured."""

    @property
    def connected(self) -> bool:
        """Whether it is up."""

    @property
    def peers(self) -> int:
        """Clients that the other relay has."""

    @property
    def since(self) -> datetime:
        """When `connected` last changed; an aware time."""

    @property
    def error(self) -> str:
        """Why it is down."""

    @property
    def is_self(self) -> bool:
        """The host is this very relay, so there is no link."""


class Links(Protocol):
    """The links to all other relays."""

    def status(self) -> Sequence[MeshLinkStatus]:
        """How each of them is."""


@dataclass(kw_only=True)
class Facts:
    """One relay, as far as its pages show it. All of it is live."""

    router: Router
    protocols: Callable[[], Collection[Served]]
    """All connections that are open."""

    access: Access
    dev: bool = False
    """Refusals say how to permit access."""

    version: str
    hostname: str = ""
    """What the certificate is for; empty: no TLS."""

    has_mesh_key: bool = False
    limits: RateLimits | None = None
    """`None`: it was started without a file of limits."""

    stun: StunCounters | None = None
    """`None`: there is no STUN server."""

    bootstrap: BootstrapCounters | None = None
    """`None`: there is no bootstrap DNS."""

    admission: Admission | None = None
    """`None`: everybody is let in."""

    mesh: Links | None = None
    certificates: Callable[[], Sequence[CertificateInfo]] = list
    tls_requests: Mapping[str, int] = field(default_factory=dict)
    """HTTP requests by TLS version."""

    accepts: AcceptCounts | None = None
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
