"""Listening sockets, with the TCP options that accepted ones inherit."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyderp.addresses import format_address
from pyderp.defaults import (
    LISTEN_BACKLOG,
    TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
)
from pyderp.errors import ConfigError

__all__ = [
    "explained",
    "is_left_over",
    "listen",
    "listen_unix",
    "resolve",
    "tune",
]

_MAX_OPTION: Final = 2**31 - 1


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        host: an address, or empty or `::` for all addresses of both families.
        port: 0: any free port.
        reuse_port: another process may listen on the same port (SO_REUSEPORT).

    Raises:
        ConfigError: the socket cannot be made; the text says why and what to do.
    """
    with explained(f"on {format_address(host, port)}", "stop what uses it or choose another"):
        family, address, dual = resolve(host, port, socket.SOCK_STREAM)
        return socket.create_server(
            address,
            family=family,
            backlog=LISTEN_BACKLOG,
            dualstack_ipv6=dual,
            reuse_port=reuse_port,
        )


def resolve(
    host: str, port: int, kind: socket.SocketKind
) -> tuple[socket.AddressFamily, tuple[Any, ...], bool]:
    """Return family and address to bind a socket to, and whether it serves both families.

    Args:
        host: an address, or empty or `::` for all addresses of both families, as for Go.

    Raises:
        OSError, UnicodeError: the host does not exist.
    """
    if host and host != "::":
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
        return family, address, False
    if socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port), True
    return socket.AF_INET, ("", port), False


@contextlib.contextmanager
def explained(where: str, if_taken: str) -> Iterator[None]:
    """Turn errors of the block into one that says why a port cannot be listened on.

    Args:
        where: such as `on 192.0.2.1:80`.
        if_taken: what to do when the port is taken.

    Raises:
        ConfigError: in place of OSError, and of UnicodeError for an impossible host name.
    """
    try:
        yield
    except OSError as e:
        raise ConfigError(f"cannot listen {where}: {_reason(e, if_taken)}") from e
    except UnicodeError as e:
        raise ConfigError(f"cannot listen {where}: not a host name") from e


def _reason(error: OSError, if_taken: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is taken; {if_taken}"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno) if error.errno else str(error)


def tune(sock: socket.socket, *, keepalive_time: float, notsent_lowat: int) -> None:
    """Set options of a listening socket, which accepted sockets inherit on Linux.

    Args:
        keepalive_time: seconds of silence before the first keep-alive probe; 0: none.
        notsent_lowat: unsent bytes that the kernel takes (TCP_NOTSENT_LOWAT); 0: the system's.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive_time > 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set_tcp(sock, "TCP_KEEPIDLE", max(1, keepalive_time))
        _set_tcp(sock, "TCP_KEEPINTVL", TCP_KEEPALIVE_INTERVAL)
        _set_tcp(sock, "TCP_KEEPCNT", TCP_KEEPALIVE_PROBES)
    if notsent_lowat > 0:
        _set_tcp(sock, "TCP_NOTSENT_LOWAT", notsent_lowat)


def listen_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket; replace one on which no process listens any more.

    Raises:
        ConfigError: another process listens there, or the socket cannot be made.
    """
    left_over = is_left_over(path)
    try:
        if left_over:
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            sock.listen(LISTEN_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        raise ConfigError(f"cannot listen on unix:{path}: {e.strerror or e}") from e
    return sock


def is_left_over(path: Path) -> bool:
    """Whether a path is a Unix socket on which no process listens; False: the path is free.

    Raises:
        ConfigError: the path is in use, or is not a socket, or cannot be examined.
    """
    try:
        if not path.exists():
            return False
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError as e:
        raise ConfigError(f"cannot listen on unix:{path}: {e.strerror or e}") from e
    raise ConfigError(
        f"cannot listen on unix:{path}: something is there; stop what uses it, or remove it"
    )


def _set_tcp(sock: socket.socket, name: str, value: float) -> None:
    # Some systems lack some of these options. The relay works without them.
    option = getattr(socket, name, None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, round(min(value, _MAX_OPTION)))
