"""A tunnel through an HTTP proxy: the CONNECT method (RFC 9110, section 9.3.6)."""

from __future__ import annotations

import base64
import logging
import re
from typing import Final

import h11

from pyderp.addresses import format_address
from pyderp.errors import DialError, ProxyError, TLSError, without_frames
from pyderp.net.link import Link, Receiver, link_over_socket
from pyderp.net.proxies import Proxy
from pyderp.net.race import connect_to_proxy
from pyderp.net.resolve import Resolver
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import TLSConfig, start_tls
from pyderp.wire.text import printable

__all__ = ["connect_through_http", "open_tunnel"]

_log = logging.getLogger("pyderp.net")

_MAX_HEAD: Final = 64 * 1024
"""Bytes of the proxy's answer, interim answers included."""
_HOST: Final = re.compile(r"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]+")
"""What may stand in a Host header, as Go sees it (`httpguts.ValidHostHeader`), and not nothing."""
_PROXY_TLS: Final = TLSConfig()


async def connect_through_http(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
) -> Link:
    """A tunnel to `host` through the proxy, with TLS to a proxy that is `https`.

    There is no time limit here. Cancelling closes the connection.

    Args:
        host: a name, for the proxy to resolve, or an IP address.
        resolver: for the name of the proxy itself.

    Raises:
        ProxyError: the proxy refused, or spoke neither TLS nor HTTP as it should.
        DialError: the proxy cannot be reached, or `host` cannot be asked for.
        ConfigError: mark, device or TLS files cannot be used.
    """
    if _HOST.fullmatch(host) is None:
        # Here already: a proxy that is asked for nonsense is a round trip for nothing.
        raise DialError(f'invalid DERP node hostname "{printable(host, 100)}"')
    target = format_address(host, port)
    try:
        sock = await connect_to_proxy(proxy, settings=settings, resolver=resolver)
        link: Link = await link_over_socket(sock)
        if proxy.scheme == "https":
            link = await _secure(link, proxy, settings)
        return await open_tunnel(link, host, port, proxy=proxy, settings=settings)
    except OSError as e:
        _log.debug("derphttp: CONNECT dial to %s: %s", target, e)
        raise


async def _secure(link: Link, proxy: Proxy, settings: NetworkSettings) -> Link:
    try:
        return await start_tls(link, server_name=proxy.host, config=_PROXY_TLS, settings=settings)
    except (TLSError, OSError) as e:
        raise ProxyError(f"TLS to HTTP proxy {proxy.redacted}: {e}") from e


async def open_tunnel(
    link: Link, host: str, port: int, *, proxy: Proxy, settings: NetworkSettings
) -> Link:
    """Ask the proxy at the end of `link` for a tunnel to `host`.

    Args:
        link: to the proxy; it belongs to the tunnel then, and is closed if this fails.

    Returns:
        the tunnel; what the other end has already sent is not lost.

    Raises:
        ProxyError: it refused, or did not answer in HTTP.
        DialError: `host` cannot stand in a request.
    """
    try:
        early = await _connect(link, format_address(host, port), proxy, settings)
    except BaseException:
        link.abort()
        raise
    return _PrefixedLink(link, early) if early else link


async def _connect(link: Link, target: str, proxy: Proxy, settings: NetworkSettings) -> bytes:
    """Send the request, read the answer; gives what follows it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    headers = [("Host", target)]
    authorization = settings.proxy_authorization or _basic(proxy)
    if authorization:
        headers.append(("Proxy-Authorization", authorization))
    try:
        request = h11.Request(method="CONNECT", target=target, headers=headers)
    except (h11.LocalProtocolError, UnicodeEncodeError):
        raise DialError(f"{target!r} or its proxy's authorization cannot be sent") from None
    link.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    what = f"HTTP proxy {proxy.redacted} on CONNECT to {target}"
    try:
        response = await _response(link, connection)
    except OSError as e:
        raise ProxyError(f"no response from {what}: {e.strerror or e}") from e
    except h11.RemoteProtocolError as e:
        # h11 raises it in a method of itself: its own frames hold it.
        raise ProxyError(f"bad response from {what}: {printable(str(e))}") from without_frames(e)
    reason = printable(response.reason.decode("latin-1"))
    status = f"{response.status_code} {reason}".strip()
    if response.status_code != 200:
        raise ProxyError(f"invalid response status from {what}: {status}")
    _log.debug("derphttp: CONNECT dial to %s: %s", target, status)
    return connection.trailing_data[0]


async def _response(link: Link, connection: h11.Connection) -> h11.Response:
    received = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            data = await link.read()
            received += len(data)
            connection.receive_data(data)
            # What comes after a head in one piece with it is not counted against it.
            if received - len(data) > _MAX_HEAD:
                raise h11.RemoteProtocolError("the head is too long")
            continue
        # An end before the answer, or a switch to another protocol, has raised above.
        assert isinstance(event, h11.InformationalResponse)


def _basic(proxy: Proxy) -> str:
    """Basic authorization (RFC 7617); as in Go's client only with a user and a password."""
    if not proxy.user or proxy.password is None:
        return ""
    token = base64.b64encode(f"{proxy.user}:{proxy.password}".encode())
    return f"Basic {token.decode('ascii')}"


class _PrefixedLink(Link):
    """A link whose first bytes have been read from it already."""

    def __init__(self, inner: Link, prefix: bytes) -> None:
        self._inner = inner
        self._prefix = prefix

    async def read(self) -> bytes:
        if not self._prefix:
            return await self._inner.read()
        prefix, self._prefix = self._prefix, b""
        return prefix

    def start(self, receiver: Receiver) -> None:
        # From here on the link below brings everything by itself.
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            receiver.data_received(prefix)
        self._inner.start(receiver)

    def write(self, data: bytes) -> None:
        self._inner.write(data)

    @property
    def pending(self) -> int:
        return self._inner.pending

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def abort(self) -> None:
        self._inner.abort()

    @property
    def local_address(self) -> tuple[str, int] | None:
        return self._inner.local_address

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return self._inner.remote_address
