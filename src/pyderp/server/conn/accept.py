"""Accepting connections: the limits of rate and file descriptors, and the first stage of each."""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import sys
from collections.abc import Callable, Collection
from typing import Any, Final, cast

from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.engines import Engine
from pyderp.server.conn.http import HttpStage
from pyderp.server.conn.kernel import open_files
from pyderp.server.conn.protocol import UNKNOWN, RelayProtocol
from pyderp.server.conn.tls import TLSLayer
from pyderp.text import counted
from pyderp.throttle import Throttle, TokenBucket
from pyderp.wire.http import Routes
from pyderp.wire.proxyheader import parse_proxy_header_untrusted

__all__ = ["AcceptGate", "ProxyHeaderStage", "log_accept_errors", "protocol_factory"]

log = logging.getLogger("pyderp.relay")

_RESERVE: Final = 64
"""File descriptors kept for certificates, mesh links, admission requests and logs."""
_SMALL: Final = 256
"""If the process may have fewer descriptors than this, the reserve is a quarter of them."""
_SAY_AGAIN: Final = 10.0
"""Seconds between two log lines about connections that were shed."""


class AcceptGate:
    """Decides whether the next connection is served; it closes other ones at once.

    Connections above the rate are rejected (`derper -accept-connection-limit`, which ends the
    process instead). Connections that would take the last file descriptors are shed, so that the
    relay can always open its log and renew its certificate.

    Args:
        connections: the relay's connections; a live view.
        limit: connections a second; `inf`: any number.
        burst: connections that may come at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Collection[object],
        *,
        limit: float = math.inf,
        burst: float = math.inf,
    ) -> None:
        self._loop = loop
        self._connections = connections
        now = loop.time()
        self._bucket = None if limit == math.inf else TokenBucket(limit, burst, now)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = math.inf if soft == resource.RLIM_INFINITY else soft
        reserve = _RESERVE if files >= _SMALL else files // 4
        self.most = files - open_files() - reserve
        """Most connections that are served at the same time."""
        self.accepted = 0
        self.rejected = 0
        """Connections closed because they came too fast."""
        self.shed = 0
        """Connections closed because file descriptors ran out."""
        self._throttle = Throttle(_SAY_AGAIN)
        self._coming = 0
        """Connections accepted in this turn of the loop; `connections` has them in the next one."""

    def guard(
        self, factory: Callable[[], asyncio.BaseProtocol], *, limited: bool = True
    ) -> Callable[[], asyncio.BaseProtocol]:
        """Wrap a protocol factory, so that connections beyond the limits are closed.

        Args:
            limited: whether the rate limit applies; that of file descriptors always does.
        """

        def make() -> asyncio.BaseProtocol:
            if len(self._connections) + self._coming >= self.most:
                self.shed += 1
                shed = counted(self.shed, "connection")
                self._say("out of file descriptors: %s shed so far", shed)
                return _TurnedAway()
            if limited and self._bucket and not self._bucket.take(1, self._loop.time()):
                self.rejected += 1
                self._say("connections come too fast: %d rejected so far", self.rejected)
                return _TurnedAway()
            if limited:
                self.accepted += 1
            if not self._coming:
                self._loop.call_soon(self._reset_coming)
            self._coming += 1
            return factory()

        return make

    def _reset_coming(self) -> None:
        self._coming = 0

    def _say(self, text: str, count: object) -> None:
        if self._throttle.admit(self._loop.time()) is not None:
            log.warning(text, count)


def protocol_factory(
    context: ConnectionContext,
    routes: Routes,
    engine: Engine | None,
    *,
    derp: bool = True,
    proxy_header: bool = False,
) -> Callable[[], RelayProtocol]:
    """Return the factory of protocols for accepted connections, with layers and first stage.

    Args:
        engine: makes the TLS of each connection; `None`: plain TCP.
        derp: whether `/derp` is served.
        proxy_header: each connection begins with a PROXY header from a trusted proxy.
    """

    def begin(protocol: RelayProtocol, behind: bytes = b"") -> None:
        protocol.stage = HttpStage(protocol, routes, derp=derp)
        if engine is not None:
            # Known only now: a PROXY header may name the address that the client connected to.
            # Interned, because all connections have one of a few addresses.
            protocol.local = sys.intern(protocol.local or protocol.endpoint("sockname")[0])
            layer = TLSLayer(protocol, engine)
            protocol.add_layer(layer, behind)
        elif behind:
            protocol.feed(behind)

    def begin_with_header(protocol: RelayProtocol) -> None:
        host = protocol.peer[0]
        if context.rules.trusts(host):
            protocol.stage = ProxyHeaderStage(protocol, begin)
        else:
            protocol.end(EndReason.PROTOCOL_ERROR, How.NOW, f"{host} is not a trusted proxy")

    first = begin_with_header if proxy_header else begin
    return lambda: RelayProtocol(context, first)


class _TurnedAway(asyncio.Protocol):
    """Closes a connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def log_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop log failures to accept, at most one line every 10 s.

    asyncio itself logs a traceback for each failed accept, which may be a thousand a second, and
    tries again after a second. uvloop closes what it cannot accept and logs nothing.
    """
    throttle = Throttle(_SAY_AGAIN)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message", ""))
        if message.startswith("socket.accept() out of system resource"):
            if throttle.admit(loop.time()) is not None:
                log.warning("cannot accept connections for now: %s", context.get("exception"))
        # asyncio's next attempt may follow after the relay has closed its sockets: no error.
        elif "_start_serving" not in message:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


class ProxyHeaderStage:
    """The stage that reads the PROXY header of a trusted proxy.

    Args:
        protocol: the connection.
        begin: sets the next stage and the layers; called with the bytes after the header.
    """

    __slots__ = ("_begin", "_data", "_protocol")

    def __init__(
        self, protocol: RelayProtocol, begin: Callable[[RelayProtocol, bytes], None]
    ) -> None:
        self._protocol = protocol
        self._begin = begin
        self._data = b""
        timeout = protocol.context.rules.login_timeout
        protocol.restart_timer(timeout, f"no PROXY header within {timeout:g} s")

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        """Take bytes and use all of them (`Stage`)."""
        self._data += view[:end]
        header = parse_proxy_header_untrusted(self._data)
        if header is not None:
            protocol = self._protocol
            # A health check of the load balancer names no source. The peer's own address must
            # not count: on loopback it could see the debug pages.
            protocol.peer = header.source or UNKNOWN
            if header.destination is not None:
                protocol.local = header.destination[0]
            protocol.restart_timer(protocol.context.rules.login_timeout)
            self._begin(protocol, self._data[header.length :])
        return end
