"""A connection's very first bytes, when every connection comes from a load balancer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from pyderp.addresses import format_address
from pyderp.defaults import LOGIN_TIMEOUT
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import Connection
from pyderp.relay.ending import EndReason, How
from pyderp.server.conn.context import Core
from pyderp.server.conn.protocol import UNKNOWN, RelayProtocol, endpoint
from pyderp.wire.proxyheader import ProxyHeader, parse_proxy_header_untrusted

__all__ = ["with_proxy_header"]


def with_proxy_header(
    core: Core, factory: Callable[[], RelayProtocol]
) -> Callable[[], asyncio.BaseProtocol]:
    """A factory of connections that begin with a PROXY header, from a peer that is trusted.

    Args:
        factory: makes the protocol of what follows.
    """
    return lambda: _ProxyHeaderProtocol(core, factory)


class _ProxyHeaderProtocol(asyncio.Protocol):
    """Reads the header, and hands the transport on to the real protocol."""

    connection: Connection | None = None
    """None; there was no login yet (`Served`)."""
    websocket = None
    tls_version = ""

    def __init__(self, core: Core, factory: Callable[[], RelayProtocol]) -> None:
        self._core = core
        self._factory = factory
        self._data = b""
        self._slot = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        core = self._core
        # uvloop's transports have the interface and not the base class.
        self.transport = cast("asyncio.Transport", transport)
        core.protocols.add(self)
        self._slot = core.timers.add(self, core.loop.time() + LOGIN_TIMEOUT)
        host = endpoint(transport, "peername")[0]
        if not core.trusts(host):
            self._refuse(f"{host} is no trusted proxy")

    def data_received(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self._data += data
        try:
            header = parse_proxy_header_untrusted(self._data)
        except RemoteProtocolError as e:
            self._refuse(str(e))
            return
        if header is not None:
            self._hand_over(self.transport, header)

    def _hand_over(self, transport: asyncio.Transport, header: ProxyHeader) -> None:
        self._leave()
        protocol = self._factory()
        # A health check of the balancer, say: it is nobody, and least of all this machine.
        protocol.peer = header.source or UNKNOWN
        protocol.local = (header.destination or endpoint(transport, "sockname"))[0]
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        rest = memoryview(self._data)[header.length :]
        while rest and not transport.is_closing():
            room = protocol.get_buffer(-1)
            count = min(len(room), len(rest))
            assert count, "no stage leaves the shared buffer full"
            room[:count] = rest[:count]
            protocol.buffer_updated(count)
            rest = rest[count:]

    def _refuse(self, detail: str) -> None:
        self.end(EndReason.PROTOCOL_ERROR, How.NOW, detail)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.end(EndReason.CLIENT_CLOSED, How.LOST)

    def _leave(self) -> None:
        self._core.timers.cancel(self, self._slot)
        self._core.protocols.discard(self)
        self.transport = None

    def check_progress(self, now: float) -> None:
        """Nothing is written here (`Served`)."""

    def on_timer(self, now: float) -> None:
        """No header in time (`Served`)."""
        self._refuse(f"no PROXY header within {LOGIN_TIMEOUT:g} s")

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Close, now: nothing was written here (`Served`)."""
        transport = self.transport
        if transport is None:
            return
        core = self._core
        core.router.counters.ends[reason] += 1
        if detail:
            where = format_address(*endpoint(transport, "peername"))
            core.log_problem("connection from %s closed: %s", where, detail)
        self._leave()
        transport.abort()
