"""The settings of a relay, for the command line, tests and programs that embed one."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from pyderp import defaults
from pyderp.config.ports import check_distinct_ports
from pyderp.config.rules import check_port, check_setting, check_type
from pyderp.config.tls import ACMETLS, ManualTLS, TLSSettings
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.native import NativeUse
from pyderp.text import MAX_APP_NAME_LEN, is_app_name, printable

__all__ = ["LIVE_SETTINGS", "AdmissionConfig", "BootstrapDNSConfig", "DebugAccess", "Decide"]
__all__ += ["HealthRecipients", "Network", "RelayConfig"]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Decide: TypeAlias = Callable[[NodePublic, str], "bool | Awaitable[bool]"]
"""Takes a client's key and IP address (empty if unknown), and returns whether it may log in."""


@dataclass(frozen=True, kw_only=True)
class AdmissionConfig:
    """Which clients may log in. All sources that are set must agree. Mesh peers are exempt."""

    tailscaled: bool = False
    """Ask the `tailscaled` of this machine whether it knows the node."""

    tailscaled_socket: Path | None = None
    """The socket of tailscaled; `None`: the usual place of this system."""

    url: str = ""
    """Ask an admission controller by HTTP POST."""

    url_fail_open: bool = True
    """Allow clients while the controller is unreachable."""

    keys_file: Path | None = None
    """Allow file: allowed node keys, one a line, each with an optional label."""

    deny_file: Path | None = None
    """File of denied node keys, one a line, each with an optional label. It overrides all other
    sources. As the only source, it allows all other clients."""

    decide: Decide | None = None
    """Ask this function, plain or async; for programs that embed a relay."""

    remember: float = defaults.ADMISSION_REMEMBER
    """Seconds for which an answer of tailscaled, the URL or `decide` also decides further
    connections of the same key; 0: ask each time."""

    recheck: float = defaults.ADMISSION_RECHECK
    """Seconds between two checks whether connected clients are still allowed; 0: never."""

    def __post_init__(self) -> None:
        """Refuse a URL that cannot be asked, and negative times."""
        check_setting("admission.url", self.url)
        for name in ("remember", "recheck"):
            _check_number(f"admission.{name}", getattr(self, name))

    @property
    def any(self) -> bool:
        """Whether clients are checked at all."""
        return bool(self.deny_file or not self.open)

    @property
    def open(self) -> bool:
        """Whether all clients but the denied ones may log in: no source has to allow them."""
        return not (self.tailscaled or self.url or self.keys_file or self.decide)


@dataclass(frozen=True, kw_only=True)
class BootstrapDNSConfig:
    """Names whose addresses `/bootstrap-dns` returns, to clients whose DNS is broken."""

    published: tuple[str, ...] = ()
    unpublished: tuple[str, ...] = ()
    """Names that are returned only to queries for them. With `name/txtname` only a percentage of
    the clients gets an answer, which the TXT record at `txtname` sets."""

    def __post_init__(self) -> None:
        """Refuse names that cannot be looked up."""
        check_setting("bootstrap_dns.published", self.published)
        check_setting("bootstrap_dns.unpublished", self.unpublished)


@dataclass(frozen=True, kw_only=True)
class DebugAccess:
    """Which requesters may see `/debug/`, beside this machine and Tailscale addresses."""

    allow_ip: str = ""
    """One more IP address."""

    trusted: tuple[Network, ...] = ()
    """Networks."""

    hosts: tuple[str, ...] = ()
    """Names that a request's Host may have, beside the relay's own. IP addresses are always
    accepted."""

    key: str = ""
    """A secret; a GET request with `?debugkey=SECRET` may see `/debug/`. Empty: no secret."""

    def __post_init__(self) -> None:
        """Refuse addresses and names that no requester could have."""
        check_setting("debug.allow_ip", self.allow_ip)
        check_setting("debug.hosts", self.hosts)


