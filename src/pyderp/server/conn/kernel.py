"""Reads the kernel's data about connections and this process.

`struct tcp_info` is that of Linux 4.19 and newer. On other systems most data is unknown.
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
"""Sends without an acknowledgement, after which a path counts as unanswered. A client's Linux may
leave one or two unanswered, because it limits the acknowledgements for data that it drops."""
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
"""The label of a connection without a round-trip time, on a Unix socket."""


@dataclass(frozen=True, slots=True)
class TCPInfo:
    """The state of a TCP connection at one moment."""

    rtt: float
    """Smoothed round-trip time, in seconds."""

    sent: int
    """Bytes sent, retransmissions included."""

    received: int
    """Bytes received in order."""


def tcp_info(transport: asyncio.BaseTransport | None) -> TCPInfo | None:
    """Return the TCP state of a transport; `None` if it is closed, not TCP, or not on Linux."""
    found = _ask(transport, _FIELDS)
    if found is None:
        return None
    rtt, received, sent = found
    return TCPInfo(rtt / 1e6, sent, received)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What the kernel of this machine waits for on a TCP connection, at one moment."""

    sent_again: bool
    """Whether it sent data again, or probed a closed window, several times without an answer."""

    last_answer: float
    """Seconds since the last acknowledgement."""


def unanswered(transport: asyncio.BaseTransport | None) -> Unanswered | None:
    """Return what the kernel waits for on a transport; `None` as in `tcp_info`."""
    found = _ask(transport, _ANSWERS)
    if found is None:
        return None
    retransmits, probes, last_sent, last_answer = found
    # A client whose receive buffer is full drops data that is sent again, and acknowledges at once
    # that it cannot take it. So data counts as unanswered only if it was sent after the last
    # acknowledgement. The kernel's count of probes is reset by each answer.
    if last_sent >= last_answer:
        retransmits = 0
    return Unanswered(max(retransmits, probes) >= _TRIES, last_answer / 1e3)


def _ask(transport: asyncio.BaseTransport | None, layout: struct.Struct) -> tuple[int, ...] | None:
    """Return fields of `struct tcp_info`; `None` as in `tcp_info`."""
    if transport is None or transport.is_closing():
        return None
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux" or sock.family not in _INTERNET:
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, _OPTION, layout.size)
    except OSError:
        return None  # the socket was closed meanwhile
    return layout.unpack(data) if len(data) == layout.size else None


def rtt_label(seconds: float | None) -> str:
    """Return the label of `derp_tcp_rtt` for a sample; `error` if there is no sample."""
    if seconds is None:
        return "error"
    for bound, label in _RTT_LABELS:
        if seconds <= bound:
            return label
    return "inf"


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return the bytes in the kernel's send buffer that the peer has not acknowledged (SIOCOUTQ).

    Returns 0 on systems without that.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not _SIOCOUTQ:
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0  # the socket was closed meanwhile
    return int.from_bytes(answer, sys.byteorder)


def open_files() -> int:
    """Return the number of open file descriptors of this process; 0 if unknown."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the listing itself has one open
    except OSError:
        return 0


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit, as Go's runtime does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as e:
            log.debug("the limit of open files stays at %d: %s", soft, e)


def memory_now() -> int:
    """Return the resident memory of this process in bytes; its maximum so far if unknown."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def boot_time() -> int:
    """Return when the machine started, in seconds since 1970; 0 if unknown."""
    for words in _lines("/proc/stat"):
        if words[0] == "btime":
            return int(words[1])
    return 0


def open_files_now() -> int:
    """Return the number of open file descriptors, if possible without a count; 0 if unknown."""
    try:
        # Linux 6.2 and newer have the number here. To list thousands of descriptors takes long.
        return os.stat("/proc/self/fd").st_size or open_files()
    except OSError:
        return 0


def network_bytes() -> tuple[int, int] | None:
    """Return the IP bytes received and sent in this network namespace; `None` if unknown."""
    lines = [words for words in _lines("/proc/self/net/netstat") if words[0] == "IpExt:"]
    if len(lines) < 2:
        return None
    table = dict(zip(lines[0][1:], lines[1][1:], strict=False))
    try:
        return int(table["InOctets"]), int(table["OutOctets"])
    except (KeyError, ValueError):
        return None


def address_space_limit() -> float:
    """Return the limit of this process's virtual memory in bytes; 2**64 - 1 without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float(2**64 - 1 if soft == resource.RLIM_INFINITY else soft)


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii") as file:
            return [words for line in file if (words := line.split())]
    except OSError:
        return []
