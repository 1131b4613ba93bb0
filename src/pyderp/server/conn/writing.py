"""Writing: frames through the connection's layers to the kernel, and what the kernel did not take.

A socket is full from `pause_writing` to `resume_writing`. Meanwhile the router queues packets for
it, and `unsent_size` says how much of the last write the kernel has yet to take.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass

from pyderp.relay.connection import Connection, EndReason, How
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.kernel import unacknowledged
from pyderp.server.conn.reading import StagedReader

__all__ = ["FullSocket", "StagedWriter"]


@dataclass(slots=True)
class FullSocket:
    """The state of a socket whose kernel buffer is full."""

    held: int
    """Bytes that the transport held when the kernel buffer became full."""
    since: float
    """Time of the last progress, on the loop's clock."""
    waits: tuple[int, int]
    """Bytes that the transport and the kernel held at the last check."""
    behind: int = 0
    """Bytes that were written after the socket became full."""


class StagedWriter(StagedReader):
    """The writing half of a connection.

    Attributes:
        connection: the client that logged in.
        full: set while the kernel buffer is full. `context.stalled` and `Connection.paused`
            follow it.
        ended: `end` was called; at most last bytes are still to be written.
        lingering: the transport of an ended connection, until its last bytes are written.
    """

    __slots__ = ("_waiter", "connection", "ended", "full", "lingering")

    def __init__(self, context: ConnectionContext) -> None:
        super().__init__(context)
        self.connection: Connection | None = None
        self.full: FullSocket | None = None
        self.ended = False
        self.lingering: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None

    @abstractmethod
    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Unregister and close."""

    @abstractmethod
    def on_last_bytes_taken(self) -> None:
        """Close the transport: the connection has ended and the kernel has its last bytes."""

    def send(self, chunks: list[bytes]) -> bool:
        """Write frames, or other bytes of the stream (`Sink`)."""
        layer = self.inmost
        if layer is not None:
            return layer.send(chunks)
        # One chunk is the usual case, and joining it would copy it.
        return self.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def write(self, data: bytes) -> bool:
        """Write bytes to the socket without layers. Returns False if it is closed."""
        transport = self.transport
        if transport is None:
            return False
        if self.full is not None:
            # The router writes nothing to a full socket, but a layer may: a pong or an alert.
            self.full.behind += len(data)
        if data:
            transport.write(data)
        return True

    def unsent_size(self) -> int:
        """Bytes at the end of the last `send` that the kernel has yet to take (`Sink`)."""
        full = self.full
        if full is None:
            return 0
        transport = self.transport or self.lingering
        size = 0 if transport is None else transport.get_write_buffer_size()
        # After a failure the transport's buffer is empty: what it held before is unsent.
        unsent = max((size or full.held) - full.behind, 0)
        layer = self.outmost
        while layer is not None:
            unsent = layer.unsent_size(unsent)
            layer = layer.inner
        return unsent

    # A full socket

    def pause_writing(self) -> None:
        """The kernel did not take all (asyncio)."""
        transport = self.transport or self.lingering
        if transport is None:
            return
        context = self.context
        size = transport.get_write_buffer_size()
        # -1: whatever the kernel holds at the first check counts as progress.
        self.full = FullSocket(size, context.loop.time(), (size, -1))
        if self.ended:
            return  # `end` has set a deadline
        context.stalled[self] = None
        if self.connection is not None:
            context.router.pause(self.connection, size)

    def resume_writing(self) -> None:
        """The kernel has taken all bytes (asyncio)."""
        self.context.stalled.pop(self, None)
        # Before `resume`, whose writes may fill the socket again.
        self.full = None
        if self.ended:
            self.on_last_bytes_taken()
        elif self.connection is not None:
            self.context.router.resume(self.connection)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_if_full(self, connection: Connection) -> None:
        """Pause a connection in the router if its socket became full before the login."""
        if self.full is not None:
            self.context.router.pause(connection, self.full.held)

    async def writable(self) -> None:
        """Wait until the kernel has taken what was written; before a login only."""
        if self.full is not None:
            self._waiter = self.context.loop.create_future()
            await self._waiter
            self._waiter = None

    def check_progress(self, now: float) -> None:
        """End a connection whose client has read nothing for too long."""
        transport, full = self.transport, self.full
        if transport is None or full is None:
            return
        # The kernel takes more only when a good part of its buffer is free. So a client that reads
        # slowly changes the second number long before the first.
        last, full.waits = (
            full.waits,
            (
                transport.get_write_buffer_size(),
                unacknowledged(transport),
            ),
        )
        # More bytes in the transport are no progress; any change in the kernel is.
        if full.waits[0] < last[0] or full.waits[1] != last[1]:
            full.since = now
            return
        rules = self.context.rules
        mesh = self.connection is not None and self.connection.can_mesh
        timeout = rules.mesh_write_timeout if mesh else rules.write_timeout
        if timeout and now - full.since >= timeout:
            router = self.context.router
            router.counters.write_timeouts += 1
            if self.connection is not None:
                # Before `end`, so that the packets are dropped for this reason.
                router.give_up(self.connection, self.unsent_size())
            self.end(EndReason.WRITE_TIMEOUT, How.NOW, f"no byte taken for {timeout:g} s")
