"""Which processes hold a port or a file, as the Linux kernel lists them in `/proc` (proc(5))."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyderp.addresses import unmapped
from pyderp.server.conn.sockets import resolve

__all__ = ["Process", "port_sockets", "processes", "unix_sockets"]

_TABLES: Final = {socket.SOCK_STREAM: ("tcp", "tcp6"), socket.SOCK_DGRAM: ("udp", "udp6")}
_TCP_LISTEN: Final = "0A"
_UNIX_LISTENING: Final = 1 << 16
"""`__SO_ACCEPTCON` of the kernel's `net.h`, among the flags of a Unix socket."""


@dataclass(frozen=True)
class Process:
    """What another process has open.

    Args:
        sockets: their inodes; two processes may share one.
        has_file: whether it has the file open that `processes` searched for.
    """

    pid: int
    sockets: frozenset[int]
    has_file: bool


def processes(file: Path) -> Iterator[Process]:
    """Yields the other processes whose open files this user may see; none on systems without /proc.

    Args:
        file: is searched for among their open files.
    """
    wanted = _identity(file)
    name = f"/{file.resolve().name}"
    for pid in _numbers("/proc"):
        if pid == os.getpid():
            continue
        sockets, has_file = set(), False
        for fd in _numbers(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                if target.startswith("socket:["):
                    sockets.add(int(target[8:-1]))
                # Other files are not examined: on a network file system that hangs.
                elif target.endswith(name):
                    has_file |= wanted is not None and _identity(path) == wanted
        yield Process(pid, frozenset(sockets), has_file)


def _identity(path: Path | str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _numbers(folder: str) -> list[int]:
    # A process may have ended meanwhile, or belong to another user.
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    return []


def port_sockets(host: str, port: int, kind: socket.SocketKind) -> frozenset[int]:
    """Returns the inodes of the sockets that occupy a port; empty also if unknown.

    Args:
        host: as for `resolve`.
        kind: SOCK_STREAM: of TCP, those that listen; SOCK_DGRAM: of UDP.
    """
    with contextlib.suppress(OSError, ValueError):
        own = _address(str(resolve(host, port, kind)[1][0] or "0.0.0.0"))  # noqa: S104 (compared)
        return frozenset(
            inode
            for address, inode in _bound(port, kind)
            if address == own or address.is_unspecified or own.is_unspecified
        )
    return frozenset()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return unmapped(ipaddress.ip_address(text.partition("%")[0]))


def _bound(
    port: int, kind: socket.SocketKind
) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    for table in _TABLES[kind]:
        for fields in _rows(table):
            host, _, port_text = fields[1].partition(":")
            listens = kind is socket.SOCK_DGRAM or fields[3] == _TCP_LISTEN
            if listens and int(port_text, 16) == port:
                yield unmapped(ipaddress.ip_address(_packed(host))), int(fields[9])


def _packed(text: str) -> bytes:
    """Returns an address in network order; the kernel prints 32-bit words in its CPU's order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "big":
        return raw
    return b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))


def unix_sockets(path: Path) -> frozenset[int]:
    """Returns the inodes of the Unix sockets that listen on a path; empty also if unknown."""
    return frozenset(
        int(fields[6])
        for fields in _rows("unix")
        if fields[7:] == [str(path)] and int(fields[3], 16) & _UNIX_LISTENING
    )


def _rows(table: str) -> Iterator[list[str]]:
    """Yields the fields of each line of a table in /proc/net; nothing if there is no such table."""
    try:
        text = Path("/proc/net", table).read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines()[1:]:
        yield line.split(None, 7) if table == "unix" else line.split()
