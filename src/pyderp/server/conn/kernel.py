"""What the kernel tells of a connection and of this process.

`struct tcp_info` is that of Linux 4.19 and newer. Elsewhere most answers are "unknown".
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "NON_TCP",
    "HasOptions",
    "TCPInfo",
    "Unanswered",
    "open_files",
    "raise_file_limit",
    "rtt_label",
    "rtt_sample",
    "tcp_info",
    "unacknowledged",
    "unanswered",
]

log = logging.getLogger("pyderp.relay")

try:
    import fcntl
    import termios

    _SIOCOUTQ = termios.TIOCOUTQ
except (ImportError, AttributeError):  # not a POSIX system
    _SIOCOUTQ = 0

# Offsets in bytes: tcpi_rtt 68 (u32, microseconds), tcpi_bytes_received 128 (u64),
# tcpi_bytes_sent 200 (u64).
_FIELDS: Final = struct.Struct("=68xI56xQ64xQ")
# tcpi_retransmits 2 (u8), tcpi_probes 3 (u8), tcpi_last_data_sent 44 and tcpi_last_ack_recv 56
# (u32, milliseconds ago).
_ANSWERS: Final = struct.Struct("=2xBB40xI8xI")
_TRIES: Final = 3
"""Linux may leave one without an answer: it limits the acknowledgements of what it drops."""
_OPTION: Final = getattr(socket, "TCP_INFO", 11)
_RTT_LABELS: Final = (
    (0.010, "10ms"),
    (0.020, "20ms"),
    (0.050, "50ms"),
    (0.100, "100ms"),
    (0.150, "150ms"),
    (0.250, "250ms"),
    (0.500, "500ms"),
)
NON_TCP: Final = "non-tcp"
"""The label of a connection that has no round-trip time, by a Unix socket."""


class HasOptions(Protocol):
    """A socket, or what an event loop shows of one."""

    @property
    def family(self) -> int:
        """Its address family."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Its option's value."""


@dataclass(frozen=True, slots=True)
class TCPInfo:
    """One connection, at one moment."""

    rtt: float
    """Smoothed round-trip time, in seconds."""

    sent: int
    """Bytes that were sent, those sent again included."""

    received: int
    """Bytes that came in order."""


def tcp_info(transport: asyncio.BaseTransport | None) -> TCPInfo | None:
    """What the kernel says of a transport's socket; `None`: nothing, as it is closed, not TCP,
    or not on Linux."""
    if transport is None or transport.is_closing():
        return None
    sock: HasOptions | None = transport.get_extra_info("socket")
    return None if sock is None else _ask(sock)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What the kernel waits for on one connection, at one moment."""

    sent_again: bool
    """It sent data again, or probed a closed window, several times without an answer."""

    last_answer: float
    """Seconds since the last acknowledgement."""


def unanswered(transport: asyncio.BaseTransport | None) -> Unanswered | None:
    """What the kernel waits for on a transport's socket; `None` as in `tcp_info`."""
    if transport is None or transport.is_closing():
        return None
    sock: HasOptions | None = transport.get_extra_info("socket")
    data = None if sock is None else _option(sock, _ANSWERS.size)
    if data is None:
        return None
    retransmits, probes, last_sent, last_answer = _ANSWERS.unpack(data)
    # A client whose buffer is full drops what is sent again, and acknowledges that: only what
    # was sent after the last acknowledgement is unanswered. Probes are counted so already.
    if last_sent >= last_answer:
        retransmits = 0
    return Unanswered(max(retransmits, probes) >= _TRIES, last_answer / 1e3)


def _ask(sock: HasOptions) -> TCPInfo | None:
    data = _option(sock, _FIELDS.size)
    if data is None:
        return None
    rtt, received, sent = _FIELDS.unpack(data)
    return TCPInfo(rtt / 1e6, sent, received)


def _option(sock: HasOptions, size: int) -> bytes | None:
    """The first `size` bytes of `struct tcp_info`."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, _OPTION, size)
    except OSError:
        return None  # closed meanwhile
    return data if len(data) == size else None


def rtt_sample(sock: HasOptions) -> float | None:
    """The round-trip time of a TCP connection in seconds; `None`: the kernel does not tell."""
    info = _ask(sock)
    return None if info is None else info.rtt


def rtt_label(seconds: float | None) -> str:
    """The label of `derp_tcp_rtt` that a sample counts in; `error` for none."""
    if seconds is None:
        return "error"
    for bound, label in _RTT_LABELS:
        if seconds <= bound:
            return label
    return "inf"


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Bytes in the kernel's send buffer that the peer has yet to acknowledge (SIOCOUTQ).

    0 where the system does not tell.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not _SIOCOUTQ:
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0  # closed meanwhile
    return int.from_bytes(answer, sys.byteorder)


def open_files() -> int:
    """File descriptors that this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # one is the listing's own
    except OSError:
        return 0


def raise_file_limit() -> None:
    """Allow this process as many file descriptors as it may allow itself; Go does so, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as e:
            log.debug("the limit of open files stays at %d: %s", soft, e)
