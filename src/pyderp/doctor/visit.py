"""One node while it is checked: its addresses, what checks have found, and how to connect."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyderp.addresses import IPAddress
from pyderp.client.client import Client
from pyderp.client.config import ClientConfig, UrlTarget
from pyderp.client.login import Established, Login, over_http, over_websocket
from pyderp.client.route import Progress, Route
from pyderp.doctor.httpask import Reply
from pyderp.errors import CertificateError, DialError
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.maps.region import DERPNode
from pyderp.net.dns import Resolver
from pyderp.net.link import Link, link_over_socket
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import connect_socket
from pyderp.net.tls import TLSConfig, TlsLink, start_tls
from pyderp.wire.messages import ServerInfo

__all__ = ["Settings", "Subject", "Visit"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a whole run."""

    timeout: float = 5.0
    """Seconds for one check; some checks have a multiple of this (`Check.times`)."""

    deep: bool = False
    """Check more thoroughly: more connections, pairs of nodes and packets, and idle connections."""

    idle: float = 65.0
    """Seconds without a packet for which a deep run holds a connection; relays send a keep-alive
    after 60 s."""

    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which authorities are trusted."""

    key: NodePrivate | None = None
    """A key that the relay admits, if it does not admit all."""

    mesh_key: MeshKey | None = None
    """The relay's mesh key; it admits every client that has it."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Socket options. Proxies in it are not used: all connections are direct."""

    resolver: Resolver | None = None
    """Looks up names; `None`: the system does."""

    now: Callable[[], float] = time.time
    """Returns this machine's time, in seconds since 1970."""

    def utc_now(self) -> datetime.datetime:
        """Return this machine's time as an aware time in UTC."""
        return datetime.datetime.fromtimestamp(self.now(), datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A node to check, from a map, a URL or a host name."""

    node: DERPNode
    """The node; findings have its name."""

    target: UrlTarget
    """The URL of DERP on the node."""

    http_port: int = 80
    """The port of plain HTTP."""

    wants_port_80: bool | None = None
    """Whether the map says that plain HTTP answers (`CanPort80`); `None`: no map."""

    @property
    def server_name(self) -> str:
        """The server name of a client's TLS handshake (SNI)."""
        return self.node.host_name


@dataclass
class Visit:
    """A node while it is checked. Checks store here what later checks need."""

    subject: Subject
    settings: Settings

    addresses: dict[int, list[IPAddress]] = field(default_factory=dict)
    """IP version → the node's addresses."""
    answering: list[IPAddress] = field(default_factory=list)
    """Addresses that accept TCP connections, those of IPv4 first, and of each the fastest first."""
    tcp_failed: bool = False
    """An address does not accept TCP, although this machine has a route to it."""
    chain: tuple[bytes, ...] = ()
    """The certificates that were presented, in DER."""
    verified: bool = False
    """The certificate passed all checks of a client."""
    distrust: CertificateError | None = None
    """Why the certificate did not pass; `None`: it passed, or there was no handshake."""
    version: str = ""
    """TLS version of the handshake."""
    meta: tuple[NodePublic, int] | None = None
    """The relay's key and protocol version, from its meta certificate under TLS 1.3."""
    upgrade: Reply | None = None
    """The answer to the request for an upgrade."""
    upgraded: bool = False
    """An upgrade to DERP works; otherwise clients can only use the websocket."""
    websocket: bool = False
    """A websocket works."""
    http2: bool = False
    """The answer to the request for an upgrade was HTTP/2."""
    date: tuple[float, float] | None = None
    """The relay's time in an answer, and this machine's time then, in seconds since 1970."""
    relay_keys: dict[NodePublic, str] = field(default_factory=dict)
    """The keys that the relay has presented, and where each was first seen."""
    info: ServerInfo | None = None
    """The relay's answer to a login."""
    pair: tuple[Client, Client] | None = None
    """Two clients that are logged in and send packets to each other; the same client twice if
    there is one admitted key only."""
    late: set[bytes] = field(default_factory=set)
    """Packets that were sent and did not arrive in time. They may still arrive."""
    stuck: str = ""
    """The name of the check since which no packet has arrived. Later checks refer to it."""
    _kept: list[Client] = field(default_factory=list)

    async def tcp(self, address: IPAddress | None = None, port: int | None = None) -> Link:
        """Connect to the node: by default to the first answering address and the port of DERP.

        Raises:
            DialError: the connection could not be made.
        """
        if address is None:
            if not self.answering:
                raise DialError("no address of the node answers")
            address = self.answering[0]
        sock = await connect_socket(
            str(address), port or self.subject.target.port, settings=self.settings.network
        )
        return await link_over_socket(sock)

    async def tls(
        self,
        address: IPAddress | None = None,
        *,
        verify: bool | None = None,
        name: str | None = None,
    ) -> TlsLink:
        """Connect to the node with TLS.

        Args:
            address: as for `tcp`.
            verify: whether to verify the certificate as a client does; by default, if that has
                succeeded before.
            name: another server name to ask for; empty: none. Nothing is verified then.

        Raises:
            DialError, TLSError, OSError: the connection or the handshake failed.
        """
        link = await self.tcp(address)
        node = self.subject.node
        verify = self.verified if verify is None else verify
        if name is not None:
            verify = False
        return await start_tls(
            link,
            server_name=self.subject.server_name if name is None else name,
            cert_name=node.cert_name if verify else "",
            insecure=node.insecure_for_tests if verify else True,
            config=self.settings.tls,
            settings=self.settings.network,
        )

    async def stream(self) -> Link:
        """Connect to the relay for HTTP, with TLS if the relay has it."""
        return await (self.tls() if self.subject.target.tls else self.tcp())

    def note_key(self, key: NodePublic | None, where: str) -> None:
        """Store a key that the relay has presented, and where."""
        if key is not None:
            self.relay_keys.setdefault(key, where)

    def client(self, *, key: NodePrivate | None = None, mesh_key: MeshKey | None = None) -> Client:
        """Return a client of this node, which connects as the checks have found to work."""
        config = ClientConfig(
            network=self.settings.network,
            mesh_key=mesh_key,
            app_name="pyderp doctor",
            connect_timeout=self.settings.timeout,
        )
        return Client(VisitRoute(self), key, config)

    def keep(self, client: Client) -> Client:
        """Return a client after adding it to those that `aclose` closes."""
        self._kept.append(client)
        return client

    async def aclose(self) -> None:
        """Close the clients that are still open; may be called again."""
        self.pair = None
        # Each is removed only after it is closed: if cancelled, the next call closes the rest.
        while self._kept:
            await self._kept[-1].aclose()
            self._kept.pop()


class VisitRoute(Route):
    """Connects to one node as the checks have found to work."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self.label = visit.subject.target.text

    async def connect(self, login: Login, progress: Progress) -> Established:
        """Connect and log in."""
        visit = self._visit
        progress.step = "connecting"
        link = await visit.stream()
        try:
            progress.step = "waiting for the relay's answer"
            target = visit.subject.target
            if visit.upgraded:
                done = await over_http(link, target, login, known=None)
            else:
                done = await over_websocket(link, target, login)
        except BaseException:
            link.abort()
            raise
        visit.note_key(done.session.server_key, "a login")
        return done
