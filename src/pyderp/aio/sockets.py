"""Listening sockets: addresses as `derper` takes them, TCP options that accepted ones inherit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Final

from pyderp.defaults import (
    LISTEN_BACKLOG,
    TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
)
from pyderp.errors import ConfigError

__all__ = [
    "format_address",
    "listen",
    "listen_unix",
    "parse_address",
    "tune",
    "unacknowledged",
    "unix_path",
    "unmap",
]

try:
    import fcntl
    import termios

    _SIOCOUTQ = termios.TIOCOUTQ
except (ImportError, AttributeError):  # not a POSIX system
    _SIOCOUTQ = 0

_NAMED_PORTS: Final = {"http": 80, "https": 443}
_MAX_OPTION: Final = 2**31 - 1


def parse_address(text: str) -> tuple[str, int]:
    """Split `:port`, `ip:port` or `[ip]:port` into host and port.

    Raises:
        ConfigError: no port, or one that is none.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise ConfigError(f"invalid server address {text!r}: want HOST:PORT, [IPv6]:PORT or :PORT")
    if host.startswith("[") != host.endswith("]"):
        raise ConfigError(f"invalid server address {text!r}: a bracket is missing")
    host = host.removeprefix("[").removesuffix("]")
    port = _NAMED_PORTS.get(port_text)
    if port is None:
        # Five digits at most: Python refuses to read very long numbers.
        digits = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
        if not digits or int(port_text) > 65535:
            raise ConfigError(f"invalid server address {text!r}: {port_text!r} is no port number")
        port = int(port_text)
    return host, port


def unix_path(address: str) -> Path | None:
    """The path of `unix:/path`; `None` for any other address.

    Raises:
        ConfigError: no absolute path.
    """
    if not address.startswith("unix:"):
        return None
    path = Path(address.removeprefix("unix:"))
    if not path.is_absolute():
        raise ConfigError(f"invalid server address {address!r}: want unix:/absolute/path")
    return path


def format_address(host: str, port: int) -> str:
    """`ip:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unmap(host: str) -> str:
    """An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d`, as `a.b.c.d`."""
    return host.removeprefix("::ffff:") if "." in host else host


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


def listen(
    host: str,
    port: int,
    *,
    keepalive_time: float,
    user_timeout: float,
    notsent_lowat: int = 0,
    reuse_port: bool = False,
) -> socket.socket:
    """A listening TCP socket.

    Args:
        host: an address, or empty for all addresses of both families.
        port: 0: any free one.
        keepalive_time, user_timeout, notsent_lowat: as for `tune`.
        reuse_port: another process may listen there, too (SO_REUSEPORT).

    Raises:
        ConfigError: the address cannot be listened on; the text says why and what to do.
    """
    try:
        family, dual = _family(host)
        sock = socket.create_server(
            (host, port),
            family=family,
            backlog=LISTEN_BACKLOG,
            dualstack_ipv6=dual,
            reuse_port=reuse_port,
        )
    except OSError as e:
        raise ConfigError(_explain(host, port, e)) from e
    except UnicodeError as e:
        raise ConfigError(f"cannot listen on {format_address(host, port)}: no host name") from e
    tune(
        sock,
        keepalive_time=keepalive_time,
        user_timeout=user_timeout,
        notsent_lowat=notsent_lowat,
    )
    sock.setblocking(False)
    return sock


def tune(
    sock: socket.socket, *, keepalive_time: float, user_timeout: float, notsent_lowat: int
) -> None:
    """Set the options of a listening socket that Linux hands on to each accepted one.

    Args:
        keepalive_time: seconds of silence before the first keepalive probe; 0: none.
        user_timeout: seconds that sent data may stay unacknowledged; 0: the system's.
        notsent_lowat: bytes that the kernel holds unsent before it takes no more; 0: the system's.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive_time > 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set_tcp(sock, "TCP_KEEPIDLE", max(1, keepalive_time))
        _set_tcp(sock, "TCP_KEEPINTVL", TCP_KEEPALIVE_INTERVAL)
        _set_tcp(sock, "TCP_KEEPCNT", TCP_KEEPALIVE_PROBES)
    if user_timeout > 0:
        _set_tcp(sock, "TCP_USER_TIMEOUT", user_timeout * 1000)
    if notsent_lowat > 0:
        _set_tcp(sock, "TCP_NOTSENT_LOWAT", notsent_lowat)


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket. One left over by a relay that is gone is replaced.

    Raises:
        ConfigError: somebody listens there, or it cannot be made.
    """
    try:
        if _is_left_over(path):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            sock.listen(LISTEN_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"cannot listen on unix:{path}: something is there; stop what uses it, or remove it"
            ) from e
        raise ConfigError(f"cannot listen on unix:{path}: {e.strerror or e}") from e
    sock.setblocking(False)
    return sock


def _is_left_over(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _family(host: str) -> tuple[socket.AddressFamily, bool]:
    # "::" means all addresses of both families, as for Go.
    if host and host != "::":
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return infos[0][0], False
    if socket.has_dualstack_ipv6():
        return socket.AF_INET6, True
    return socket.AF_INET, False


def _set_tcp(sock: socket.socket, name: str, value: float) -> None:
    # Other systems lack some of these; none is needed for correctness.
    option = getattr(socket, name, None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, round(min(value, _MAX_OPTION)))


def _explain(host: str, port: int, error: OSError) -> str:
    where = format_address(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the port is taken; stop what uses it or choose another"
    if error.errno == errno.EACCES:
        return (
            f"cannot listen on {where}: ports below 1024 need root or the capability "
            "CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: this machine does not have that address"
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {where}: {error.strerror}"
    return f"cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}"
