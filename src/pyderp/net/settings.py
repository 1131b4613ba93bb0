"""How to leave this machine: what the environment says, what a program sets, and which proxy.

Which destination goes through which proxy is decided as in Go's `golang.org/x/net/http/httpproxy`,
for SOCKS as well.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pyderp.addresses import IPAddress, format_address, parse_ip
from pyderp.arguments import check_callable, check_type
from pyderp.errors import ConfigError

__all__ = [
    "NetworkSettings",
    "Proxy",
    "connect_proxy_from_environment",
    "default_route_device",
    "explicit_proxy",
    "is_exempt",
    "parse_proxy",
    "socks_proxy_from_environment",
    "without_userinfo",
]

_log = logging.getLogger("pyderp.net")

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_WANT: Final = "want [http://][USER:PASSWORD@]HOST[:PORT]"
_BAD: Final = re.compile(r"[\x00-\x20\x7f]")
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"", "0", "f", "F", "FALSE", "false", "False"})
_ROUTES: Final = Path("/proc/net/route")
_RTF_UP: Final = 0x1
_RTF_REJECT: Final = 0x200


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Proxies, socket options and switches. Empty or `None` means: not used."""

    proxy: str = ""
    """A proxy for every connection, in URL and region mode: `http://`, `https://` (CONNECT) or
    `socks5://`, `socks5h://`; `[user:password@]host[:port]`. Overrides those below."""

    https_proxy: str = ""
    """CONNECT proxy for regions, and for websockets over TLS [HTTPS_PROXY]."""

    http_proxy: str = ""
    """CONNECT proxy for websockets without TLS [HTTP_PROXY]."""

    all_proxy: str = ""
    """SOCKS5 proxy for what no other proxy is for [ALL_PROXY]; other schemes: direct."""

    no_proxy: str = ""
    """Hosts that are reached directly [NO_PROXY]. Does not hold for `proxy`."""

    proxy_authorization: str = ""
    """`Proxy-Authorization` verbatim, instead of Basic [TS_DEBUG_FAKE_PROXY_AUTH]."""

    socket_mark: int | None = None
    """SO_MARK on every socket but loopback's. Linux; needs CAP_NET_ADMIN."""

    bind_device: str | None = None
    """Interface that every socket but loopback's is bound to (SO_BINDTODEVICE). Linux.
    `TS_FORCE_LINUX_BIND_TO_DEVICE` sets it to that of the default route, see
    `default_route_device`."""

    before_connect: Callable[[socket.socket], None] | None = None
    """Called with each socket before it connects, loopback's included."""

    use_derp_http: bool = False
    """No TLS, whatever the URL says; regions on port 3340 [TS_DEBUG_USE_DERP_HTTP]."""

    websocket: bool = False
    """DERP inside a websocket [TS_DEBUG_DERP_WS_CLIENT]."""

    verbose_tls: bool = False
    """Log what certificate verification saw [TS_DEBUG_TLS_DIAL]."""

    debug_dns: bool = False
    """Log each look-up [TS_DEBUG_DNS_CACHE]."""

    keylog_file: str = ""
    """TLS secrets are appended to this file [SSLKEYLOGFILE]."""

    def __post_init__(self) -> None:
        """Refuse what is of a wrong type.

        Raises:
            ConfigError: the text names the setting, and never has its value.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "before_connect":
                check_callable(item.name, value)
            elif item.name == "socket_mark":
                check_type(item.name, value, int, type(None))
            elif item.name == "bind_device":
                check_type(item.name, value, str, type(None))
            else:
                check_type(item.name, value, type(item.default))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> NetworkSettings:
        """Read the environment as Go's client does; lower-case names of proxies hold, too.

        Args:
            environ: by default the process's.

        Raises:
            ConfigError: a switch that is neither true nor false, or a default route is
                asked for and there is none.
        """
        environ = os.environ if environ is None else environ

        def proxy(name: str) -> str:
            return environ.get(name) or environ.get(name.lower(), "")

        bind = _switch(environ, "TS_FORCE_LINUX_BIND_TO_DEVICE")
        return cls(
            https_proxy=proxy("HTTPS_PROXY"),
            http_proxy=proxy("HTTP_PROXY"),
            all_proxy=proxy("ALL_PROXY"),
            no_proxy=proxy("NO_PROXY"),
            proxy_authorization=environ.get("TS_DEBUG_FAKE_PROXY_AUTH", ""),
            bind_device=default_route_device() if bind else None,
            use_derp_http=_switch(environ, "TS_DEBUG_USE_DERP_HTTP"),
            websocket=_switch(environ, "TS_DEBUG_DERP_WS_CLIENT"),
            verbose_tls=_switch(environ, "TS_DEBUG_TLS_DIAL"),
            debug_dns=_switch(environ, "TS_DEBUG_DNS_CACHE"),
            keylog_file=environ.get("SSLKEYLOGFILE", ""),
        )

    def __repr__(self) -> str:
        """What differs from the defaults, without users and passwords."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            if item.name == "proxy_authorization":
                value = "***"
            elif item.name in ("proxy", "https_proxy", "http_proxy", "all_proxy"):
                value = without_userinfo(value)
            shown.append(f"{item.name}={value!r}")
        return f"NetworkSettings({', '.join(shown)})"


