"""Whether anybody reaches a server: one connection that fails does not say that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Attempt", "Reach"]

_FRESH: Final = 30.0
"""Seconds for which a server that was reached counts as one that can be."""
_GRACE: Final = 1.0
"""Seconds that a failed attempt waits for those beside it to connect."""
_KNOWN: Final = 1.0
"""Seconds for which the finding that nobody reaches the server need not be made again."""


class Attempt:
    """One question on its way."""

    __slots__ = ("_reach", "connected", "reused")

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self.connected = False
        """It has a connection to the server, and what fails now is no missing connection."""
        self.reused = False
        """The connection was there before, and the server may have closed it meanwhile."""

    def on_connected(self, *, reused: bool) -> None:
        """There is a connection. A new one shows that the server can be reached."""
        self.connected = True
        self.reused = reused
        if not reused:
            self._reach.on_reached(self)

    def on_answered(self) -> None:
        """The server said something."""
        self.connected = True
        self.reused = False
        self._reach.on_reached(self)

    def end(self) -> None:
        """Nothing more comes of it."""
        self._reach.on_end(self)


class Reach:
    """What attempts to reach one server came to, taken together.

    Whoever can make the server, or the way to it, refuse some connections must not make it look
    as if there were no server. So it counts as out of reach only if nobody has reached it lately
    and nobody reaches it now.

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
        """When it was last found out that nobody reaches it, if nobody did since."""
        self._trying: set[Attempt] = set()
        self._changed = asyncio.Event()

    def begin(self) -> Attempt:
        """A question is about to be asked."""
        attempt = Attempt(self)
        self._trying.add(attempt)
        return attempt

    def is_known_missed(self) -> bool:
        """Whether it was found out just now that nobody reaches the server.

        It need not be tried by each of many who would wait for the same in vain.
        """
        return self._missed is not None and self._clock() - self._missed < _KNOWN

    async def is_missed_by_all(self, failed: Attempt) -> bool:
        """Whether nobody else reaches the server either, after an attempt without connection.

        Waits for attempts on their way, but not for long.
        """
        failed.end()
        others = set(self._trying)
        try:
            async with asyncio.timeout(self._grace):
                while others & self._trying and not self._is_fresh():
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self._is_fresh():
            return False
        self._missed = self._clock()
        return True

    def on_reached(self, attempt: Attempt) -> None:
        """An attempt got through; `Attempt` calls it."""
        self._reached = self._clock()
        self._missed = None
        self.on_end(attempt)

    def on_end(self, attempt: Attempt) -> None:
        """An attempt got through or failed; `Attempt` calls it."""
        self._trying.discard(attempt)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _is_fresh(self) -> bool:
        return self._reached is not None and self._clock() - self._reached < _FRESH
