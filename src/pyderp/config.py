"""The settings of a relay, filled alike by the command line, tests and programs."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from pyderp import defaults
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.text import MAX_APP_NAME_LEN, is_app_name, printable

__all__ = [
    "ACMETLS",
    "AdmissionConfig",
    "BootstrapDNSConfig",
    "DebugAccess",
    "Decide",
    "HealthRecipients",
    "ManualTLS",
    "RelayConfig",
    "TLSSettings",
]

LETSENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
LETSENCRYPT_STAGING: Final = "https://acme-staging-v02.api.letsencrypt.org/directory"
GOOGLE: Final = "https://dv.acme-v02.api.pki.goog/directory"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Decide: TypeAlias = Callable[[NodePublic, str], "bool | Awaitable[bool]"]
"""Whether a client may come in: its key and its IP address (empty: unknown)."""


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
        _check_tls(self)


@dataclass(frozen=True, kw_only=True)
class ACMETLS:
    """A certificate from a certificate authority, by ACME (`derper -certmode=letsencrypt`)."""

    certdir: Path
    """Directory that keeps the account, certificates and keys; made if missing."""

    hostname: str
    """DNS name, or with `ip_certs` also an IP address, to get a certificate for."""

    http_port: int | None = 80
    """Port for plain HTTP beside TLS; the authority asks there for HTTP-01. `None`: none, and
    only TLS-ALPN-01 is left."""

    directory: str = LETSENCRYPT
    """URL of the authority's ACME directory."""

    email: str = ""
    """Contact that the authority is told."""

    eab_kid: str = ""
    eab_key: str = ""
    """External account binding, base64url or base64; both or neither."""

    ip_certs: bool = False
    """Also get certificates for the IP addresses that clients connect to."""

    ca_file: Path | None = None
    """PEM file of who vouches for the authority's own HTTPS, beside the system's; for private
    authorities."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        _check_tls(self)
        for name in ("directory", "email", "eab_kid", "eab_key"):
            _check(name, getattr(self, name), str)
        if not self.directory.startswith("https://"):
            raise ConfigError(f"ACME directory {self.directory!r} is no https:// URL")
        if bool(self.eab_kid) != bool(self.eab_key):
            raise ConfigError("an external account binding needs both eab_kid and eab_key")


TLSSettings: TypeAlias = ManualTLS | ACMETLS


@dataclass(frozen=True, kw_only=True)
class AdmissionConfig:
    """Who may use the relay; all that are given must agree. Mesh peers are not asked about."""

    tailscaled: bool = False
    """Ask the `tailscaled` of this machine whether it knows the node."""

    tailscaled_socket: Path | None = None
    """Its socket; `None`: where the system has it."""

    url: str = ""
    """Ask an admission controller by HTTP POST."""

    url_fail_open: bool = True
    """Let in clients while nobody reaches the controller."""

    keys_file: Path | None = None
    """File of allowed node keys, one a line, each with an optional label."""

    decide: Decide | None = None
    """Ask this function, plain or async; for programs that embed a relay."""

    remember: float = defaults.ADMISSION_REMEMBER
    """Seconds that an answer of tailscaled, the URL or `decide` is good for further connections
    of the same key; 0: ask each time."""

    recheck: float = defaults.ADMISSION_RECHECK
    """Seconds between two looks at whether connected clients are still allowed; 0: never."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"admission URL {self.url!r} begins with neither http:// nor https://"
            )
        for name in ("remember", "recheck"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"admission: {name} is {getattr(self, name)}; want 0 or more")

    @property
    def any(self) -> bool:
        """Whether anybody is asked at all."""
        return bool(self.tailscaled or self.url or self.keys_file or self.decide)


@dataclass(frozen=True, kw_only=True)
class BootstrapDNSConfig:
    """Names that `/bootstrap-dns` tells the addresses of, to clients whose DNS is broken."""

    published: tuple[str, ...] = ()
    unpublished: tuple[str, ...] = ()
    """Told only to who asks for one by name; `name/txtname`: to the percentage in a TXT record."""


