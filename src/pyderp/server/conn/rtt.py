"""Round-trip times of TCP connections, sampled for the metrics (`counter_tcp_rtt`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterator
from typing import Final

from pyderp.relay.counters import Counters
from pyderp.server.conn.context import Served
from pyderp.server.conn.kernel import NON_TCP, rtt_label, rtt_sample

__all__ = ["RttSampler"]

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
