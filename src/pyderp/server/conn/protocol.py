"""One connection of a relay, from accept to end.

`reading` passes its bytes to the stage, `writing` passes frames to the kernel, and layers (TLS, a
websocket) are between the socket and the stage. The first stage is HTTP (`http`), then comes the
login (`login`), then the lane.

Every connection ends in `RelayProtocol.end`, whatever the cause, and `_forget` then drops all
references. The cyclic collector runs rarely in a relay, so a reference cycle would keep the memory
of a connection for hours. tests/fault/endings proves that there is none.
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
        context: what the relay's connections share.
        begin: sets the first stage, and adds the first layers.
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
        """Address and port of the client, as trusted proxies report it."""
        self.local = ""
        """The relay's IP address that the client connected to. Set under TLS only, where the
        certificate may depend on it."""
        self.number = 0
        self.not_ideal = False
        self.kept_alive = False
        """True while idle between keep-alive requests; a timeout now is not logged."""
        self.is_websocket = False
        self.tls_version = ""
        """The TLS version of the connection, such as `1.3`; empty without TLS."""
        self.task: asyncio.Task[None] | None = None
        """The task that the connection waits for, if any; it is cancelled at the end."""
        self._limit: RateLimited | None = None
        self._leaving: Connection | None = None
        """The client that has left, until its last packets are counted as sent or lost."""
        self._slot = 0
        """The slot of the timer wheel with the connection's deadline."""
        self._missing = ""
        self._period = 0.0
        """Seconds between two KeepAlive frames."""

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, as a client connected (asyncio)."""
        context = self.context
        # uvloop's transports have the interface, but not the base class.
        transport = self.transport = cast("asyncio.Transport", transport)
        # The first byte that the kernel does not take makes the transport call `pause_writing`.
        # From then on packets wait in the router's queues, which are bounded and can drop them.
        transport.set_write_buffer_limits(high=0)
        self.peer = self.endpoint("peername")
        context.protocols.add(self)
        context.router.counters.accepts += 1
        self.number = context.router.counters.accepts
        self._slot = context.timers.add(self, context.loop.time() + context.rules.login_timeout)
        self._begin(self)  # last, because it may end the connection

    def endpoint(self, which: str) -> tuple[str, int]:
        """Return address and port of `peername` or `sockname`; UNKNOWN for a Unix socket."""
        name = None if self.transport is None else self.transport.get_extra_info(which)
        return (unmapped_text(name[0]), name[1]) if isinstance(name, tuple) else UNKNOWN

    def connection_lost(self, exc: Exception | None) -> None:
        """End, as the connection is lost (asyncio)."""
        if not self.ended:
            reason = EndReason.CLIENT_CLOSED if exc is None else _lost_reason(exc)
            # Clients that exit, scanners and health checks reset connections all the time.
            logged = exc is not None and reason is not EndReason.RESET
            self.end(reason, How.LOST, f"connection lost: {exc}" if logged else "")
        self._forget()

    def eof_received(self) -> bool:
        """End, as the client closed its half (asyncio).

        A client that logged in is unregistered at once, even if bytes for it still wait: its peers
        must learn of its departure now.
        """
        self.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
        return False

    def end(
        self, reason: EndReason, how: How, detail: str = "", *, key: NodePublic | None = None
    ) -> None:
        """Unregister and close: every connection ends here, and only once (`Sink`).

        A second call does nothing, except that `How.NOW` stops waiting for the last bytes.

        Args:
            detail: the text for the log; empty for an ordinary end, which is logged as debug only.
            key: the key of a client that was refused, for a JSON log.
        """
        if self.ended:
            if how is How.NOW:
                self._abort()
            return
        self.ended = True  # first, because the steps below may call `end` again
        context = self.context
        context.router.counters.ends[reason] += 1
        if detail:
            fields = {**self.log_fields(key), "reason": reason.value}
            context.log_problem("%s closed: %s", self.log_name, detail, fields=fields)
        else:
            log.debug("%s ended: %s", self.log_name, reason.value)
        transport = self.transport
        graceful = how is How.GRACEFUL and transport is not None and not transport.is_closing()
        last_frames = self._unregister(write_rest=graceful)
        if graceful:
            self._send_last_frames(last_frames)
        # Without a transport, all further writes are dropped. Only `_linger` uses it from now on.
        self.transport, self.lingering = None, transport
        if graceful:
            self._linger()
        else:
            self._abort()

    def _unregister(self, *, write_rest: bool) -> list[bytes]:
        """Leave the timers, the router and the rest, so that none of them calls the connection.

        Returns:
            frames that are still to be written.
        """
        context = self.context
        context.timers.cancel(self, self._slot)
        context.stalled.pop(self, None)
        # Each is taken out before it is stopped, because stopping it may call `end` again.
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.on_end()
        connection, self.connection = self.connection, None
        last_frames: list[bytes] = []
        if connection is not None:
            self._leaving = connection
            last_frames = context.router.leave(connection, write_rest=write_rest)
            if context.observer is not None:
                context.observer.on_leave(connection)
            self.flush_soon()
        self.drop_rest()
        return last_frames

    def _send_last_frames(self, last_frames: list[bytes]) -> None:
        if last_frames:
            self.send(last_frames)
        # From the inside out: the websocket's close frame is sent in TLS, before the close_notify.
        layer = self.inmost
        while layer is not None:
            layer.close()
            layer = layer.outer

    def _linger(self) -> None:
        """Close this half after the last bytes, and read on until the client closes its half.

        If the socket were closed with unread bytes in it, the kernel would send a reset, and the
        client's kernel would discard last bytes that the client has not read yet.
        """
        transport = self.lingering
        if transport is None:
            return
        # If the client has reset the connection meanwhile, the next read reports it.
        with contextlib.suppress(OSError):
            transport.write_eof()
        if self.held and not transport.is_closing():
            transport.resume_reading()
        self.held = 0
        # A client with bytes to read gets more time than one that only has to close.
        self._abort_in(LINGER_TIMEOUT if self.full is None else CLOSE_TIMEOUT)

    def _abort_in(self, seconds: float) -> None:
        context = self.context
        context.timers.cancel(self, self._slot)
        # A relay that stops does not wait longer than its own end allows.
        when = min(context.loop.time() + seconds, context.linger_until)
        self._slot = context.timers.add(self, when)

    def _abort(self) -> None:
        self._settle()
        if self.lingering is not None:
            self.lingering.abort()

    def _settle(self) -> None:
        """Count the packets that the transport still holds for a client that left as lost."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            self.context.router.settle(leaving, self.unsent_size())

    def _forget(self) -> None:
        """Drop all references from and to the connection."""
        self._settle()
        context = self.context
        # `_linger` has set a new timer after `_unregister`.
        context.timers.cancel(self, self._slot)
        context.stalled.pop(self, None)
        context.protocols.discard(self)
        # Layers and connection refer to each other: left so, only the cyclic collector frees them.
        layer = self.outmost
        while layer is not None:
            inner = layer.inner
            layer.discard()
            layer = inner
        self.outmost = self.inmost = self.transport = self.lingering = self._waiter = None

    @property
    def log_name(self) -> str:
        """The client in log lines: its number and address; after its login also key and label."""
        where = f"client {self.number} {format_address(*self.peer)}"
        if self.connection is None:
            return where
        key = self.connection.public
        label = self._label(key)
        return f"{where} {key.short()}{f' ({label})' if label else ''}"

    def _label(self, key: NodePublic) -> str:
        return label_of(key, self.context.admission, self.context.limits)

    def log_fields(self, key: NodePublic | None = None) -> dict[str, object]:
        """Return the same for a JSON log; `key` is that of a client that has not logged in."""
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
        """End the connection, as the client broke the protocol.

        If the inmost layer can report errors to the client, it does so first.
        """
        layer = self.inmost
        how = How.GRACEFUL if layer is not None and layer.reports_errors else How.NOW
        self.end(EndReason.PROTOCOL_ERROR, how, str(error))

    def begin_keep_alive(self, period: float) -> None:
        """Send a KeepAlive frame every `period` seconds from now on, in place of the deadline."""
        self._period = period
        self.restart_timer(period)

    # Relaying

    def relay(self, connection: Connection) -> None:
        """Relay the client's frames from now on, under its key's rate limit if it has one."""
        context = self.context
        relaying: Stage = partial(context.receive, context.router, connection)
        self.read_in_large()
        if context.limits is not None:
            self._limit = context.limits.wrap(self, connection, relaying)
        self.stage = self._limit or relaying

    def limit_again(self) -> None:
        """Apply the rate limits anew, after they were read again."""
        connection, limit = self.connection, self._limit
        if connection is None:
            return
        if limit is not None:
            limit.stop()
        self.relay(connection)
        # Bytes that the old stage held are passed to the new one, and charged to a full bucket.
        if limit is not None and limit.holds:
            self.feed_rest()

    # Time

    def restart_timer(self, seconds: float, missing: str = "") -> None:
        """Set the connection's deadline, at which `on_timer` is called, in place of the last one.

        Args:
            seconds: from now to the deadline.
            missing: why a connection without a login is closed at the deadline; empty: because it
                has not logged in within `login_timeout`.
        """
        if self.ended:
            return
        context = self.context
        self._missing = missing
        context.timers.cancel(self, self._slot)
        self._slot = context.timers.add(self, context.loop.time() + seconds)

    def stop_timer(self) -> None:
        """Remove the deadline, until `restart_timer`."""
        if self.ended:
            return
        self.context.timers.cancel(self, self._slot)

    def on_timer(self, now: float) -> None:
        """Send a KeepAlive, or close a connection whose deadline has passed."""
        context = self.context
        if self.connection is not None:
            context.router.keep_alive(self.connection)
            self._slot = context.timers.add(self, now + self._period)
            return
        if self.ended:
            self._abort()  # the time for the last bytes is over
        elif self.kept_alive:
            self.end(EndReason.ANSWERED, How.NOW)
        else:
            missing = self._missing or f"no login within {context.rules.login_timeout:g} s"
            self.end(EndReason.NO_LOGIN, How.NOW, missing)

    def on_last_bytes_taken(self) -> None:
        """Wait for the client to close its half: after the end, the kernel took the last bytes."""
        self._settle()
        self._abort_in(LINGER_TIMEOUT)


def _lost_reason(error: Exception) -> EndReason:
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return EndReason.RESET
    return EndReason.TIMED_OUT if isinstance(error, TimeoutError) else EndReason.LOST


UNKNOWN: Final = ("", 0)
"""Used when the client's address is unknown (Unix socket, balancer health check)."""
