"""The sockets that a relay listens on, opened here or by systemd; and what systemd is told.

Nothing here needs systemd. Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
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
"""Seconds; under a flood a client is always in the queue."""
_LOOK: Final = 5.0
_FIRST_FD: Final = 3
_SIDE_NAME: Final = "http"
"""`FileDescriptorName=` of a socket for plain HTTP beside TLS."""


@dataclass
class Listeners:
    """Listening sockets, by what is served on them."""

    main: list[socket.socket] = field(default_factory=list)
    """DERP and the site, with TLS if the relay has it."""

    side: list[socket.socket] = field(default_factory=list)
    """Plain HTTP beside TLS."""

    stun: list[socket.socket] = field(default_factory=list)
    """UDP."""

    debug: list[socket.socket] = field(default_factory=list)
    """Plain HTTP for `/debug/`, if that has an address of its own."""

    paths: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Unix sockets that were made here, with device and inode; not those of systemd."""

    stun_trouble: str = ""
    """Why there is no socket for STUN, though there should be; empty: nothing is missing."""

    def close(self) -> None:
        """Close all of them."""
        self.unlink()
        for sock in (*self.main, *self.side, *self.stun, *self.debug):
            sock.close()

    def unlink(self) -> None:
        """Remove the Unix sockets that were made here, unless something else is there by now.

        Before they are closed: a successor replaces one on which no process listens.
        """
        paths, self.paths = self.paths, {}
        for path, made in paths.items():
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    path.unlink()

    async def queues_empty(self) -> None:
        """Wait until the relay has accepted all clients that connected, half a second at most.

        With SO_REUSEPORT each process has a queue of its own, and the kernel resets what still
        waits in it when the socket is closed, though another relay could serve it.
        """
        poll = select.poll()
        for sock in (*self.main, *self.side):
            poll.register(sock, select.POLLIN)
        loop = asyncio.get_running_loop()
        end = loop.time() + _LONGEST_WAIT
        while poll.poll(0) and loop.time() < end:  # noqa: ASYNC110 (the loop accepts meanwhile)
            await asyncio.sleep(0)


def open_listeners(config: RelayConfig, given: Listeners | None = None) -> Listeners:
    """What a relay with these settings listens on.

    Args:
        given: sockets that are open already; they are used in place of those of their kind, and
            belong to the relay from then on.

    Raises:
        ConfigError: one cannot be opened; then none stays open.
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
    """The IP address that STUN is answered on; empty: all.

    Raises:
        ConfigError: the relay's own address cannot be used.
    """
    return _host(config) if config.stun_host is None else config.stun_host


def _host(config: RelayConfig) -> str:
    # What is beside a Unix socket listens on all addresses.
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
    """A socket for plain HTTP beside TLS.

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
    """Tells the service manager how this process is doing, if there is one.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are.
        look: seconds between two looks at whether the status changed.
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
        """What the manager was told last."""

    def ready(self, status: str) -> None:
        """It serves. From now on the watchdog is fed, as long as the event loop turns.

        Args:
            status: a line for `systemctl status`.
        """
        self._status = status
        self._notify(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")
        if self._interval and self._timer is None:
            self._feed()

    def watch(self, status: Callable[[], str]) -> None:
        """Tell the manager of each change of what `status` returns, until it stops."""
        if not self._socket:
            return
        text = status()
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")
        loop = asyncio.get_running_loop()
        self._watch_timer = loop.call_later(self._look, self.watch, status)

    def reloading(self) -> None:
        """It reads its files again; `ready` says that it is done."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """It begins to stop. The watchdog is fed until `close`."""
        if self._watch_timer is not None:
            self._watch_timer.cancel()
            self._watch_timer = None
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
