"""Closing all connections of a relay that stops, in order and without a stampede."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from pyderp.defaults import LINGER_TIMEOUT, RECONNECT_TRY_FOR
from pyderp.relay.ending import EndReason, How
from pyderp.server.conn.context import ConnectionContext
from pyderp.wire.frames import pack_restarting

__all__ = ["close_all"]

_STEP: Final = 0.01
_LINGER_SHARE: Final = 0.4
"""Of a stop's time, at most this part is kept for clients that are closed last."""
_LONGEST_RECONNECT: Final = 2**32 // 1000
"""Seconds that fit the frame, which has milliseconds in 32 bits."""


async def close_all(context: ConnectionContext, drain: float) -> None:
    """Tell all clients that the relay restarts, and close them one by one.

    Args:
        drain: seconds to spread that over; 0: at once.
    """
    try:
        _tell_restarting(context, drain)
        if drain > 0:
            await _close_spread(context, drain)
        for protocol in list(context.protocols):
            protocol.end(EndReason.STOPPED, How.GRACEFUL)
        # Some turns for the transports to close, even if there is no time to wait.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await _wait_for_ends(context)
    finally:
        context.stop()
        for protocol in list(context.protocols):
            protocol.end(EndReason.STOPPED, How.NOW)
    await context.cancel_tasks()


def _tell_restarting(context: ConnectionContext, drain: float) -> None:
    for protocol in list(context.protocols):
        # Other clients may end for good on a frame that they do not know.
        if protocol.connection is not None and protocol.connection.takes_health:
            reconnect_in = min(drain, _LONGEST_RECONNECT) * context.uniform()
            frame = pack_restarting(reconnect_in, RECONNECT_TRY_FOR)
            context.router.send_control(protocol.connection, frame)
    context.router.flush()


async def _close_spread(context: ConnectionContext, drain: float) -> None:
    """Close all connections, so that also the last has time for its last bytes."""
    waiting = list(context.protocols)
    random.shuffle(waiting)
    total = len(waiting)
    begin = context.loop.time()
    spread = drain - min(LINGER_TIMEOUT, drain * _LINGER_SHARE)
    while waiting:
        left = 1 - (context.loop.time() - begin) / spread
        while waiting and len(waiting) > left * total:
            waiting.pop().end(EndReason.STOPPED, How.GRACEFUL)
        if waiting:
            await asyncio.sleep(_STEP)


async def _wait_for_ends(context: ConnectionContext) -> None:
    """Wait until all connections are gone, or until the stop must be over."""
    while context.protocols:
        left = context.linger_until - context.loop.time()
        if left <= 0:
            break
        await asyncio.sleep(min(left, _STEP))
