"""Which connections are taken at all: a rate of accepts, and file descriptors that are left."""

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
from pyderp.throttle import Throttle, TokenBucket
from pyderp.wire.http import Routes
from pyderp.wire.proxyheader import parse_proxy_header_untrusted

__all__ = ["AcceptGate", "ProxyHeaderStage", "log_accept_errors", "protocol_factory"]

log = logging.getLogger("pyderp.relay")

_RESERVE: Final = 64
"""File descriptors kept for certificates, mesh links, questions about clients and logs."""
_SMALL: Final = 256
"""With fewer descriptors than this in all, a quarter of them is the reserve."""
_SAY_AGAIN: Final = 10.0
"""Seconds between two log lines about connections that were shed."""


class AcceptGate:
    """Decides whether the next connection is served; one that is not is closed at once.

    What comes too fast is rejected (`derper -accept-connection-limit`, which ends the process
    instead). What would take the last file descriptors is shed, so that the relay never
    comes to the point where it cannot accept, open its log or renew its certificate.

    Args:
        connections: those that there are; live.
        limit: connections a second; `inf`: any number.
        burst: how many may exceed that for a moment.
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
        """Connections that are served at once."""
        self.accepted = 0
        self.rejected = 0
        """Closed because they came too fast."""
        self.shed = 0
        """Closed because file descriptors ran out."""
        self._throttle = Throttle(_SAY_AGAIN)
        self._coming = 0
        """Connections taken in this turn of the loop; the core knows them in the next."""

    def guard(
        self, factory: Callable[[], asyncio.BaseProtocol], *, limited: bool = True
    ) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol factory that turns away what is not to be served.

        Args:
            limited: whether the rate counts; file descriptors always do.
        """

        def make() -> asyncio.BaseProtocol:
            if len(self._connections) + self._coming >= self.most:
                self.shed += 1
                self._say("out of file descriptors: %d connections shed so far", self.shed)
                return _TurnedAway()
            if limited and self._bucket and not self._bucket.take(1, self._loop.time()):
                self.rejected += 1
                self._say("connections come too fast: %d rejected so far", self.rejected)
                return _TurnedAway()
            if limited:
                self.accepted += 1
            if not self._coming:
                self._loop.call_soon(self._they_came)
            self._coming += 1
            return factory()

        return make

    def _they_came(self) -> None:
        self._coming = 0

    def _say(self, text: str, count: int) -> None:
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
    """Makes the protocol of each accepted connection, with its layers and first stage.

    Args:
        engine: makes the TLS of each connection; `None`: plain TCP.
        derp: whether `/derp` is served.
        proxy_header: each connection begins with a PROXY header, from a trusted proxy.
    """

    def begin(protocol: RelayProtocol, behind: bytes = b"") -> None:
        protocol.stage = HttpStage(protocol, routes, derp=derp)
        if engine is not None:
            # Only now is it known which of the relay's addresses it came to.
            # Few addresses, so they share their texts.
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
            protocol.end(EndReason.PROTOCOL_ERROR, How.NOW, f"{host} is no trusted proxy")

    first = begin_with_header if proxy_header else begin
    return lambda: RelayProtocol(context, first)


class _TurnedAway(asyncio.Protocol):
    """A connection that is closed as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def log_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop tell in a line, now and then, that it cannot accept.

    asyncio's own words are a traceback for each attempt, and a thousand attempts a second. It
    tries again each second by itself; uvloop closes what it cannot accept, and says nothing.
    """
    throttle = Throttle(_SAY_AGAIN)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message", ""))
        if message.startswith("socket.accept() out of system resource"):
            if throttle.admit(loop.time()) is not None:
                log.warning("cannot accept connections for now: %s", context.get("exception"))
        # Its next attempt may come after the relay has closed its sockets.
        elif "_start_serving" not in message:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


class ProxyHeaderStage:
    """Reads the PROXY header of a peer that is trusted, and has the connection begin behind it.

    Args:
        protocol: the connection.
        begin: sets the stage of what follows, and its layers; gets the bytes behind the header.
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
        """Take bytes; they are always used up (`Stage`)."""
        self._data += view[:end]
        header = parse_proxy_header_untrusted(self._data)
        if header is not None:
            protocol = self._protocol
            # The balancer's own health checks name no source: least of all this machine.
            protocol.peer = header.source or UNKNOWN
            if header.destination is not None:
                protocol.local = header.destination[0]
            protocol.restart_timer(protocol.context.rules.login_timeout)
            self._begin(protocol, self._data[header.length :])
        return end
