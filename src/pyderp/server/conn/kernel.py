"""What the kernel tells of connections and of this process; which network paths are dead.

`struct tcp_info` is that of Linux 4.19 and newer. Elsewhere most answers are "unknown".

For dead paths Linux has `TCP_USER_TIMEOUT`, but it also ends a connection whose client reads
slowly: while the client's window is closed, the kernel sends window probes and counts their
time, even though the client acknowledges each. So the relay asks the kernel instead, and ends
only those that acknowledge nothing at all.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import Counters
from pyderp.server.conn.context import TICK, Served

__all__ = [
    "NON_TCP",
    "PathWatch",
    "RttSampler",
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
_LOOKS: Final = 4
"""`PathWatch` looks at each connection so often within the timeout."""
_PERIOD: Final = 10.0
"""Seconds between two samples of one connection."""
_AT_ONCE: Final = 500
"""Connections looked at in one tick, for a millisecond at most."""


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


class PathWatch:
    """Ends connections to which the kernel sends again and again without an answer.

    The kernel must have sent three times in vain, which it has 1.4 s after the path died if round
    trips are short, and after seven retransmission timeouts otherwise: a dead path is found at
    most that late. After idle time, the timeout may be up to a quarter shorter. If the path dies
    while the client's window is closed, three window probes must go unanswered; Linux sends
    these up to two minutes apart.

    Args:
        connections: those that there are; live.
        now: the loop's time.
        timeout: seconds without any acknowledgement, while the kernel waits for one.
        ask: what a connection's kernel waits for; `None`: it does not tell.
    """

    def __init__(
        self,
        connections: Collection[Served],
        now: float,
        timeout: float,
        ask: Callable[[asyncio.BaseTransport | None], Unanswered | None] = unanswered,
    ) -> None:
        self._connections = connections
        self._timeout = timeout
        self._ask = ask
        self._period = max(timeout / _LOOKS, TICK)
        self._round: Iterator[Served] = iter(())
        self._at_once = 0
        self._next = now
        # Connections that did not answer when last looked at, and since when.
        self._suspects: dict[Served, float] = {}

    def tick(self, now: float) -> None:
        """Look at the next connections, and at those that did not answer."""
        if now >= self._next:
            self._next = now + self._period
            everyone = list(self._connections)
            self._round = iter(everyone)
            # A round takes most of the period, so that no tick is long.
            self._at_once = math.ceil(len(everyone) * TICK / self._period)
        for protocol, since in list(self._suspects.items()):
            self._look(protocol, since, now)
        for _, protocol in zip(range(self._at_once), self._round, strict=False):
            if protocol not in self._suspects:
                self._look(protocol, now, now)

    def _look(self, protocol: Served, since: float, now: float) -> None:
        waits = self._ask(protocol.transport)
        if waits is None or not waits.sent_again:
            self._suspects.pop(protocol, None)
            return
        self._suspects[protocol] = since
        # It may have begun up to a period before it was seen.
        seen_for = now - since + self._period
        if waits.last_answer >= self._timeout and seen_for >= self._timeout:
            del self._suspects[protocol]
            detail = f"the client's kernel acknowledged nothing for {waits.last_answer:.0f} s"
            protocol.end(EndReason.DEAD_PATH, How.NOW, detail)


class RttSampler:
    """Samples each logged-in connection about every ten seconds, some of them in each tick.

    Args:
        connections: those that there are; live.
        now: the loop's time.
    """

    def __init__(self, connections: Collection[Served], counters: Counters, now: float) -> None:
        self._connections = connections
        self._counters = counters
        self._round: Iterator[Served] = iter(())
        self._next = now + _PERIOD

    def tick(self, now: float) -> None:
        """Sample the next connections, if it is time for them."""
        if now >= self._next:
            self._next = now + _PERIOD
            self._round = iter(list(self._connections))
        for _, protocol in zip(range(_AT_ONCE), self._round, strict=False):
            if protocol.connection is not None and protocol.transport is not None:
                label = _label(protocol.transport)
                samples = self._counters.tcp_rtt
                samples[label] = samples.get(label, 0) + 1


def _label(transport: asyncio.Transport) -> str:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return NON_TCP
    info = tcp_info(transport)
    return rtt_label(None if info is None else info.rtt)


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
