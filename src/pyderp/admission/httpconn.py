"""What an HTTP client does below a question: names, connections, redirects."""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pyderp.admission.reach import Attempt

__all__ = ["OwnThreadResolver", "is_missing_connection", "tracing"]

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
_OWN_TROUBLE: Final = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM})


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
    """Asks the system for addresses, in threads that nothing else uses.

    In the threads of the event loop, names that hang elsewhere would keep this look-up waiting
    until its time is over, as if the server could not be reached.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "pyderp-admission")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host."""
        infos = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: socket.getaddrinfo(
                host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            ),
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
        """Wait for no look-up that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _with_zone(address: tuple[Any, ...]) -> str:
    zone = address[3] if len(address) == 4 else 0
    return f"{address[0]}%{zone}" if zone and "%" not in address[0] else str(address[0])


def tracing() -> aiohttp.TraceConfig:
    """Tell the `Attempt` that a request carries what comes of its connection.

    aiohttp's errors alone do not say whether there was one: a redirect may lead to a second
    server, and that one may be missing.
    """
    config = aiohttp.TraceConfig()

    async def made(_: object, context: Any, __: object) -> None:
        _attempt(context).on_connected(reused=False)

    async def reused(_: object, context: Any, __: object) -> None:
        _attempt(context).on_connected(reused=True)

    async def redirected(
        _: object, context: Any, params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        _attempt(context).on_answered()
        _check_redirect(params.url, params.response.headers.get("Location", ""))

    config.on_connection_create_end.append(made)
    config.on_connection_reuseconn.append(reused)
    config.on_request_redirect.append(redirected)
    return config


def _attempt(context: Any) -> Attempt:
    attempt = context.trace_request_ctx
    assert isinstance(attempt, Attempt)
    return attempt


def _check_redirect(base: URL, location: str) -> None:
    """Refuse a redirect from HTTPS to HTTP: anybody on the way could give the answer.

    Raises:
        ValueError: it is one, or no URL.
    """
    target = base.join(URL(location))
    if base.scheme == "https" and target.scheme != "https":
        raise ValueError(f"redirected from https:// to {target.scheme}://")
