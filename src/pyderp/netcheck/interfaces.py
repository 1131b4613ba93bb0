"""Finds out from this host's addresses whether it may use IPv4 and IPv6 (`net/netmon`).

On Linux it reads the interfaces from the kernel (rtnetlink(7)); elsewhere it looks for routes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from pyderp.addresses import IPAddress

__all__ = ["HostNetwork", "Interface", "host_network", "judge", "os_has_ipv6", "read_interfaces"]

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBi")  # ifaddrmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr
_NETLINK_ROUTE: Final = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE, _ERROR = 3, 2
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL = 3, 1, 2
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_REPLY: Final = 64 * 1024
_MAX_REPLIES: Final = 1000
_TIMEOUT: Final = 2.0

_GLOBAL_V6: Final = IPv6Network("2000::/3")
_UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
_OVERLAY: Final = IPv6Network("fd7a:115c:a1e0::/48")
"""Addresses inside of a tailnet; relays cannot be reached from them."""
_OVERLAY_NAME: Final = "tailscale"
_VIRTUAL: Final = ("tailscale", "tun", "tap", "docker", "kube", "wg", "ipsec")
"""How the names of virtual interfaces begin. There is no captive portal behind these."""


@dataclass(frozen=True)
class Interface:
    """A network interface of this host."""

    name: str
    up: bool
    loopback: bool
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True)
class HostNetwork:
    """Which address families this host can probably use."""

    have_v4: bool
    """An interface that is up has an IPv4 address that is neither loopback nor link-local."""
    have_v6: bool
    """An interface that is up has a global or unique local IPv6 address."""
    have_interface: bool
    """An interface is up behind which there may be a captive portal."""


def host_network() -> HostNetwork:
    """Return what this host can use, from its interfaces, or from its routes if that fails."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, struct.error, ValueError):
            return judge(read_interfaces())
    have_v4 = _has_route(socket.AF_INET, "192.0.2.1")
    have_v6 = _has_route(socket.AF_INET6, "2001:db8::1")
    return HostNetwork(have_v4, have_v6, have_v4 or have_v6)


def judge(interfaces: list[Interface]) -> HostNetwork:
    """Return what a host with these interfaces can use."""
    up = [each for each in interfaces if each.up and not each.name.startswith(_OVERLAY_NAME)]
    addresses = [address for each in up for address in each.addresses]
    return HostNetwork(
        have_v4=any(_usable_v4(ip) for ip in addresses if ip.version == 4),
        have_v6=any(_usable_v6(ip) for ip in addresses if ip.version == 6),
        have_interface=any(
            each.addresses and not each.loopback and not each.name.startswith(_VIRTUAL)
            for each in up
        ),
    )


def _usable_v4(address: IPv4Address) -> bool:
    return not address.is_loopback and not address.is_link_local


def _usable_v6(address: IPv6Address) -> bool:
    return address in _GLOBAL_V6 or (address in _UNIQUE_LOCAL and address not in _OVERLAY)


def os_has_ipv6() -> bool:
    """Return whether this process can bind UDP to `::1`."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _has_route(family: socket.AddressFamily, host: str) -> bool:
    """Return whether the kernel has a route to an address; nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))
    except OSError:
        return False
    return True


def read_interfaces() -> list[Interface]:
    """Return the interfaces of this process's network namespace. Linux only.

    Raises:
        OSError: the kernel does not answer, or refuses.
        struct.error, ValueError: its answer cannot be read.
    """
    family = socket.AF_NETLINK  # type: ignore[attr-defined, unused-ignore]  # Linux has it
    with socket.socket(family, socket.SOCK_RAW, _NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT)
        links: dict[int, tuple[str, int]] = {}
        for body in _dump(sock, _RTM_GETLINK, _RTM_NEWLINK):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            name = dict(_attributes(body[_LINK.size :])).get(_IFLA_IFNAME, b"")
            links[index] = (name.rstrip(b"\0").decode(errors="replace"), flags)
        addresses: dict[int, list[IPAddress]] = {}
        for body in _dump(sock, _RTM_GETADDR, _RTM_NEWADDR):
            index = _ADDRESS.unpack_from(body)[4]
            found = dict(_attributes(body[_ADDRESS.size :]))
            # On a point-to-point link IFA_ADDRESS is the address of the other end.
            packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
            if packed is not None:
                addresses.setdefault(index, []).append(ip_address(packed))
    return [
        Interface(
            name, bool(flags & _IFF_UP), bool(flags & _IFF_LOOPBACK), tuple(addresses.get(i, ()))
        )
        for i, (name, flags) in links.items()
    ]


def _dump(sock: socket.socket, question: int, wanted: int) -> Iterator[bytes]:
    """Send a dump request to the kernel, and yield the bodies of its messages of one type."""
    sock.send(_HEADER.pack(_HEADER.size + 1, question, _DUMP, question, 0) + b"\0")
    for _ in range(_MAX_REPLIES):
        data = sock.recv(_REPLY)
        while len(data) >= _HEADER.size:
            size, kind, _, serial, _ = _HEADER.unpack_from(data)
            if size < _HEADER.size:
                raise ValueError("a netlink message is shorter than its header")
            if kind == _DONE and serial == question:
                return
            if kind == _ERROR:
                raise OSError("the kernel answers netlink with an error")
            if kind == wanted and serial == question:
                yield data[_HEADER.size : size]
            data = data[size + (-size % 4) :]
    raise OSError(f"netlink sends more than {_MAX_REPLIES} replies")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : size]
        data = data[size + (-size % 4) :]
