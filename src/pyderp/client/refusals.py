"""How long a client waits before another login, after logins that the relay has refused."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

from pyderp.errors import ConnectionClosed, LoginRefused, without_frames

__all__ = ["Refusals"]

_UNIT: Final = 0.1
_LONGEST: Final = 10.0
"""Seconds: before the login that follows n refused ones, (n - 1)² x 100 ms, at most 10 s."""


class Refusals:
    """Connections that have ended in a row because the relay refused the login.

    The client has one, and not each loop that repeats calls: those would begin anew.
    """

    def __init__(self) -> None:
        self.last: LoginRefused | None = None
        """The last of them."""
        self._count = 0
        self._not_before = 0.0
        """The loop's time before which no connection is made, because of them."""

    def reset(self) -> None:
        """The relay has taken the client in."""
        self._count = 0
        self.last = None

    @property
    def repeated(self) -> bool:
        """Whether there were two. One may come from a relay that was about to stop."""
        return self._count > 1

    def add(self, error: ConnectionClosed) -> None:
        """Another one."""
        if isinstance(error, LoginRefused):
            self.last = without_frames(error)
        # The first may be a relay that was about to stop: the next login is not held back.
        delay = min(self._count**2 * _UNIT, _LONGEST)
        self._count += 1
        now = asyncio.get_running_loop().time()
        self._not_before = now + delay * (0.5 + random.random())

    async def wait(self, closing: asyncio.Event) -> None:
        """Wait until the next login is due, or `closing` is set."""
        delay = self._not_before - asyncio.get_running_loop().time()
        if self._count and delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await closing.wait()
