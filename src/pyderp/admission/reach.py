"""Decides whether an HTTP server is unreachable: one failed connection is not enough for that.

Also the parts of an HTTP request below the question: look-ups of names, connections, redirects.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pyderp.addresses import format_address
from pyderp.admission.verdict import excerpt
from pyderp.tasks import in_own_thread
from pyderp.text import h11_words, system_words

__all__ = ["Attempt", "OwnThreadResolver", "Reach", "means_unreachable", "tracing"]

_FRESH: Final = 30.0
"""Seconds for which a server counts as reachable after an attempt reached it."""
_GRACE: Final = 1.0
"""Seconds that a failed attempt waits for concurrent attempts to connect."""
_KNOWN: Final = 1.0
"""Seconds for which the server counts as unreachable without another attempt."""
_THREADS: Final = 2
"""Look-ups at once: aiohttp makes one at a time for each host, and redirects may name others."""

# Errors which say that there is no route to the server, or no server. All others are trouble of
# this machine, such as too few file descriptors or ports. A client can cause those by connecting
# often, so they must not make the relay let clients in.
_NO_CONNECTION: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ETIMEDOUT,
        errno.EPIPE,
        None,  # several addresses failed with different errors
    }
)
_OWN_TROUBLE: Final = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM, errno.EAGAIN})
"""Errors of a look-up that are trouble of this machine. EAGAIN: no thread could be started."""


@dataclass(slots=True, eq=False)
class Attempt:
    """The state of the connection for one question that is being asked."""

    connected: bool = False
    """The question has a connection to the server; a later failure is not an unreachable server."""

    reused: bool = False
    """The connection was kept from an earlier question; the server may have closed it."""


class Reach:
    """Combines the results of all attempts to reach one server.

    A client may be able to make the server, or a router before it, refuse some connections. That
    must not make the server look unreachable. So it counts as unreachable only if no attempt has
    reached it in the last 30 seconds and no concurrent attempt reaches it.

    Args:
        clock: seconds of a monotonic clock.
        grace: seconds that a failed attempt waits for concurrent ones.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, grace: float = _GRACE
    ) -> None:
        self._clock = clock
        self._grace = grace
        self._reached: float | None = None
        self._unreachable_at: float | None = None
        """When the server was last found unreachable, if no attempt has reached it since."""
        self._trying: set[Attempt] = set()
        self._changed = asyncio.Event()

    def begin(self) -> Attempt:
        """Register and return an attempt, before a question is asked."""
        attempt = Attempt()
        self._trying.add(attempt)
        return attempt

    def is_known_unreachable(self) -> bool:
        """Return whether the server was found unreachable within the last second.

        Then further questions need not wait for connections that would fail too.
        """
        return self._unreachable_at is not None and self._clock() - self._unreachable_at < _KNOWN

    async def is_unreachable_for_all(self, failed: Attempt) -> bool:
        """Return whether no other attempt reaches the server, after one failed to connect.

        Waits at most `grace` seconds for the concurrent attempts.
        """
        self.on_end(failed)
        others = set(self._trying)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while others & self._trying and not self._is_fresh():
                    await self._changed.wait()
        if self._is_fresh():
            return False
        self._unreachable_at = self._clock()
        return True

    def on_reached(self, attempt: Attempt) -> None:
        """Note that the server is reachable: there is a new connection, or an answer."""
        attempt.connected = True
        attempt.reused = False
        self._reached = self._clock()
        self._unreachable_at = None
        self.on_end(attempt)

    def on_end(self, attempt: Attempt) -> None:
        """Note that an attempt reached the server or failed, and wake those that wait for it."""
        self._trying.discard(attempt)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _is_fresh(self) -> bool:
        return self._reached is not None and self._clock() - self._reached < _FRESH


