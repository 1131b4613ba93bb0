"""A connection's very first stage, when every connection comes from a load balancer."""

from __future__ import annotations

from collections.abc import Callable

from pyderp.defaults import LOGIN_TIMEOUT
from pyderp.server.conn.protocol import UNKNOWN, RelayProtocol
from pyderp.wire.proxyheader import parse_proxy_header_untrusted

__all__ = ["ProxyHeaderStage"]


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
        protocol.restart_timer(LOGIN_TIMEOUT, f"no PROXY header within {LOGIN_TIMEOUT:g} s")

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
            protocol.restart_timer(LOGIN_TIMEOUT)
            self._begin(protocol, self._data[header.length :])
        return end
