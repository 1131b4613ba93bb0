"""One connection of a relay: HTTP, then login, then frames; over plain TCP.

`pyderp.aio.http` is its first stage, `pyderp.aio.tls` puts TLS under it, and
`pyderp.aio.websocket` a websocket around it; `pyderp.aio.reading` brings the bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, cast

from pyderp.aio.core import Core
from pyderp.aio.reading import Stage, StagedReader
from pyderp.aio.sockets import format_address, unacknowledged, unmap
from pyderp.defaults import CLOSE_TIMEOUT, LOGIN_TIMEOUT
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import Connection

__all__ = ["UNKNOWN", "RelayProtocol", "endpoint"]

log = logging.getLogger("pyderp.relay")


_NO_LOGIN: Final = f"no login within {LOGIN_TIMEOUT:g} s"


class Wrapper(Protocol):
    """What stands between DERP and the transport: a websocket."""

    inner: Stage
    """The stage that gets the bytes inside."""

    def send(self, chunks: list[bytes]) -> None:
        """Write bytes of the stream inside."""

    def feed(self) -> None:
        """Give the stage inside what it left unused."""

    def close(self) -> None:
        """Say that nothing more will come."""


class RelayProtocol(StagedReader):
    """A connection from accept to end.

    Args:
        core: what it shares with the relay's other connections.
        first: makes its first stage.
    """

    __slots__ = (
        "_missing",
        "_period",
        "_progress",
        "_slot",
        "_waiter",
        "connection",
        "kept_alive",
        "local",
        "not_ideal",
        "number",
        "peer",
        "task",
        "websocket",
    )

    def __init__(self, core: Core, first: Callable[[RelayProtocol], Stage]) -> None:
        super().__init__(core)
        self.connection: Connection | None = None
        self.peer: tuple[str, int] = _NOT_TOLD
        """Address and port of the client, behind trusted proxies."""
        self.local = ""
        """IP address that it connected to; known under TLS, which may depend on it."""
        self.number = 0
        self.not_ideal = False
        self.kept_alive = False
        """Between two HTTP requests, where silence is no offence."""
        self.websocket: Wrapper | None = None
        self.stage = first(self)
        self.task: asyncio.Task[None] | None = None
        """What it waits for, if anything; ends with the connection."""
        self._slot = 0
        self._missing = _NO_LOGIN
        self._period = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._progress: tuple[tuple[int, int], float] | None = None

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (asyncio)."""
        core = self.core
        # uvloop's transports have the interface and not the base class.
        transport = self.transport = cast("asyncio.Transport", transport)
        # Any byte that the kernel does not take means pause_writing: what waits must wait
        # in the router's queues, where it is bounded and can be dropped.
        transport.set_write_buffer_limits(high=0)
        if self.peer is _NOT_TOLD:
            self.peer = endpoint(transport, "peername")
        core.protocols.add(self)
        core.router.counters.accepts += 1
        self.number = core.router.counters.accepts
        self._slot = core.timers.add(self, core.loop.time() + LOGIN_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio)."""
        self._leave()
        self.core.protocols.discard(self)
        self.transport = None

    def eof_received(self) -> bool:
        """The client closed its half: nothing it could still be waiting for (asyncio)."""
        return False

    def close(self, reason: str) -> None:
        """Unregister and close, now (`Sink`)."""
        if self.transport is not None:
            self.core.log_problem("%s closed: %s", self.who, reason)
            self.abort()

    def close_gracefully(self) -> None:
        """Unregister, say goodbye if there is a way to, and close."""
        self._leave()
        if self.websocket is not None:
            self.websocket.close()
        self.finish()

    def finish(self) -> None:
        """Unregister, and close once all that was written is out, or after a while."""
        self._leave()
        self._close_transport()

    def _close_transport(self) -> None:
        if self.transport is not None:
            self.transport.close()
            if self._progress is not None:
                core = self.core
                self._slot = core.timers.add(self, core.loop.time() + CLOSE_TIMEOUT)

    def abort(self) -> None:
        """Unregister and close; what the transport holds is lost."""
        self._leave()
        if self.transport is not None:
            self.transport.abort()

    def _leave(self) -> None:
        core = self.core
        core.timers.cancel(self, self._slot)
        core.stalled.pop(self, None)
        self.drop_rest()
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            core.router.leave(connection, unsent=self._unsent())
            if core.health is not None:
                core.health.on_leave(connection)
            log.debug("%s %s left", self.who, connection.public.short())
            self.flush_soon()

    def _unsent(self) -> int:
        # A transport that failed has forgotten what it held.
        if self._progress is None:
            return 0
        size = 0 if self.transport is None else self.transport.get_write_buffer_size()
        return size or self._progress[0][0]

    @property
    def who(self) -> str:
        """The client in log lines: its number and address, and its key once it is known."""
        where = f"client {self.number} {format_address(*self.peer)}"
        if self.connection is None:
            return where
        return f"{where} {self.connection.public.short()}"

    def fail(self, error: RemoteProtocolError) -> None:
        """Count and log what the client did wrong, and close."""
        self.count_problem(error)
        if self.websocket is None:
            self.abort()
        else:
            self.close_gracefully()

    def count_problem(self, error: Exception) -> None:
        """Count and log what the client did wrong; closing is the caller's."""
        self.core.router.counters.protocol_errors += 1
        self.core.log_problem("%s closed: %s", self.who, error)

    # What a login changes; pyderp.aio.login has the stage

    def feed_rest(self) -> None:
        """Give the current stage what the one before did not use."""
        if self.websocket is None:
            self.feed_tail()
        else:
            try:
                self.websocket.feed()
            except RemoteProtocolError as e:
                self.fail(e)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have what the router holds written, if it holds anything."""
        if self.core.router.touched:
            self.core.schedule_flush()

    def pause_if_stalled(self, connection: Connection) -> None:
        """Tell the router of a new connection whose socket takes no more already."""
        if self._progress is not None:
            self.core.router.pause(connection, self._progress[0][0])

    def begin_keep_alive(self, period: float) -> None:
        """Send a KeepAlive frame every so many seconds, in place of the login's deadline."""
        self._period = period
        self.restart_timer(period)

    # Out

    def send(self, chunks: list[bytes]) -> None:
        """Write frames (`Sink`)."""
        if self.websocket is not None:
            self.websocket.send(chunks)
            return
        self.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def write(self, data: bytes) -> None:
        """Write bytes as they are, under TLS encrypted."""
        if self.transport is not None and data:
            self.transport.write(data)

    @property
    def tls_version(self) -> str:
        """The TLS version of the connection, such as `1.3`; empty: none."""
        return ""

    @property
    def stalled(self) -> bool:
        """Whether bytes wait that the kernel did not take."""
        return self._progress is not None

    def pause_writing(self) -> None:
        """The kernel did not take all (asyncio)."""
        transport = self.transport
        if transport is None:
            return
        size = transport.get_write_buffer_size()
        self._progress = ((size, -1), self.core.loop.time())
        self.core.stalled[self] = None
        if self.connection is not None:
            self.core.router.pause(self.connection, size)

    def resume_writing(self) -> None:
        """The kernel took all (asyncio)."""
        self.core.stalled.pop(self, None)
        self._progress = None
        if self.connection is not None:
            self.core.router.resume(self.connection)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def writable(self) -> None:
        """Wait until the kernel has taken what was written; before a login only."""
        if self.stalled:
            self._waiter = self.core.loop.create_future()
            await self._waiter
            self._waiter = None

    # Time

    def restart_timer(self, seconds: float, missing: str = _NO_LOGIN) -> None:
        """Have `on_timer` called in so many seconds, and not before.

        Args:
            missing: why the connection is closed then, if it has not logged in.
        """
        core = self.core
        self._missing = missing
        core.timers.cancel(self, self._slot)
        self._slot = core.timers.add(self, core.loop.time() + seconds)

    def stop_timer(self) -> None:
        """Have no deadline for now."""
        self.core.timers.cancel(self, self._slot)

    def on_timer(self, now: float) -> None:
        """The deadline of the current stage passed, or it is time for a KeepAlive."""
        core = self.core
        if self.connection is not None:
            core.router.keep_alive(self.connection)
            self._slot = core.timers.add(self, now + self._period)
            return
        closing = self.transport is None or self.transport.is_closing()
        if not closing and not self.kept_alive:
            core.log_problem("%s closed: %s", self.who, self._missing)
        self.abort()

    @staticmethod
    def _held(transport: asyncio.Transport) -> tuple[int, int]:
        """Bytes that the transport holds, and that the kernel holds unacknowledged.

        The kernel asks for more only once a good part of its buffer is free: a client that
        reads slowly but steadily shows in the second figure long before the first.
        """
        return transport.get_write_buffer_size(), unacknowledged(transport)

    def check_progress(self, now: float) -> None:
        """Give up a client whose kernel buffer took no byte for too long."""
        transport = self.transport
        if transport is None or self._progress is None:
            return
        held = self._held(transport)
        last, since = self._progress
        self._progress = (held, since)
        # More waiting here is no progress; another figure in the kernel is, either way.
        if held[0] < last[0] or held[1] != last[1]:
            self._progress = (held, now)
            return
        core = self.core
        mesh = self.connection is not None and self.connection.can_mesh
        timeout = core.mesh_write_timeout if mesh else core.write_timeout
        if timeout and now - since >= timeout:
            core.router.counters.write_timeouts += 1
            core.log_problem("%s closed: no byte taken for %g s", self.who, timeout)
            self.abort()


UNKNOWN: Final = ("", 0)
"""The address of nobody one could name."""
_NOT_TOLD: Final = ("?", 0)
"""Before it is asked for."""


def endpoint(transport: asyncio.BaseTransport, which: str) -> tuple[str, int]:
    """IP address and port of one end of a connection; of a Unix socket, `UNKNOWN`."""
    name = transport.get_extra_info(which)
    return (unmap(name[0]), name[1]) if isinstance(name, tuple) else UNKNOWN