@dataclass(frozen=True, kw_only=True)
class DebugAccess:
    """Who may see `/debug/`, beside this machine and Tailscale addresses."""

    allow_ip: str = ""
    """One more IP address."""

    trusted: tuple[Network, ...] = ()
    """Networks."""

    hosts: tuple[str, ...] = ()
    """Names under which it may be asked for, beside the relay's own; IP addresses always may."""

    key: str = ""
    """A secret that opens it as `?debugkey=…` with GET; empty: none does."""


class HealthRecipients(StrEnum):
    """Which clients get Health frames. Go's relay never sends one, and some clients end on it."""

    KNOWN = "known"
    """Those that say `CanAckPings` at login, as tailscaled, or `pyderpTakesHealth`, as ours."""
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """Everything a relay can be told. Times in seconds, sizes in bytes."""

    address: str = "127.0.0.1:0"
    """Where to listen: `ip:port`, `[ip]:port`, `:port` or `unix:/path`; port 0: any free one."""

    private_key: NodePrivate | None = None
    """The relay's key; `None`: a new one at each start, in memory only."""

    tls: TLSSettings | None = None
    """`None`: plain HTTP, for tests or behind a proxy that ends TLS."""

    derp: bool = True
    """`False`: `/derp` is not served; STUN, probes and bootstrap DNS are."""

    stun_port: int | None = None
    """UDP port for STUN; 0: any free one; `None`: no STUN."""

    stun_host: str | None = None
    """IP address for STUN; empty or `::`: all; `None`: the host of `address`."""

    # Who comes in

    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    """By default everybody is let in."""

    disallow_app_names: tuple[str, ...] = ()
    """AppNames of clients that are refused, exactly as they are written. Mesh peers are exempt. An
    empty one, and one that no client can have, is dropped with a warning."""

    accept_limit: float = math.inf
    """Connections a second; what exceeds it is closed at once."""

    accept_burst: int = 2**31
    """Connections that may exceed `accept_limit` for a moment."""

    rate_config: Path | None = None
    """JSON file of rate limits (`derper -rate-config`), also per key."""

    proxy_protocol: bool = False
    """Every connection must begin with a PROXY header, v1 or v2, from `trusted_proxies`."""

    trusted_proxies: tuple[Network, ...] = ()
    """Peers whose word on the client's address is taken: PROXY headers, `X-Forwarded-For`."""

    # Mesh

    mesh_key: MeshKey | None = None
    """Clients that have it may watch, forward and close others; `None`: nobody may."""

    mesh_with: tuple[str, ...] = ()
    """Other relays: `host`, `host:port`, either with `/dial-host`, or a whole URL."""

    # What it tells

    home: str = ""
    """The page at `/`: a description, `blank`, or a URL to redirect to."""

    bootstrap_dns: BootstrapDNSConfig = field(default_factory=BootstrapDNSConfig)

    debug: DebugAccess = field(default_factory=DebugAccess)

    dev: bool = False
    """Refusals of `/debug/` say how to permit access."""

    health: HealthRecipients = HealthRecipients.KNOWN
    """Which clients are told of trouble, as `tailscale status` shows it. A bool is taken too:
    `True` is `KNOWN`, `False` is `NONE`."""

    sender_cardinality: bool = True
    """Pages tell how many keys have written to a client (`TS_DERP_SENDER_CARDINALITY`)."""

    rtt_stats: bool = True
    """Sample the round-trip times of TCP connections for the metrics."""

    # Sockets

    write_timeout: float = defaults.WRITE_TIMEOUT
    """A client whose socket takes no byte for so long, with some waiting, is closed; 0: never."""

    send_queue_depth: int = defaults.SEND_QUEUE_DEPTH
    """Packets in each of the two queues of a client, disco and data, 1 or more; together they
    hold at most 256 KiB, whatever their depth is."""

    tcp_keepalive_time: float = defaults.TCP_KEEPALIVE_TIME
    """Silence before the kernel probes a connection; 0: no probes."""

    tcp_user_timeout: float = defaults.TCP_USER_TIMEOUT
    """Sent data unacknowledged for so long ends a connection; 0: the system's. Linux only."""

    tcp_notsent_lowat: int = defaults.TCP_NOTSENT_LOWAT
    """Bytes that the kernel holds unsent for a connection before it takes no more; 0: the
    system's. What waits here instead can still be dropped for something newer."""

    reuse_port: bool = False
    """Let a second process listen on the same port, to take over from this one."""

    drain: float = defaults.DRAIN
    """On a graceful stop, closes are spread at random over so long; 0: all at once."""

    def __post_init__(self) -> None:
        """Refuse what would fail later, or silently do nothing.

        Raises:
            ConfigError: a value of the wrong type, a negative one, or two that do not fit.
        """
        _check("address", self.address, str)
        _check("private_key", self.private_key, NodePrivate, type(None))
        _check("mesh_key", self.mesh_key, MeshKey, type(None))
        _check("tls", self.tls, ManualTLS, ACMETLS, type(None))
        if isinstance(self.health, bool):
            health = HealthRecipients.KNOWN if self.health else HealthRecipients.NONE
            object.__setattr__(self, "health", health)
        _check("health", self.health, HealthRecipients)
        _check("admission", self.admission, AdmissionConfig)
        for name in _NUMBERS:
            value = getattr(self, name)
            _check(name, value, int, float)
            if not value >= 0:
                raise ConfigError(f"{name} is {value}; want 0 or more")
        _check("send_queue_depth", self.send_queue_depth, int)
        if self.send_queue_depth < 1:
            raise ConfigError(f"send_queue_depth is {self.send_queue_depth}; want 1 or more")
        _check("sender_cardinality", self.sender_cardinality, bool)
        _check_app_names(self)
        _check_port("stun_port", self.stun_port)
        _check("stun_host", self.stun_host, str, type(None))
        if self.accept_burst < 1 and self.accept_limit < math.inf:
            raise ConfigError(
                f"accept_burst is {self.accept_burst}, so nobody could connect; want 1 or more"
            )
        if self.mesh_with and self.mesh_key is None:
            raise ConfigError("a mesh needs its key: mesh_with is given and mesh_key is not")
        if self.home not in ("", "blank") and not self.home.startswith(("http://", "https://")):
            raise ConfigError(
                f"unknown home {self.home!r}: want nothing, 'blank' or an http(s) URL"
            )
        if self.proxy_protocol and not self.trusted_proxies:
            raise ConfigError("proxy_protocol needs trusted_proxies: whose word is taken")

    @property
    def hostname(self) -> str:
        """What the certificate is for; empty without TLS."""
        return "" if self.tls is None else self.tls.hostname

    def idle_app_names(self) -> list[str]:
        """A line for each item of `disallow_app_names` that refuses nobody, and why."""
        lines = []
        for name in dict.fromkeys(self.disallow_app_names):
            if not name:
                lines.append(
                    "disallowed app names: an empty item is dropped; it would refuse every client "
                    "that does not give a name, which are nearly all"
                )
            elif not is_app_name(name):
                lines.append(
                    f'disallowed app names: "{printable(name, 40)}" refuses nobody: a name has at '
                    f"most {MAX_APP_NAME_LEN} printable ASCII characters"
                )
        return lines

    def changes(self, other: RelayConfig) -> list[str]:
        """Names of the settings that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def with_live_settings(self, other: RelayConfig) -> RelayConfig:
        """These settings, with those of another that a running relay can take over."""
        return replace(self, **{name: getattr(other, name) for name in LIVE_SETTINGS})


LIVE_SETTINGS: Final = ("mesh_with", "drain")
"""Settings that a running relay can change."""

_NUMBERS: Final = (
    "accept_limit",
    "accept_burst",
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


def _check_app_names(config: RelayConfig) -> None:
    if isinstance(config.disallow_app_names, str):
        raise ConfigError("disallow_app_names is a str; want a tuple of them")
    object.__setattr__(config, "disallow_app_names", tuple(config.disallow_app_names))
    for name in config.disallow_app_names:
        _check("an item of disallow_app_names", name, str)


def _check_port(name: str, port: object) -> None:
    if port is None:
        return
    _check(name, port, int)
    assert isinstance(port, int)
    if not 0 <= port <= 65535:
        raise ConfigError(f"{name} is {port}; want 0 to 65535, or None")


def _check_tls(tls: TLSSettings) -> None:
    object.__setattr__(tls, "certdir", Path(tls.certdir))
    _check("hostname", tls.hostname, str)
    _check_port("http_port", tls.http_port)
