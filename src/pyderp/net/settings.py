"""Proxies and socket options, from the environment or set by a program.

The rules which destination goes through a proxy are those of Go's
`golang.org/x/net/http/httpproxy`, for SOCKS as well.
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
    """Proxies, socket options and switches. A setting that is empty or `None` is not used."""

    proxy: str = ""
    """A proxy for every connection, to URLs and regions: `http://`, `https://` (CONNECT) or
    `socks5://`, `socks5h://`; `[user:password@]host[:port]`. Used in place of those below."""

    https_proxy: str = ""
    """CONNECT proxy for regions, and for websockets over TLS [HTTPS_PROXY]."""

    http_proxy: str = ""
    """CONNECT proxy for websockets without TLS [HTTP_PROXY]."""

    all_proxy: str = ""
    """SOCKS5 proxy for connections without another proxy [ALL_PROXY]; other schemes are ignored."""

    no_proxy: str = ""
    """Hosts that are connected to directly [NO_PROXY]; not for `proxy`."""

    proxy_authorization: str = ""
    """Value of `Proxy-Authorization`, in place of Basic [TS_DEBUG_FAKE_PROXY_AUTH]."""

    socket_mark: int | None = None
    """SO_MARK on every socket but loopback's. Linux; needs CAP_NET_ADMIN."""

    bind_device: str | None = None
    """Interface that every socket but loopback's is bound to (SO_BINDTODEVICE). Linux.
    `TS_FORCE_LINUX_BIND_TO_DEVICE` sets it to the one of the default route
    (`default_route_device`)."""

    before_connect: Callable[[socket.socket], None] | None = None
    """Called with each socket before it connects, loopback's included."""

    use_derp_http: bool = False
    """No TLS, whatever the URL says; regions on port 3340 [TS_DEBUG_USE_DERP_HTTP]."""

    websocket: bool = False
    """DERP inside a websocket [TS_DEBUG_DERP_WS_CLIENT]."""

    verbose_tls: bool = False
    """Log the certificates that a server presents [TS_DEBUG_TLS_DIAL]."""

    debug_dns: bool = False
    """Log each look-up [TS_DEBUG_DNS_CACHE]."""

    keylog_file: str = ""
    """TLS secrets are appended to this file [SSLKEYLOGFILE]."""

    def __post_init__(self) -> None:
        """Refuse values of a wrong type.

        Raises:
            ConfigError: the text names the setting, and never contains its value.
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
        """Read the environment as Go's client does; names of proxies also in lower case.

        Args:
            environ: by default the environment of the process.

        Raises:
            ConfigError: a switch is neither true nor false, or the device of the default route is
                to be used and there is none.
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
        """Returns the settings that differ from the defaults, without users and passwords."""
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
    """Returns a proxy's URL with `***` for user and password, also of a malformed URL."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def default_route_device(routes: Path = _ROUTES) -> str:
    """Returns the interface of the IPv4 default route with the lowest metric.

    Read from `/proc/net/route`, the kernel's main table: routes of a VPN in a table of its own
    do not count. Later changes of the route are not noticed.

    Raises:
        ConfigError: there is no such route, or the system is not Linux.
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
    """A proxy. Its `repr` shows neither user nor password."""

    scheme: str
    """`http`, `https`, `socks5` or `socks5h`."""
    host: str
    port: int
    user: str = ""
    password: str | None = None

    @property
    def is_socks(self) -> bool:
        """Whether the proxy speaks SOCKS5, and not HTTP CONNECT."""
        return self.scheme.startswith("socks5")

    @property
    def redacted(self) -> str:
        """Its URL without user and password, for logs and errors."""
        userinfo = "***@" if self.user or self.password else ""
        return f"{self.scheme}://{userinfo}{format_address(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"<Proxy {self.redacted}>"


def parse_proxy(text: str) -> Proxy:
    """Read a proxy's URL, or `[user:password@]host[:port]`, which means `http`.

    Raises:
        ConfigError: no such URL, or its scheme is not supported. The error repeats no part of the
            text: if it cannot be read, any part may be a password.
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
        raise ConfigError(f"proxy: its port is not a number from 1 to 65535; {_WANT}") from None
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
    """Returns the proxy in `settings.proxy`, which is for every destination.

    Raises:
        ConfigError: it cannot be used.
    """
    return parse_proxy(settings.proxy) if settings.proxy else None


def connect_proxy_from_environment(
    settings: NetworkSettings, host: str, port: int, *, tls: bool
) -> Proxy | None:
    """Returns HTTPS_PROXY (with `tls`) or HTTP_PROXY, unless the destination is exempt.

    A value that cannot be used is ignored, with a warning in the log.
    """
    name = "https_proxy" if tls else "http_proxy"
    return _from_environment(settings, name, host, port, level=logging.WARNING)


def socks_proxy_from_environment(settings: NetworkSettings, host: str, port: int) -> Proxy | None:
    """Returns ALL_PROXY if it is SOCKS5, unless the destination is exempt."""
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
    """Whether a host is reached without a proxy: it is on this machine, or NO_PROXY names it.

    Args:
        no_proxy: entries separated by commas: an IP address, a domain (it and its subdomains),
            `.domain` or `*.domain` (its subdomains only), each with `:port` to exempt that port
            only; a CIDR block; `*` for all hosts.
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
    """Returns host and port of `host:port` and `[ipv6]:port`; otherwise the port is `""`."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""


def _ascii(host: str) -> str:
    """Returns a name in DNS's ASCII form (IDNA), or in lower case if it has none."""
    try:
        dot = "." if host.startswith(".") else ""  # the codec refuses an empty label
        return dot + host.removeprefix(".").lower().encode("idna").decode("ascii")
    except UnicodeError:
        return host.lower()
