"""The destination address of a datagram, so that the answer can leave from it (Linux).

A socket for all addresses answers from the address that the route back prefers. On a host with
several addresses that is often not the address the client sent to, and the client, or a stateful
firewall in between, drops the answer.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, TypeAlias

from pyderp.addresses import unmapped

__all__ = ["ANCILLARY_SIZE", "Ancillary", "AnswerSources", "enable_pktinfo"]

Ancillary: TypeAlias = list[tuple[int, int, bytes]]
"""Control messages of `recvmsg` and for `sendmsg`: level, type, data."""

# The numbers are those of Linux; Python 3.11 lacks the first.
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
# struct in_pktinfo: interface u32, our address for an answer, destination in the header.
_V4_LEN: Final = 12
# struct in6_pktinfo: destination, interface u32.
_V6_LEN: Final = 20
_NO_INTERFACE: Final = bytes(4)
_UNSPECIFIED_V4: Final = bytes(4)
_UNSPECIFIED_V6: Final = bytes(16)
_MAPPED_UNSPECIFIED: Final = bytes.fromhex("00000000000000000000ffff00000000")
_MULTICAST_V4: Final = range(224, 240)
_MULTICAST_V6: Final = 0xFF

ANCILLARY_SIZE: Final = 256
"""Bytes for the control messages of a datagram. These two need 72; others may be switched on for an
inherited socket."""
_MOST_REMEMBERED: Final = 256
"""Most answers' control messages that are kept. A /64 may be routed to this host, so a client can
send to any number of addresses."""


def enable_pktinfo(sock: socket.socket) -> bool:
    """Have the kernel name the destination address of each datagram.

    Args:
        sock: a bound UDP socket.

    Returns:
        whether it does: only on Linux, and only for a socket for all addresses. Others do not
        need it.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform != "linux" or not _is_for_all(sock):
        return False
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    # IP_PKTINFO also for IPv4 on a socket for both families: IPV6_PKTINFO has the destination of
    # the header, which may be a broadcast address, from which nothing can be sent.
    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    return True


def _is_for_all(sock: socket.socket) -> bool:
    host: str = sock.getsockname()[0]
    return unmapped(ip_address(host.partition("%")[0])).is_unspecified


class AnswerSources:
    """Makes the control messages with which `sendmsg` answers from a datagram's destination."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Ancillary] = {}

    def of(self, ancillary: Iterable[tuple[int, int, bytes]]) -> Ancillary | None:
        """Return the control messages of an answer.

        Args:
            ancillary: the control messages of the datagram.

        Returns:
            an empty list if the kernel must choose the source, because the destination was a
            multicast address; `None` if the kernel named no destination.
        """
        found = None
        for level, kind, data in ancillary:
            if kind == _IP_PKTINFO and level == socket.IPPROTO_IP and len(data) >= _V4_LEN:
                found = data
                break  # it has more than an IPV6_PKTINFO beside it
            if kind == _IPV6_PKTINFO and level == socket.IPPROTO_IPV6 and len(data) >= _V6_LEN:
                found = data
        if found is None:
            return None
        source = self._known.get(found)
        if source is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[found] = source = _source(found)
        return source


def _source(pktinfo: bytes) -> Ancillary:
    if len(pktinfo) < _V6_LEN:
        address = pktinfo[4:8]
        if address == _UNSPECIFIED_V4 or address[0] in _MULTICAST_V4:
            return []
        # Without the interface, or the answer would leave by it in spite of the routes.
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _NO_INTERFACE + address + _UNSPECIFIED_V4)]
    address, interface = pktinfo[:16], pktinfo[16:20]
    if address in (_UNSPECIFIED_V6, _MAPPED_UNSPECIFIED) or address[0] == _MULTICAST_V6:
        return []
    if address[0] != 0xFE or address[1] & 0xC0 != 0x80:  # not fe80::/10, link-local
        interface = _NO_INTERFACE
    # A link-local address belongs to an interface. Linux refuses it without one (EINVAL), unless
    # the client's address is link-local as well.
    return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, address + interface)]
