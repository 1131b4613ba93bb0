"""One HTTP GET, bounded in time and size, by the ways out that a client takes."""

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
    """Where it came from."""
    body: bytes


def shown_url(url: str) -> str:
    """A URL without user and password, for errors; one that cannot be split: cut short."""
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
        url: `http://` or `https://`; a user and password in it are sent as Basic, not further on.
        headers: besides Host, User-Agent and Connection.
        limit: bytes that the body may have.
        seconds: time for all of it.
        settings: proxies; by default the environment's (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY).
        tls: which authorities to trust.

    Raises:
        ConfigError: not such a URL, or proxies or certificates that cannot be used.
        DialError: no connection, or no whole answer in time (`reason`).
        TLSError: the certificate is not trusted, or there is no TLS.
        RemoteProtocolError: no HTTP, a body that is larger, or a redirect that is not followed.
    """
    settings = NetworkSettings.from_environment() if settings is None else settings
    way = _Way(settings, tls or TLSConfig(), resolver)
    try:
        async with asyncio.timeout(seconds):
            for _ in range(_REDIRECTS + 1):
                got = await _get(url, headers, limit, way)
                location = got.header("location")
                if got.status not in _MOVED or not location:
                    return got
                url = _moved(url, location)
    except TimeoutError as e:
        text = f"{shown_url(url)}: no whole answer within {seconds:g} s"
        raise DialError(text, reason=FailureReason.TIMEOUT) from without_frames(e)
    raise RemoteProtocolError(f"{shown_url(url)}: more than {_REDIRECTS} redirects")


@dataclass(frozen=True)
class _Way:
    settings: NetworkSettings
    tls: TLSConfig
    resolver: Resolver | None


def _split(url: str) -> tuple[SplitResult, str, int]:
    """Parts, host and port.

    Raises:
        ConfigError: not a URL that can be asked.
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


async def _get(url: str, headers: Sequence[tuple[str, str]], limit: int, way: _Way) -> Fetched:
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
        raise ConfigError(f"{shown_url(url)}: it cannot be asked for: not ASCII") from None
    secure = parts.scheme == "https"
    # With the schemes of websockets, both kinds of URL have a proxy in the environment.
    link: Link = await dial_host(
        host,
        port,
        settings=way.settings,
        resolver=way.resolver,
        scheme="wss" if secure else "ws",
    )
    try:
        if secure:
            link = await start_tls(link, server_name=host, config=way.tls, settings=way.settings)
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
