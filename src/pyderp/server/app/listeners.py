"""The sockets that a relay listens on, opened here or by systemd; notifications to systemd.

It works without systemd. Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_address, unix_path
from pyderp.config import RelayConfig
from pyderp.errors import ConfigError
from pyderp.server.conn.sockets import listen, listen_unix, tune
from pyderp.server.services.stun import stun_sockets

__all__ = [
    "Listeners",
    "Supervisor",
    "inherited_listeners",
    "listen_beside",
    "open_listeners",
    "stun_host",
]

_LONGEST_WAIT: Final = 0.5
"""Most seconds to wait for empty queues: under a flood they never are."""
_LOOK: Final = 5.0
_FIRST_FD: Final = 3
_SIDE_NAME: Final = "http"
"""`FileDescriptorName=` of the socket for plain HTTP beside TLS."""


@dataclass
class Listeners:
    """Listening sockets, by service."""

    main: list[socket.socket] = field(default_factory=list)
    """DERP and the site, with TLS if the relay has it."""

    side: list[socket.socket] = field(default_factory=list)
    """Plain HTTP beside TLS."""

    stun: list[socket.socket] = field(default_factory=list)
    """UDP."""

    debug: list[socket.socket] = field(default_factory=list)
    """Plain HTTP for `/debug/`, if it has its own address."""

    paths: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Paths of Unix sockets that this process made, with device and inode."""

    stun_trouble: str = ""
    """Why the socket for STUN is missing; empty: it is not."""

    def close(self) -> None:
        """Close all sockets."""
        self.unlink()
        for sock in (*self.main, *self.side, *self.stun, *self.debug):
            sock.close()

    def unlink(self) -> None:
        """Remove the Unix sockets that this process made, unless they were replaced.

        Call it before `close`: another relay replaces a socket on which no process listens, and
        its own must not be removed.
        """
        paths, self.paths = self.paths, {}
        for path, made in paths.items():
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    path.unlink()

    async def queues_empty(self) -> None:
        """Wait until the relay has accepted all connected clients, at most half a second.

        With SO_REUSEPORT each process has its own queue. When the socket is closed, the kernel
        resets the connections in it, even if another relay listens on the port.
        """
        poll = select.poll()
        for sock in (*self.main, *self.side):
            poll.register(sock, select.POLLIN)
        loop = asyncio.get_running_loop()
        end = loop.time() + _LONGEST_WAIT
        while poll.poll(0) and loop.time() < end:  # noqa: ASYNC110 (the loop accepts meanwhile)
            await asyncio.sleep(0)


def open_listeners(config: RelayConfig, given: Listeners | None = None) -> Listeners:
    """Open the sockets for a relay with these settings.

    Args:
        given: open sockets to use instead; the relay closes them.

    Raises:
        ConfigError: a socket cannot be opened. None stays open.
    """
    listeners = Listeners()
    with contextlib.ExitStack() as undo:
        undo.callback(listeners.close)
        if given is not None:
            listeners.main += given.main
            listeners.side += given.side
            listeners.stun += given.stun
        if not listeners.main:
            listeners.main.append(_open(config.address, config, listeners))
        if config.metrics_address:
            listeners.debug.append(_open(config.metrics_address, config, listeners))
        side_port = None if config.tls is None else config.tls.http_port
        if side_port is not None and not listeners.side:
            listeners.side.append(listen_beside(config, side_port))
        if config.stun_port is not None and not listeners.stun:
            listeners.stun += stun_sockets(
                stun_host(config), config.stun_port, reuse_port=config.reuse_port
            )
        for sock in (*listeners.main, *listeners.side, *listeners.debug):
            sock.setblocking(False)
            tune(
                sock,
                keepalive_time=config.tcp_keepalive_time,
                notsent_lowat=config.tcp_notsent_lowat,
            )
        undo.pop_all()
    return listeners


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def stun_host(config: RelayConfig) -> str:
    """Return the IP address for STUN; empty: all addresses.

    Raises:
        ConfigError: the relay's own address cannot be used.
    """
    return _host(config) if config.stun_host is None else config.stun_host


def _host(config: RelayConfig) -> str:
    # Other services of a relay on a Unix socket listen on all addresses.
    return "" if unix_path(config.address) is not None else parse_address(config.address)[0]


