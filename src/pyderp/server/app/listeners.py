"""The sockets that a relay listens on: opened here, or handed down by who started it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_address, unix_path
from pyderp.config import RelayConfig
from pyderp.errors import ConfigError
from pyderp.server.conn.sockets import listen, listen_unix, tune
from pyderp.server.services.stun import stun_sockets

__all__ = ["Listeners", "listen_beside", "open_listeners", "stun_host"]

_LONGEST_WAIT: Final = 0.5
"""Seconds; under a flood there is always somebody in the queue."""


@dataclass
class Listeners:
    """Listening sockets, by what is served on them."""

    main: list[socket.socket] = field(default_factory=list)
    """DERP and the site, with TLS if the relay has it."""

    side: list[socket.socket] = field(default_factory=list)
    """Plain HTTP beside TLS."""

    stun: list[socket.socket] = field(default_factory=list)
    """UDP."""

    paths: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Unix sockets that were made here, with device and inode; not those of who started it."""

    def close(self) -> None:
        """Close all of them."""
        self.unlink()
        for sock in (*self.main, *self.side, *self.stun):
            sock.close()

    def unlink(self) -> None:
        """Remove the Unix sockets that were made here, unless something else is there by now.

        Before they are closed: a successor replaces one that nobody listens on.
        """
        paths, self.paths = self.paths, {}
        for path, made in paths.items():
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    path.unlink()

    async def queues_empty(self) -> None:
        """Wait until the relay has accepted all who connected, half a second at most.

        With SO_REUSEPORT each process has a queue of its own, and the kernel resets who still
        waits in it when the socket is closed, though another relay would gladly serve them.
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
        _open_main(config, listeners)
        _open_side(config, listeners)
        if config.stun_port is not None and not listeners.stun:
            listeners.stun += stun_sockets(
                stun_host(config), config.stun_port, reuse_port=config.reuse_port
            )
        for sock in (*listeners.main, *listeners.side):
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


def _open_main(config: RelayConfig, listeners: Listeners) -> None:
    if listeners.main:
        return
    path = unix_path(config.address)
    if path is not None:
        listeners.main.append(listen_unix(path))
        with contextlib.suppress(OSError):  # somebody removed it already
            listeners.paths[path] = _identity(path)
        return
    host, port = parse_address(config.address)
    listeners.main.append(listen(host, port, reuse_port=config.reuse_port))


def _open_side(config: RelayConfig, listeners: Listeners) -> None:
    if config.tls is None or config.tls.http_port is None or listeners.side:
        return
    listeners.side.append(listen_beside(config, config.tls.http_port))


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
