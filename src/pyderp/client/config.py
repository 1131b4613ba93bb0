"""Settings of a client, beside its relay and its key; and its counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeAlias

from pyderp import defaults
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey
from pyderp.net.dns import DNSCache
from pyderp.net.settings import NetworkSettings
from pyderp.net.streams import Stream
from pyderp.net.tls import HealthTracker, TLSConfig
from pyderp.text import MAX_APP_NAME_LEN, invalid_app_name, is_app_name

__all__ = ["ClientConfig", "ClientStats", "UrlDialer"]

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
    relay tells it those who watch its connections."""

    can_ack_pings: bool = False
    """Tell the relay that its pings will be answered; answering is the program's [CanAckPings]."""

    watch_connection_changes: bool = False
    """Subscribe to PeerPresent and PeerGone on every connect; needs the mesh key."""

    # How it connects

    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which certificates are trusted [TLSConfig]."""

    health: HealthTracker | None = None
    """Told of certificates that look like an interception [HealthTracker]."""

    network: NetworkSettings | None = None
    """Proxies and socket options; `None`: what the environment says."""

    websocket: bool | None = None
    """DERP inside a websocket; `None`: what `network` says."""

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
        if not isinstance(self.app_name, str):
            kind = type(self.app_name).__name__
            raise ConfigError(f"app_name is a {kind}; want str")
        if not is_app_name(self.app_name):
            raise ConfigError(
                f"{invalid_app_name(self.app_name)}: want at most {MAX_APP_NAME_LEN} printable "
                "ASCII characters"
            )
        for name in ("connect_timeout", "receive_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; want more than 0 seconds")


@dataclass(slots=True)
class ClientStats:
    """Counts of one client over all its connections; the object is live."""

    connects: int = 0
    """Successful connects."""

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
    `error` (the network), `protocol` (the relay broke it)."""
