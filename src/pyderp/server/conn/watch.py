"""Watching all connections: which network paths are dead, how long round trips take.

For dead paths Linux has `TCP_USER_TIMEOUT`, but it also ends a connection whose client reads
slowly: while the client's window is closed, the kernel sends window probes and counts their
time, even though the client acknowledges each. So the relay asks the kernel instead, and ends
only those that acknowledge nothing at all.
"""

from __future__ import annotations

import asyncio
import math
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Final

from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import Counters
from pyderp.server.conn.context import TICK, Served
from pyderp.server.conn.kernel import NON_TCP, Unanswered, rtt_label, tcp_info, unanswered

__all__ = ["PathWatch", "RttSampler"]

_LOOKS: Final = 4
"""How often `PathWatch` looks at each connection within the timeout."""
_LOOKS_AT_ONCE: Final = 32
"""Connections whose kernel is asked in a row."""
_PERIOD: Final = 10.0
"""Seconds between two samples of one connection."""
_A_TICK: Final = 500
"""Connections looked at in one tick, for a millisecond at most."""


class Spread(ABC):
    """Looks at many connections, a few at a time, evenly over a tick.

    The kernel takes about 4 µs to answer for one, which the packets that arrive meanwhile wait:
    for 5,000 connections all looks of a tick took 1.4 ms, and were seen in the 99th percentile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rest: deque[Served] = deque()
        self._pause = 0.0

    @abstractmethod
    def look(self, protocol: Served) -> None:
        """Look at one connection."""

    @property
    def going_on(self) -> bool:
        """Whether connections are left of those that it was started with."""
        return bool(self._rest)

    def start(self, connections: Collection[Served]) -> None:
        """Look at these; the first few at once."""
        self._rest.extend(connections)
        self._pause = TICK * _LOOKS_AT_ONCE / max(len(connections), _LOOKS_AT_ONCE)
        self._look_at_next()

    def _look_at_next(self) -> None:
        rest = self._rest
        for _ in range(min(_LOOKS_AT_ONCE, len(rest))):
            self.look(rest.popleft())
        if rest:
            self._loop.call_later(self._pause, self._look_at_next)


class PathWatch(Spread):
    """Ends connections on which the kernel retransmits without an answer.

    The kernel must have sent three times in vain, which it has 1.4 s after the path died if round
    trips are short, and after seven retransmission timeouts otherwise: a dead path is found at
    most that late. After idle time, the timeout may be up to a quarter shorter. If the path dies
    while the client's window is closed, three window probes must go unanswered; Linux sends
    these up to two minutes apart.

    Args:
        connections: the relay's connections; a live view.
        loop: has the clock and timers.
        timeout: seconds without any acknowledgement while the kernel waits for one.
        ask: returns what the kernel waits for on a connection; `None`: unknown.
    """

    def __init__(
        self,
        connections: Collection[Served],
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        ask: Callable[[asyncio.BaseTransport | None], Unanswered | None] = unanswered,
    ) -> None:
        super().__init__(loop)
        self._connections = connections
        self._timeout = timeout
        self._ask = ask
        self._period = max(timeout / _LOOKS, TICK)
        self._round: Iterator[Served] = iter(())
        self._a_tick = 0
        self._next = loop.time()
        # Connections that did not answer when last looked at, and since when.
        self._suspects: dict[Served, float] = {}

    def tick(self, now: float) -> None:
        """Look at the next connections, and at those that did not answer."""
        if now >= self._next:
            self._next = now + self._period
            connections = list(self._connections)
            self._round = iter(connections)
            # A round takes most of the period, so that there is little to do in each tick.
            self._a_tick = math.ceil(len(connections) * TICK / self._period)
        if not self.going_on:
            fresh = (p for p in islice(self._round, self._a_tick) if p not in self._suspects)
            self.start([*self._suspects, *fresh])

    def look(self, protocol: Served) -> None:
        """Ask the kernel, and end the connection if its path is dead (`Spread`)."""
        now = self._loop.time()
        since = self._suspects.get(protocol, now)
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


class RttSampler(Spread):
    """Samples each logged-in connection about every ten seconds, some of them in each tick.

    Args:
        connections: the relay's connections; a live view.
        counters: count the samples.
        loop: has the clock and timers.
    """

    def __init__(
        self, connections: Collection[Served], counters: Counters, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(loop)
        self._connections = connections
        self._counters = counters
        self._round: Iterator[Served] = iter(())
        self._next = loop.time() + _PERIOD

    def tick(self, now: float) -> None:
        """Sample the next connections, if it is time for them."""
        if now >= self._next:
            self._next = now + _PERIOD
            self._round = iter(list(self._connections))
        if not self.going_on:
            self.start(list(islice(self._round, _A_TICK)))

    def look(self, protocol: Served) -> None:
        """Take a sample of a connection that is logged in (`Spread`)."""
        if protocol.connection is not None and protocol.transport is not None:
            label = _label(protocol.transport)
            samples = self._counters.tcp_rtt
            samples[label] = samples.get(label, 0) + 1


def _label(transport: asyncio.Transport) -> str:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return NON_TCP
    info = tcp_info(transport)
    return rtt_label(None if info is None else info.rtt)
