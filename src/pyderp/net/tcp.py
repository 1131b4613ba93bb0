"""TCP connections: to one address, and a race over the addresses of a host (RFC 8305)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain, zip_longest
from typing import Any, Final, TypeAlias

from pyderp.addresses import IPAddress, format_address, unmapped
from pyderp.errors import ConfigError, DialError, FailureReason
from pyderp.net.dns import Resolver, lookup
from pyderp.net.settings import NetworkSettings
from pyderp.tasks import cancel_and_wait

__all__ = [
    "Attempt",
    "as_dial_error",
    "connect_socket",
    "connect_to_any",
    "connect_to_host",
    "failure_reason",
    "interleave",
    "staggered_race",
]

_KEEPALIVE: Final = 30
"""Seconds without data before the kernel's first keep-alive probe, and between two probes."""
_DENIED: Final = (errno.EPERM, errno.EACCES)
_REASONS: Final = (
    (TimeoutError, FailureReason.TIMEOUT),
    (ConnectionRefusedError, FailureReason.REFUSED),
    (socket.gaierror, FailureReason.UNKNOWN_NAME),
    (ConnectionError, FailureReason.CUT),
)
_PRECEDENCE: Final = tuple(FailureReason)


async def connect_socket(address: str, port: int, *, settings: NetworkSettings) -> socket.socket:
    """Connect to an IP address; cancelling closes the socket.

    The socket is non-blocking, with TCP_NODELAY, and with keep-alive every 30 s.

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
        raise _no_connection(address, where, e) from e
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
            raise _no_connection(address, where, e) from e
    except BaseException:
        sock.close()
        raise
    return sock


def _no_connection(address: str, where: str, error: OSError) -> DialError:
    text = _system_text(error)
    return DialError(
        f"connect to {where}: {text}", reason=failure_reason(error), host=address, short=text
    )


def failure_reason(error: OSError) -> FailureReason:
    """Returns the reason of a `DialError`, or the one for an error of the system."""
    if isinstance(error, DialError):
        return error.reason
    return next(
        (reason for kind, reason in _REASONS if isinstance(error, kind)),
        FailureReason.UNREACHABLE,
    )


def as_dial_error(error: OSError, reason: FailureReason) -> DialError:
    """Returns a new error with the text and host of another one."""
    if isinstance(error, DialError):
        return DialError(str(error), reason=reason, host=error.host, short=error.short)
    return DialError(str(error), reason=reason)


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
        # As bytes, because Python's setsockopt takes no int above 2³¹ - 1.
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
            raise ConfigError(f"{what}: {_system_text(e)}: {name} needs CAP_NET_ADMIN") from e
        # No ConfigError: an interface may exist later, so that another attempt can work.
        raise DialError(f"{what}: {_system_text(e)}") from e


def _system_text(error: OSError) -> str:
    """Returns the system's text by the number of the error: event loops have texts of their own."""
    return os.strerror(error.errno) if error.errno else str(error)


STAGGER: Final = 0.3
"""Seconds between two attempts at addresses of one host [net.Dialer.FallbackDelay]."""

Attempt: TypeAlias = Callable[[], Coroutine[Any, Any, socket.socket]]


async def staggered_race(attempts: Sequence[Attempt], *, delay: float) -> socket.socket:
    """Run attempts until one returns a connected socket; the others are cancelled or closed.

    Each starts `delay` seconds after the one before, or at once when one has failed.

    Raises:
        DialError: with the text of the first failure; its cause has all, as a group.
        Exception: an error of an attempt that is no `OSError`; it ends the race.
    """
    winners: list[socket.socket] = []
    failures: list[OSError] = []
    fatal: list[Exception] = []

    async def run(attempt: Attempt) -> None:
        try:
            winners.append(await attempt())
        except OSError as e:
            failures.append(e)
        except Exception as e:
            fatal.append(e)

    waiting = deque(attempts)
    running: set[asyncio.Task[None]] = set()
    try:
        try:
            while (waiting or running) and not (winners or fatal):
                if waiting:
                    running.add(asyncio.create_task(run(waiting.popleft()), name="pyderp dial"))
                pause = delay if waiting else None
                _, running = await asyncio.wait(
                    running, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            # When these have ended, a socket that they connected at the last moment is in
            # `winners`, and is closed below.
            await cancel_and_wait(running)
            running = set()
        if fatal:
            raise fatal[0]
        if not winners:
            reason = min(map(failure_reason, failures), key=_PRECEDENCE.index)
            raise as_dial_error(failures[0], reason) from ExceptionGroup(
                "all attempts failed", failures
            )
        return winners.pop(0)
    finally:
        for sock in winners:
            sock.close()
        # The errors hold frames that hold these lists.
        failures.clear()
        fatal.clear()


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Returns the addresses with alternating families, beginning with the first one's.

    So a network where one family does not work costs one delay (RFC 8305, section 4).
    """
    preferred = [ip for ip in addresses if ip.version == addresses[0].version]
    others = [ip for ip in addresses if ip.version != addresses[0].version]
    pairs = chain.from_iterable(zip_longest(preferred, others))
    return [ip for ip in pairs if ip is not None]


async def connect_to_any(
    addresses: Sequence[IPAddress], port: int, *, settings: NetworkSettings
) -> socket.socket:
    """Returns a socket connected to the first of a host's addresses that answers.

    Raises:
        DialError, ConfigError: as `connect_socket`.
    """
    attempts = [
        functools.partial(connect_socket, str(ip), port, settings=settings)
        for ip in interleave(addresses)
    ]
    return await staggered_race(attempts, delay=STAGGER)


async def connect_to_host(
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> socket.socket:
    """Look up `host`, and connect as `connect_to_any`.

    Raises:
        DialError, ConfigError: as `lookup` and `connect_socket`.
    """
    addresses = await lookup(host, family=family, resolver=resolver)
    return await connect_to_any(addresses, port, settings=settings)
