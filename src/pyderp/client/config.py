"""What a client is made with: where it connects to, its settings; and its counters.

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
"""Connects to a host, by name, and a port; returns a stream."""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Settings of a client. Times in seconds."""

    # What it says at login

    mesh_key: MeshKey | None = None
    """Grants watching, forwarding and closing others on relays that have the same one."""

    is_prober: bool = False
    """Tell the relay that this is a prober [IsProber]."""

    app_name: str = ""
    """Tell the relay which program this is [AppName]: printable ASCII, at most 32 characters. The
    relay tells it the watchers of its connections."""

    can_ack_pings: bool = False
    """Tell the relay that its pings will be answered; answering is the program's [CanAckPings]."""

    watch_connection_changes: bool = False
    """Subscribe to PeerPresent and PeerGone on every connect; needs the mesh key."""

    # How it connects

    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which certificates are trusted, and the program's own checks [TLSConfig]."""

    health: HealthTracker | None = None
    """Told of certificates that look like an interception [HealthTracker]."""

    network: NetworkSettings | None = None
    """Proxies and socket options; `None`: what the environment says."""

    websocket: bool | None = None
    """DERP inside a websocket. `False`: never. `None`: what `network` says, and else only if the
    answer to the upgrade is 400, 404, 426 or 501, as of proxies that strip its headers; a relay
    that then takes a websocket gets one at once for the next ten minutes."""

    dns_cache: DNSCache | None = None
    """Remembers addresses between connects; URLs only, as in Go [DNSCache]."""

    dialer: UrlDialer | None = None
    """Opens the TCP connection instead of us; URLs only, as in Go [SetURLDialer]. Its errors
    are the cause of the connect error as they are."""

    prefer_ipv6: Callable[[], bool] | None = None
    """Asked at each connect to a region's node: whether IPv6 gets a head start
    [SetAddressFamilySelector]."""

    connect_scope: Callable[[], AbstractAsyncContextManager[object]] | None = None
    """Makes a scope that is entered around each connect that a send or receive needs, say
    `lambda: asyncio.timeout(3)` [BaseContext]."""

    # Limits

    connect_timeout: float = defaults.CONNECT_TIMEOUT
    """For all of a connect: names, proxy, TCP, TLS, upgrade, login."""

    receive_timeout: float = defaults.RECEIVE_TIMEOUT
    """A relay that says nothing for so long is given up."""

    def __post_init__(self) -> None:
        """Refuse what would fail later.

        Raises:
            ConfigError: a time that is not positive, or a name that relays refuse.
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
"""What settings must be. Of the others only the call can tell."""


def _short(types: str) -> str:
    """Names of types without their modules."""
    return " | ".join(name.rpartition(".")[2] for name in types.split(" | "))


@dataclass(slots=True)
class ClientStats:
    """Counts of one client over all its connections; the object is live."""

    connects: int = 0
    """Successful connects."""

    websocket_fallbacks: int = 0
    """Of these, those in a websocket because no upgrade to DERP got through."""

    failed_connects: int = 0

    packets_sent: int = 0
    """Packets handed to a connection; DERP never confirms delivery."""

    packets_received: int = 0

    bytes_sent: int = 0
    """Bytes of the DERP stream: frames of every kind, without HTTP and TLS."""

    bytes_received: int = 0

    packets_dropped: int = 0
    """Packets not sent because the relay's token bucket was empty."""

    disconnects: Counter[str] = field(default_factory=Counter)
    """Why connections ended, the reason of each reconnect: `eof`, `restarting`, `timeout`,
    `error` (the network), `protocol` (the relay broke it), `refused` (`LoginRefused`),
    `upgrade` (an answer in HTTP to a fast start)."""


GetRegion: TypeAlias = Callable[[], DERPRegion | Awaitable[DERPRegion | None] | None]
"""Asked at each attempt, with or without await; may give another region each time, or none."""

_HTTP_PORT: Final = 80
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
    """Name and password, for a websocket's handshake only, as Go has it."""


def parse_url(url: str) -> UrlTarget:
    """Read a relay's URL; nothing is resolved and no `/derp` is added.

    Raises:
        ConfigError: no text, not a URL, or one of another scheme than https and http.
    """
    check_type("url", url, str)
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
    default = _default_port(scheme)  # also refuses other schemes
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


def _default_port(scheme: str) -> int:
    port = {"https": defaults.HTTPS_PORT, "http": _HTTP_PORT}.get(scheme)
    if port is None:
        text = f'derphttp.NewClient: invalid URL scheme "{scheme}"; want https:// or http://'
        if scheme in ("ws", "wss"):
            text += ", with ClientConfig(websocket=True) for a websocket"
        raise ConfigError(text)
    return port


def pin_name(pin: str) -> str:
    """The `cert_name` of a certificate's SHA-256: in hex of either case, with colons or without.

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
    # A name alone may be a token, and a query hold a password.
    _, at, rest = parts.netloc.rpartition("@")
    netloc = f"xxxxx@{rest}" if at else rest
    query = "xxxxx" if parts.query else ""
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def node_port(node: DERPNode, *, tls: bool) -> int:
    """The TCP port of a node; without TLS the default is `DEV_PORT`."""
    return node.derp_port_or(defaults.HTTPS_PORT if tls else defaults.DEV_PORT)


def check_node(node: DERPNode, *, tls: bool) -> None:
    """Refuse a node whose host no client can reach, before anything looks it up.

    Raises:
        DialError: of reason `BAD_MAP`; the text names the node, and says what is wrong.
    """
    addressed = ip_literal(node.ipv4) or ip_literal(node.ipv6)
    if not node.host_name and addressed and (node.cert_name or not tls):
        return  # nothing needs the name
    for error in host_errors(node):
        raise DialError(f"node {node.name}: {error}", reason=FailureReason.BAD_MAP)


def node_url(node: DERPNode, *, tls: bool) -> UrlTarget:
    """The URL that a node's request is for."""
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
    """A region as it is named in errors."""
    return f"region {region.region_id} ({region.region_code})"
