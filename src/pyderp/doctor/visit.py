"""One node that is looked at: where it is, what is known of it so far, and ways to it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyderp.addresses import IPAddress
from pyderp.client.client import Client
from pyderp.client.config import ClientConfig, UrlTarget
from pyderp.client.connect import Progress, Route
from pyderp.client.login import Established, Login, over_http, over_websocket
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
    """What holds for a whole run."""

    timeout: float = 5.0
    """Seconds for one check, as a rule."""

    deep: bool = False
    """More of each: every address, more connections, more and larger packets."""

    idle: float = 65.0
    """Seconds without a packet for which a deep run holds a connection; relays send a keepalive
    after 60 s."""

    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which authorities are trusted."""

    key: NodePrivate | None = None
    """A key that the relay admits, for one that does not admit all."""

    mesh_key: MeshKey | None = None
    """The relay's mesh key, with which it admits every key."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Socket options. Proxies in it are not used: checks are of the direct way."""

    resolver: Resolver | None = None
    """Looks names up; by default the system."""

    now: Callable[[], float] = time.time
    """Seconds since 1970."""

    def utc_now(self) -> datetime.datetime:
        """This machine's time."""
        return datetime.datetime.fromtimestamp(self.now(), datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A node to look at, as a map, a URL or a host name describes it."""

    node: DERPNode
    """Its name is that of the findings."""

    target: UrlTarget
    """Where the request for DERP goes."""

    http_port: int = 80
    """The port of plain HTTP beside TLS."""

    wants_port_80: bool | None = None
    """Whether the map says that plain HTTP answers (`CanPort80`); `None`: no map."""

    @property
    def server_name(self) -> str:
        """The name that a client asks for in the TLS handshake."""
        return self.node.host_name


@dataclass
class Visit:
    """A node while it is checked. Checks leave here what later ones need."""

    subject: Subject
    settings: Settings

    addresses: dict[int, list[IPAddress]] = field(default_factory=dict)
    """IP version → the node's addresses."""
    answering: list[IPAddress] = field(default_factory=list)
    """Addresses at which TCP works, the quickest first."""
    tcp_failed: bool = False
    """One of the others does not, and this machine has a way to it."""
    chain: tuple[bytes, ...] = ()
    """The certificates that were presented, DER."""
    verified: bool = False
    """The certificate passed all checks of a client."""
    distrust: CertificateError | None = None
    """Why it did not."""
    version: str = ""
    """TLS version of the handshake."""
    meta: tuple[NodePublic, int] | None = None
    """The relay's key and protocol version, from its meta certificate under TLS 1.3."""
    upgrade: Reply | None = None
    """The answer to the request for an upgrade."""
    upgraded: bool = False
    """An upgrade to DERP works; if not, clients have only the websocket."""
    websocket: bool = False
    """A websocket works."""
    http2: bool = False
    """What answered it speaks HTTP/2 only."""
    date: tuple[float, float] | None = None
    """The relay's time in an answer, and this machine's then; both in seconds since 1970."""
    relay_keys: dict[NodePublic, str] = field(default_factory=dict)
    """Keys that the relay has shown, and where first."""
    info: ServerInfo | None = None
    """The relay's answer to a login."""
    pair: tuple[Client, Client] | None = None
    """Two clients that are logged in, for packets; one twice if the relay admits one key only."""
    late: set[bytes] = field(default_factory=set)
    """Packets that were sent and have not arrived in time; they may still come."""
    stuck: str = ""
    """The check from which on no packet arrives, so that later ones say nothing new."""
    _kept: list[Client] = field(default_factory=list)

    async def tcp(self, address: IPAddress | None = None, port: int | None = None) -> Link:
        """Connect to the node: by default to the first address that answers, on its own port.

        Raises:
            DialError: no connection.
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
        """TLS with the node.

        Args:
            address: as of `tcp`.
            verify: as a client does; or nothing. By default what has worked before.
            name: another name to ask for; empty: none. Nothing is verified then.

        Raises:
            DialError, TLSError, OSError: it failed.
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
        """A connected stream to the relay's HTTP: TCP, and TLS if the relay has it."""
        return await (self.tls() if self.subject.target.tls else self.tcp())

    def note_key(self, key: NodePublic | None, where: str) -> None:
        """Remember a key that the relay has shown."""
        if key is not None:
            self.relay_keys.setdefault(key, where)

    def client(self, *, key: NodePrivate | None = None, mesh_key: MeshKey | None = None) -> Client:
        """A client of this node; it takes the way that the checks have found."""
        config = ClientConfig(
            network=self.settings.network,
            mesh_key=mesh_key,
            app_name="pyderp doctor",
            connect_timeout=self.settings.timeout,
        )
        return Client(VisitRoute(self), key, config)

    def keep(self, client: Client) -> Client:
        """Have `aclose` close a client; returns it."""
        self._kept.append(client)
        return client

    async def aclose(self) -> None:
        """Close the clients that are still open; may be called again."""
        self.pair = None
        # Forgotten only when it is closed: if this is cancelled, the next call closes the rest.
        while self._kept:
            await self._kept[-1].aclose()
            self._kept.pop()


class VisitRoute(Route):
    """To one node, by the address and with the trust that the checks have found."""

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
