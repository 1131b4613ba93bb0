"""A whole relay: it listens, serves, reloads settings and files, and stops gradually."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Final

from pyderp.addresses import bare_name, format_address
from pyderp.arguments import check_type
from pyderp.certs.credential import EXPIRES_SOON, ExpiryWatch
from pyderp.config import RelayConfig
from pyderp.config.relay import LIVE_SETTINGS
from pyderp.defaults import HTTPS_PORT, LINGER_TIMEOUT, LISTEN_BACKLOG
from pyderp.errors import LocalProtocolError
from pyderp.keys import NodePrivate, NodePublic
from pyderp.maps.derpmap import own_node
from pyderp.maps.region import DERPNode
from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import Counters
from pyderp.relay.health import expiry_text
from pyderp.server.app.assemble import RelayParts, assemble, make_view, protocol_factories
from pyderp.server.app.listeners import Listeners, open_listeners
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.site.degraded import troubles
from pyderp.server.site.view import RelayView
from pyderp.server.trouble import Trouble

__all__ = ["Relay", "close_all"]

log = logging.getLogger("pyderp.relay")

_CERTIFICATE_LOOK: Final = 5.0
"""Seconds between two checks whether the certificate's files changed."""
_ACCEPT_AT_ONCE: Final = 5
"""The backlog that asyncio gets. It accepts that many connections in one turn of the loop before it
makes the first protocol, and more could take the last file descriptors."""


