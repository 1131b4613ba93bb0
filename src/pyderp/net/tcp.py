"""One TCP socket to one address, with the options that every way out needs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import sys
from typing import Final

from pyderp.addresses import format_address, unmapped
from pyderp.errors import ConfigError, DialError
from pyderp.net.settings import NetworkSettings

__all__ = ["connect_socket"]

_KEEPALIVE: Final = 30
"""Seconds of silence before the kernel asks, and between two questions."""
_DENIED: Final = (errno.EPERM, errno.EACCES)


async def connect_socket(address: str, port: int, *, settings: NetworkSettings) -> socket.socket:
    """Connect to an IP address; cancelling closes the socket.

    The socket is non-blocking, with TCP_NODELAY, and with keepalive every 30 s.

    Args:
        address: an IPv4 or IPv6 address, which may have a `%zone`.

    Raises:
        DialError: no connection.
        ConfigError: mark or device of `settings` cannot be used by this process or system.
    """
    ip = ipaddress.ip_address(address)
    where = format_address(address, port)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as e:
        raise DialError(f"connect to {where}: {_reason(e)}") from e
    try:
        sock.setblocking(False)
        _set_keepalive(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not unmapped(ip).is_loopback:
            _apply(sock, settings)
        if settings.before_connect is not None:
            settings.before_connect(sock)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as e:
            raise DialError(f"connect to {where}: {_reason(e)}") from e
    except BaseException:
        sock.close()
        raise
    return sock


def _set_keepalive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first.
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    for option in (idle, getattr(socket, "TCP_KEEPINTVL", None)):
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, _KEEPALIVE)


def _apply(sock: socket.socket, settings: NetworkSettings) -> None:
    mark = settings.socket_mark
    if mark is not None:
        what = f"socket_mark {mark:#x}"
        if not 0 <= mark < 1 << 32:
            raise ConfigError(f"{what}: not a number of 32 bits")
        # As bytes, since setsockopt takes no int above 2³¹ - 1.
        _set_option(sock, "SO_MARK", mark.to_bytes(4, sys.byteorder), what)
    if settings.bind_device:
        device = settings.bind_device.encode() + b"\0"
        _set_option(sock, "SO_BINDTODEVICE", device, f"bind_device {settings.bind_device!r}")


def _set_option(sock: socket.socket, name: str, value: bytes, what: str) -> None:
    option = getattr(socket, name, None)
    if option is None:
        raise ConfigError(f"{what}: this system has no {name}; it is for Linux")
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError as e:
        if e.errno in _DENIED:
            raise ConfigError(f"{what}: {_reason(e)}: {name} needs CAP_NET_ADMIN") from e
        # Interfaces come and go: a later attempt may find it.
        raise DialError(f"{what}: {_reason(e)}") from e


def _reason(error: OSError) -> str:
    """The system's words; event loops have different ones of their own."""
    return os.strerror(error.errno) if error.errno else str(error)
