"""systemd: sockets that it hands down, and what it wants to be told. Nothing here needs systemd.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from pyderp.errors import ConfigError
from pyderp.server.app.listeners import Listeners

__all__ = ["Supervisor", "inherited_listeners"]

log = logging.getLogger("pyderp.relay")

_FIRST_FD: Final = 3
_SIDE_NAME: Final = "http"
"""`FileDescriptorName=` of a socket for plain HTTP beside TLS."""


def inherited_listeners(environ: MutableMapping[str, str] = os.environ) -> Listeners | None:
    """The listening sockets that systemd opened for this process; `None`: none.

    UDP sockets are for STUN; of the others, those named `http` are for plain HTTP beside TLS,
    and all else is for DERP. The variables are removed, so that no child takes the sockets, too.

    Raises:
        ConfigError: the variables make no sense, or a socket is of no use here.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count or pid != str(os.getpid()):
        return None
    if not (count.isascii() and count.isdigit()):
        raise ConfigError(f"LISTEN_FDS={count!r} is no number")
    listeners = Listeners()
    for i in range(int(count)):
        name = names[i] if i < len(names) else ""
        try:
            _sort(listeners, socket.socket(fileno=_FIRST_FD + i), name)
        except OSError as e:
            raise ConfigError(
                f"file descriptor {_FIRST_FD + i} of LISTEN_FDS={count} is no socket: {e.strerror}"
            ) from e
    return listeners


def _sort(listeners: Listeners, sock: socket.socket, name: str) -> None:
    os.set_inheritable(sock.fileno(), False)
    sock.setblocking(False)
    if sock.type == socket.SOCK_DGRAM and sock.family in (socket.AF_INET, socket.AF_INET6):
        listeners.stun.append(sock)
    elif sock.type != socket.SOCK_STREAM or not _listens(sock):
        raise ConfigError(
            f"the socket {name or sock.fileno()} of LISTEN_FDS is of no use: want listening "
            "stream sockets (ListenStream=) and UDP (ListenDatagram=)"
        )
    elif name == _SIDE_NAME:
        listeners.side.append(sock)
    else:
        listeners.main.append(sock)


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class Supervisor:
    """Tells the service manager how this process is doing; without one, nobody.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._socket = environ.get("NOTIFY_SOCKET", "")
        self._interval = _watchdog_interval(environ)
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """It serves. From now on the watchdog is fed, as long as the event loop turns.

        Args:
            status: a line for `systemctl status`.
        """
        self._notify(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")
        if self._interval and self._timer is None:
            self._feed()

    def reloading(self) -> None:
        """It reads its files again; `ready` says that it is done."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """It begins to stop. The watchdog is fed until `close`."""
        self._notify("STOPPING=1\nSTATUS=stopping; clients are told and closed")

    def close(self) -> None:
        """Feed the watchdog no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _feed(self) -> None:
        self._notify("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._feed)

    def _notify(self, text: str) -> None:
        if not self._socket:
            return
        # "@" stands for the null byte of an abstract socket.
        address = "\0" + self._socket[1:] if self._socket.startswith("@") else self._socket
        with (
            contextlib.suppress(OSError),  # a manager that is gone is no reason to stop
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode(), address)


def _watchdog_interval(environ: MutableMapping[str, str]) -> float:
    """Seconds between two signs of life: half of what systemd waits; 0: none wanted."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or pid not in ("", str(os.getpid())):
        return 0.0
    return int(text) / 1e6 / 2
