"""The settings of a relay, filled alike by the command line, tests and programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyderp import defaults
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey, NodePrivate

__all__ = ["ManualTLS", "RelayConfig"]


@dataclass(frozen=True, kw_only=True)
class ManualTLS:
    """A certificate from files (`derper -certmode=manual`)."""

    certdir: Path
    """Directory of `HOSTNAME.crt` and `HOSTNAME.key`, PEM."""

    hostname: str
    """Name or IP address that the certificate is for; for an address, a self-signed one is
    made if a file is missing."""

    http_port: int | None = None
    """Port for plain HTTP beside TLS, on the same address, that redirects; `None`: none."""

    def __post_init__(self) -> None:
        """Take a folder as text too, and refuse what is no port."""
        object.__setattr__(self, "certdir", Path(self.certdir))
        _check("hostname", self.hostname, str)
        if self.http_port is not None:
            _check("http_port", self.http_port, int)
            if not 0 <= self.http_port <= 65535:
                raise ConfigError(f"http_port is {self.http_port}; want 0 to 65535, or None")


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """Everything a relay can be told. Times in seconds, sizes in bytes."""

    address: str = "127.0.0.1:0"
    """Where to listen: `ip:port`, `[ip]:port` or `:port`; port 0: any free one."""

    private_key: NodePrivate | None = None
    """The relay's key; `None`: a new one at each start, in memory only."""

    mesh_key: MeshKey | None = None
    """Clients that have it may watch, forward and close others; `None`: nobody may."""

    tls: ManualTLS | None = None
    """`None`: plain HTTP, for tests or behind a proxy that ends TLS."""

    write_timeout: float = defaults.WRITE_TIMEOUT
    """A client whose socket takes no byte for so long, with some waiting, is closed; 0: never."""

    tcp_keepalive_time: float = defaults.TCP_KEEPALIVE_TIME
    """Silence before the kernel probes a connection; 0: no probes."""

    tcp_user_timeout: float = defaults.TCP_USER_TIMEOUT
    """Sent data unacknowledged for so long ends a connection; 0: the system's. Linux only."""

    tcp_notsent_lowat: int = defaults.TCP_NOTSENT_LOWAT
    """Bytes that the kernel holds unsent for a connection before it takes no more; 0: the
    system's. What waits here instead can still be dropped for something newer."""

    drain: float = defaults.DRAIN
    """On a graceful stop, closes are spread at random over so long; 0: all at once."""

    def __post_init__(self) -> None:
        """Refuse what would fail later, or silently do nothing.

        Raises:
            ConfigError: a value of the wrong type, or a negative one.
        """
        _check("address", self.address, str)
        _check("private_key", self.private_key, NodePrivate, type(None))
        _check("mesh_key", self.mesh_key, MeshKey, type(None))
        _check("tls", self.tls, ManualTLS, type(None))
        for name in _NUMBERS:
            value = getattr(self, name)
            _check(name, value, int, float)
            if not value >= 0:
                raise ConfigError(f"{name} is {value}; want 0 or more")


_NUMBERS: Final = (
    "write_timeout",
    "tcp_keepalive_time",
    "tcp_user_timeout",
    "tcp_notsent_lowat",
    "drain",
)


def _check(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{name} is a {type(value).__name__}; want {wanted}")