def without_userinfo(url: str) -> str:
    """A proxy's URL with `***` for user and password, however odd the URL is."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def default_route_device(routes: Path = _ROUTES) -> str:
    """The interface of the IPv4 default route with the lowest metric, as of now.

    Read from `/proc/net/route`, the kernel's main table: the routes of a VPN in tables of
    its own do not count. Later changes of the route are not noticed.

    Raises:
        ConfigError: no such route, or not Linux.
    """
    try:
        lines = routes.read_text("ascii").splitlines()[1:]
    except OSError as e:
        raise ConfigError(f"no default route: cannot read {routes}: {e.strerror}") from e
    found = []
    for line in lines:
        device, destination, _, flags, _, _, metric, mask, *_ = line.split()
        usable = int(flags, 16) & (_RTF_UP | _RTF_REJECT) == _RTF_UP
        if usable and int(destination, 16) == int(mask, 16) == 0:
            found.append((int(metric), device))
    if not found:
        raise ConfigError(f"no default route in {routes}, so no device to bind to")
    return min(found)[1]


def _switch(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ConfigError(f"{name}={value!r} is neither true nor false: use 1 or 0")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A proxy; printing it shows neither user nor password."""

    scheme: str
    """`http`, `https`, `socks5` or `socks5h`."""
    host: str
    port: int
    user: str = ""
    password: str | None = None

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS5, and not HTTP CONNECT."""
        return self.scheme.startswith("socks5")

    @property
    def redacted(self) -> str:
        """Its URL, for logs and errors."""
        userinfo = "***@" if self.user or self.password else ""
        return f"{self.scheme}://{userinfo}{format_address(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"<Proxy {self.redacted}>"


def parse_proxy(text: str) -> Proxy:
    """Read a proxy's URL, or `[user:password@]host[:port]`, which means `http`.

    Raises:
        ConfigError: not a proxy, or of a kind that is not known. The text has nothing of what
            was given: in what cannot be read, a password cannot be told from the rest.
    """
    if _BAD.search(text):
        raise ConfigError(f"proxy: spaces or control characters in it; {_WANT}")
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:
        raise ConfigError(f"proxy: not a URL; {_WANT}") from None
    try:
        host, port = url.hostname, url.port
    except ValueError:
        raise ConfigError(f"proxy: its port is no number from 1 to 65535; {_WANT}") from None
    if url.scheme not in _DEFAULT_PORTS:
        kinds = ", ".join(_DEFAULT_PORTS)
        raise ConfigError(f"proxy: its scheme is none of {kinds}")
    if not host or port == 0:
        raise ConfigError(f"proxy: no {'port' if host else 'host'}; {_WANT}")
    return Proxy(
        scheme=url.scheme,
        host=host,
        port=_DEFAULT_PORTS[url.scheme] if port is None else port,
        user=unquote(url.username or ""),
        password=None if url.password is None else unquote(url.password),
    )


def explicit_proxy(settings: NetworkSettings) -> Proxy | None:
    """The proxy that the program itself has set, for every destination.

    Raises:
        ConfigError: it cannot be used.
    """
    return parse_proxy(settings.proxy) if settings.proxy else None


def connect_proxy_from_environment(
    settings: NetworkSettings, host: str, port: int, *, tls: bool
) -> Proxy | None:
    """HTTPS_PROXY or HTTP_PROXY, unless the destination is exempt.

    A value that cannot be used counts as none, with a warning.
    """
    name = "https_proxy" if tls else "http_proxy"
    return _from_environment(settings, name, host, port, level=logging.WARNING)


def socks_proxy_from_environment(settings: NetworkSettings, host: str, port: int) -> Proxy | None:
    """ALL_PROXY if it is for SOCKS5, unless the destination is exempt; others count as none."""
    proxy = _from_environment(settings, "all_proxy", host, port, level=logging.DEBUG)
    return proxy if proxy is not None and proxy.is_socks else None


def _from_environment(
    settings: NetworkSettings, name: str, host: str, port: int, *, level: int
) -> Proxy | None:
    text = getattr(settings, name)
    if not text or is_exempt(settings.no_proxy, host, port):
        return None
    try:
        return parse_proxy(text)
    except ConfigError as e:
        _log.log(level, "ignoring %s: %s", name.upper(), e)
        return None


def is_exempt(no_proxy: str, host: str, port: int) -> bool:
    """Whether NO_PROXY, or being on this machine, keeps `host` from proxies.

    Args:
        no_proxy: entries with commas between them: an IP address, a domain (itself and what
            is below), `.domain` or `*.domain` (only what is below), each with a `:port` if
            only that is meant; a CIDR block; `*` for all hosts.
    """
    name = _ascii(host)
    address = parse_ip(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return any(_matches(entry, name, address, port) for entry in entries if entry)


def _matches(entry: str, name: str, address: IPAddress | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        return False
    entry_host, entry_port = _split_port(entry)
    if entry_port not in ("", str(port)) or not entry_host:
        return False
    entry_address = parse_ip(entry_host)
    if entry_address is not None:
        return entry_address == address
    entry_host = entry_host.removeprefix("*")
    below = _ascii(entry_host if entry_host.startswith(".") else f".{entry_host}")
    return name.endswith(below) or (not entry_host.startswith(".") and f".{name}" == below)


def _split_port(entry: str) -> tuple[str, str]:
    """Host and port of `host:port`, `[ipv6]:port`; port `""` of anything else."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""


def _ascii(host: str) -> str:
    """How DNS spells a name; what it cannot spell stays as it is."""
    try:
        dot = "." if host.startswith(".") else ""  # no label, so no name for the codec
        return dot + host.removeprefix(".").lower().encode("idna").decode("ascii")
    except UnicodeError:
        return host.lower()
