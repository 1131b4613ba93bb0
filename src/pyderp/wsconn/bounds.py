"""Deadlines and scopes, which end operations of streams, or streams themselves.

A deadline is for one direction of a stream, as in Go's `net.Conn`. A scope is for any number of
streams, as the context that Go's `NetConn` takes.
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
    """Close a websocket's TCP connection now, without a close frame. May be called again."""
    # Not after its end: asyncio's transports may raise then.
    if not websocket.connection_lost_waiter.done():
        websocket.transport.abort()


class Deadline:
    """The time at which the operations of one direction must be over.

    A timer exists only while an operation runs. Between operations none is needed, because each
    operation compares the clock when it begins.

    Args:
        direction: "read" or "write", for the error.
        cut: returns a function that is called with the reason when the deadline passes during an
            operation; it must make the operation end. A `WeakMethod`, as the stream holds its
            deadlines.
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
        """Set the deadline to a time of the loop's clock; `None`: no deadline."""
        self._disarm()
        self._when = when
        if self.busy:
            self._arm()

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Apply the deadline to the operation in the block; one operation at a time.

        Raises:
            TimeoutError: the deadline has passed, before the operation or during it.
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
        # Loops fire timers up to a millisecond early. Without this, the next operation could
        # compare the clock, and find that the deadline has not passed.
        self._when = -math.inf
        self._timer = None
        self._was_cut = True
        if (cut := self._cut()) is not None:
            cut(f"a {self._direction} deadline")

    def _error(self) -> TimeoutError:
        return TimeoutError(f"the {self._direction} deadline has passed")


class Scope:
    """Ends any number of streams together: those that were made with it.

    As a context manager it ends with its block. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self.ended = False
        """Whether `end` was called."""
        # Weak, because a scope may outlive thousands of connections. The loop holds those that
        # still have a socket.
        self._websockets: WeakSet[WebSocketConnection] = WeakSet()

    def add(self, websocket: WebSocketConnection) -> None:
        """Drop `websocket` when the scope ends, at once if it has ended. `net_conn` calls this."""
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
