"""Which proxy a destination is reached through, if any.

The rules are those of Go's `golang.org/x/net/http/httpproxy`, for SOCKS as well.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from pyderp.addresses import IPAddress, format_address, parse_ip
from pyderp.errors import ConfigError
from pyderp.net.settings import NetworkSettings

__all__ = [
    "Proxy",
    "connect_proxy_from_environment",
    "explicit_proxy",
    "is_exempt",
    "parse_proxy",
    "socks_proxy_from_environment",
]

_log = logging.getLogger("pyderp.net")

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_WANT: Final = "want [http://][USER:PASSWORD@]HOST[:PORT]"
_BAD: Final = re.compile(r"[\x00-\x20\x7f]")


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
    text = settings.https_proxy if tls else settings.http_proxy
    if not text or is_exempt(settings.no_proxy, host, port):
        return None
    try:
        return parse_proxy(text)
    except ConfigError as e:
        _log.warning("ignoring %s: %s", "HTTPS_PROXY" if tls else "HTTP_PROXY", e)
        return None


def socks_proxy_from_environment(settings: NetworkSettings, host: str, port: int) -> Proxy | None:
    """ALL_PROXY if it is for SOCKS5, unless the destination is exempt; others count as none."""
    text = settings.all_proxy
    if not text or is_exempt(settings.no_proxy, host, port):
        return None
    try:
        proxy = parse_proxy(text)
    except ConfigError as e:
        _log.debug("ignoring ALL_PROXY: %s", e)
        return None
    return proxy if proxy.is_socks else None


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
        return address is not None and _in_block(entry, address)
    entry_host, entry_port = _split_port(entry)
    if entry_port not in ("", str(port)) or not entry_host:
        return False
    entry_address = parse_ip(entry_host)
    if entry_address is not None:
        return entry_address == address
    entry_host = entry_host.removeprefix("*")
    below = _ascii(entry_host if entry_host.startswith(".") else f".{entry_host}")
    return name.endswith(below) or (not entry_host.startswith(".") and f".{name}" == below)


def _in_block(entry: str, address: IPAddress) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


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
