"""ICMP echo over a ping socket, which needs no privilege if the kernel allows it.

On Linux `net.ipv4.ping_group_range` holds the groups that may open one. The kernel sets identifier
and checksum, and delivers only the answers to this socket's own echoes (icmp(7)).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from pyderp.errors import DialError, FailureReason

__all__ = ["NotPermitted", "Pinger", "echo_answer_untrusted", "pack_echo"]

_HEAD: Final = struct.Struct(">BBHHH")  # type, code, checksum, identifier, sequence
_ECHO, _ECHO_REPLY = 8, 0
_MAX: Final = 1500
_BATCH: Final = 64


class NotPermitted(DialError):
    """The kernel does not let this process open a ping socket."""


def pack_echo(sequence: int, payload: bytes) -> bytes:
    """Return an echo request (RFC 792) with identifier 0, which the kernel replaces."""
    head = _HEAD.pack(_ECHO, 0, 0, 0, sequence)
    return _HEAD.pack(_ECHO, 0, _checksum(head + payload), 0, sequence) + payload


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_answer_untrusted(packet: bytes) -> tuple[int, bytes] | None:
    """Return sequence and payload of an echo reply, or `None` if the packet is not one.

    It may begin with an IPv4 header.
    """
    # macOS includes the IPv4 header. Its first byte is 0x4x, which is not an assigned ICMP type.
    if packet and packet[0] >> 4 == 4:
        packet = packet[(packet[0] & 0xF) * 4 :]
    if len(packet) < _HEAD.size:
        return None
    kind, code, _, _, sequence = _HEAD.unpack_from(packet)
    if kind != _ECHO_REPLY or code != 0:
        return None
    return sequence, packet[_HEAD.size :]


def ping_socket() -> socket.socket:
    """Open a socket for ICMP echoes over IPv4, without privilege.

    Raises:
        OSError: the kernel refuses it.
    """
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)


class Pinger:
    """Sends ICMP echoes over IPv4 from one ping socket; `close` it after use.

    Args:
        open_socket: opens the socket.

    Raises:
        NotPermitted: the kernel refuses the socket; the error says how to allow it.
    """

    def __init__(self, open_socket: Callable[[], socket.socket] = ping_socket) -> None:
        try:
            self._sock = open_socket()
        except OSError as e:
            raise NotPermitted(
                f"the kernel does not let this process open a ping socket ({e.strerror}); on Linux "
                "the sysctl net.ipv4.ping_group_range holds the groups that may"
            ) from e
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._waiting: dict[int, tuple[bytes, asyncio.Future[int]]] = {}
        self._sequence = 0
        self._loop.add_reader(self._sock, self._on_readable)

    def close(self) -> None:
        """Close the socket, and cancel each `ping` that is waiting."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        for _, answer in self._waiting.values():
            answer.cancel()
        self._waiting.clear()

    async def ping(self, address: str, payload: bytes) -> int:
        """Send an echo and return its round trip in nanoseconds. There is no time limit here.

        Raises:
            DialError: the kernel cannot send, or 65,535 echoes are under way.
        """
        sequence = self._sequence = self._sequence % 0xFFFF + 1
        if sequence in self._waiting:
            raise DialError("too many ICMP echoes at once", reason=FailureReason.UNREACHABLE)
        answer: asyncio.Future[int] = self._loop.create_future()
        self._waiting[sequence] = payload, answer
        began = time.perf_counter_ns()
        try:
            self._sock.sendto(pack_echo(sequence, payload), (address, 0))
            return await answer - began
        except OSError as e:
            raise DialError(f"cannot send ICMP to {address}: {e.strerror or e}") from e
        finally:
            self._waiting.pop(sequence, None)

    def _on_readable(self) -> None:
        for _ in range(_BATCH):
            try:
                packet = self._sock.recv(_MAX)
            except OSError:
                return
            now = time.perf_counter_ns()
            found = echo_answer_untrusted(packet)
            if found is None:
                continue
            payload, answer = self._waiting.get(found[0], (b"", None))
            if answer is not None and payload == found[1] and not answer.done():
                answer.set_result(now)
