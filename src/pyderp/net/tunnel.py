"""Connects through a proxy: HTTP CONNECT (RFC 9110, 9.3.6), SOCKS5 (RFC 1928 and 1929)."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, cast

import h11
from python_socks import ProxyError as SocksProxyError
from python_socks import ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio.v2 import Proxy as SocksProxy

from pyderp.addresses import format_address
from pyderp.errors import DialError, FailureReason, ProxyError, TLSError, without_frames
from pyderp.net.dns import Resolver
from pyderp.net.link import LayeredLink, Link, Receiver, link_over_socket
from pyderp.net.settings import NetworkSettings, Proxy
from pyderp.net.tcp import connect_to_host
from pyderp.net.tls import TLSConfig, start_tls
from pyderp.text import h11_words, printable, system_words

__all__ = ["connect_through_http", "connect_through_socks", "connect_to_proxy", "open_tunnel"]

_log = logging.getLogger("pyderp.net")

_MAX_HEAD: Final = 64 * 1024
"""The longest head of the proxy's answer, in bytes, interim answers (1xx) included."""
_HOST: Final = re.compile(r"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]+")
"""A host that Go allows in a Host header (`httpguts.ValidHostHeader`), but not an empty one."""
_PROXY_TLS: Final = TLSConfig()

# Answers of SOCKS5
_LOGIN_REPLY: Final = 2
"""Length of the answer to the offered methods (RFC 1928, section 3), and to a login (RFC 1929)."""
_NO_METHOD: Final = b"\x05\xff"
_LOGIN_VERSION: Final = 1
_REFUSALS: Final = range(2, 7)
"""Answers to the request: not allowed, network or host unreachable, refused, TTL expired."""


async def connect_to_proxy(
    proxy: Proxy, *, settings: NetworkSettings, resolver: Resolver | None = None
) -> socket.socket:
    """Returns a socket connected to a proxy (`connect_to_host`); a `DialError` names the proxy."""
    try:
        return await connect_to_host(proxy.host, proxy.port, settings=settings, resolver=resolver)
    except OSError as e:
        raise DialError(
            f"proxy {proxy.redacted}: {e}", reason=FailureReason.PROXY_UNREACHABLE
        ) from (e.__cause__ or e)


async def connect_through_http(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
) -> Link:
    """Returns a tunnel to `host` through the proxy; with TLS to a proxy of scheme `https`.

    There is no time limit here. Cancelling closes the connection.

    Args:
        host: a name, which the proxy resolves, or an IP address.
        resolver: looks up the name of the proxy itself.

    Raises:
        ProxyError: the proxy refused, or broke TLS or HTTP.
        DialError, ConfigError: as `connect_to_proxy`; or `host` cannot stand in a request.
    """
    if _HOST.fullmatch(host) is None:
        # Checked before the proxy is connected to, which would refuse it a round trip later.
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
        text = system_words(e) if isinstance(e, OSError) else str(e)
        raise ProxyError(f"TLS to HTTP proxy {proxy.redacted}: {text}") from e


async def open_tunnel(
    link: Link, host: str, port: int, *, proxy: Proxy, settings: NetworkSettings
) -> Link:
    """Ask the proxy at the end of `link` for a tunnel to `host`.

    Args:
        link: connected to the proxy; belongs to the tunnel, and is closed if this fails.

    Returns:
        the tunnel; bytes that came right after the proxy's answer are its first ones.

    Raises:
        ProxyError: the proxy refused, or did not answer in HTTP.
        DialError: `host` cannot stand in a request.
    """
    try:
        early = await _connect(link, format_address(host, port), proxy, settings)
    except BaseException:
        link.abort()
        raise
    return _PrefixedLink(link, early) if early else link


async def _connect(link: Link, target: str, proxy: Proxy, settings: NetworkSettings) -> bytes:
    """Send the request and read the answer; return the bytes that follow it."""
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
        raise ProxyError(f"no response from {what}: {system_words(e)}") from e
    except h11.RemoteProtocolError as e:
        # h11 raises it in its own methods, whose frames hold the error in a local.
        raise ProxyError(f"bad response from {what}: {h11_words(e)}") from without_frames(e)
    reason = printable(response.reason.decode("latin-1"))
    status = f"{response.status_code} {reason}".strip()
    if response.status_code != 200:
        raise ProxyError(
            f"invalid response status from {what}: {status}{_schemes(response)}",
            reason=_reason_of(response),
        )
    _log.debug("derphttp: CONNECT dial to %s: %s", target, status)
    return connection.trailing_data[0]


def _schemes(response: h11.Response) -> str:
    """Returns the names of the logins that a proxy offers, as the end of an error's text."""
    names = _offered(response)
    if not names:
        return ""
    text = f"; it offers the login by {', '.join(names)}"
    return text if _takes_basic(names) else f"{text}, and not by Basic"


def _offered(response: h11.Response) -> list[str]:
    offered = [value for name, value in response.headers if name == b"proxy-authenticate"]
    names = (each.decode("latin-1").partition(" ")[0] for each in offered)
    return list(dict.fromkeys(printable(name, 20) for name in names if name))


def _takes_basic(names: Sequence[str]) -> bool:
    return "basic" in map(str.lower, names)


def _reason_of(response: h11.Response) -> FailureReason:
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
        names = _offered(response)
        known = not names or _takes_basic(names)
        return FailureReason.PROXY_LOGIN if known else FailureReason.PROXY_LOGIN_UNKNOWN
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND) or 500 <= status < 600:
        return FailureReason.PROXY_REFUSED
    return FailureReason.PROXY_BROKEN


