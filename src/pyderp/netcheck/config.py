"""The settings of `Netcheck`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pyderp.addresses import ip_literal
from pyderp.errors import ConfigError
from pyderp.net.dns import Resolver
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig

__all__ = ["NetcheckConfig"]

_MAX_PORT: Final = 65535


@dataclass(frozen=True, kw_only=True)
class NetcheckConfig:
    """How to measure a network."""

    bind_host: str = ""
    """Source IP address of STUN; empty: any. The other address family then has no socket."""
    bind_port: int = 0
    """Source UDP port for both address families; 0: any free one."""
    tls: TLSConfig = field(default_factory=TLSConfig)
    """Which authorities are trusted."""
    network: NetworkSettings | None = None
    """Proxies and socket options of TCP; `None`: from the environment."""
    resolver: Resolver | None = None
    """Looks up the names of nodes; `None`: the system does."""
    only_stun: bool = False
    """Use no HTTPS and no ICMP, and do not check for a captive portal."""
    only_tcp_443: bool = False
    """Use no STUN and no ICMP."""
    all_regions: bool = False
    """Wait for up to 100 regions instead of three."""
    verbose: bool = False
    """As `all_regions`, and always finish the check for a captive portal."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: `only_stun` and `only_tcp_443` are both set, or `bind_host` is not an IP
                address, or `bind_port` is out of range.
        """
        if self.only_stun and self.only_tcp_443:
            raise ConfigError("only_stun and only_tcp_443 exclude each other")
        if self.bind_host and ip_literal(self.bind_host) is None:
            raise ConfigError(f'invalid bind address: "{self.bind_host}"')
        if not 0 <= self.bind_port <= _MAX_PORT:
            raise ConfigError(f"invalid bind port number: {self.bind_port}")