class Relay:
    """A DERP relay on the running event loop.

    Use it as `async with Relay(config) as relay:`; leaving the block stops it at once, without
    draining. Or call `start` and `aclose`.

    Args:
        config: by default a relay without TLS on a free port of 127.0.0.1, with a new key.
        listeners: sockets from `open_listeners` for these settings; by default `start` opens
            them. The relay closes them.
        more_troubles: returns troubles of the program that runs the relay, such as a log that
            cannot be written, for the pages, metrics and `troubles`.

    Raises:
        ConfigError: `config` is something else.
    """

    def __init__(
        self,
        config: RelayConfig | None = None,
        *,
        listeners: Listeners | None = None,
        more_troubles: Callable[[], Iterable[Trouble]] = tuple,
    ) -> None:
        check_type("config", config, RelayConfig, type(None))
        self.config = RelayConfig() if config is None else config
        self.private_key = self.config.private_key or NodePrivate.generate()
        self._given = listeners
        self._more_troubles = more_troubles
        self._view: RelayView | None = None
        self._changing = asyncio.Lock()
        """Held during a start or stop."""
        self._closed = False
        self._parts: RelayParts | None = None
        self._closing = contextlib.AsyncExitStack()
        self._expiry = ExpiryWatch()
        self._servers: list[asyncio.Server] = []
        self._listeners = Listeners()
        self._certificate_timer: asyncio.TimerHandle | None = None
        self._addresses: list[tuple[str, int]] = []
        self.http_address: tuple[str, int] | None = None
        """Address and port of plain HTTP beside TLS, if it is served."""
        self.metrics_address: tuple[str, int] | None = None
        """Address and port of `/debug/`, if it has its own listener."""
        self.stun_addresses: list[tuple[str, int]] = []
        """Addresses and ports of STUN."""

    @property
    def native_version(self) -> str:
        """The version of pyderp-fast if it is used; empty: pure Python."""
        native = None if self._parts is None else self._parts.native
        return "" if native is None else native.VERSION

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            ConfigError: an address, certificate or other setting cannot be used. No socket
                stays open.
        """
        async with self._changing:
            if self._parts is not None or self._closed:
                raise LocalProtocolError("this relay was started or closed; make a new one")
            await self._start()

    async def _start(self) -> None:
        config = self.config
        async with contextlib.AsyncExitStack() as undo:
            listeners = self._given or open_listeners(config)
            undo.callback(listeners.close)
            parts = assemble(config, self.private_key, listeners, undo)
            undo.callback(self._close_servers)
            # All errors of settings must be found before a client is served.
            if parts.admission is not None:
                await parts.admission.start()
            if parts.mesh is not None:
                parts.mesh.set_hosts(config.mesh_with)
            if parts.stun is not None:
                parts.stun.start()
            await self._serve(parts, listeners)
            self._parts, self._closing = parts, undo.pop_all()
        parts.context.start()
        # Only now, because ACME needs a relay that answers.
        parts.bootstrap.start()
        if parts.certificates is not None:
            await parts.certificates.start()
            self._watch_certificates(parts)

    async def _serve(self, parts: RelayParts, listeners: Listeners) -> None:
        self._listeners = listeners
        loop = parts.context.loop
        # Read now: asyncio does not show the addresses of listening sockets it has taken over.
        self._addresses = [_endpoint(sock) for sock in listeners.main]
        self.http_address = _endpoint(listeners.side[0]) if listeners.side else None
        self.stun_addresses = [_endpoint(sock) for sock in listeners.stun]
        self._view = make_view(self.config, parts, self._more_troubles)
        self.metrics_address = _endpoint(listeners.debug[0]) if listeners.debug else None
        factories = protocol_factories(self.config, self.public_key, parts, self._view)
        served = (listeners.main, listeners.side, listeners.debug)
        for factory, sockets in zip(factories, served, strict=True):
            for sock in sockets:
                make: Any = loop.create_server
                if sock.family == socket.AF_UNIX:
                    make = loop.create_unix_server
                    if sys.version_info >= (3, 13):
                        # asyncio would also remove sockets that systemd made.
                        make = partial(make, cleanup_socket=False)
                self._servers.append(await make(factory, sock=sock, backlog=_ACCEPT_AT_ONCE))
                sock.listen(LISTEN_BACKLOG)

    def _watch_certificates(self, parts: RelayParts) -> None:
        self._certificate_timer = parts.context.loop.call_later(
            _CERTIFICATE_LOOK, self._watch_certificates, parts
        )
        self._look_at_certificates(parts)

    def _look_at_certificates(self, parts: RelayParts) -> None:
        """Reload changed files; warn of certificates that expire soon."""
        assert parts.certificates is not None
        parts.certificates.reload()
        now = datetime.datetime.now(datetime.UTC)
        in_use = parts.certificates.certificates()
        self._expiry.look(in_use, now)
        if parts.health is not None:
            soon = [each for each in in_use if each.remaining(now) < EXPIRES_SOON]
            texts = [expiry_text(", ".join(each.names), each.not_after, now) for each in soon]
            parts.health.set_certificate_problem(texts[0] if texts else None)

    def reload(self, config: RelayConfig | None = None) -> None:
        """Read certificates, limits and allowed keys again (SIGHUP).

        Args:
            config: new settings. The settings in `LIVE_SETTINGS` are taken over; for others that
                changed, the log says that they need a restart.

        Raises:
            ConfigError: an entry of the list of mesh hosts cannot be used; nothing changes.
        """
        parts = self._parts
        if parts is None:
            raise LocalProtocolError("the relay is not started")
        if config is not None:
            changed = self.config.changes(config)
            if parts.mesh is not None:
                parts.mesh.set_hosts(config.mesh_with)
            late = [name for name in changed if name not in LIVE_SETTINGS and name != "private_key"]
            if late:
                log.warning("changed, but needs a restart: %s", ", ".join(late))
            self.config = self.config.with_live_settings(config)
        if parts.certificates is not None:
            parts.certificates.reload(force=True)
        if parts.admission is not None:
            parts.admission.reload()
        if parts.limits is not None and parts.limits.reload():
            for protocol in list(parts.context.protocols):
                protocol.limit_again()

    async def aclose(self, *, drain: float | None = None) -> None:
        """Stop: accept no connections, announce the restart, close all clients.

        Each client known to take it gets a Restarting frame with a random reconnect-in from
        [0, `drain`). The connections are closed one by one over the same time.

        Args:
            drain: seconds to spread the closes over; 0: at once; by default `config.drain`.
        """
        self._closed = True
        async with self._changing:
            if self._parts is None:
                return
            context = self._parts.context
            drain = self.config.drain if drain is None else drain
            context.linger_until = context.loop.time() + drain
            await self._stop_accepting(context.loop)
            if self._parts.stun is not None:
                await self._parts.stun.aclose()  # another relay may take over
            if self._certificate_timer is not None:
                self._certificate_timer.cancel()
            await close_all(context, drain)
            await self._closing.aclose()
            await asyncio.sleep(0)

    async def _stop_accepting(self, loop: asyncio.AbstractEventLoop) -> None:
        for server in self._servers:
            if isinstance(server, asyncio.base_events.Server):
                # asyncio accepts each connection in a task. Closing the server while one runs
                # leaves a socket open (Python 3.11) or fails an assertion (3.13).
                for sock in server.sockets:
                    loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._close_servers()

    def _close_servers(self) -> None:
        self._listeners.unlink()
        for server in self._servers:
            server.close()

    async def __aenter__(self) -> Relay:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(drain=0)

    # The state of a running relay

    @property
    def address(self) -> tuple[str, int]:
        """IP address and port that the relay listens on; a Unix socket's path and 0."""
        if not self._addresses:
            raise LocalProtocolError("the relay is not started")
        return self._addresses[0]

    @property
    def url(self) -> str:
        """The URL for clients; for a Unix socket, its address."""
        host, port = self.address
        tls = self.config.tls
        if host.startswith("unix:"):
            return host  # the proxy in front has the URL
        if tls is not None:
            return f"https://{format_address(bare_name(tls.hostname), port)}/derp"
        if host in ("::", "0.0.0.0"):  # noqa: S104 (compared, not listened on)
            host = "127.0.0.1"
        return f"http://{format_address(host, port)}/derp"

    @property
    def public_key(self) -> NodePublic:
        """The relay's public key."""
        return self.private_key.public

    @property
    def counters(self) -> Counters:
        """The relay's counters; a live object."""
        return self._running().router.counters

    @property
    def clients(self) -> int:
        """Connections that are logged in."""
        return self._running().router.registry.size

    def troubles(self) -> list[Trouble]:
        """Return what does not work at the moment although the relay serves; empty: all works.

        `/debug/check` fails while there is a trouble. The state of admission is that of its last
        question or look (every 10 s): this call asks nothing.
        """
        return [] if self._view is None else troubles(self._view)

    @property
    def map_node(self) -> DERPNode | None:
        """This relay as a node of a DERP map; `None` without TLS."""
        tls = self.config.tls
        if self._parts is None or self._parts.certificates is None or tls is None:
            return None
        return own_node(
            tls.hostname,
            cert_name=self._parts.certificates.cert_name,
            derp_port=self.address[1] or HTTPS_PORT,  # 0: a Unix socket
            stun_port=self.stun_addresses[0][1] if self.stun_addresses else None,
        )

    def _running(self) -> ConnectionContext:
        if self._parts is None:
            raise LocalProtocolError("the relay is not started")
        return self._parts.context