class HealthRecipients(StrEnum):
    """Which clients get Health frames. Go's relay never sends one, and some clients end on it."""

    KNOWN = "known"
    """Clients that send `CanAckPings` at login, as tailscaled does, or `pyderpTakesHealth`, as
    pyderp's clients do."""
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """All settings of a relay. Times in seconds, sizes in bytes."""

    address: str = "127.0.0.1:0"
    """Where to listen: `ip:port`, `[ip]:port`, `:port` or `unix:/path`; port 0: any free one."""

    private_key: NodePrivate | None = None
    """The relay's key; `None`: a new one at each start, in memory only."""

    tls: TLSSettings | None = None
    """The relay's certificate; `None`: plain HTTP, for tests or behind a proxy that ends TLS."""

    derp: bool = True
    """Whether to serve `/derp`. If not, STUN, probes and bootstrap DNS are still served."""

    stun_port: int | None = None
    """UDP port for STUN; 0: any free one; `None`: no STUN."""

    stun_host: str | None = None
    """IP address for STUN; empty or `::`: all; `None`: the host of `address`."""

    # Admission

    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    """By default every client is admitted."""

    disallow_app_names: tuple[str, ...] = ()
    """AppNames of clients that are refused; the whole name must be equal. Mesh peers are exempt. An
    empty name, and one that no client can have, is dropped with a warning."""

    accept_limit: float = math.inf
    """Connections accepted per second; further ones are closed at once."""

    accept_burst: int = 2**31
    """Connections accepted at once after a quiet time, above `accept_limit`."""

    rate_config: Path | None = None
    """JSON file of rate limits (`derper -rate-config`), also per key."""

    proxy_protocol: bool = False
    """Every connection must begin with a PROXY header, v1 or v2, from `trusted_proxies`."""

    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the proxies from which the relay accepts a client's address, in a PROXY header or
    in `X-Forwarded-For`."""

    # Mesh

    mesh_key: MeshKey | None = None
    """A client that presents it is a mesh peer: it may watch and close other clients, and forward
    packets. `None`: no client may."""

    mesh_with: tuple[str, ...] = ()
    """Other relays: `host`, `host:port`, either with `/dial-host`, or a whole URL."""

    # Pages and messages

    home: str = ""
    """The page at `/`: a description, `blank`, or a URL to redirect to."""

    bootstrap_dns: BootstrapDNSConfig = field(default_factory=BootstrapDNSConfig)

    debug: DebugAccess = field(default_factory=DebugAccess)

    metrics_address: str = ""
    """Address that serves `/debug/` by plain HTTP: `ip:port`, `[ip]:port` or `:port`. The relay's
    own ports do not serve it then. Empty: they do. `debug` says which requesters may see it."""

    dev: bool = False
    """Whether refusals of `/debug/` say how to permit access."""

    health: HealthRecipients = HealthRecipients.KNOWN
    """Which clients get Health frames, whose text `tailscale status` shows. A bool is accepted too:
    `True` is `KNOWN`, `False` is `NONE`."""

    sender_cardinality: bool = True
    """Whether pages show how many keys have sent to a client (`TS_DERP_SENDER_CARDINALITY`)."""

    rtt_stats: bool = True
    """Whether to sample the round-trip times of TCP connections for the metrics."""

    # Sockets

    native: NativeUse = NativeUse.AUTO
    """Whether `pyderp-fast` does TLS and the lane's inner loop. A bool is accepted too: `True` is
    `ON`, `False` is `OFF`."""

    login_timeout: float = defaults.LOGIN_TIMEOUT
    """Time from the accept to the end of the login, TLS and HTTP included, after which the client
    is closed; more than 0, at most a day. A PROXY header before that may take as long again."""

    write_timeout: float = defaults.WRITE_TIMEOUT
    """A client for which bytes wait is closed if its socket takes none for this time; 0: never."""

    send_queue_depth: int = defaults.SEND_QUEUE_DEPTH
    """Packets in each of a client's two queues, disco and data; 1 or more. Together the queues
    hold at most 256 KiB at any depth."""

    tcp_keepalive_time: float = defaults.TCP_KEEPALIVE_TIME
    """The kernel probes a connection on which nothing came for this time; 0: no probes."""

    tcp_user_timeout: float = defaults.TCP_USER_TIMEOUT
    """The kernel ends a connection whose sent data is not acknowledged for this time; 0: the
    system's default. Linux only."""

    tcp_notsent_lowat: int = defaults.TCP_NOTSENT_LOWAT
    """Unsent bytes that the kernel accepts for a connection; 0: the system's default. Packets
    beyond that wait in the relay's queues, where they can still be dropped for newer ones."""

    reuse_port: bool = False
    """Whether a second process may listen on the same port, to take over from this one."""

    drain: float = defaults.DRAIN
    """On a graceful stop, connections are closed at random moments of this time; 0: all at once."""

    def __post_init__(self) -> None:
        """Refuse values that would fail later, or would silently do nothing.

        Raises:
            ConfigError: a value of the wrong type, a negative one, or two that do not fit.
        """
        check_type("address", self.address, str)
        check_type("private_key", self.private_key, NodePrivate, type(None))
        check_type("mesh_key", self.mesh_key, MeshKey, type(None))
        check_type("tls", self.tls, ManualTLS, ACMETLS, type(None))
        if isinstance(self.health, bool):
            health = HealthRecipients.KNOWN if self.health else HealthRecipients.NONE
            object.__setattr__(self, "health", health)
        check_type("health", self.health, HealthRecipients)
        if isinstance(self.native, bool):
            object.__setattr__(self, "native", NativeUse.ON if self.native else NativeUse.OFF)
        check_type("native", self.native, NativeUse)
        check_type("admission", self.admission, AdmissionConfig)
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))
        _check_login_timeout(self.login_timeout)
        check_type("send_queue_depth", self.send_queue_depth, int)
        _check_number("send_queue_depth", self.send_queue_depth, least=1)
        check_type("sender_cardinality", self.sender_cardinality, bool)
        _check_app_names(self)
        check_port("stun_port", self.stun_port)
        check_type("stun_host", self.stun_host, str, type(None))
        if self.accept_burst < 1 and self.accept_limit < math.inf:
            raise ConfigError(
                "{} is {burst}, so no client could connect; want 1 or more",
                settings=("accept_burst", "accept_limit"),
                burst=self.accept_burst,
            )
        if self.mesh_with and self.mesh_key is None:
            raise ConfigError(
                "{} needs {}, the key that all relays of the mesh share",
                settings=("mesh_with", "mesh_key"),
            )
        check_setting("home", self.home)
        check_type("metrics_address", self.metrics_address, str)
        side = None if self.tls is None else self.tls.http_port
        check_distinct_ports(self.address, side, self.metrics_address)
        if self.proxy_protocol and not self.trusted_proxies:
            raise ConfigError(
                "{} needs {}: the networks of the proxies that send PROXY headers",
                settings=("proxy_protocol", "trusted_proxies"),
            )

    @property
    def hostname(self) -> str:
        """The name or IP address of the certificate; empty without TLS."""
        return "" if self.tls is None else self.tls.hostname

    def idle_app_names(self) -> list[str]:
        """Return a line for each item of `disallow_app_names` that refuses no client, and why."""
        lines = []
        for name in dict.fromkeys(self.disallow_app_names):
            if not name:
                lines.append(
                    "disallowed app names: an empty item is dropped; it would refuse every client "
                    "that does not give a name, which are nearly all"
                )
            elif not is_app_name(name):
                lines.append(
                    f'disallowed app names: "{printable(name, 40)}" refuses no client: a name has '
                    f"at most {MAX_APP_NAME_LEN} printable ASCII characters"
                )
        return lines

    def changes(self, other: RelayConfig) -> list[str]:
        """Return the names of the settings that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def with_live_settings(self, other: RelayConfig) -> RelayConfig:
        """Return these settings with the LIVE_SETTINGS of another config."""
        return replace(self, **{name: getattr(other, name) for name in LIVE_SETTINGS})


LIVE_SETTINGS: Final = ("mesh_with", "drain")
"""Settings that `Relay.reload` changes in a running relay."""

_NUMBERS: Final = (
    "accept_limit",
    "accept_burst",
    "write_timeout",
    "tcp_keepalive_time",
    "tcp_user_timeout",
    "tcp_notsent_lowat",
    "drain",
)

_LONGEST_LOGIN: Final = 86_400.0
"""Seconds. The timer wheel counts ticks until a deadline, so the deadline must be finite."""


def _check_number(name: str, value: object, least: int = 0) -> None:
    if not isinstance(value, int | float):
        raise ConfigError(f"{name} is a {type(value).__name__}; want int or float")
    if not value >= least:
        text = "{} is {value}; want {least} or more"
        raise ConfigError(text, settings=(name,), value=value, least=least)


def _check_login_timeout(seconds: float) -> None:
    check_type("login_timeout", seconds, int, float)
    if not 0 < seconds <= _LONGEST_LOGIN:
        raise ConfigError(
            "{} is {seconds:g}; want more than 0 seconds, or no client could log in, and at most "
            "{most:g}, or silent connections would stay",
            settings=("login_timeout",),
            seconds=seconds,
            most=_LONGEST_LOGIN,
        )


def _check_app_names(config: RelayConfig) -> None:
    check_type("disallow_app_names", config.disallow_app_names, tuple, list, set, frozenset)
    object.__setattr__(config, "disallow_app_names", tuple(config.disallow_app_names))
    for name in config.disallow_app_names:
        check_type("an item of disallow_app_names", name, str)
