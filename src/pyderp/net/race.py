"""Several attempts at one connection: the first that works wins (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain, zip_longest
from typing import Any, Final, TypeAlias

from pyderp.addresses import IPAddress
from pyderp.errors import DialError
from pyderp.net.proxies import Proxy
from pyderp.net.resolve import Resolver, lookup
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import connect_socket
from pyderp.tasks import cancel_and_wait

__all__ = [
    "Attempt",
    "connect_to_any",
    "connect_to_host",
    "connect_to_proxy",
    "interleave",
    "staggered_race",
]

STAGGER: Final = 0.3
"""Seconds between two attempts at addresses of one host [net.Dialer.FallbackDelay]."""

Attempt: TypeAlias = Callable[[], Coroutine[Any, Any, socket.socket]]


async def staggered_race(attempts: Sequence[Attempt], *, delay: float) -> socket.socket:
    """Run attempts until one gives a connected socket; the others are cancelled or closed.

    Each starts `delay` seconds after the one before, or at once when one has failed.

    Raises:
        DialError: with the text of the first failure; its cause has all, as a group.
        Exception: whatever else an attempt raises that is no `OSError` ends the race.
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
            await cancel_and_wait(running)
            running = set()
        if fatal:
            raise fatal[0]
        if not winners:
            raise DialError(str(failures[0])) from ExceptionGroup("all attempts failed", failures)
        return winners.pop(0)
    finally:
        _close(winners)
        # The errors hold the frames that hold these lists.
        failures.clear()
        fatal.clear()


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """The same addresses, families in turn, beginning with that of the first."""
    preferred = [ip for ip in addresses if ip.version == addresses[0].version]
    others = [ip for ip in addresses if ip.version != addresses[0].version]
    pairs = chain.from_iterable(zip_longest(preferred, others))
    return [ip for ip in pairs if ip is not None]


async def connect_to_any(
    addresses: Sequence[IPAddress], port: int, *, settings: NetworkSettings
) -> socket.socket:
    """A connected socket to the first of a host's addresses that answers.

    Raises:
        DialError: none of them.
        ConfigError: mark or device cannot be used.
    """

    def attempt(address: IPAddress) -> Attempt:
        return lambda: connect_socket(str(address), port, settings=settings)

    return await staggered_race([attempt(ip) for ip in interleave(addresses)], delay=STAGGER)


async def connect_to_host(
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> socket.socket:
    """Look `host` up and connect to the first of its addresses that answers.

    Raises:
        DialError: no address, or none answers.
        ConfigError: mark or device cannot be used.
    """
    addresses = await lookup(host, family=family, resolver=resolver)
    return await connect_to_any(addresses, port, settings=settings)


async def connect_to_proxy(
    proxy: Proxy, *, settings: NetworkSettings, resolver: Resolver | None = None
) -> socket.socket:
    """A connected socket to a proxy.

    Raises:
        DialError: no address, or none answers; the text names the proxy.
        ConfigError: mark or device cannot be used.
    """
    try:
        return await connect_to_host(proxy.host, proxy.port, settings=settings, resolver=resolver)
    except OSError as e:
        raise DialError(f"proxy {proxy.redacted}: {e}") from (e.__cause__ or e)
