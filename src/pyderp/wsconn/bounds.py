"""What bounds the life of streams: deadlines, and scopes.

A deadline is of one direction of a stream, as `net.Conn` has it. A scope is of any number of
streams, as the context is that Go's `NetConn` is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias
from weakref import WeakSet

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

from pyderp.errors import DerpError

__all__ = ["Deadline", "Scope", "WebSocketConnection", "drop"]

WebSocketConnection: TypeAlias = ClientConnection | ServerConnection
"""An open connection of the websockets library, of either side."""


def drop(websocket: WebSocketConnection) -> None:
    """Close its TCP connection now, without a close frame. May be called again."""
    # Once it has ended, asyncio's transports may fail at this.
    if not websocket.connection_lost_waiter.done():
        websocket.transport.abort()


class Deadline:
    """When the operations of one direction must be over.

    There is a timer only while an operation runs: between operations the clock is enough,
    and a check that is made when the operation starts cannot miss it.

    Args:
        direction: "read" or "write", for the error.
        cut: returns what is called with the reason when time is up in the middle of an operation;
            it must make the operation end. A `WeakMethod`, as the stream holds its deadlines.
    """

    def __init__(self, direction: str, cut: Callable[[], Callable[[str], None] | None]) -> None:
        self.busy = False
        self._direction = direction
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._when: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._was_cut = False

    def set(self, when: float | None) -> None:
        """Set it to a time of the loop's clock, or to none at all."""
        self._disarm()
        self._when = when
        if self.busy:
            self._arm()

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Around an operation; one at a time.

        Raises:
            TimeoutError: time was up already, or ran out meanwhile.
        """
        if self._is_over():
            raise self._error()
        self.busy = True
        self._was_cut = False
        self._arm()
        try:
            yield
        except DerpError:
            if not self._was_cut:
                raise
        finally:
            self.busy = False
            self._disarm()
        if self._was_cut:
            raise self._error()

    def _is_over(self) -> bool:
        return self._when is not None and self._when <= self._loop.time()

    def _arm(self) -> None:
        if self._when is None:
            return
        if self._is_over():
            self._fire()
        else:
            self._timer = self._loop.call_at(self._when, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        # Loops fire timers up to a millisecond early, and what was cut must stay over.
        self._when = -math.inf
        self._timer = None
        self._was_cut = True
        if (cut := self._cut()) is not None:
            cut(f"a {self._direction} deadline")

    def _error(self) -> TimeoutError:
        return TimeoutError(f"the {self._direction} deadline has passed")


class Scope:
    """Ends streams for good, all those that it was given to; they may be any number.

    As a context manager it ends with its block. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self.ended = False
        """Whether `end` was called."""
        # Weak, for a scope may outlive thousands of connections. The loop keeps those
        # alive that still have a socket.
        self._websockets: WeakSet[WebSocketConnection] = WeakSet()

    def add(self, websocket: WebSocketConnection) -> None:
        """Drop `websocket` when the scope ends; at once, if it has ended. (`net_conn` does it.)"""
        if self.ended:
            drop(websocket)
        else:
            self._websockets.add(websocket)

    def end(self) -> None:
        """Drop the TCP connections, without a close frame. May be called again."""
        self.ended = True
        for websocket in list(self._websockets):
            drop(websocket)

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
