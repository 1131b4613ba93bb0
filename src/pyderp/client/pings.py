"""Pings of a connection and their answers (`derphttp.Client.Ping`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pyderp.wire.frames import PING_LEN, pack_ping

__all__ = ["Pings"]

NEXT_PING: Final = 1.0
"""Seconds after which the next ping may leave although the last has no answer."""


@dataclass(slots=True, eq=False)
class _Ping:
    """A ping that left, and its answer: the seconds it took, or `None` if none can come."""

    data: bytes
    answer: asyncio.Future[float | None]
    waiting: int = 0
    """Number of calls that wait for the answer."""
    # Not the loop's clock, which in uvloop counts milliseconds.
    began: float = field(default_factory=time.perf_counter)


class Pings:
    """Sends one ping at a time; calls that come before its answer share the next one.

    A relay stores one waiting pong per client: of two pings in one read it answers the last only.
    """

    def __init__(self) -> None:
        self._last: _Ping | None = None
        self._unanswered: dict[bytes, _Ping] = {}

    async def ping(self, send: Callable[[bytes], None]) -> float | None:
        """Returns the seconds until the answer, or `None` if the connection ended first.

        Args:
            send: sends a whole frame at once; raises if the connection has ended.
        """
        # A ping that left before this call would not show that the connection still works.
        earlier = self._last
        if earlier is not None:
            await asyncio.wait([earlier.answer], timeout=NEXT_PING)
        ping = self._last
        if ping is None or ping is earlier:
            ping = _Ping(os.urandom(PING_LEN), asyncio.get_running_loop().create_future())
            send(pack_ping(ping.data))
            self._last = self._unanswered[ping.data] = ping
        ping.waiting += 1
        try:
            await asyncio.wait([ping.answer])
        finally:
            ping.waiting -= 1
            if not ping.waiting:
                self._unanswered.pop(ping.data, None)
                ping.answer.cancel()  # all calls were cancelled; lets the next ping leave
        return ping.answer.result()

    def answered(self, data: bytes) -> bool:
        """Take the data of a pong; return whether it answers one of these pings."""
        ping = self._unanswered.pop(data, None)
        if ping is None:
            return False
        ping.answer.set_result(time.perf_counter() - ping.began)
        return True

    def end(self) -> None:
        """End all waiting calls, as the connection has ended."""
        for ping in self._unanswered.values():
            ping.answer.set_result(None)
        self._unanswered.clear()
