"""IP addresses, from text and as bytes."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

__all__ = ["IPAddress", "as_16_bytes", "parse_ip", "unmapped"]

IPAddress: TypeAlias = IPv4Address | IPv6Address


def parse_ip(text: str) -> IPAddress | None:
    """The IP address that a text is, IPv4 if it is that inside IPv6; `None`: it is none.

    A zone, as in `fe80::1%eth0`, is part of the address.
    """
    try:
        return unmapped(ipaddress.ip_address(text))
    except ValueError:
        return None


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv6 one, or else the address itself (`netip.Addr.Unmap`)."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def as_16_bytes(address: IPAddress) -> bytes:
    """An address as IPv6, IPv4 mapped into it; without the zone (`netip.Addr.As16`)."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed
