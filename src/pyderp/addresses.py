"""Addresses: IP addresses as text and bytes, and the addresses that settings and logs have."""

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
"""Python knows the older IDNA, which maps these to something else."""


def ip_literal(text: str) -> IPAddress | None:
    """The IP address that a text is, as it is written; `None`: it is none.

    A zone, as in `fe80::1%eth0`, is part of the address.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def parse_ip(text: str) -> IPAddress | None:
    """As `ip_literal`, but the IPv4 address if that is what the IPv6 address contains."""
    address = ip_literal(text)
    return None if address is None else unmapped(address)


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv6 one, or else the address itself (`netip.Addr.Unmap`)."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def unmapped_text(host: str) -> str:
    """An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d`, as `a.b.c.d`."""
    # Called for each connection: parsing the address would take ten times as long.
    return host.removeprefix("::ffff:") if "." in host else host


def as_16_bytes(address: IPAddress) -> bytes:
    """An address as IPv6, IPv4 mapped into it; without the zone (`netip.Addr.As16`)."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def bracketed(host: str) -> str:
    """A host as it stands before a port or in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def format_address(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs (`net.JoinHostPort`)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Split `:port`, `ip:port` or `[ip]:port` into host and port, as `derper` takes them.

    Raises:
        ConfigError: no port, or one that is none.
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
            raise ConfigError(f"invalid server address {text!r}: {port_text!r} is no port number")
        port = int(port_text)
    return host, port


def unix_path(address: str) -> Path | None:
    """The path of `unix:/path`; `None` for any other address.

    Raises:
        ConfigError: no absolute path.
    """
    if not address.startswith("unix:"):
        return None
    path = Path(address.removeprefix("unix:"))
    if not path.is_absolute():
        raise ConfigError(f"invalid server address {address!r}: want unix:/absolute/path")
    return path


def is_loopback(address: str) -> bool:
    """Whether an address to listen on can be reached from this machine only.

    Raises:
        ConfigError: the address cannot be read.
    """
    if unix_path(address) is not None:
        return False
    ip = parse_ip(parse_address(address)[0])
    return ip is not None and ip.is_loopback


def check_host_name(hostname: str) -> None:
    """Refuse what is neither a host name nor an IP address.

    Raises:
        ConfigError: it is neither.
    """
    if parse_ip(hostname) is None and not _HOST_NAME.fullmatch(hostname):
        raise ConfigError(f"{hostname!r} is neither a host name nor an IP address")


def bare_name(hostname: str) -> str:
    """A name as it is compared: DNS knows no case, and a dot at the end changes nothing."""
    return hostname.lower().removesuffix(".")


def normal_name(hostname: str) -> str:
    """A DNS name as certificates and clients spell it: lower case, ASCII, no dot at its end.

    Raises:
        ConfigError: it is none.
    """
    name = bare_name(hostname)
    if not name.isascii():
        if _DIFFERENT_IN_IDNA.intersection(name):
            raise ConfigError(f"hostname {hostname!r}: give it in its ASCII form (xn--…)")
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as e:
            text = f"hostname {hostname!r} is no international name: {name_words(e)}"
            raise ConfigError(text) from e
    check_host_name(name)
    return name
