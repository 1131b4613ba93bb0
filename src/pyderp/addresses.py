"""IP addresses as text and bytes; `host:port` and host names as settings and logs contain them."""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, TypeAlias

from pyderp.errors import ConfigError
from pyderp.text import name_words

__all__ = [
    "IPAddress",
    "as_16_bytes",
    "bare_name",
    "bracketed",
    "check_host_name",
    "format_address",
    "ip_literal",
    "is_loopback",
    "normal_name",
    "parse_address",
    "parse_ip",
    "unix_path",
    "unmapped",
    "unmapped_text",
]

IPAddress: TypeAlias = IPv4Address | IPv6Address

_NAMED_PORTS: Final = {"http": 80, "https": 443}
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_DIFFERENT_IN_IDNA: Final = frozenset("ßς\u200c\u200d")
"""Python's codec is of IDNA 2003, which maps these characters to others; IDNA 2008 keeps them. So
a name with one of them would mean another host than in a browser."""


def ip_literal(text: str) -> IPAddress | None:
    """Returns a text as an IP address, or `None` if it is none.

    An IPv4 address inside an IPv6 one stays there (`parse_ip` takes it out). A zone, as in
    `fe80::1%eth0`, is part of the address.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def parse_ip(text: str) -> IPAddress | None:
    """As `ip_literal`, but of an IPv6 address that contains an IPv4 one returns that."""
    address = ip_literal(text)
    return None if address is None else unmapped(address)


def unmapped(address: IPAddress) -> IPAddress:
    """Returns the IPv4 address inside an IPv6 one, or else the address (`netip.Addr.Unmap`)."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def unmapped_text(host: str) -> str:
    """Returns `a.b.c.d` of the `::ffff:a.b.c.d` that a dual-stack socket shows."""
    # Called for each connection: parsing the address would take ten times as long.
    return host.removeprefix("::ffff:") if "." in host else host


def as_16_bytes(address: IPAddress) -> bytes:
    """Returns an address as 16 bytes, IPv4 mapped into IPv6; without zone (`netip.Addr.As16`)."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def bracketed(host: str) -> str:
    """Returns a host as it stands before a port or in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def format_address(host: str, port: int) -> str:
    """Returns `host:port`, with the brackets that an IPv6 address needs (`net.JoinHostPort`)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Split `:port`, `ip:port` or `[ip]:port` into host and port, as `derper` takes them.

    Raises:
        ConfigError: the port is missing or is none, or the brackets of IPv6 are.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise ConfigError(f"invalid server address {text!r}: want HOST:PORT, [IPv6]:PORT or :PORT")
    if host.startswith("[") != host.endswith("]"):
        raise ConfigError(f"invalid server address {text!r}: a bracket is missing")
    host = host.removeprefix("[").removesuffix("]")
    port = _NAMED_PORTS.get(port_text)
    if port is None:
        # Five digits at most: Python refuses to read very long numbers.
        digits = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
        if not digits or int(port_text) > 65535:
            raise ConfigError(
                f"invalid server address {text!r}: {port_text!r} is not a port number"
            )
        port = int(port_text)
    return host, port


def unix_path(address: str) -> Path | None:
    """Returns the path of `unix:/path`, or `None` for any other address.

    Raises:
        ConfigError: the path is not absolute.
    """
    if not address.startswith("unix:"):
        return None
    path = Path(address.removeprefix("unix:"))
    if not path.is_absolute():
        raise ConfigError(f"invalid server address {address!r}: want unix:/absolute/path")
    return path


def is_loopback(address: str) -> bool:
    """Whether an address to listen on can be reached from this machine only.

    False for a Unix socket: behind it may be a proxy that other machines reach.
    Raises:
        ConfigError: the address cannot be read.
    """
    if unix_path(address) is not None:
        return False
    ip = parse_ip(parse_address(address)[0])
    return ip is not None and ip.is_loopback


def check_host_name(hostname: str) -> None:
    """Refuse a text that is neither a host name nor an IP address.

    Raises:
        ConfigError: it is neither.
    """
    if parse_ip(hostname) is None and not _HOST_NAME.fullmatch(hostname):
        raise ConfigError(f"{hostname!r} is neither a host name nor an IP address")


def bare_name(hostname: str) -> str:
    """Returns a name as it is compared: DNS ignores case and a dot at the end."""
    return hostname.lower().removesuffix(".")


def normal_name(hostname: str) -> str:
    """Returns a DNS name as certificates and clients spell it: lower case, ASCII, no final dot.

    Raises:
        ConfigError: it is not a DNS name.
    """
    name = bare_name(hostname)
    if not name.isascii():
        if _DIFFERENT_IN_IDNA.intersection(name):
            raise ConfigError(f"hostname {hostname!r}: write it in its ASCII form (xn--…)")
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as e:
            text = f"hostname {hostname!r} is not an international name: {name_words(e)}"
            raise ConfigError(text) from e
    check_host_name(name)
    return name
