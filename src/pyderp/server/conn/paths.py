"""The network paths of connections: which are dead, and how long a round trip takes.

For dead paths Linux has `TCP_USER_TIMEOUT`, but it also ends a connection whose client reads
slowly: while the client's window is closed, the kernel sends window probes and counts their
time, even though the client acknowledges each. So the relay asks the kernel instead, and ends
only those that acknowledge nothing at all.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Collection, Iterator
from typing import Final

from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import Counters
from pyderp.server.conn.context import TICK, Served
from pyderp.server.conn.kernel import NON_TCP, Unanswered, rtt_label, rtt_sample, unanswered

__all__ = ["PathWatch", "RttSampler"]

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
        connections: those that there are; live.
        now: the loop's time.
        timeout: seconds without any acknowledgement, while the kernel waits for one.
        ask: what a connection's kernel waits for; `None`: it does not tell.
    """

    def __init__(
        self,
        connections: Collection[Served],
        now: float,
        timeout: float,
        ask: Callable[[asyncio.BaseTransport | None], Unanswered | None] = unanswered,
    ) -> None:
        self._connections = connections
        self._timeout = timeout
        self._ask = ask
        self._period = max(timeout / _LOOKS, TICK)
        self._round: Iterator[Served] = iter(())
        self._at_once = 0
        self._next = now
        # Connections that did not answer when last looked at, and since when.
        self._suspects: dict[Served, float] = {}

    def tick(self, now: float) -> None:
        """Look at the next connections, and at those that did not answer."""
        if now >= self._next:
            self._next = now + self._period
            everyone = list(self._connections)
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


_PERIOD: Final = 10.0
"""Seconds between two samples of one connection."""
_AT_ONCE: Final = 500
"""Connections looked at in one tick, for a millisecond at most."""


class RttSampler:
    """Samples each logged-in connection about every ten seconds, some of them in each tick.

    Args:
        connections: those that there are; live.
        now: the loop's time.
    """

    def __init__(self, connections: Collection[Served], counters: Counters, now: float) -> None:
        self._connections = connections
        self._counters = counters
        self._round: Iterator[Served] = iter(())
        self._next = now + _PERIOD

    def tick(self, now: float) -> None:
        """Sample the next connections, if it is time for them."""
        if now >= self._next:
            self._next = now + _PERIOD
            self._round = iter(list(self._connections))
        for _, protocol in zip(range(_AT_ONCE), self._round, strict=False):
            if protocol.connection is not None and protocol.transport is not None:
                label = _label(protocol.transport)
                samples = self._counters.tcp_rtt
                samples[label] = samples.get(label, 0) + 1


def _label(transport: asyncio.Transport) -> str:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return NON_TCP
    return rtt_label(rtt_sample(sock))
