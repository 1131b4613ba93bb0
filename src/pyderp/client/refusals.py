"""Delays the login of a client after logins that the relay has refused."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

from pyderp.errors import ConnectionClosed, LoginRefused, without_frames

__all__ = ["Refusals"]

_UNIT: Final = 0.1
_LONGEST: Final = 10.0
"""Seconds. The login after n refused ones waits (n - 1)² × 100 ms, at most 10 s, × [0.5, 1.5)."""


class Refusals:
    """Counts the connections in a row that ended because the relay refused the login.

    It belongs to the client and not to a loop that repeats calls: each new loop would begin at
    no delay, and a program whose calls fail in turn would log in without any pause.
    """

    def __init__(self) -> None:
        self.last: LoginRefused | None = None
        """The error of the last of them."""
        self._count = 0
        self._not_before = 0.0
        """Time of the event loop before which no connection is made."""

    def reset(self) -> None:
        """Begin again at no delay, as the relay has admitted the client."""
        self._count = 0
        self.last = None

    @property
    def repeated(self) -> bool:
        """Whether there were two or more. A single one may come from a relay that stops."""
        return self._count > 1

    def add(self, error: ConnectionClosed) -> None:
        """Count a refusal, and set the time of the next login."""
        if isinstance(error, LoginRefused):
            self.last = without_frames(error)
        # No delay after the first: the relay may have been about to stop, and its successor
        # may run already.
        delay = min(self._count**2 * _UNIT, _LONGEST)
        self._count += 1
        now = asyncio.get_running_loop().time()
        # At random, so that many clients of one relay do not all come back at the same time.
        self._not_before = now + delay * (0.5 + random.random())

    async def wait(self, closing: asyncio.Event) -> None:
        """Wait until the next login is due, or `closing` is set."""
        delay = self._not_before - asyncio.get_running_loop().time()
        if self._count and delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await closing.wait()
