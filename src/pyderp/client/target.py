"""Where a client connects to: a URL or a region, and the rules that follow from it.

Ports, scheme, request target and names are those of Go's `derphttp.Client`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from pyderp.addresses import bracketed, format_address
from pyderp.defaults import DEV_PORT, HTTPS_PORT
from pyderp.errors import ConfigError
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.wire.http import DERP_PATH

__all__ = ["GetRegion", "UrlTarget", "node_port", "node_url", "parse_url", "region_label"]

GetRegion: TypeAlias = Callable[[], DERPRegion | Awaitable[DERPRegion | None] | None]
"""Asked at each attempt, with or without await; may give another region each time, or none."""

_HTTP_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """One relay, named by URL."""

    text: str
    """The URL without user and query, for logs and errors."""

    tls: bool
    host: str
    port: int
    host_header: str
    request_target: str = field(repr=False)
    userinfo: tuple[str, str] | None = field(default=None, repr=False)
    """Name and password, for a websocket's handshake only, as Go has it."""


def parse_url(url: str) -> UrlTarget:
    """Read a relay's URL; nothing is resolved and no `/derp` is added.

    Raises:
        ConfigError: not a URL, or no port can be derived from its scheme.
    """
    # The standard library's errors may repeat the password: they are not passed on.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(
            "derphttp.NewClient: not a URL; write https://relay.example.com/derp"
        ) from None
    try:
        explicit = parts.port
    except ValueError:
        raise ConfigError(
            "derphttp.NewClient: the port of the URL is no number from 0 to 65535"
        ) from None
    scheme = parts.scheme.lower()
    host = parts.hostname
    if not host or explicit == 0:
        # Not repeated: without its scheme, what is a password is not known.
        what = "port 0" if host else "no host"
        raise ConfigError(
            f"derphttp.NewClient: {what} in the URL; write https://relay.example.com/derp"
        )
    if not url.isascii():
        raise ConfigError(
            "derphttp.NewClient: the URL has characters that are not ASCII; write the path with "
            "%, the host as xn--…"
        )
    port = explicit or {"https": HTTPS_PORT, "http": _HTTP_PORT}.get(scheme)
    if not port:
        raise ConfigError(f'derphttp.NewClient: invalid URL scheme "{scheme}"')
    path = parts.path or "/"
    return UrlTarget(
        text=_redacted(parts),
        tls=scheme != "http",
        host=host,
        port=port,
        host_header=parts.netloc.rpartition("@")[2].removesuffix(":"),
        request_target=f"{path}?{parts.query}" if parts.query else path,
        userinfo=_userinfo(parts),
    )


def _userinfo(parts: SplitResult) -> tuple[str, str] | None:
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def _redacted(parts: SplitResult) -> str:
    # A name alone may be a token, and a query hold a password.
    _, at, rest = parts.netloc.rpartition("@")
    netloc = f"xxxxx@{rest}" if at else rest
    query = "xxxxx" if parts.query else ""
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def node_port(node: DERPNode, *, tls: bool) -> int:
    """The TCP port of a node; without TLS the default is `DEV_PORT`."""
    return node.derp_port_or(HTTPS_PORT if tls else DEV_PORT)


def node_host_header(node: DERPNode, *, tls: bool) -> str:
    """Host and, unless it is the scheme's own, the port."""
    default = HTTPS_PORT if tls else _HTTP_PORT
    if node.derp_port in (0, default):
        return bracketed(node.host_name)
    return format_address(node.host_name, node.derp_port)


def node_url(node: DERPNode, *, tls: bool) -> UrlTarget:
    """The URL that a node's request is for."""
    scheme = "https" if tls else "http"
    host_header = node_host_header(node, tls=tls)
    return UrlTarget(
        text=f"{scheme}://{host_header}{DERP_PATH}",
        tls=tls,
        host=node.host_name,
        port=node_port(node, tls=tls),
        host_header=host_header,
        request_target=DERP_PATH,
    )


def region_label(region: DERPRegion) -> str:
    """A region as it is named in errors."""
    return f"region {region.region_id} ({region.region_code})"
