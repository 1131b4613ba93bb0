"""One HTTP GET, bounded in time and size, through the same proxies as a client's connections."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from pyderp.addresses import bracketed
from pyderp.errors import (
    ConfigError,
    DialError,
    FailureReason,
    LocalProtocolError,
    RemoteProtocolError,
    without_frames,
)
from pyderp.net.dial import dial_host
from pyderp.net.dns import Resolver
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import start_tls
from pyderp.net.tlscontext import TLSConfig
from pyderp.text import printable
from pyderp.wire.httpreply import HttpExchange, HttpReply

__all__ = ["Fetched", "fetch", "shown_url"]

_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = 10
"""As in Go's HTTP client."""
_MOVED: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Fetched(HttpReply):
    """An answer, after redirects; its `reason` is printable."""

    url: str
    """The URL that it came from, after redirects."""
    body: bytes


def shown_url(url: str) -> str:
    """Returns a URL for errors: without user and password, or cut short if it cannot be split."""
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return printable(parts.geturl(), 200)
    except ValueError:
        return printable(url, 20)


async def fetch(
    url: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    limit: int,
    seconds: float,
    settings: NetworkSettings | None = None,
    tls: TLSConfig | None = None,
    resolver: Resolver | None = None,
) -> Fetched:
    """GET a URL; follows ten redirects at most, but none from `https` to `http`.

    Args:
        url: `http://` or `https://`; a user and password in it are sent as Basic to this server,
            and not after a redirect.
        headers: besides Host, User-Agent and Connection.
        limit: the most bytes that the body may have.
        seconds: time for all of it, redirects included.
        settings: proxies; by default the environment's (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY).
        tls: which authorities to trust.

    Raises:
        ConfigError: `url` is not such a URL, or proxies or certificates cannot be used.
        DialError: no connection, or no whole answer in time (`reason`).
        TLSError: the certificate is not trusted, or the server does not speak TLS.
        RemoteProtocolError: no HTTP, a body larger than `limit`, or a redirect not followed.
    """
    settings = NetworkSettings.from_environment() if settings is None else settings
    network = _Network(settings, tls or TLSConfig(), resolver)
    try:
        async with asyncio.timeout(seconds):
            for _ in range(_REDIRECTS + 1):
                got = await _get(url, headers, limit, network)
                location = got.header("location")
                if got.status not in _MOVED or not location:
                    return got
                url = _moved(url, location)
    except TimeoutError as e:
        text = f"{shown_url(url)}: no whole answer within {seconds:g} s"
        raise DialError(text, reason=FailureReason.TIMEOUT) from without_frames(e)
    raise RemoteProtocolError(f"{shown_url(url)}: more than {_REDIRECTS} redirects")


@dataclass(frozen=True)
class _Network:
    settings: NetworkSettings
    tls: TLSConfig
    resolver: Resolver | None


def _split(url: str) -> tuple[SplitResult, str, int]:
    """Returns the parts of a URL, its host and its port.

    Raises:
        ConfigError: it is no `http://` or `https://` URL with a host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ConfigError(f"{shown_url(url)}: {e}") from None
    if parts.scheme not in _PORTS or not host or port == 0 or not url.isprintable():
        raise ConfigError(f"{shown_url(url)}: want http://HOST… or https://HOST…")
    return parts, host, port or _PORTS[parts.scheme]


def _moved(url: str, location: str) -> str:
    following = urljoin(url, location)
    try:
        parts, _, _ = _split(following)
    except ConfigError as e:
        raise RemoteProtocolError(f"{shown_url(url)}: redirected to {e}") from None
    if url.startswith("https:") and parts.scheme != "https":
        raise RemoteProtocolError(
            f"{shown_url(url)}: redirected to {shown_url(following)}, which is without TLS"
        )
    return following


async def _get(
    url: str, headers: Sequence[tuple[str, str]], limit: int, network: _Network
) -> Fetched:
    parts, host, port = _split(url)
    name = bracketed(host) if port == _PORTS[parts.scheme] else f"{bracketed(host)}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = [("Connection", "close"), *headers]
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        fields.append(("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}"))
    try:
        http = HttpExchange(name, target, headers=fields, max_body=limit + 1)
    except LocalProtocolError:
        raise ConfigError(f"{shown_url(url)}: the URL is not ASCII") from None
    secure = parts.scheme == "https"
    # The schemes of websockets, as `dial_host` uses HTTP_PROXY and HTTPS_PROXY for them only.
    link: Link = await dial_host(
        host,
        port,
        settings=network.settings,
        resolver=network.resolver,
        scheme="wss" if secure else "ws",
    )
    try:
        if secure:
            link = await start_tls(
                link, server_name=host, config=network.tls, settings=network.settings
            )
        return await _exchange(link, http, limit, url)
    finally:
        link.abort()


async def _exchange(link: Link, http: HttpExchange, limit: int, url: str) -> Fetched:
    link.write(http.request)
    try:
        while not http.finished:
            http.receive_data_untrusted(await link.read())
    except RemoteProtocolError as e:
        raise RemoteProtocolError(f"{shown_url(url)}: {e}") from without_frames(e)
    except OSError as e:
        text = f"{shown_url(url)}: the connection broke: {e.strerror or e}"
        raise DialError(text, reason=FailureReason.CUT) from without_frames(e)
    body = http.body
    if len(body) > limit:
        raise RemoteProtocolError(f"{shown_url(url)}: more than {limit} bytes")
    assert http.reply is not None
    reason = printable(http.reply.reason, 100)
    return Fetched(http.reply.status, reason, http.reply.headers, url, body)
