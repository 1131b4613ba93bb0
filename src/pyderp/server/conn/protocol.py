"""One connection of a relay, from accept to end.

`reading` brings its bytes to the stage, `writing` takes frames to the kernel, `layers` are what
stands between. The first stage is HTTP (`http`), then comes the login (`login`), then the lane.

Every connection ends in `RelayProtocol.end`, whatever the cause, and `_forget` then drops all
that it refers to. The collector runs rarely in a relay, so a cycle that is left would keep
the memory of a connection for hours: tests/fault/endings shows that none is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from pyderp.addresses import format_address, unmapped_text
from pyderp.defaults import CLOSE_TIMEOUT, LINGER_TIMEOUT
from pyderp.keys import NodePublic
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.server.conn.context import ConnectionContext, RateLimited, Stage
from pyderp.server.conn.labels import label_of
from pyderp.server.conn.writing import StagedWriter

__all__ = ["UNKNOWN", "RelayProtocol"]

log = logging.getLogger("pyderp.relay")


class RelayProtocol(StagedWriter):
    """A connection from accept to end.

    Args:
        context: what it shares with the relay's other connections.
        begin: sets its first stage, below it the layers that it begins with.
    """

    __slots__ = (
        "_begin",
        "_leaving",
        "_limit",
        "_missing",
        "_period",
        "_slot",
        "is_websocket",
        "kept_alive",
        "local",
        "not_ideal",
        "number",
        "peer",
        "task",
        "tls_version",
    )

    def __init__(self, context: ConnectionContext, begin: Callable[[RelayProtocol], None]) -> None:
        super().__init__(context)
        self._begin = begin
        self.peer = UNKNOWN
        """Address and port of the client, behind trusted proxies."""
        self.local = ""
        """IP address that it connected to; known under TLS, which may depend on it."""
        self.number = 0
        self.not_ideal = False
        self.kept_alive = False
        """True while idle between keep-alive requests; a timeout now is not logged."""
        self.is_websocket = False
        self.tls_version = ""
        """The TLS version agreed on, such as `1.3`; empty: none."""
        self.task: asyncio.Task[None] | None = None
        """What it waits for, if anything; ends with the connection."""
        self._limit: RateLimited | None = None
        self._leaving: Connection | None = None
        """What logged in and has left, until it is known what became of its last packets."""
        self._slot = 0
        self._missing = ""
        self._period = 0.0

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (asyncio)."""
        context = self.context
        # uvloop's transports have the interface and not the base class.
        transport = self.transport = cast("asyncio.Transport", transport)
        # Any byte that the kernel does not take means pause_writing: what waits must wait
        # in the router's queues, where it is bounded and can be dropped.
        transport.set_write_buffer_limits(high=0)
        self.peer = self.endpoint("peername")
        context.protocols.add(self)
        context.router.counters.accepts += 1
        self.number = context.router.counters.accepts
        self._slot = context.timers.add(self, context.loop.time() + context.rules.login_timeout)
        self._begin(self)

    def endpoint(self, which: str) -> tuple[str, int]:
        """IP address and port of one end, `peername` or `sockname`; of a Unix socket, `UNKNOWN`."""
        name = None if self.transport is None else self.transport.get_extra_info(which)
        return (unmapped_text(name[0]), name[1]) if isinstance(name, tuple) else UNKNOWN

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

        A client that logged in is unregistered at once, even if a write to it is stuck: its
        peers must not wait for that.
        """
        self.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
        return False

    def end(
        self, reason: EndReason, how: How, detail: str = "", *, key: NodePublic | None = None
    ) -> None:
        """Unregister and close: every connection ends here, and only once (`Sink`).

        A second call changes nothing, but that `How.NOW` waits no longer for last bytes.

        Args:
            detail: why, for the log, in words; empty: the end is nothing to be logged.
            key: of a client that was not let in, for a JSON log.
        """
        if self.ended:
            if how is How.NOW:
                self._abort()
            return
        self.ended = True
        context = self.context
        context.router.counters.ends[reason] += 1
        if detail:
            fields = {**self.log_fields(key), "reason": reason.value}
            context.log_problem("%s closed: %s", self.who, detail, fields=fields)
        else:
            log.debug("%s ended: %s", self.who, reason.value)
        transport = self.transport
        graceful = how is How.GRACEFUL and transport is not None and not transport.is_closing()
        words = self._unregister(last_words=graceful)
        if graceful:
            self._say_goodbye(words)
        self.transport, self.lingering = None, transport
        if graceful:
            self._linger()
        else:
            self._abort()

    def _unregister(self, *, last_words: bool) -> list[bytes]:
        """Leave everything that might give the connection more to do.

        Returns:
            frames that are still to be written.
        """
        context = self.context
        context.timers.cancel(self, self._slot)
        context.stalled.pop(self, None)
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.on_end()
        connection, self.connection = self.connection, None
        words: list[bytes] = []
        if connection is not None:
            self._leaving = connection
            words = context.router.leave(connection, last_words=last_words)
            if context.observer is not None:
                context.observer.on_leave(connection)
            self.flush_soon()
        self.drop_rest()
        return words

    def _say_goodbye(self, words: list[bytes]) -> None:
        if words:
            self.send(words)
        layer = self.inmost
        while layer is not None:
            layer.close()
            layer = layer.outer

    def _linger(self) -> None:
        """Write out what is written, close our half, and wait for the client's.

        Unread bytes would make the kernel answer with a reset, which takes from
        the client what the kernel has not delivered to it yet.
        """
        transport = self.lingering
        if transport is None:
            return
        # A client that has reset the connection meanwhile is found out by the next read.
        with contextlib.suppress(OSError):
            transport.write_eof()
        if self.held and not transport.is_closing():
            transport.resume_reading()
        self.held = 0
        self._abort_in(LINGER_TIMEOUT if self.full is None else CLOSE_TIMEOUT)

    def _abort_in(self, seconds: float) -> None:
        context = self.context
        context.timers.cancel(self, self._slot)
        when = min(context.loop.time() + seconds, context.linger_until)
        self._slot = context.timers.add(self, when)

    def _abort(self) -> None:
        self._settle()
        if self.lingering is not None:
            self.lingering.abort()

    def _settle(self) -> None:
        """Count what the transport holds for a client that has left as lost."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            self.context.router.settle(leaving, self.unsent_size())

    def _forget(self) -> None:
        """Refer to nothing any more, and have nothing refer to this."""
        self._settle()
        context = self.context
        context.timers.cancel(self, self._slot)
        context.stalled.pop(self, None)
        context.protocols.discard(self)
        layer = self.outmost
        while layer is not None:
            inner = layer.inner
            layer.discard()
            layer = inner
        self.outmost = self.inmost = self.transport = self.lingering = self._waiter = None

    @property
    def who(self) -> str:
        """The client in log lines: number and address; once they are known, key and label."""
        where = f"client {self.number} {format_address(*self.peer)}"
        if self.connection is None:
            return where
        key = self.connection.public
        label = self._label(key)
        return f"{where} {key.short()}{f' ({label})' if label else ''}"

    def _label(self, key: NodePublic) -> str:
        return label_of(key, self.context.admission, self.context.limits)

    def log_fields(self, key: NodePublic | None = None) -> dict[str, object]:
        """The same for a JSON log; `key`: of a client that has not logged in."""
        fields: dict[str, object] = {
            "connection": self.number,
            "address": format_address(*self.peer),
        }
        if self.connection is not None:
            key = self.connection.public
        if key is not None:
            fields["key"] = str(key)
            fields["label"] = self._label(key)
        return fields

    def on_protocol_error(self, error: Exception) -> None:
        """End the connection as the client broke the protocol; some layers can tell it so."""
        layer = self.inmost
        how = How.GRACEFUL if layer is not None and layer.tells_errors else How.NOW
        self.end(EndReason.PROTOCOL_ERROR, how, str(error))

    def begin_keep_alive(self, period: float) -> None:
        """Send a KeepAlive frame every so many seconds, in place of the login's deadline."""
        self._period = period
        self.restart_timer(period)

    # Relaying

    def relay(self, connection: Connection) -> None:
        """Relay what the client sends from now on, under its key's rate limit if it has one."""
        context = self.context
        relaying: Stage = partial(context.receive, context.router, connection)
        self.read_in_large()
        if context.limits is not None:
            self._limit = context.limits.wrap(self, connection, relaying)
        self.stage = self._limit or relaying

    def limit_again(self) -> None:
        """Relay under the rate limits as they are now, after they were read again."""
        connection, limit = self.connection, self._limit
        if connection is None:
            return
        if limit is not None:
            limit.stop()
        self.relay(connection)
        if limit is not None and limit.holds:
            self.feed_rest()

    # Time

    def restart_timer(self, seconds: float, missing: str = "") -> None:
        """Have `on_timer` called in so many seconds, and not before.

        Args:
            missing: why the connection is closed then, if it has not logged in; empty: because it
                has not, within the time for it.
        """
        if self.ended:
            return
        context = self.context
        self._missing = missing
        context.timers.cancel(self, self._slot)
        self._slot = context.timers.add(self, context.loop.time() + seconds)

    def stop_timer(self) -> None:
        """Have no deadline for now."""
        if self.ended:
            return
        self.context.timers.cancel(self, self._slot)

    def on_timer(self, now: float) -> None:
        """The deadline of the current stage passed, or it is time for a KeepAlive."""
        context = self.context
        if self.connection is not None:
            context.router.keep_alive(self.connection)
            self._slot = context.timers.add(self, now + self._period)
            return
        if self.ended:
            self._abort()  # the client had its time for the last bytes
        elif self.kept_alive:
            self.end(EndReason.ANSWERED, How.NOW)
        else:
            missing = self._missing or f"no login within {context.rules.login_timeout:g} s"
            self.end(EndReason.NO_LOGIN, How.NOW, missing)

    def on_last_bytes_taken(self) -> None:
        """The kernel took what it still held after the end: the client's half may follow."""
        self._settle()
        self._abort_in(LINGER_TIMEOUT)


def _lost_reason(error: Exception) -> EndReason:
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return EndReason.RESET
    return EndReason.TIMED_OUT if isinstance(error, TimeoutError) else EndReason.LOST


UNKNOWN: Final = ("", 0)
"""Used when the client's address is unknown (Unix socket, balancer health check)."""
