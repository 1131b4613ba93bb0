"""One connection to a relay after login: messages in, frames out (`derp.Client`).

No task and no await is on the packet path: bytes of the link become messages in one pass, and all
frames that are sent in one turn of the event loop leave in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final

from pyderp.client.config import ClientStats
from pyderp.client.failures import connection_error
from pyderp.client.faststart import FastStart
from pyderp.client.login import Established, closed_by_relay
from pyderp.client.pings import Pings
from pyderp.client.writing import ConnectionWriter
from pyderp.defaults import CLIENT_UNREAD, RECEIVE_TIMEOUT
from pyderp.errors import (
    ClientClosed,
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    without_frames,
)
from pyderp.net.websocket import BODY_WAIT
from pyderp.throttle import TokenBucket
from pyderp.wire.messages import Message, Pong, ReceivedPacket, Restarting, ServerInfo

__all__ = ["ClientConnection"]

log = logging.getLogger("pyderp.client")

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds that `aclose` waits for the relay to close its half."""
FORWARD_TIMEOUT: Final = 5.0
"""Seconds that a forwarded packet may wait for the kernel before the connection is closed."""


class ClientConnection(ConnectionWriter):
    """A connection on which the client has logged in. It ends once and is never used again.

    Calls raise `ConnectionClosed` once it has ended.

    Args:
        login: its link belongs to the connection from now on.
        generation: number of the connection among those of the client, from 1.
        receive_timeout: seconds without any byte after which the connection ends.
    """

    def __init__(
        self,
        login: Established,
        *,
        generation: int = 1,
        stats: ClientStats | None = None,
        receive_timeout: float = RECEIVE_TIMEOUT,
    ) -> None:
        super().__init__(login, stats if stats is not None else ClientStats())
        self.generation = generation
        self.tls = login.tls
        self._fast_start = login.fast_start
        self.http_answer: FastStart | None = None
        """Set if the relay answered the fast start in HTTP; then it never was a DERP connection."""
        self.messages: deque[Message] = deque()
        self.write_failed = False
        """The last frames that were sent did not all reach the kernel."""
        self.restarting: Restarting | None = None
        self.admitted = False
        """ServerInfo came: the relay accepted the login."""
        self.refused = False
        """The relay closed the connection before ServerInfo."""
        self._error: Exception | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._receiver: asyncio.Future[None] | None = None
        self._pings = Pings()
        self._unread_bytes = 0
        self._paused = False
        self._last_received = self._loop.time()
        self._receive_timeout = receive_timeout
        self._receive_timer = self._loop.call_later(receive_timeout, self._check_receive_timeout)
        self._take(login.messages)
        self.link.start(self)

    # From the link

    def data_received(self, data: bytes) -> None:
        """Take bytes of the DERP stream."""
        if self.ended:
            return
        self._last_received = self._loop.time()
        self.stats.bytes_received += len(data)
        try:
            messages = self.session.receive_data(data)
        except RemoteProtocolError as e:
            self._unreadable(data, e)
            return
        if messages:
            self._take(messages)
        # If the program takes no messages, stop reading: memory stays bounded, and TCP makes the
        # relay wait, which then drops packets for this client by its own rules.
        if self.messages:
            self._unread_bytes += len(data)
            if self._unread_bytes > CLIENT_UNREAD and not self._paused:
                self._paused = True
                self.link.pause_reading()
        # The frames before the bad one have been delivered.
        if self.session.error is not None:
            self.end(self.session.error, "protocol")

    def _unreadable(self, data: bytes, error: RemoteProtocolError) -> None:
        """Handle bytes that are not DERP; after a fast start they may be HTTP, read to its end."""
        start = self._fast_start
        reason = error if start is None else start.read(data, error)
        if reason is None:
            # More of the answer's body may follow. It has a second; then what came is enough.
            self._receive_timer.cancel()
            self._receive_timer = self._loop.call_later(BODY_WAIT, self._unreadable, b"", error)
        else:
            self.http_answer = start if start is not None and start.over else None
            self.end(reason, "upgrade" if self.http_answer else "protocol")

    def connection_lost(self, error: Exception | None) -> None:
        """End the connection, as its stream has ended."""
        if not self._gone.done():
            self._gone.set_result(None)
        if self._fast_start is not None and self._fast_start.reading and self.session.error:
            self._unreadable(b"", self.session.error)  # the end of the answer in HTTP
        # DERP has no frame for a refusal: the relay closes the connection without a ServerInfo.
        # If it announced a restart, that is the reason.
        if not (self.ended or self.admitted or self.restarting) and closed_by_relay(error):
            self.refused, self.write_failed = True, isinstance(error, BrokenPipeError)
            self.end(error, "refused")
        elif error is None:
            self.end(None, "eof")
        else:
            self.write_failed = isinstance(error, BrokenPipeError)
            protocol = isinstance(error, RemoteProtocolError)
            self.end(error, "protocol" if protocol else "error")

    def writable(self) -> None:
        """Let senders go on: the kernel took what the link held."""
        self.backed_up = False
        self._wake_senders()

    def _take(self, messages: list[Message]) -> None:
        packets = 0
        for message in messages:
            if type(message) is ReceivedPacket:
                packets += 1
        self.stats.packets_received += packets
        # Nearly all reads bring packets only: then no message is looked at again.
        if packets == len(messages):
            self.messages += messages
        else:
            self.messages += [m for m in messages if type(m) is ReceivedPacket or self._keep(m)]
        if self._receiver is not None and self.messages and not self._receiver.done():
            self._receiver.set_result(None)

    def _keep(self, message: Message) -> bool:
        """Handle messages for the client itself; return whether the program gets the message."""
        match message:
            case Pong(data):
                return not self._pings.answered(data)
            case ServerInfo(_, rate, burst):
                self.admitted = True
                self._bucket = TokenBucket(rate, burst, self._loop.time()) if rate else None
            case Restarting():
                self.restarting = message
        return True

    def _check_receive_timeout(self) -> None:
        # The timer is not moved by each read: one that is due looks when bytes came last.
        now = self._loop.time()
        if self._paused:
            self._last_received = now  # this client does not read, so nothing can come
        left = self._last_received + self._receive_timeout - now
        if left <= 0:
            self.end(TimeoutError(f"nothing received for {self._receive_timeout:g} s"), "timeout")
        else:
            self._receive_timer = self._loop.call_later(left, self._check_receive_timeout)

    # Receiving

    async def wait(self) -> None:
        """Wait until `messages` has one.

        Raises:
            ConnectionClosed: the connection ended, and all its messages were taken.
            LocalProtocolError: another task waits.
        """
        while not self.messages:
            if self.ended:
                raise self.error("derp.Recv")
            if self._receiver is not None:
                raise LocalProtocolError("another task is receiving from this client")
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None

    def taken(self) -> None:
        """Read on after a pause; called when all messages were taken."""
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._last_received = self._loop.time()
            self.link.resume_reading()

    # Sending: the rest is in `ConnectionWriter`

    async def drain_forward(self) -> None:
        """As `drain`, but ends the connection after five seconds, as Go's ForwardPacket does."""
        try:
            async with asyncio.timeout(FORWARD_TIMEOUT):
                await self.drain()
        except TimeoutError:
            error = TimeoutError(f"the relay took no packet for {FORWARD_TIMEOUT:g} s")
            self.end(error, "timeout")
            raise self.error("derp.ForwardPacket") from error

    async def ping(self) -> float:
        """Returns the seconds until the relay has answered a ping."""
        seconds = await self._pings.ping(self._send_at_once)
        if seconds is None:
            raise self.error("derp.Recv")
        return seconds

    def _send_at_once(self, frame: bytes) -> None:
        self.send_frame(frame)
        self.flush()

    # The end

    async def aclose(self, error: ClientClosed) -> None:
        """Write what is queued, end the connection, and close the link in order, within a second.

        The link is first closed for writing only: a reset would take bytes with it that are on
        their way to the relay.
        """
        self.flush()
        self.messages.clear()
        self.end(error, "closed", abort=False)
        self.link.close()
        try:
            # Shielded, as the link sets this future, also if `aclose` is cancelled.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await asyncio.shield(self._gone)
        finally:
            self.link.abort()

    def end(self, error: Exception | None, reason: str, *, abort: bool = True) -> None:
        """End the connection and wake all calls that wait. The first reason is kept.

        Args:
            error: why it ended; `None`: the relay closed the stream.
            reason: the counter of `ClientStats.disconnects`.
            abort: close the link now.
        """
        if self.ended:
            return
        self.ended = True
        self._error = None if error is None else without_frames(error)
        self.write_failed = self.write_failed or self._out.size > 0 or self.backed_up
        # A relay that announced a restart ends connections in the course of it.
        if self.restarting is not None and reason in ("eof", "error"):
            reason = "restarting"
        if not isinstance(error, ClientClosed):
            self.stats.disconnects[reason] += 1
            log.debug("connection %d ended: %s", self.generation, error or "EOF")
        self._receive_timer.cancel()
        if abort:
            self.link.abort()
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        self._wake_senders()
        self._pings.end()

    def error(self, where: str) -> ConnectionClosed:
        """Returns the error to raise; a new one each time, so that tracebacks do not add up."""
        return connection_error(where, self._error, self.refused, self.generation, self.restarting)
