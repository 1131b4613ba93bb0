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
"""Seconds after which a ping counts as lost, and the next may leave."""


@dataclass(slots=True, eq=False)
class _Ping:
    """A ping that left, and its answer: the seconds it took, or `None` if none can come."""

    data: bytes
    answer: asyncio.Future[float | None]
    waiting: int = 0
    # uvloop's own clock counts milliseconds.
    began: float = field(default_factory=time.perf_counter)


class Pings:
    """One is on its way at a time; calls that come meanwhile share the next one.

    For a relay keeps one pong that waits, and of two pings in one read it answers the last.
    """

    def __init__(self) -> None:
        self._last: _Ping | None = None
        self._unanswered: dict[bytes, _Ping] = {}

    async def ping(self, send: Callable[[bytes], None]) -> float | None:
        """Seconds until the relay has answered a ping; `None`: the connection ended first.

        Args:
            send: sends a whole frame at once; raises if the connection has ended.
        """
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
                ping.answer.cancel()  # no call waits for it; the next may leave
        return ping.answer.result()

    def answered(self, data: bytes) -> bool:
        """A pong came; whether it was for one of ours."""
        ping = self._unanswered.pop(data, None)
        if ping is None:
            return False
        ping.answer.set_result(time.perf_counter() - ping.began)
        return True

    def end(self) -> None:
        """No answer can come any more."""
        for ping in self._unanswered.values():
            ping.answer.set_result(None)
        self._unanswered.clear()
