"""What the operating system tells about this process and its machine; Linux tells most."""

from __future__ import annotations

import functools
import os
import resource

from pyderp.server.conn.kernel import open_files

__all__ = ["address_space_limit", "boot_time", "memory_now", "network_bytes", "open_files_now"]


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
    """Bytes received and sent by IP in this network namespace; `None`: nobody tells."""
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