def _endpoint(sock: socket.socket) -> tuple[str, int]:
    name = sock.getsockname()
    return name[:2] if isinstance(name, tuple) else (f"unix:{name}", 0)


_STEP: Final = 0.01
_LINGER_SHARE: Final = 0.4
"""Share of a stop's time that is kept, at most, for the last bytes of the last connections."""


async def close_all(context: ConnectionContext, drain: float) -> None:
    """Send Restarting to all clients that take it, and close all connections one by one.

    Args:
        drain: seconds to spread the closes over; 0: at once.
    """
    try:
        context.restarts_within = drain
        for protocol in list(context.protocols):
            if protocol.connection is not None:
                context.send_restarting(protocol.connection)
        context.router.flush()
        if drain > 0:
            await _close_spread(context, drain)
        for protocol in list(context.protocols):
            protocol.end(EndReason.STOPPED, How.GRACEFUL)
        # Transports need two turns of the loop to close, even with no time to wait.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while context.protocols:
            left = context.linger_until - context.loop.time()
            if left <= 0:
                break
            await asyncio.sleep(min(left, _STEP))
    finally:
        context.stop()
        for protocol in list(context.protocols):
            protocol.end(EndReason.STOPPED, How.NOW)
    await context.cancel_tasks()


async def _close_spread(context: ConnectionContext, drain: float) -> None:
    """Close all connections in random order; leave time for the last bytes of the last one."""
    waiting = list(context.protocols)
    random.shuffle(waiting)
    total = len(waiting)
    begin = context.loop.time()
    spread = drain - min(LINGER_TIMEOUT, drain * _LINGER_SHARE)
    while waiting:
        left = 1 - (context.loop.time() - begin) / spread
        while waiting and len(waiting) > left * total:
            waiting.pop().end(EndReason.STOPPED, How.GRACEFUL)
        if waiting:
            await asyncio.sleep(_STEP)
