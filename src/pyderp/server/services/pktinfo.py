"""To which of our addresses a datagram came, so that the answer can leave from there (Linux).

A socket for all addresses answers from the address that the route back prefers. On a host with
several addresses that is often another one than the client asked, and the client, or a
firewall in between that follows connections, drops such an answer.
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
"""Control messages: level, type, data; of `recvmsg`, and for `sendmsg`."""

# Python 3.11 does not know the first; the numbers are those of Linux.
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
"""Bytes for the control messages of a datagram. The two need 72; an inherited socket may
have others switched on."""
_MOST_REMEMBERED: Final = 256
"""A /64 may be routed to this host, so a client can ask any number of addresses."""


def enable_pktinfo(sock: socket.socket) -> bool:
    """Have the kernel tell for each datagram to which of our addresses it came.

    Args:
        sock: a bound UDP socket.

    Returns:
        whether it does. Not for a socket with one address, which needs no such thing, and
        not on other systems than Linux.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform != "linux" or not _is_for_all(sock):
        return False
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    # For IPv4 on a socket for both families, too: IPV6_PKTINFO has the destination as it stands
    # in the header, and nothing can be sent from a broadcast address.
    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    return True


def _is_for_all(sock: socket.socket) -> bool:
    host: str = sock.getsockname()[0]
    return unmapped(ip_address(host.partition("%")[0])).is_unspecified


class AnswerSources:
    """Makes what `sendmsg` needs to answer a datagram from the address that it came to."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Ancillary] = {}

    def of(self, ancillary: Iterable[tuple[int, int, bytes]]) -> Ancillary | None:
        """The control messages of an answer.

        Args:
            ancillary: the control messages of the datagram.

        Returns:
            an empty list: let the kernel choose, as a datagram came to no address that one
            could send from; `None`: the kernel named no address.
        """
        found = None
        for level, kind, data in ancillary:
            if kind == _IP_PKTINFO and level == socket.IPPROTO_IP and len(data) >= _V4_LEN:
                found = data
                break  # beside it an IPV6_PKTINFO says less
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
        # With an interface the answer would leave there, whatever the routes say.
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _NO_INTERFACE + address + _UNSPECIFIED_V4)]
    address, interface = pktinfo[:16], pktinfo[16:20]
    if address in (_UNSPECIFIED_V6, _MAPPED_UNSPECIFIED) or address[0] == _MULTICAST_V6:
        return []
    if address[0] != 0xFE or address[1] & 0xC0 != 0x80:  # not fe80::/10, link-local
        interface = _NO_INTERFACE
    # else the address belongs to an interface, and Linux refuses it without: EINVAL, unless
    # the client's address is link-local as well.
    return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, address + interface)]