async def _response(link: Link, connection: h11.Connection) -> h11.Response:
    received = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            data = await link.read()
            if not data and not received:
                raise h11.RemoteProtocolError("it closed the connection without an answer")
            received += len(data)
            connection.receive_data(data)
            # Without the last read, which may contain bytes that follow the head.
            if received - len(data) > _MAX_HEAD:
                raise h11.RemoteProtocolError("the head is too long")
            continue
        # For an end before the answer, or a switch to another protocol, h11 has raised above.
        assert isinstance(event, h11.InformationalResponse)


def _basic(proxy: Proxy) -> str:
    """Returns Basic authorization (RFC 7617); empty without user or password, as in Go's client."""
    if not proxy.user or proxy.password is None:
        return ""
    token = base64.b64encode(f"{proxy.user}:{proxy.password}".encode())
    return f"Basic {token.decode('ascii')}"


class _PrefixedLink(LayeredLink):
    """A link of which the first bytes have been read already; delivers these first."""

    def __init__(self, lower: Link, prefix: bytes) -> None:
        super().__init__(lower)
        self._prefix = prefix

    async def read(self) -> bytes:
        if not self._prefix:
            return await self._lower.read()
        prefix, self._prefix = self._prefix, b""
        return prefix

    def start(self, receiver: Receiver) -> None:
        # Afterwards the link below delivers directly to the receiver.
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            receiver.data_received(prefix)
        self._lower.start(receiver)


async def connect_through_socks(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
) -> socket.socket:
    """Returns a socket that the proxy has connected to `host`; cancelling closes it.

    Args:
        host: a name, which the proxy resolves, or an IP address.
        resolver: looks up the name of the proxy itself.

    Raises:
        ProxyError: the proxy refused, broke SOCKS5, or took more than 60 s.
        DialError, ConfigError: as `connect_to_proxy`.
    """
    what = f"SOCKS5 proxy {proxy.redacted} to {format_address(host, port)}"
    connector = _ProxyConnector(proxy, settings, resolver)
    dialer = SocksProxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        username=proxy.user,
        password=proxy.password,
        rdns=True,
        # python-socks would open the socket itself, without our settings and resolver. But it can
        # ask another proxy for the connection, and uses only `connect` of that and the methods of
        # `_Stream`. So this object plays that proxy.
        forward=cast("SocksProxy", connector),
    )
    try:
        stream = cast("_Stream", await dialer.connect(host, port))
    except SocksProxyError as e:
        raise ProxyError(
            f"{what}: {printable(str(e))}", reason=connector.reason(e.error_code)
        ) from e
    except ProxyTimeoutError as e:
        text = f"{what}: {printable(str(e))}"
        raise ProxyError(text, reason=FailureReason.PROXY_TIMEOUT) from e
    except ValueError as e:
        # Only the type and no cause: the error may quote the user or the password.
        raise ProxyError(f"{what}: cannot be encoded in SOCKS5: {type(e).__name__}") from None
    return stream.socket


class _ProxyConnector:
    """Connects to the proxy itself, with this client's settings, for python-socks."""

    def __init__(self, proxy: Proxy, settings: NetworkSettings, resolver: Resolver | None) -> None:
        self._proxy = proxy
        self._settings = settings
        self._resolver = resolver
        self._stream: _Stream | None = None

    def reason(self, reply: int | None) -> FailureReason:
        """Returns why the proxy did not connect.

        Args:
            reply: the proxy's answer to the request (RFC 1928, section 6), if there was one.
        """
        if self._stream is not None and self._stream.login_refused:
            return FailureReason.PROXY_LOGIN
        return FailureReason.PROXY_REFUSED if reply in _REFUSALS else FailureReason.PROXY_BROKEN

    async def connect(self, dest_host: str, dest_port: int) -> _Stream:
        """Connect to the proxy; python-socks passes its address, by these names."""
        sock = await connect_to_proxy(self._proxy, settings=self._settings, resolver=self._resolver)
        self._stream = _Stream(sock, self._proxy)
        return self._stream


class _Stream:
    """Exact reads on a socket: never a byte more, as those after an answer belong to the tunnel."""

    def __init__(self, sock: socket.socket, proxy: Proxy) -> None:
        self.socket = sock
        self._proxy = proxy
        self.login_refused = False
        """The proxy accepts none of the offered logins, or refused this user and password."""

    async def write(self, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)
        except OSError as e:
            raise self._broken(e) from e

    async def read_exactly(self, n: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < n:
            try:
                chunk = await loop.sock_recv(self.socket, n - len(data))
            except OSError as e:
                raise self._broken(e) from e
            if not chunk:
                raise self._error("it closed the connection")
            data += chunk
        # python-socks does not say whether a login was refused. Of all answers that it reads, only
        # those to the offered methods and to the login are of two bytes.
        if n == _LOGIN_REPLY and (data == _NO_METHOD or (data[0] == _LOGIN_VERSION and data[1])):
            self.login_refused = True
        return data

    # The names of python-socks 2
    write_all = write
    read_exact = read_exactly

    async def close(self) -> None:
        self.socket.close()

    def _broken(self, error: OSError) -> ProxyError:
        # Without frames, as one of asyncio holds the future that holds the error.
        return self._error(system_words(without_frames(error)))

    def _error(self, reason: str) -> ProxyError:
        return ProxyError(f"SOCKS5 proxy {self._proxy.redacted}: {reason}")
