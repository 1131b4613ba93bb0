"""A whole relay: listens, serves, reloads its certificate, stops without a stampede."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from typing import TYPE_CHECKING, Final

from pyderp.aio.certs import ManualCertificates
from pyderp.aio.core import Core, Served
from pyderp.aio.routes import redirect_to_https, relay_routes
from pyderp.aio.sockets import format_address, listen, parse_address
from pyderp.aio.tls import protocol_factory
from pyderp.config import RelayConfig
from pyderp.defaults import LISTEN_BACKLOG, MESH_WRITE_TIMEOUT, RECONNECT_TRY_FOR
from pyderp.errors import ConfigError, LocalProtocolError
from pyderp.keys import NodePrivate, NodePublic
from pyderp.relay.counters import Counters
from pyderp.wire.frames import pack_restarting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType


__all__ = ["Relay"]

log = logging.getLogger("pyderp.relay")

_CERTIFICATE_LOOK: Final = 5.0
"""Seconds between two looks at whether the certificate's files changed."""
_DRAIN_STEP: Final = 0.01
_LONGEST_RECONNECT: Final = 2**32 // 1000
"""Seconds that fit the frame, which has milliseconds in 32 bits."""


class Relay:
    """A DERP relay on the running event loop.

    Use it as `async with Relay(config) as relay:`; leaving the block stops it, at once and
    without draining. `start` and `aclose` do the same by hand.

    Args:
        config: by default a plain relay with a key in memory on a free port of 127.0.0.1.
    """

    def __init__(self, config: RelayConfig | None = None) -> None:
        self.config = config or RelayConfig()
        self.private_key = self.config.private_key or NodePrivate.generate()
        self._core: Core | None = None
        self._servers: list[asyncio.Server] = []
        self._certificates: ManualCertificates | None = None
        self._certificate_timer: asyncio.TimerHandle | None = None
        self._addresses: list[tuple[str, int]] = []

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            ConfigError: an address, certificate or other setting cannot be used. Nothing
                listens then.
        """
        if self._core is not None:
            raise LocalProtocolError("this relay was started before; make a new one")
        config = self.config
        loop = asyncio.get_running_loop()
        if config.tls is not None:
            self._certificates = ManualCertificates(
                config.tls.certdir, config.tls.hostname, self.private_key.public
            )
        with contextlib.ExitStack() as undo:
            sockets = self._listen(undo)
            core = self._core = Core(
                loop,
                self.private_key,
                mesh_key=config.mesh_key,
                random=os.urandom,
                uniform=random.random,
                write_timeout=config.write_timeout,
                mesh_write_timeout=MESH_WRITE_TIMEOUT,
            )
            main = protocol_factory(core, relay_routes, self._tls_context())
            side = protocol_factory(core, redirect_to_https, None, derp=False)
            for sock, factory in zip(sockets, (main, side), strict=False):
                self._servers.append(
                    await loop.create_server(factory, sock=sock, backlog=LISTEN_BACKLOG)
                )
                host, port = sock.getsockname()[:2]
                self._addresses.append((host, port))
            undo.pop_all()
        core.start()
        if self._certificates is not None:
            self._look_at_certificate()

    def _listen(self, undo: contextlib.ExitStack) -> list[socket.socket]:
        config = self.config
        host, port = parse_address(config.address)
        ports = [port]
        if config.tls is not None and config.tls.http_port is not None:
            ports.append(config.tls.http_port)
        sockets: list[socket.socket] = []
        for each in ports:
            try:
                sock = listen(
                    host,
                    each,
                    keepalive_time=config.tcp_keepalive_time,
                    user_timeout=config.tcp_user_timeout,
                    notsent_lowat=config.tcp_notsent_lowat,
                )
            except ConfigError as e:
                if sockets:
                    raise ConfigError(
                        f"{e}; this is the plain HTTP beside TLS, --http-port=-1 does without"
                    ) from e
                raise
            undo.callback(sock.close)
            sockets.append(sock)
        return sockets

    def _tls_context(self) -> Callable[[], ssl.SSLContext] | None:
        certificates = self._certificates
        return None if certificates is None else (lambda: certificates.context)

    def _look_at_certificate(self) -> None:
        assert self._certificates is not None
        self._certificate_timer = asyncio.get_running_loop().call_later(
            _CERTIFICATE_LOOK, self._look_at_certificate
        )
        self._certificates.reload()

    def reload(self) -> None:
        """Read the certificate again (on SIGHUP); without TLS there is nothing to do."""
        if self._certificates is not None:
            self._certificates.reload(force=True)

    async def aclose(self, *, drain: float | None = None) -> None:
        """Stop: no new connections, all clients told and closed.

        Each client gets a Restarting frame with a reconnect-in of its own, drawn from
        [0, `drain`); connections are closed one by one over the same time.

        Args:
            drain: seconds to spread the closes over; 0: at once; by default the config's.
        """
        core = self._core
        if core is None:
            return
        drain = self.config.drain if drain is None else drain
        await self._stop_accepting(core.loop)
        if self._certificate_timer is not None:
            self._certificate_timer.cancel()
        try:
            self._tell_restarting(core, drain)
            if drain > 0:
                await self._close_spread(core, drain)
        finally:
            for protocol in list(core.protocols):
                protocol.close_gracefully()
            core.stop()
        # A turn for the transports to close; one that cannot write is not waited for.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for protocol in list(core.protocols):
            protocol.abort()
        await asyncio.sleep(0)

    async def _stop_accepting(self, loop: asyncio.AbstractEventLoop) -> None:
        for server in self._servers:
            if isinstance(server, asyncio.base_events.Server):
                # asyncio accepts in a task of its own each, and closing the server under
                # such a task leaves a socket behind (3.11) or trips an assertion (3.13).
                for sock in server.sockets:
                    loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for server in self._servers:
            server.close()

    @staticmethod
    def _tell_restarting(core: Core, drain: float) -> None:
        for protocol in list(core.protocols):
            if protocol.connection is not None:
                reconnect_in = min(drain, _LONGEST_RECONNECT) * core.uniform()
                frame = pack_restarting(reconnect_in, RECONNECT_TRY_FOR)
                core.router.send_control(protocol.connection, frame)
        core.router.flush()

    @staticmethod
    async def _close_spread(core: Core, drain: float) -> None:
        waiting: list[Served] = list(core.protocols)
        random.shuffle(waiting)
        total = len(waiting)
        begin = core.loop.time()
        while waiting:
            left = 1 - (core.loop.time() - begin) / drain
            while waiting and len(waiting) > left * total:
                waiting.pop().close_gracefully()
            if waiting:
                await asyncio.sleep(_DRAIN_STEP)

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

    # What a running relay tells

    @property
    def address(self) -> tuple[str, int]:
        """IP address and port that it listens on."""
        if not self._addresses:
            raise LocalProtocolError("the relay is not started")
        return self._addresses[0]

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Address and port of the plain listener beside TLS, if there is one."""
        return self._addresses[1] if len(self._addresses) > 1 else None

    @property
    def url(self) -> str:
        """What clients connect to."""
        host, port = self.address
        tls = self.config.tls
        if tls is not None:
            return f"https://{format_address(tls.hostname, port)}/derp"
        if host in ("::", "0.0.0.0"):  # noqa: S104 (compared, not listened on)
            host = "127.0.0.1"
        return f"http://{format_address(host, port)}/derp"

    @property
    def public_key(self) -> NodePublic:
        """The relay's public key."""
        return self.private_key.public

    @property
    def counters(self) -> Counters:
        """What it has counted so far; the object is live."""
        return self._running().router.counters

    @property
    def clients(self) -> int:
        """Connections that are logged in."""
        return self._running().router.registry.size

    @property
    def map_node(self) -> str | None:
        """With a self-signed certificate, the node for a DERP map, as JSON."""
        return None if self._certificates is None else self._certificates.map_node(self.address[1])

    def _running(self) -> Core:
        if self._core is None:
            raise LocalProtocolError("the relay is not started")
        return self._core
