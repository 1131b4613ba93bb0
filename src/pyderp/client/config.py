"""A client's settings, the URL or node that it connects to, and its counters.

Ports, scheme, request target and names are those of Go's `derphttp.Client`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import UnionType
from typing import Final, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from pyderp import defaults
from pyderp.addresses import bracketed, format_address, ip_literal
from pyderp.arguments import check_callable, check_type
from pyderp.errors import ConfigError, DialError, FailureReason
from pyderp.keys import MeshKey
from pyderp.maps.region import PIN_PREFIX, DERPNode, DERPRegion, host_errors
from pyderp.net.dns import DNSCache
from pyderp.net.settings import NetworkSettings
from pyderp.net.streams import Stream
from pyderp.net.tls import HealthTracker, TLSConfig
from pyderp.text import MAX_APP_NAME_LEN, invalid_app_name, is_app_name
from pyderp.wire.http import DERP_PATH

__all__ = [
    "ClientConfig",
    "ClientStats",
    "GetRegion",
    "UrlDialer",
    "UrlTarget",
    "check_node",
    "node_port",
    "node_url",
    "parse_url",
    "pin_name",
    "region_label",
]

UrlDialer: TypeAlias = Callable[[str, int], Awaitable[Stream]]
"""Called with a host, by name, and a port; returns a stream connected to it."""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Settings of a client. Times in seconds."""

    # Sent in the login

    mesh_key: MeshKey | None = None
    """Allows watching, forwarding and closing other clients on relays with the same mesh key."""

    is_prober: bool = False
    """Tell the relay that this is a prober [IsProber]."""

    app_name: str = ""
    """Name of the program, sent to the relay [AppName]: printable ASCII, at most 32 characters.
    The relay sends it on to clients that watch its connections."""

    can_ack_pings: bool = False
    """Tell the relay that its pings will be answered [CanAckPings]; the program must do that."""

    watch_connection_changes: bool = False
    """Subscribe to PeerPresent and PeerGone on every connect; needs the mesh key."""

    # Connecting

    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which certificates are trusted, and the program's own checks [TLSConfig]."""

    health: HealthTracker | None = None
    """Called about certificates that look like an interception [HealthTracker]."""

    network: NetworkSettings | None = None
    """Proxies and socket options; `None`: those of the environment."""

    websocket: bool | None = None
    """DERP inside a websocket. `True`: always. `False`: never. `None`: if `network` says so, or
    if the answer to the upgrade is 400, 404, 426 or 501, as from proxies that strip its headers;
    if the relay then accepts a websocket, the client begins with one for the next ten minutes."""

    dns_cache: DNSCache | None = None
    """Remembers addresses between connects; URLs only, as in Go [DNSCache]."""

    dialer: UrlDialer | None = None
    """Opens the TCP connection in place of the client; URLs only, as in Go [SetURLDialer]. Its
    errors are the cause of the connect error, unchanged."""

    prefer_ipv6: Callable[[], bool] | None = None
    """Called at each connect to a region's node: whether IPv6 begins before IPv4
    [SetAddressFamilySelector]."""

    connect_scope: Callable[[], AbstractAsyncContextManager[object]] | None = None
    """Returns a context manager that is entered around each connect that a send or receive needs,
    such as `lambda: asyncio.timeout(3)` [BaseContext]."""

    # Limits

    connect_timeout: float = defaults.CONNECT_TIMEOUT
    """For all of a connect: look-ups, proxy, TCP, TLS, upgrade, login."""

    receive_timeout: float = defaults.RECEIVE_TIMEOUT
    """A connection that brings nothing for so long is ended."""

    def __post_init__(self) -> None:
        """Refuse values that would fail later.

        Raises:
            ConfigError: a wrong type, a time that is not positive, or an AppName that relays
                refuse.
        """
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                wanted = _short(str(kind) if isinstance(kind, UnionType) else kind.__name__)
                raise ConfigError(f"{name} is a {type(value).__name__}; want {wanted}")
        for name in ("dialer", "prefer_ipv6", "connect_scope"):
            check_callable(name, getattr(self, name))
        if not is_app_name(self.app_name):
            raise ConfigError(
                f"{invalid_app_name(self.app_name)}: want at most {MAX_APP_NAME_LEN} printable "
                "ASCII characters"
            )
        for name in ("connect_timeout", "receive_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; want more than 0 seconds")


_TYPES: Final[dict[str, type | UnionType]] = {
    "mesh_key": MeshKey | None,
    "is_prober": bool,
    "app_name": str,
    "can_ack_pings": bool,
    "watch_connection_changes": bool,
    "tls": TLSConfig,
    "network": NetworkSettings | None,
    "websocket": bool | None,
    "dns_cache": DNSCache | None,
    "connect_timeout": int | float,
    "receive_timeout": int | float,
}
"""Types of settings. Of `health`, and of functions beyond that they can be called, only a call
shows whether they fit."""


def _short(types: str) -> str:
    """Returns names of types without their modules."""
    return " | ".join(name.rpartition(".")[2] for name in types.split(" | "))


@dataclass(slots=True)
class ClientStats:
    """Counts of one client over all its connections; the object is live."""

    connects: int = 0
    """Successful connects."""

    websocket_fallbacks: int = 0
    """Of these, those in a websocket because the upgrade to DERP was refused."""

    failed_connects: int = 0

    packets_sent: int = 0
    """Packets handed to a connection; DERP never confirms delivery."""

    packets_received: int = 0

    bytes_sent: int = 0
    """Bytes of the DERP stream: frames of every kind, without HTTP and TLS."""

    bytes_received: int = 0

    packets_dropped: int = 0
    """Packets not sent because they exceed the rate that the relay allows (ServerInfo)."""

    disconnects: Counter[str] = field(default_factory=Counter)
    """Connections that ended, by reason: `eof`, `restarting`, `timeout`, `error` (the network),
    `protocol` (the relay broke it), `refused` (`LoginRefused`), `upgrade` (an answer in HTTP to a
    fast start)."""


