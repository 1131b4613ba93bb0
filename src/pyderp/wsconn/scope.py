"""What bounds the life of streams, as the context does that Go's `NetConn` is given."""

from __future__ import annotations

from types import TracebackType
from typing import TypeAlias
from weakref import WeakSet

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

__all__ = ["Connection", "Scope", "drop"]

Connection: TypeAlias = ClientConnection | ServerConnection
"""An open connection of the websockets library, of either side."""


def drop(websocket: Connection) -> None:
    """Close its TCP connection now, without a close frame. May be called again."""
    # Once it has ended, asyncio's transports may fail at this.
    if not websocket.connection_lost_waiter.done():
        websocket.transport.abort()


class Scope:
    """Ends streams for good, all those that it was given to; they may be any number.

    As a context manager it ends with its block. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._ended = False
        # Weak, for a scope may outlive thousands of connections. The loop keeps those
        # alive that still have a socket.
        self._websockets: WeakSet[Connection] = WeakSet()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    def add(self, websocket: Connection) -> None:
        """Drop `websocket` when the scope ends; at once, if it has ended. (`net_conn` does it.)"""
        if self._ended:
            drop(websocket)
        else:
            self._websockets.add(websocket)

    def end(self) -> None:
        """Drop the TCP connections, without a close frame. May be called again."""
        self._ended = True
        for websocket in list(self._websockets):
            drop(websocket)

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
