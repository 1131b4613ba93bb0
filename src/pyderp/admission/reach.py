"""Whether a server can be reached over HTTP: one connection that fails does not say that.

Also what an HTTP client does below a question: look-ups of names, connections, redirects.
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

__all__ = ["Attempt", "OwnThreadResolver", "Reach", "is_missing_connection", "tracing"]

_FRESH: Final = 30.0
"""Seconds for which a server that was reached counts as one that can be."""
_GRACE: Final = 1.0
"""Seconds that a failed attempt waits for those beside it to connect."""
_KNOWN: Final = 1.0
"""Seconds for which the server is known to be out of reach without another attempt."""
_THREADS: Final = 2
"""Look-ups at once: aiohttp makes one at a time for each host, and redirects may name others."""

# What says that there is no way to the server, or nothing at its end. All else is this machine's
# own trouble, such as too few file descriptors or ports, and whoever wants in may have made it.
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
        None,  # several addresses failed, each in its own way
    }
)
_OWN_TROUBLE: Final = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM, errno.EAGAIN})
"""Of a look-up; EAGAIN: there is no thread left for it."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One question on its way."""

    connected: bool = False
    """It has a connection to the server, and what fails now is no missing connection."""

    reused: bool = False
    """The connection was there before, and the server may have closed it meanwhile."""


class Reach:
    """What attempts to reach one server came to, taken together.

    A client that makes the server, or the way to it, refuse some connections must not make it look
    as if there were no server. So it counts as out of reach only if no attempt has reached it
    lately and none reaches it now.

    Args:
        clock: seconds of a monotonic clock.
        grace: seconds that a failed attempt waits for those beside it.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, grace: float = _GRACE
    ) -> None:
        self._clock = clock
        self._grace = grace
        self._reached: float | None = None
        self._missed: float | None = None
        """When it was last found out of reach, if no attempt has reached it since."""
        self._trying: set[Attempt] = set()
        self._changed = asyncio.Event()

    def begin(self) -> Attempt:
        """A question is about to be asked."""
        attempt = Attempt()
        self._trying.add(attempt)
        return attempt

    def is_known_missed(self) -> bool:
        """Whether the server was found out of reach just now.

        So that not each of many questions waits for the same in vain.
        """
        return self._missed is not None and self._clock() - self._missed < _KNOWN

    async def is_missed_by_all(self, failed: Attempt) -> bool:
        """Whether no other attempt reaches the server either, after one without connection.

        Waits for attempts on their way, but not for long.
        """
        self.on_end(failed)
        others = set(self._trying)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while others & self._trying and not self._is_fresh():
                    await self._changed.wait()
        if self._is_fresh():
            return False
        self._missed = self._clock()
        return True

    def on_reached(self, attempt: Attempt) -> None:
        """There is a new connection, or an answer: the server can be reached."""
        attempt.connected = True
        attempt.reused = False
        self._reached = self._clock()
        self._missed = None
        self.on_end(attempt)

    def on_end(self, attempt: Attempt) -> None:
        """An attempt got through or failed."""
        self._trying.discard(attempt)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _is_fresh(self) -> bool:
        return self._reached is not None and self._clock() - self._reached < _FRESH


def describe(error: Exception) -> str:
    """What went wrong with a question by HTTP, cut and escaped.

    aiohttp's own texts have Python's classes, OpenSSL's names and the whole URL in them, which may
    have a password.
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
        # The lines behind the first quote what came, and point into it.
        what = error.message.partition("\n")[0].rstrip(": ")
        return excerpt(h11_words(ValueError(what)) or f"status {error.status}")
    if isinstance(error, OSError):
        return excerpt(system_words(error))
    return excerpt(str(error)) or type(error).__name__


def is_missing_connection(error: Exception) -> bool:
    """Whether an attempt without connection failed because there is none to be had.

    TLS belongs to the connection: a server whose certificate has expired is as good as none.
    """
    if isinstance(error, (TimeoutError, aiohttp.ClientSSLError)):
        return True
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.errno not in _OWN_TROUBLE
    return isinstance(error, aiohttp.ClientConnectorError) and error.errno in _NO_CONNECTION


class OwnThreadResolver(AbstractResolver):
    """Asks the system for addresses, a few at once, each in a thread of its own.

    In the threads of the event loop, names that hang elsewhere would keep this look-up waiting
    until its time is over, as if the server could not be reached.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_THREADS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host."""
        # aiohttp cancels no look-up before the end, so none that hangs counts as free.
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
        """Look-ups that hang end by themselves."""


def _with_zone(address: tuple[Any, ...]) -> str:
    zone = address[3] if len(address) == 4 else 0
    return f"{address[0]}%{zone}" if zone and "%" not in address[0] else str(address[0])


def tracing() -> aiohttp.TraceConfig:
    """Tell the `Reach`, which a request carries with its `Attempt`, what comes of its connection.

    aiohttp's errors alone do not say whether there was one: a redirect may lead to a second
    server, and that one may be missing.
    """
    # It is a cycle, so its functions take what they tell from the request.
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
    """Refuse a redirect from HTTPS to HTTP: anything on the way could forge the answer.

    Raises:
        ValueError: it is one, or no URL.
    """
    target = base.join(URL(location))
    if base.scheme == "https" and target.scheme != "https":
        raise ValueError(f"redirected from https:// to {target.scheme}://")
