"""What a relay has beside its core, put together from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence

import pyderp
from pyderp.addresses import parse_ip
from pyderp.admission.gate import Gate
from pyderp.admission.verdict import ClientIdentity
from pyderp.certs import (
    CertificateSource,
    ServerContexts,
    make_certificates,
    meta_certificate,
)
from pyderp.certs.source import EXPIRES_SOON, ExpiryWatch
from pyderp.config import HealthRecipients, RelayConfig
from pyderp.keys import NodePrivate, NodePublic
from pyderp.relay.ending import EndReason, How
from pyderp.relay.health import expiry_text
from pyderp.server.app.listeners import Listeners
from pyderp.server.conn.accept import AcceptGate
from pyderp.server.conn.context import Core
from pyderp.server.conn.deadpath import PathWatch
from pyderp.server.conn.health import HealthTeller
from pyderp.server.conn.limits import Limits
from pyderp.server.conn.proxyheader import with_proxy_header
from pyderp.server.conn.rtt import RttSampler
from pyderp.server.conn.tls import protocol_factory
from pyderp.server.mesh.links import Mesh
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.server.services.stun import StunServer
from pyderp.server.site.access import Access
from pyderp.server.site.facts import Facts
from pyderp.server.site.home import home_page
from pyderp.server.site.pages import DebugSite
from pyderp.server.site.routes import Answer, relay_routes, side_routes
from pyderp.wire.http import Request

__all__ = ["Parts"]

log = logging.getLogger("pyderp.relay")


class Parts:
    """Certificates, admission, limits, mesh, STUN and site of one relay.

    Args:
        config: the settings. Whatever is off costs nothing.
        core: gets what its connections ask for.
        private_key: the relay's key.

    Raises:
        ConfigError: a setting or a file that cannot be used.
    """

    def __init__(self, config: RelayConfig, core: Core, private_key: NodePrivate) -> None:
        self._config = config
        self._core = core
        self._closing = contextlib.AsyncExitStack()
        self.certificates: CertificateSource | None = None
        self._contexts: ServerContexts | None = None
        if config.tls is not None:
            self.certificates = make_certificates(config.tls)
            meta = meta_certificate(private_key.public)
            self._contexts = ServerContexts(self.certificates, meta)
            self._closing.push_async_callback(self.certificates.aclose)
        self._expiry = ExpiryWatch()
        self.accepts = AcceptGate(core, config.accept_limit, config.accept_burst)
        core.trusted = config.trusted_proxies
        core.disallowed_app_names = frozenset(config.disallow_app_names) - {""}
        for text in config.idle_app_names():
            log.warning("%s", text)
        if parse_ip(config.hostname) is None:
            core.server_name = config.hostname.encode()
        if config.health is not HealthRecipients.NONE:
            tell_all = config.health is HealthRecipients.ALL
            core.health = HealthTeller(core.router, core.loop.time, tell_all=tell_all)
        if config.rate_config is not None:
            core.limits = Limits(core, config.rate_config)
            self._closing.callback(core.limits.close)
        if config.tcp_user_timeout > 0:
            core.paths = PathWatch(core, config.tcp_user_timeout)
        if config.rtt_stats:
            core.rtt = RttSampler(core)
        if config.admission.any:
            core.gate = Gate(config.admission, live=self._live, revoke=self._revoke)
            self._closing.push_async_callback(core.gate.aclose)
        self.mesh: Mesh | None = None
        if config.mesh_key is not None:
            self.mesh = Mesh(
                core.router, private_key, config.mesh_key, schedule_flush=core.schedule_flush
            )
            self._closing.push_async_callback(self.mesh.aclose)
        self.bootstrap = BootstrapDNS(config.bootstrap_dns)
        self._closing.push_async_callback(self.bootstrap.aclose)
        self.stun: StunServer | None = None
        self.facts = self._facts()
        self.site = DebugSite(self.facts)

    def _facts(self) -> Facts:
        core, config = self._core, self._config
        return Facts(
            router=core.router,
            protocols=lambda: core.protocols,
            access=Access(config.debug, names=self._own_names),
            dev=config.dev,
            version=pyderp.__version__,
            hostname=config.hostname,
            has_mesh_key=config.mesh_key is not None,
            sender_cardinality=config.sender_cardinality,
            limits=core.limits,
            bootstrap=self.bootstrap.counters,
            admission=core.gate,
            mesh=self.mesh,
            certificates=list if self.certificates is None else self.certificates.certificates,
            tls_requests=core.tls_requests,
            accepts=self.accepts,
        )

    def _own_names(self) -> Iterator[str]:
        if self._config.hostname:
            yield self._config.hostname
        if self.certificates is not None:
            for certificate in self.certificates.certificates():
                yield from certificate.names

    # Life

    async def start(self, listeners: Listeners) -> None:
        """Begin what settings can still be wrong for; nobody is served yet.

        Raises:
            ConfigError: a file or an entry that cannot be used.
        """
        if self._core.gate is not None:
            await self._core.gate.start()
        self.set_mesh(self._config.mesh_with)
        if listeners.stun:
            self.stun = StunServer(listeners.stun)
            self.stun.start()
            self.facts.stun = self.stun.counters
            self._closing.push_async_callback(self.stun.aclose)

    async def begin(self) -> None:
        """Begin what needs a relay that answers: certificates by ACME, names to look up."""
        self.bootstrap.start()
        if self.certificates is not None:
            await self.certificates.start()

    def set_mesh(self, hosts: Sequence[str]) -> None:
        """Be in a mesh with these relays.

        Raises:
            ConfigError: an entry that cannot be used; nothing was changed.
        """
        if self.mesh is not None:
            self.mesh.set_hosts(hosts)

    def reload(self) -> None:
        """Read files again, as an operator may ask; what cannot be used is logged and not used."""
        if self.certificates is not None:
            self.certificates.reload(force=True)
        if self._core.gate is not None:
            self._core.gate.reload()
        if self._core.limits is not None:
            self._core.limits.reload()

    def look_at_certificates(self) -> None:
        """See whether their files changed, and whether they are about to expire."""
        assert self.certificates is not None
        self.certificates.reload()
        now = datetime.datetime.now(datetime.UTC)
        in_use = self.certificates.certificates()
        self._expiry.look(in_use, now)
        if self._core.health is not None:
            soon = [each for each in in_use if each.remaining(now) < EXPIRES_SOON]
            texts = [expiry_text(", ".join(each.names), each.not_after, now) for each in soon]
            self._core.health.set_certificate_problem(texts[0] if texts else None)

    async def stop_answering(self) -> None:
        """Answer no more STUN: the relay is about to stop, and another may take over."""
        if self.stun is not None:
            await self.stun.aclose()

    async def aclose(self) -> None:
        """End all of it."""
        await self._closing.aclose()

    # What connections ask for

    def factories(self) -> tuple[Callable[[], asyncio.BaseProtocol], ...]:
        """What makes the protocol of a connection to the main and to the side listener."""
        main = relay_routes(
            {"/": self._home, "/bootstrap-dns": self.bootstrap.answer},
            self.site.answer,
            derp=self._config.derp,
        )
        challenge = (
            (lambda _: None) if self.certificates is None else self.certificates.http_challenge
        )
        side = side_routes(challenge, main, self.site.allows)
        core, config = self._core, self._config
        make_main = protocol_factory(core, main, self._contexts, derp=config.derp)
        make_side = protocol_factory(core, side, None, derp=False)
        if config.proxy_protocol:
            return (
                self.accepts.guard(with_proxy_header(core, make_main)),
                self.accepts.guard(with_proxy_header(core, make_side), limited=False),
            )
        return self.accepts.guard(make_main), self.accepts.guard(make_side, limited=False)

    def _home(self, request: Request) -> Answer:
        return home_page(self._config.home, derp=self._config.derp, debug=self.site.allows(request))

    def _live(self) -> Iterator[ClientIdentity]:
        for connection in self._core.router.registry.connections():
            if not connection.can_mesh:
                yield ClientIdentity(connection.public, connection.peer[0])

    def _revoke(self, key: NodePublic, address: str | None, reason: str) -> None:
        for connection in self._core.router.registry.connections_of(key.raw):
            if not connection.can_mesh and address in (None, connection.peer[0]):
                detail = f"no longer allowed: {reason}"
                connection.sink.end(EndReason.REVOKED, How.NOW, detail)