def _open(address: str, config: RelayConfig, listeners: Listeners) -> socket.socket:
    path = unix_path(address)
    if path is None:
        host, port = parse_address(address)
        return listen(host, port, reuse_port=config.reuse_port)
    sock = listen_unix(path)
    with contextlib.suppress(OSError):  # removed already
        listeners.paths[path] = _identity(path)
    return sock


def listen_beside(config: RelayConfig, port: int) -> socket.socket:
    """Open the socket for plain HTTP beside TLS.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        return listen(_host(config), port, reuse_port=config.reuse_port)
    except ConfigError as e:
        raise ConfigError(
            "{error}; this is the plain HTTP beside TLS, {} does without",
            settings=("tls.http_port=None",),
            error=e,
        ) from e


def inherited_listeners(environ: MutableMapping[str, str] = os.environ) -> Listeners | None:
    """Return the listening sockets that systemd opened for this process; `None`: none.

    UDP sockets are for STUN, sockets named `http` for plain HTTP beside TLS, other ones for DERP.
    The variables are removed, so that child processes do not use the sockets.

    Raises:
        ConfigError: malformed variables, or a socket of another type.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count or pid != str(os.getpid()):
        return None
    if not (count.isascii() and count.isdigit()):
        raise ConfigError(f"LISTEN_FDS={count!r} is not a number")
    listeners = Listeners()
    for i in range(int(count)):
        name = names[i] if i < len(names) else ""
        try:
            _sort(listeners, socket.socket(fileno=_FIRST_FD + i), name)
        except OSError as e:
            raise ConfigError(
                f"file descriptor {_FIRST_FD + i} of LISTEN_FDS={count} is not a socket: "
                f"{e.strerror}"
            ) from e
    return listeners


def _sort(listeners: Listeners, sock: socket.socket, name: str) -> None:
    os.set_inheritable(sock.fileno(), False)
    sock.setblocking(False)
    if sock.type == socket.SOCK_DGRAM and sock.family in (socket.AF_INET, socket.AF_INET6):
        listeners.stun.append(sock)
    elif sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise ConfigError(
            f"the socket {name or sock.fileno()} of LISTEN_FDS is of no use: want listening "
            "stream sockets (ListenStream=) and UDP (ListenDatagram=)"
        )
    elif name == _SIDE_NAME:
        listeners.side.append(sock)
    else:
        listeners.main.append(sock)


class Supervisor:
    """Notifies the service manager of this process's state, if there is a manager.

    Args:
        environ: variables with `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
        look: seconds between two checks whether the status changed.
    """

    def __init__(
        self, environ: MutableMapping[str, str] = os.environ, *, look: float = _LOOK
    ) -> None:
        self._socket = environ.get("NOTIFY_SOCKET", "")
        self._interval = _watchdog_interval(environ)
        self._timer: asyncio.TimerHandle | None = None
        self._look = look
        self._watch_timer: asyncio.TimerHandle | None = None
        self._status = ""
        """The last status sent to the manager."""

    def ready(self, status: str) -> None:
        """Report that the relay serves, and feed the watchdog while the event loop runs.

        Args:
            status: a line for `systemctl status`.
        """
        self._status = status
        self._notify(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")
        if self._interval and self._timer is None:
            self._feed()

    def watch(self, status: Callable[[], str]) -> None:
        """Send the manager each new value of `status()`, until `stopping`."""
        if not self._socket:
            return
        text = status()
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")
        loop = asyncio.get_running_loop()
        self._watch_timer = loop.call_later(self._look, self.watch, status)

    def reloading(self) -> None:
        """Report that the relay reads its files again; `ready` reports the end."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Report that the relay stops. The watchdog is fed until `close`."""
        if self._watch_timer is not None:
            self._watch_timer.cancel()
            self._watch_timer = None
        self._notify("STOPPING=1\nSTATUS=stopping; clients are being closed")

    def close(self) -> None:
        """Stop feeding the watchdog."""
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
            contextlib.suppress(OSError),  # the relay works without its manager
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode(), address)


def _watchdog_interval(environ: MutableMapping[str, str]) -> float:
    """Return the seconds between two WATCHDOG=1, half of systemd's timeout; 0: none wanted."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or pid not in ("", str(os.getpid())):
        return 0.0
    return int(text) / 1e6 / 2