def describe(error: Exception) -> str:
    """Return why an HTTP request failed, as text that is cut and escaped.

    aiohttp's own texts contain Python's class names, OpenSSL's names and the whole URL, which may
    contain a password.
    """
    if isinstance(error, aiohttp.ClientConnectorError):
        cause: OSError = error.os_error
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            refused = error.certificate_error
            cause = refused if isinstance(refused, OSError) else OSError(str(refused))
        where = format_address(error.host, error.port or 0)
        return excerpt(f"cannot connect to {where}: {system_words(cause)}")
    if isinstance(error, aiohttp.TooManyRedirects):
        return "it redirects too often"
    if isinstance(error, aiohttp.ClientResponseError):
        # The lines after the first quote the received bytes and mark a position in them.
        what = error.message.partition("\n")[0].rstrip(": ")
        return excerpt(h11_words(ValueError(what)) or f"status {error.status}")
    if isinstance(error, OSError):
        return excerpt(system_words(error))
    return excerpt(str(error)) or type(error).__name__


def means_unreachable(error: Exception) -> bool:
    """Return whether an attempt failed because the server is missing, not by this machine's fault.

    TLS counts as part of the connection, so a server with an expired certificate counts as
    missing.
    """
    if isinstance(error, (TimeoutError, aiohttp.ClientSSLError)):
        return True
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.errno not in _OWN_TROUBLE
    return isinstance(error, aiohttp.ClientConnectorError) and error.errno in _NO_CONNECTION


class OwnThreadResolver(AbstractResolver):
    """Looks up addresses by the system's resolver, each look-up in a thread of its own.

    In the thread pool of the event loop, a look-up could wait for slow look-ups of other parts
    of the program until its time is over, and the server would seem unreachable.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_THREADS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host."""
        # aiohttp cancels no look-up, so a slot is never free while its look-up still runs.
        async with self._free:
            infos = await in_own_thread(
                lambda: socket.getaddrinfo(
                    host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                ),
                name=f"pyderp look-up of {host}",
            )
        return [
            ResolveResult(
                hostname=host,
                host=_with_zone(address),
                port=port,
                family=family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, _, protocol, _, address in infos
        ]

    async def close(self) -> None:
        """Do nothing: look-ups that still run end by themselves."""


def _with_zone(address: tuple[Any, ...]) -> str:
    zone = address[3] if len(address) == 4 else 0
    return f"{address[0]}%{zone}" if zone and "%" not in address[0] else str(address[0])


def tracing() -> aiohttp.TraceConfig:
    """Return aiohttp callbacks that update the `Reach` and `Attempt` which a request carries.

    aiohttp's errors alone do not tell whether there was a connection: after a redirect, the
    second server may be the one that is missing.
    """
    # The config is part of a reference cycle. So its functions take `Reach` and `Attempt` from
    # the request's context: what they closed over would stay until the cyclic collector runs.
    config = aiohttp.TraceConfig()

    async def made(_: object, context: Any, __: object) -> None:
        reach, attempt = _carried(context)
        reach.on_reached(attempt)

    async def reused(_: object, context: Any, __: object) -> None:
        _, attempt = _carried(context)
        attempt.connected = attempt.reused = True

    async def redirected(
        _: object, context: Any, params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        reach, attempt = _carried(context)
        reach.on_reached(attempt)
        _check_redirect(params.url, params.response.headers.get("Location", ""))

    config.on_connection_create_end.append(made)
    config.on_connection_reuseconn.append(reused)
    config.on_request_redirect.append(redirected)
    return config


def _carried(context: Any) -> tuple[Reach, Attempt]:
    carried: tuple[Reach, Attempt] = context.trace_request_ctx
    return carried


def _check_redirect(base: URL, location: str) -> None:
    """Refuse a redirect from HTTPS to HTTP, as any machine on the path could forge the answer.

    Raises:
        ValueError: the redirect is from HTTPS to another scheme, or its target is not a URL.
    """
    target = base.join(URL(location))
    if base.scheme == "https" and target.scheme != "https":
        raise ValueError(f"redirected from https:// to {target.scheme}://")
