"""What the kernel tells of connections and of this process.

`struct tcp_info` is that of Linux 4.19 and newer. Elsewhere most answers are "unknown".
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import resource
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

__all__ = [
    "NON_TCP",
    "TCPInfo",
    "Unanswered",
    "address_space_limit",
    "boot_time",
    "memory_now",
    "network_bytes",
    "open_files",
    "open_files_now",
    "raise_file_limit",
    "rtt_label",
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
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
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
    found = _ask(transport, _FIELDS)
    if found is None:
        return None
    rtt, received, sent = found
    return TCPInfo(rtt / 1e6, sent, received)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What the kernel waits for on one connection, at one moment."""

    sent_again: bool
    """It sent data again, or probed a closed window, several times without an answer."""

    last_answer: float
    """Seconds since the last acknowledgement."""


def unanswered(transport: asyncio.BaseTransport | None) -> Unanswered | None:
    """What the kernel waits for on a transport's socket; `None` as in `tcp_info`."""
    found = _ask(transport, _ANSWERS)
    if found is None:
        return None
    retransmits, probes, last_sent, last_answer = found
    # A client whose buffer is full drops what is sent again, and acknowledges that: only what
    # was sent after the last acknowledgement is unanswered. Probes are counted so already.
    if last_sent >= last_answer:
        retransmits = 0
    return Unanswered(max(retransmits, probes) >= _TRIES, last_answer / 1e3)


def _ask(transport: asyncio.BaseTransport | None, layout: struct.Struct) -> tuple[int, ...] | None:
    """Some fields from the beginning of `struct tcp_info`."""
    if transport is None or transport.is_closing():
        return None
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux" or sock.family not in _INTERNET:
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, _OPTION, layout.size)
    except OSError:
        return None  # closed meanwhile
    return layout.unpack(data) if len(data) == layout.size else None


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


def memory_now() -> int:
    """Bytes of memory that the process has; where the system does not tell, had at most."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def boot_time() -> int:
    """When the machine started, in seconds since 1970; 0: it does not tell."""
    for words in _lines("/proc/stat"):
        if words[0] == "btime":
            return int(words[1])
    return 0


def open_files_now() -> int:
    """File descriptors that the process has open; 0: the system does not tell."""
    try:
        # Linux 6.2 and newer know the number; with many, counting them takes long.
        return os.stat("/proc/self/fd").st_size or open_files()
    except OSError:
        return 0


def network_bytes() -> tuple[int, int] | None:
    """Bytes received and sent by IP in this network namespace; `None`: unknown."""
    lines = [words for words in _lines("/proc/self/net/netstat") if words[0] == "IpExt:"]
    if len(lines) < 2:
        return None
    table = dict(zip(lines[0][1:], lines[1][1:], strict=False))
    try:
        return int(table["InOctets"]), int(table["OutOctets"])
    except (KeyError, ValueError):
        return None


def address_space_limit() -> float:
    """Bytes of virtual memory that the process may have; without a limit, 2**64 - 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float(2**64 - 1 if soft == resource.RLIM_INFINITY else soft)


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii") as file:
            return [words for line in file if (words := line.split())]
    except OSError:
        return []
