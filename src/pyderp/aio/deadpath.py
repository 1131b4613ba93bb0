"""Connections whose other end can no longer be reached, found by what the kernel waits for.

Linux has `TCP_USER_TIMEOUT` for this, but it also ends a connection whose client reads slowly:
while the client's window is closed, the kernel sends window probes and counts their time, even
though the client acknowledges each. So the relay asks the kernel instead, and ends only those
that acknowledge nothing at all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Final

from pyderp.aio.core import TICK, Core, Served
from pyderp.aio.site.tcpinfo import Unanswered, unanswered
from pyderp.relay.ending import EndReason, How

__all__ = ["PathWatch"]

_LOOKS: Final = 4
"""Each connection is looked at so often within the timeout."""


class PathWatch:
    """Ends connections to which the kernel sends again and again without an answer.

    The kernel must have sent three times in vain, which it has 1.4 s after the path died if round
    trips are short, and after seven retransmission timeouts otherwise: a dead path is found at
    most that late. After idle time, the timeout may be up to a quarter shorter. If the path dies
    while the client's window is closed, three window probes must go unanswered; Linux sends
    these up to two minutes apart.

    Args:
        core: has the connections.
        timeout: seconds without any acknowledgement, while the kernel waits for one.
        ask: what a connection's kernel waits for; `None`: it does not tell.
    """

    def __init__(
        self,
        core: Core,
        timeout: float,
        ask: Callable[[asyncio.BaseTransport | None], Unanswered | None] = unanswered,
    ) -> None:
        self._core = core
        self._timeout = timeout
        self._ask = ask
        self._period = max(timeout / _LOOKS, TICK)
        self._round: Iterator[Served] = iter(())
        self._at_once = 0
        self._next = core.loop.time()
        # Connections that did not answer when last looked at, and since when.
        self._suspects: dict[Served, float] = {}

    def tick(self, now: float) -> None:
        """Look at the next connections, and at those that did not answer."""
        if now >= self._next:
            self._next = now + self._period
            everyone = list(self._core.protocols)
            self._round = iter(everyone)
            # A round takes most of the period, so that no tick is long.
            self._at_once = math.ceil(len(everyone) * TICK / self._period)
        for protocol, since in list(self._suspects.items()):
            self._look(protocol, since, now)
        for _, protocol in zip(range(self._at_once), self._round, strict=False):
            if protocol not in self._suspects:
                self._look(protocol, now, now)

    def _look(self, protocol: Served, since: float, now: float) -> None:
        waits = self._ask(protocol.transport)
        if waits is None or not waits.sent_again:
            self._suspects.pop(protocol, None)
            return
        self._suspects[protocol] = since
        # It may have begun up to a period before it was seen.
        seen_for = now - since + self._period
        if waits.last_answer >= self._timeout and seen_for >= self._timeout:
            del self._suspects[protocol]
            detail = f"the client's kernel acknowledged nothing for {waits.last_answer:.0f} s"
            protocol.end(EndReason.DEAD_PATH, How.NOW, detail)
