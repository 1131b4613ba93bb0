"""One connection of a relay: HTTP, then login, then frames; over plain TCP.

`pyderp.server.conn.http` is its first stage, `pyderp.server.conn.tls` puts TLS under it, and
`pyderp.server.conn.websocket` a websocket around it; `pyderp.server.conn.reading` brings the bytes.

Every connection ends in `RelayProtocol.end`, whatever the cause, and `_forget` then drops all
that it refers to. The collector runs rarely in a relay, so a cycle that is left would keep
the memory of a connection for hours: tests/fault/endings shows that none is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, Protocol, cast

from pyderp.addresses import format_address, unmapped_text
from pyderp.defaults import CLOSE_TIMEOUT, LINGER_TIMEOUT, LOGIN_TIMEOUT
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import Connection
from pyderp.relay.ending import EndReason, How
from pyderp.server.conn.context import Core
from pyderp.server.conn.reading import Stage, StagedReader
from pyderp.server.conn.sockets import unacknowledged

__all__ = ["UNKNOWN", "RelayProtocol", "endpoint"]

log = logging.getLogger("pyderp.relay")


_NO_LOGIN: Final = f"no login within {LOGIN_TIMEOUT:g} s"


class Wrapper(Protocol):
    """What stands between DERP and the transport: a websocket."""

    inner: Stage
    """The stage that gets the bytes inside."""

    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the stream inside. Returns False if it takes no more."""

    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream among the last `outer` bytes that `send` wrote."""

    def feed(self) -> None:
        """Give the stage inside what it left unused."""

    def close(self) -> None:
        """Say that nothing more will come."""

    def discard(self) -> None:
        """Drop what it refers to; it is not used again."""


class RelayProtocol(StagedReader):
    """A connection from accept to end.

    Args:
        core: what it shares with the relay's other connections.
        first: makes its first stage.
    """

    __slots__ = (
        "_behind",
        "_leaving",
        "_lingering",
        "_missing",
        "_period",
        "_progress",
        "_slot",
        "_waiter",
        "connection",
        "ended",
        "kept_alive",
        "local",
        "not_ideal",
        "number",
        "on_end",
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
        """True while idle between keep-alive requests; a timeout now is not logged."""
        self.websocket: Wrapper | None = None
        self.stage = first(self)
        self.task: asyncio.Task[None] | None = None
        """What it waits for, if anything; ends with the connection."""
        self.on_end: Callable[[], None] | None = None
        """Called once when it ends: stops a timer that refers to it, say."""
        self.ended = False
        """`end` was called; at most its last bytes are still being written."""
        self._lingering: asyncio.Transport | None = None
        """The transport, once `end` was called: nobody else may write any more."""
        self._leaving: Connection | None = None
        """What logged in and has left, until it is known what became of its last packets."""
        self._behind = 0
        """Bytes that were written after the kernel had taken no more."""
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
        if not self.ended:
            reason = EndReason.CLIENT_CLOSED if exc is None else _lost_reason(exc)
            # Clients that exit, scanners and health checks reset connections all the time.
            logged = exc is not None and reason is not EndReason.RESET
            self.end(reason, How.LOST, f"connection lost: {exc}" if logged else "")
        self._forget()

    def eof_received(self) -> bool:
        """The client closed its half (asyncio).

        Whoever logged in is unregistered at once, even if a write to it is stuck: its peers
        must not wait for that.
        """
        self.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
        return False

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Unregister and close: every connection ends here, and only once (`Sink`).

        A second call changes nothing, but that `How.NOW` waits no longer for last bytes.

        Args:
            detail: why, for the log, in words; empty: the end is nothing to be logged.
        """
        if self.ended:
            if how is How.NOW:
                self._abort()
            return
        self.ended = True
        core = self.core
        core.router.counters.ends[reason] += 1
        if detail:
            core.log_problem("%s closed: %s", self.who, detail)
        else:
            log.debug("%s ended: %s", self.who, reason.value)
        transport = self.transport
        graceful = how is How.GRACEFUL and transport is not None and not transport.is_closing()
        words = self._unregister(last_words=graceful)
        if graceful:
            self._say_goodbye(words)
        self.transport, self._lingering = None, transport
        if graceful:
            self._linger()
        else:
            self._abort()

    def _unregister(self, *, last_words: bool) -> list[bytes]:
        """Leave everything that might give the connection more to do.

        Returns:
            frames that are still to be written.
        """
        core = self.core
        core.timers.cancel(self, self._slot)
        core.stalled.pop(self, None)
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()
        connection, self.connection = self.connection, None
        words: list[bytes] = []
        if connection is not None:
            self._leaving = connection
            words = core.router.leave(connection, last_words=last_words)
            if core.health is not None:
                core.health.on_leave(connection)
            self.flush_soon()
        self.drop_rest()
        return words

    def _say_goodbye(self, words: list[bytes]) -> None:
        if words:
            self.send(words)
        if self.websocket is not None:
            self.websocket.close()

    def _linger(self) -> None:
        """Write out what is written, close our half, and wait for the client's.

        Bytes that nobody reads would make the kernel answer with a reset, which takes from
        the client what the kernel has not delivered to it yet.
        """
        transport = self._lingering
        if transport is None:
            return
        # A client that has reset the connection meanwhile is found out by the next read.
        with contextlib.suppress(OSError):
            transport.write_eof()
        if self.held and not transport.is_closing():
            transport.resume_reading()
        self.held = 0
        core = self.core
        seconds = CLOSE_TIMEOUT if self.stalled else LINGER_TIMEOUT
        when = min(core.loop.time() + seconds, core.linger_until)
        self._slot = core.timers.add(self, when)

    def _abort(self) -> None:
        self._settle()
        if self._lingering is not None:
            self._lingering.abort()

    def _settle(self) -> None:
        """Count what the transport holds for a client that has left as lost."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            self.core.router.settle(leaving, self.unsent_size())

    def _forget(self) -> None:
        """Refer to nothing any more, and have nothing refer to this."""
        self._settle()
        core = self.core
        core.timers.cancel(self, self._slot)
        core.stalled.pop(self, None)
        core.protocols.discard(self)
        websocket, self.websocket = self.websocket, None
        if websocket is not None:
            websocket.discard()
        self.transport = self._lingering = self._waiter = None

    def unsent_size(self) -> int:
        """Bytes at the end of what `send` last wrote that the kernel did not take (`Sink`)."""
        if self._progress is None:
            return 0
        transport = self.transport or self._lingering
        size = 0 if transport is None else transport.get_write_buffer_size()
        # A transport that failed has forgotten what it held.
        held = max((size or self._progress[0][0]) - self._behind, 0)
        return self._unsent_stream(held)

    def _unsent_stream(self, held: int) -> int:
        """Bytes of frames among the last `held` bytes that `send` gave to the transport."""
        return held if self.websocket is None else self.websocket.unsent_size(held)

    @property
    def who(self) -> str:
        """The client in log lines: its number and address, and its key once it is known."""
        where = f"client {self.number} {format_address(*self.peer)}"
        if self.connection is None:
            return where
        return f"{where} {self.connection.public.short()}"

    def on_protocol_error(self, error: Exception) -> None:
        """End the connection as the client broke the protocol; a websocket can tell it so."""
        how = How.NOW if self.websocket is None else How.GRACEFUL
        self.end(EndReason.PROTOCOL_ERROR, how, str(error))

    # What a login changes; pyderp.server.conn.login has the stage

    def feed_rest(self) -> None:
        """Give the current stage what the one before did not use."""
        if self.websocket is None:
            self.feed_tail()
        else:
            try:
                self.websocket.feed()
            except RemoteProtocolError as e:
                self.on_protocol_error(e)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have what the router holds written, if it holds anything."""
        if self.core.router.wants_flush:
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

    def send(self, chunks: list[bytes]) -> bool:
        """Write frames (`Sink`)."""
        if self.websocket is not None:
            return self.websocket.send(chunks)
        return self.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def write(self, data: bytes) -> bool:
        """Write bytes as they are, under TLS encrypted. Returns False if that failed."""
        transport = self.transport
        if transport is None:
            return False
        if self._progress is not None:
            self._behind += len(data)
        if data:
            transport.write(data)
        return True

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
        transport = self.transport or self._lingering
        if transport is None:
            return
        size = transport.get_write_buffer_size()
        self._progress = ((size, -1), self.core.loop.time())
        self._behind = 0
        if self.ended:
            return  # the deadline of the end counts
        self.core.stalled[self] = None
        if self.connection is not None:
            self.core.router.pause(self.connection, size)

    def resume_writing(self) -> None:
        """The kernel took all (asyncio)."""
        self.core.stalled.pop(self, None)
        self._progress = None
        if self.ended:
            self._on_last_bytes_taken()
        elif self.connection is not None:
            self.core.router.resume(self.connection)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_last_bytes_taken(self) -> None:
        self._settle()
        core = self.core
        core.timers.cancel(self, self._slot)
        when = min(core.loop.time() + LINGER_TIMEOUT, core.linger_until)
        self._slot = core.timers.add(self, when)

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
        if self.ended:
            return
        core = self.core
        self._missing = missing
        core.timers.cancel(self, self._slot)
        self._slot = core.timers.add(self, core.loop.time() + seconds)

    def stop_timer(self) -> None:
        """Have no deadline for now."""
        if self.ended:
            return
        self.core.timers.cancel(self, self._slot)

    def on_timer(self, now: float) -> None:
        """The deadline of the current stage passed, or it is time for a KeepAlive."""
        core = self.core
        if self.connection is not None:
            core.router.keep_alive(self.connection)
            self._slot = core.timers.add(self, now + self._period)
            return
        if self.ended:
            self._abort()  # the client had its time for the last bytes
        elif self.kept_alive:
            self.end(EndReason.ANSWERED, How.NOW)
        else:
            self.end(EndReason.NO_LOGIN, How.NOW, self._missing)

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
            self.end(EndReason.WRITE_TIMEOUT, How.NOW, f"no byte taken for {timeout:g} s")


def _lost_reason(error: Exception) -> EndReason:
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return EndReason.RESET
    return EndReason.TIMED_OUT if isinstance(error, TimeoutError) else EndReason.LOST


UNKNOWN: Final = ("", 0)
"""Used when the client's address is unknown (Unix socket, balancer health check)."""
_NOT_TOLD: Final = ("?", 0)
"""Before it is asked for."""


def endpoint(transport: asyncio.BaseTransport, which: str) -> tuple[str, int]:
    """IP address and port of one end of a connection; of a Unix socket, `UNKNOWN`."""
    name = transport.get_extra_info(which)
    return (unmapped_text(name[0]), name[1]) if isinstance(name, tuple) else UNKNOWN
