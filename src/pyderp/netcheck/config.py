"""How a network is measured: settings of `Netcheck`."""

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
    """How to measure."""

    bind_host: str = ""
    """IP address that STUN leaves from; empty: any. The other family then has no socket."""
    bind_port: int = 0
    """UDP port of both families; 0: any free one."""
    tls: TLSConfig = field(default_factory=TLSConfig)
    network: NetworkSettings | None = None
    """Proxies and socket options of TCP; `None`: what the environment says."""
    resolver: Resolver | None = None
    """For the names of nodes; by default the system's."""
    only_stun: bool = False
    only_tcp_443: bool = False
    all_regions: bool = False
    """Wait for up to 100 regions instead of three."""
    verbose: bool = False
    """As `all_regions`, and always finish the check for a captive portal."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigError: STUN only and HTTPS only at once, or an address or port that is none.
        """
        if self.only_stun and self.only_tcp_443:
            raise ConfigError("only_stun and only_tcp_443 exclude each other")
        if self.bind_host and ip_literal(self.bind_host) is None:
            raise ConfigError(f'invalid bind address: "{self.bind_host}"')
        if not 0 <= self.bind_port <= _MAX_PORT:
            raise ConfigError(f"invalid bind port number: {self.bind_port}")