GetRegion: TypeAlias = Callable[[], DERPRegion | Awaitable[DERPRegion | None] | None]
"""Called at each attempt; may be async, and may return another region each time, or `None`."""

_HTTP_PORT: Final = 80
_BARE: Final = re.compile(r"[\w.\[\]-]+(?::[\w:.\]]+)?(?:/[\w/.-]*)?", re.ASCII)
"""A host with or without port and path: no user, password or query, so errors may show it."""
_PIN: Final = re.compile("[0-9a-f]{64}")


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
    """User and password; sent in a websocket's handshake only, as by Go's client."""


def parse_url(url: str) -> UrlTarget:
    """Read a relay's URL; nothing is resolved and no `/derp` is added.

    Raises:
        ConfigError: no text, not a URL, or its scheme is neither https nor http.
    """
    check_type("url", url, str)
    # The standard library's errors are dropped, as they may repeat the password.
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
            "derphttp.NewClient: the port of the URL is not a number from 0 to 65535"
        ) from None
    scheme = parts.scheme.lower()
    host = parts.hostname
    if not host or explicit == 0:
        raise _without_host(url, scheme, host)
    if not url.isascii():
        raise ConfigError(
            "derphttp.NewClient: the URL has characters that are not ASCII; write the path with "
            "%, the host as xn--…"
        )
    default = _default_port(scheme)  # refuses other schemes
    path = parts.path or "/"
    user = None
    if parts.username is not None:
        user = unquote(parts.username), unquote(parts.password or "")
    return UrlTarget(
        text=_redacted(parts),
        tls=scheme != "http",
        host=host,
        port=explicit or default,
        host_header=parts.netloc.rpartition("@")[2].removesuffix(":"),
        request_target=f"{path}?{parts.query}" if parts.query else path,
        userinfo=user,
    )


def _without_host(url: str, scheme: str, host: str | None) -> ConfigError:
    """Return the error of a URL that has no host, or port 0."""
    if not host and scheme not in ("http", "https") and _BARE.fullmatch(url):
        whole = url if "/" in url else f"{url}/derp"
        return ConfigError(
            f"derphttp.NewClient: {url!r} has no scheme: write https://{whole}, or "
            f"http://{whole} for a relay without TLS"
        )
    # The error does not repeat any other URL: without a scheme or host, it is not known which
    # part is a password.
    what = "port 0" if host else "no host"
    return ConfigError(
        f"derphttp.NewClient: {what} in the URL; write https://relay.example.com/derp"
    )


def _default_port(scheme: str) -> int:
    port = {"https": defaults.HTTPS_PORT, "http": _HTTP_PORT}.get(scheme)
    if port is None:
        text = f'derphttp.NewClient: invalid URL scheme "{scheme}"; want https:// or http://'
        if scheme in ("ws", "wss"):
            text += ", with ClientConfig(websocket=True) for a websocket"
        raise ConfigError(text)
    return port


def pin_name(pin: str) -> str:
    """Returns the `cert_name` for a certificate's SHA-256, hex of either case, colons allowed.

    Raises:
        ConfigError: not 64 hex digits.
    """
    if not isinstance(pin, str):
        raise ConfigError(f"pin is a {type(pin).__name__}; want str, 64 hex digits")
    digits = pin.lower().removeprefix(PIN_PREFIX).replace(":", "")
    if not _PIN.fullmatch(digits):
        raise ConfigError("pin: want 64 hex digits, the SHA-256 of the relay's certificate")
    return f"{PIN_PREFIX}{digits}"


def _redacted(parts: SplitResult) -> str:
    # A user name without a password may be a token, and a query may contain a password.
    _, at, rest = parts.netloc.rpartition("@")
    netloc = f"xxxxx@{rest}" if at else rest
    query = "xxxxx" if parts.query else ""
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def node_port(node: DERPNode, *, tls: bool) -> int:
    """Returns the TCP port of a node; the default is `HTTPS_PORT`, without TLS `DEV_PORT`."""
    return node.derp_port_or(defaults.HTTPS_PORT if tls else defaults.DEV_PORT)


def check_node(node: DERPNode, *, tls: bool) -> None:
    """Refuse a node whose host is not a valid name or address, before it is looked up.

    Raises:
        DialError: its reason is `BAD_MAP`; the text names the node and says what is wrong.
    """
    addressed = ip_literal(node.ipv4) or ip_literal(node.ipv6)
    if not node.host_name and addressed and (node.cert_name or not tls):
        return  # the name is used neither for a look-up nor in the certificate
    for error in host_errors(node):
        raise DialError(f"node {node.name}: {error}", reason=FailureReason.BAD_MAP)


def node_url(node: DERPNode, *, tls: bool) -> UrlTarget:
    """Returns the URL that the request to a node is for."""
    scheme, default = ("https", defaults.HTTPS_PORT) if tls else ("http", _HTTP_PORT)
    host_header = bracketed(node.host_name)
    if node.derp_port not in (0, default):
        host_header = format_address(node.host_name, node.derp_port)
    return UrlTarget(
        text=f"{scheme}://{host_header}{DERP_PATH}",
        tls=tls,
        host=node.host_name,
        port=node_port(node, tls=tls),
        host_header=host_header,
        request_target=DERP_PATH,
    )


def region_label(region: DERPRegion) -> str:
    """Returns a region as errors name it."""
    # The command line makes a region for a URL, with the URL as its code.
    if "://" in region.region_code:
        return region.region_code
    return f"region {region.region_id} ({region.region_code})"
