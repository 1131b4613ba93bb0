"""Which connections are taken at all: a rate of accepts, and file descriptors that are left."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
from collections.abc import Callable
from typing import Any, Final, cast

from pyderp.server.conn.context import Core
from pyderp.throttle import TokenBucket

__all__ = ["AcceptGate", "log_accept_errors", "open_files", "raise_file_limit"]

log = logging.getLogger("pyderp.relay")

_RESERVE: Final = 64
"""File descriptors kept for certificates, mesh links, questions about clients and logs."""
_SMALL: Final = 256
"""With fewer descriptors than this in all, a quarter of them is the reserve."""
_SAY_AGAIN: Final = 10.0
"""Seconds between two log lines about connections that were shed."""


class AcceptGate:
    """Decides whether the next connection is served; one that is not is closed at once.

    What comes too fast is rejected (`derper -accept-connection-limit`, which ends the process
    instead). What would take the last file descriptors is shed, so that the relay never
    comes to the point where it cannot accept, open its log or renew its certificate.

    Args:
        core: knows how many connections there are.
        limit: connections a second; `inf`: any number.
        burst: how many may exceed that for a moment.
    """

    def __init__(self, core: Core, limit: float, burst: float) -> None:
        self._core = core
        now = core.loop.time()
        self._bucket = None if limit == math.inf else TokenBucket(limit, burst, now)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = math.inf if soft == resource.RLIM_INFINITY else soft
        reserve = _RESERVE if files >= _SMALL else files // 4
        self.most = files - open_files() - reserve
        """Connections that are served at once."""
        self.accepted = 0
        self.rejected = 0
        """Closed because they came too fast."""
        self.shed = 0
        """Closed because file descriptors ran out."""
        self._said_at = -math.inf
        self._coming = 0
        """Connections taken in this turn of the loop; the core knows them in the next."""

    def guard(
        self, factory: Callable[[], asyncio.BaseProtocol], *, limited: bool = True
    ) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol factory that turns away what is not to be served.

        Args:
            limited: whether the rate counts; file descriptors always do.
        """

        def make() -> asyncio.BaseProtocol:
            if len(self._core.protocols) + self._coming >= self.most:
                self.shed += 1
                self._say("out of file descriptors: %d connections shed so far", self.shed)
                return _TurnedAway()
            if limited and not self._may_come():
                self.rejected += 1
                self._say("connections come too fast: %d rejected so far", self.rejected)
                return _TurnedAway()
            if limited:
                self.accepted += 1
            if not self._coming:
                self._core.loop.call_soon(self._they_came)
            self._coming += 1
            return factory()

        return make

    def _they_came(self) -> None:
        self._coming = 0

    def _may_come(self) -> bool:
        return self._bucket is None or self._bucket.take(1, self._core.loop.time())

    def _say(self, text: str, count: int) -> None:
        now = self._core.loop.time()
        if now - self._said_at >= _SAY_AGAIN:
            self._said_at = now
            log.warning(text, count)


class _TurnedAway(asyncio.Protocol):
    """A connection that is closed as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def log_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop tell in a line, now and then, that it cannot accept.

    asyncio's own words are a traceback for each attempt, and a thousand attempts a second. It
    tries again each second by itself; uvloop closes what it cannot accept, and says nothing.
    """
    said_at = -math.inf

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        message = str(context.get("message", ""))
        if message.startswith("socket.accept() out of system resource"):
            if loop.time() - said_at >= _SAY_AGAIN:
                said_at = loop.time()
                log.warning("cannot accept connections for now: %s", context.get("exception"))
        # Its next attempt may come after the relay has closed its sockets.
        elif "_start_serving" not in message:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def open_files() -> int:
    """File descriptors that this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # one is the listing's own
    except OSError:
        return 0


def raise_file_limit() -> None:
    """Allow this process as many file descriptors as it may allow itself; Go does so, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as e:
            log.debug("the limit of open files stays at %d: %s", soft, e)
