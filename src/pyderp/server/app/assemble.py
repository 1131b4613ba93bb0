"""Makes all parts of a relay from its settings. A part that the settings leave out is not made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyderp
from pyderp.addresses import bare_name, parse_ip
from pyderp.admission.verdict import ClientIdentity
from pyderp.certs import CertificateSource, ServerContexts, make_certificates, meta_certificate
from pyderp.config import HealthRecipients, RelayConfig
from pyderp.keys import NodePrivate, NodePublic
from pyderp.native import NativeModule, load
from pyderp.relay import lane
from pyderp.relay.connection import EndReason, How
from pyderp.relay.health import HealthReporter
from pyderp.relay.router import Router
from pyderp.server.app.listeners import Listeners
from pyderp.server.conn.accept import AcceptGate, protocol_factory
from pyderp.server.conn.context import ConnectionContext, ConnectionRules
from pyderp.server.conn.engines import Engine, RustlsEngine, SSLEngine
from pyderp.server.conn.watch import PathWatch, RttSampler
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.server.services.stun import StunServer
from pyderp.server.site.routes import DebugRoutes, home_page, relay_routes, side_routes
from pyderp.server.site.view import Access, RelayView
from pyderp.server.trouble import Trouble
from pyderp.tasks import running_loop
from pyderp.wire.http import Answer, Request
from pyderp.wire.login import ServerLogin

if TYPE_CHECKING:  # imported below only if the settings need them: a mesh needs the whole client
    from pyderp.admission.gate import Gate
    from pyderp.server.conn.limits import Limits
    from pyderp.server.mesh.links import Mesh

__all__ = [
    "RelayParts",
    "assemble",
    "live_clients",
    "make_view",
    "protocol_factories",
    "revoke",
]

log = logging.getLogger("pyderp.relay")

Factory = Callable[[], asyncio.BaseProtocol]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayParts:
    """The parts of a relay; `None` for a part that its settings leave out."""

    context: ConnectionContext
    accepts: AcceptGate
    certificates: CertificateSource | None
    stun_trouble: Callable[[], str]
    admission: Gate | None
    limits: Limits | None
    health: HealthReporter | None
    mesh: Mesh | None
    native: NativeModule | None
    bootstrap: BootstrapDNS
    stun: StunServer | None


def assemble(
    config: RelayConfig,
    private_key: NodePrivate,
    listeners: Listeners,
    closing: contextlib.AsyncExitStack,
) -> RelayParts:
    """Make and return all parts of a relay, on the running event loop; start none of them.

    Args:
        closing: gets the callback that ends each part.

    Raises:
        ConfigError: a setting or a file cannot be used.
    """
    loop = running_loop()
    router = Router(private_key.public.raw, loop.time, send_queue_depth=config.send_queue_depth)
    mesh = stun = certificates = None
    native = load(config.native)
    if config.tls is not None:
        certificates = make_certificates(config.tls)
        closing.push_async_callback(certificates.aclose)
    login = ServerLogin(private_key, random=os.urandom)
    context, health, limits, admission = _make_context(config, router, login, native, closing)
    if config.mesh_key is not None:
        from pyderp.server.mesh.links import Mesh

        mesh = Mesh(router, private_key, config.mesh_key, schedule_flush=context.schedule_flush)
        closing.push_async_callback(mesh.aclose)
    bootstrap = BootstrapDNS(config.bootstrap_dns)
    closing.push_async_callback(bootstrap.aclose)
    if listeners.stun:
        stun = StunServer(listeners.stun)
        closing.push_async_callback(stun.aclose)
    return RelayParts(
        context=context,
        accepts=AcceptGate(
            loop, context.protocols, limit=config.accept_limit, burst=config.accept_burst
        ),
        certificates=certificates,
        admission=admission,
        limits=limits,
        health=health,
        mesh=mesh,
        native=native,
        bootstrap=bootstrap,
        stun=stun,
        stun_trouble=partial(_stun_trouble, stun, listeners),
    )


def _stun_trouble(stun: StunServer | None, listeners: Listeners) -> str:
    return listeners.stun_trouble if stun is None else stun.trouble


def _make_context(
    config: RelayConfig,
    router: Router,
    login: ServerLogin,
    native: NativeModule | None,
    closing: contextlib.AsyncExitStack,
) -> tuple[ConnectionContext, HealthReporter | None, Limits | None, Gate | None]:
    """Return what all connections share, with its health, limits and admission."""
    loop = asyncio.get_running_loop()
    health = limits = admission = None
    if config.health is not HealthRecipients.NONE:
        send_to_all = config.health is HealthRecipients.ALL
        health = HealthReporter(router, loop.time, send_to_all=send_to_all)
        closing.callback(health.close)
    if config.rate_config is not None:
        from pyderp.server.conn.limits import Limits

        limits = Limits(loop, router.counters, config.rate_config, observer=health)
        closing.callback(limits.close)
    if config.admission.any:
        from pyderp.admission.gate import Gate

        admission = Gate(
            config.admission, live=partial(live_clients, router), revoke=partial(revoke, router)
        )
        closing.push_async_callback(admission.aclose)
    context = ConnectionContext(
        loop,
        router,
        login,
        uniform=random.random,
        rules=_rules(config),
        admission=admission,
        limits=limits,
        observer=health,
        receive=lane.receive if native is None else partial(lane.receive_runs, native.walk),
    )
    _watch_connections(config, context, health)
    return context, health, limits, admission


def _engine(
    config: RelayConfig,
    native: NativeModule | None,
    certificates: CertificateSource,
    key: NodePublic,
) -> Engine:
    contexts = ServerContexts(certificates, meta_certificate(key))
    name = b"" if parse_ip(config.hostname) else bare_name(config.hostname).encode()
    return SSLEngine(contexts, name) if native is None else RustlsEngine(native, contexts, name)


def _rules(config: RelayConfig) -> ConnectionRules:
    for text in config.idle_app_names():
        log.warning("%s", text)
    return ConnectionRules(
        mesh_key=config.mesh_key,
        disallowed_app_names=frozenset(config.disallow_app_names) - {""},
        trusted_proxies=config.trusted_proxies,
        login_timeout=config.login_timeout,
        write_timeout=config.write_timeout,
    )


def live_clients(router: Router) -> Iterator[ClientIdentity]:
    """Yield the clients that the admission decides about, once for each connection."""
    for connection in router.registry.connections():
        if not connection.can_mesh:
            yield ClientIdentity(connection.public, connection.peer[0])


def revoke(router: Router, key: NodePublic, address: str | None, reason: str) -> None:
    """Close the connections of a client that is no longer allowed, but not mesh peers.

    Args:
        address: close connections from this IP address only; `None`: from all.
    """
    for connection in router.registry.connections_of(key.raw):
        if not connection.can_mesh and address in (None, connection.peer[0]):
            detail = f"no longer allowed: {reason}"
            connection.sink.end(EndReason.REVOKED, How.NOW, detail)


def _watch_connections(
    config: RelayConfig, context: ConnectionContext, health: HealthReporter | None
) -> None:
    """Register the checks of all connections that run in each tick of the timer."""
    if config.rtt_stats:
        sampler = RttSampler(context.protocols, context.router.counters, context.loop)
        context.every_tick(sampler.tick)
    if config.tcp_user_timeout > 0:
        paths = PathWatch(context.protocols, context.loop, config.tcp_user_timeout)
        context.every_tick(paths.tick)
    if health is not None:
        context.every_tick(health.tick)


def protocol_factories(
    config: RelayConfig, public_key: NodePublic, parts: RelayParts, view: RelayView
) -> tuple[Factory, Factory, Factory]:
    """Return the protocol factories of the main listener, of plain HTTP beside TLS, and of the
    address of `/debug/`.

    All serve the pages of `view`. If `/debug/` has an address of its own, the others do not serve
    it.
    """
    context, certificates = parts.context, parts.certificates
    site = DebugRoutes(view)
    engine = None
    if certificates is not None:
        engine = _engine(config, parts.native, certificates, public_key)

    def challenge(path: str) -> bytes | None:
        return None if certificates is None else certificates.http_challenge(path)

    def may_debug(request: Request) -> bool:
        return not config.metrics_address and site.allows(request)

    def home(request: Request) -> Answer:
        return home_page(config.home, derp=config.derp, debug=may_debug(request))

    pages = {"/": home, "/bootstrap-dns": parts.bootstrap.answer}
    main = relay_routes(pages, None if config.metrics_address else site.answer, derp=config.derp)
    side = side_routes(challenge, main, may_debug)
    debug = relay_routes({}, site.answer, derp=False)
    header = config.proxy_protocol
    make_main = protocol_factory(context, main, engine, derp=config.derp, proxy_header=header)
    make_side = protocol_factory(context, side, None, derp=False, proxy_header=header)
    make_debug = protocol_factory(context, debug, None, derp=False)
    return (
        parts.accepts.guard(make_main),
        parts.accepts.guard(make_side, limited=False),
        parts.accepts.guard(make_debug, limited=False),
    )


def make_view(
    config: RelayConfig, parts: RelayParts, more_troubles: Callable[[], Iterable[Trouble]] = tuple
) -> RelayView:
    """Return the view of the relay that its pages show. Its uptime counts from now.

    Args:
        more_troubles: returns further troubles, of the program that runs the relay.
    """
    context, certificates = parts.context, parts.certificates
    return RelayView(
        config=config,
        router=context.router,
        protocols=context.protocols,
        access=Access(config.debug, names=partial(_own_names, config.hostname, certificates)),
        version=pyderp.__version__,
        native="" if parts.native is None else parts.native.VERSION,
        accepts=parts.accepts,
        bootstrap=parts.bootstrap.counters,
        tls_requests=context.tls_requests,
        limits=parts.limits,
        stun=None if parts.stun is None else parts.stun.counters,
        admission=parts.admission,
        mesh=parts.mesh,
        certificates=list if certificates is None else certificates.certificates,
        certificate_states=list if certificates is None else certificates.states,
        stun_trouble=parts.stun_trouble,
        more_troubles=more_troubles,
    )


def _own_names(hostname: str, certificates: CertificateSource | None) -> Iterator[str]:
    if hostname:
        yield bare_name(hostname)
    if certificates is not None:
        for certificate in certificates.certificates():
            yield from certificate.names
