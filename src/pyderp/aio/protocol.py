"""One connection of a relay: HTTP, then login, then frames; over plain TCP.

`pyderp.aio.http` is its first stage, `pyderp.aio.tls` puts TLS under it, and
`pyderp.aio.websocket` a websocket around it. Bytes arrive in buffers that all connections
share; what a connection keeps is an incomplete frame, if any.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, cast

from pyderp.aio.core import SMALL_READ, Core
from pyderp.aio.sockets import format_address, unacknowledged, unmap
from pyderp.defaults import CLOSE_TIMEOUT, LOGIN_TIMEOUT
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import Connection
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER

__all__ = [
    "HOLD_HTTP",
    "HOLD_LIMIT",
    "HOLD_LOGIN",
    "RelayProtocol",
    "Stage",
    "closed_stage",
]

log = logging.getLogger("pyderp.relay")

_LARGE: Final = 4096
"""An incomplete frame of more bytes is collected apart, instead of being copied to and fro."""

_FAIR_SHARE: Final = 64 * 1024
"""Who sends so much in one read waits a turn of the loop."""

# Why a connection is not read from; several may hold at once.
_HOLD_FAIR: Final = 1
HOLD_LOGIN: Final = 2
HOLD_HTTP: Final = 4
HOLD_LIMIT: Final = 8

Stage: TypeAlias = Callable[[bytearray, memoryview, int], int]
"""Takes bytes in a buffer, how many there are; gives how many it used up."""


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


class RelayProtocol(asyncio.BufferedProtocol):
    """A connection from accept to end.

    Args:
        core: what it shares with the relay's other connections.
        first: makes its first stage.
    """

    __slots__ = (
        "_need",
        "_period",
        "_progress",
        "_slot",
        "_tail",
        "_waiter",
        "connection",
        "core",
        "fair_share",
        "held",
        "kept_alive",
        "local",
        "not_ideal",
        "number",
        "peer",
        "room",
        "stage",
        "task",
        "transport",
        "websocket",
    )

    def __init__(self, core: Core, first: Callable[[RelayProtocol], Stage]) -> None:
        self.core = core
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self.peer: tuple[str, int] = UNKNOWN
        """Address and port of the client, behind trusted proxies."""
        self.local = ""
        """IP address that it connected to."""
        self.number = 0
        self.not_ideal = False
        self.kept_alive = False
        """Between two HTTP requests, where silence is no offence."""
        self.websocket: Wrapper | None = None
        self.stage: Stage = first(self)
        # The start of an incomplete frame; in a bytearray once it is large, and then
        # _need says how long it must get.
        self._tail: bytes | bytearray | None = None
        self._need = 0
        # Where bytes are read to, and how many of them are enough for one turn.
        self.held = 0
        self.task: asyncio.Task[None] | None = None
        """What it waits for, if anything; ends with the connection."""
        self.room = core.small_view
        self.fair_share = SMALL_READ
        self._slot = 0
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
        if self.peer is UNKNOWN:
            self.peer = endpoint(transport, "peername")
            self.local = endpoint(transport, "sockname")[0]
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
        self.stage = closed_stage
        self._tail = None
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            core.router.leave(connection, unsent=self._unsent())
            if core.health is not None:
                core.health.on_leave(connection)
            log.debug("%s %s left", self.who, connection.public.short())
            if core.router.touched:
                core.schedule_flush()

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

    def _fail(self, error: RemoteProtocolError) -> None:
        self.count_problem(error)
        if self.websocket is None:
            self.abort()
        else:
            self.close_gracefully()

    def count_problem(self, error: Exception) -> None:
        """Count and log what the client did wrong; closing is the caller's."""
        self.core.router.counters.protocol_errors += 1
        self.core.log_problem("%s closed: %s", self.who, error)

    # In

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind the incomplete frame that is here already (asyncio)."""
        tail = self._tail
        if tail is None or self._need:
            return self.room
        size = len(tail)
        self.core.buffer[:size] = tail
        return self.core.view[size : size + len(self.room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived in the shared buffer (asyncio)."""
        core = self.core
        tail = self._tail
        if tail is None:
            stage = self.stage
            try:
                used = stage(core.buffer, core.view, nbytes)
            except RemoteProtocolError as e:
                self._fail(e)
            else:
                if used != nbytes:
                    self._rest(stage, core.view[used:nbytes])
        elif self._need:
            self._collect(tail, nbytes)
        else:
            self._feed(core.buffer, core.view, len(tail) + nbytes)
        if core.router.touched and not core.flush_scheduled:
            core.schedule_flush()
        if nbytes >= self.fair_share:
            self.let_others()

    def let_others(self) -> None:
        """Read on only after the other sockets that are ready.

        libuv goes on reading a socket that fills the buffer, up to 32 times in a row.
        """
        if not self.held:
            self.hold(_HOLD_FAIR)
            self.core.loop.call_soon(self.release, _HOLD_FAIR)

    def hold(self, reason: int) -> None:
        """Read nothing from the client until `release` with the same reason."""
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self.held |= reason

    def release(self, reason: int) -> None:
        """Read on, unless there is another reason not to."""
        self.held &= ~reason
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def feed_rest(self) -> None:
        """Give the current stage what the one before did not use."""
        if self.websocket is not None:
            self.websocket.feed()
        elif self._tail is not None:
            rest, self._need = self._tail, 0
            self.feed(rest)
        if self.core.router.touched:
            self.core.schedule_flush()

    def feed(self, rest: bytes | bytearray | memoryview) -> None:
        """Give bytes to the current stage that were read before it was."""
        data = bytearray(rest)
        with memoryview(data) as view:
            self._feed(data, view, len(data))

    def _collect(self, tail: bytes | bytearray, nbytes: int) -> None:
        assert isinstance(tail, bytearray)
        tail += self.core.view[:nbytes]
        if len(tail) >= self._need:
            self._need = 0
            with memoryview(tail) as view:
                self._feed(tail, view, len(tail))

    def _feed(self, data: bytearray, view: memoryview, end: int) -> None:
        self._tail = None
        stage = self.stage
        try:
            used = stage(data, view, end)
        except RemoteProtocolError as e:
            self._fail(e)
            return
        if used != end:
            self._rest(stage, view[used:end])

    def _rest(self, stage: Stage, rest: memoryview) -> None:
        """Keep the incomplete frame that a stage left, or give it to the stage after that."""
        if self.stage is not stage:
            self.feed(rest)
            return
        if len(rest) >= FRAME_HEADER_LEN:
            need = FRAME_HEADER_LEN + HEADER.unpack_from(rest)[1]
            if need > _LARGE:
                self._tail = bytearray(rest)
                self._need = need
                return
        self._tail = bytes(rest)

    # What a login changes; pyderp.aio.login has the stage

    def read_in_large(self) -> None:
        """From now on read as much as there is: frames are taken from the buffer in place."""
        self.room = self.core.view
        self.fair_share = _FAIR_SHARE

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

    def restart_timer(self, seconds: float) -> None:
        """Have `on_timer` called in so many seconds, and not before."""
        core = self.core
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
            core.log_problem("%s closed: no login within %g s", self.who, LOGIN_TIMEOUT)
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
        if held != last:
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


def endpoint(transport: asyncio.BaseTransport, which: str) -> tuple[str, int]:
    """IP address and port of one end of a connection; of a Unix socket, `UNKNOWN`."""
    name = transport.get_extra_info(which)
    return (unmap(name[0]), name[1]) if isinstance(name, tuple) else UNKNOWN


def closed_stage(_: bytearray, __: memoryview, end: int) -> int:
    """The stage of a connection that is being closed."""
    return end
