"""One connection to a relay after login: messages in, frames out (`derp.Client`).

There is no task and no await in a packet's way: the link's bytes become messages in one
pass, and what is sent in one turn of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from pyderp.client.config import ClientStats
from pyderp.client.failures import connection_error
from pyderp.client.faststart import FastStart
from pyderp.client.login import Established, hung_up
from pyderp.client.pings import Pings
from pyderp.defaults import CLIENT_UNREAD, CLIENT_WRITE_BUFFER, RECEIVE_TIMEOUT
from pyderp.errors import (
    ClientClosed,
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    without_frames,
)
from pyderp.keys import NodePublic
from pyderp.net.websocket import BODY_WAIT
from pyderp.throttle import TokenBucket
from pyderp.wire.frames import pack_forward_packet
from pyderp.wire.messages import Message, Pong, ReceivedPacket, Restarting, ServerInfo

__all__ = ["ClientConnection"]

log = logging.getLogger("pyderp.client")

_CLOSE_TIMEOUT: Final = 1.0
FORWARD_TIMEOUT: Final = 5.0
"""Seconds that a forwarded packet may wait for the kernel before the connection is closed."""


class ClientConnection:
    """A login that holds; ends once, and never comes back.

    Calls raise `ConnectionClosed` once it has ended.

    Args:
        login: its link belongs to the connection.
        generation: which connection of the client it is, from 1.
    """

    def __init__(
        self,
        login: Established,
        *,
        generation: int = 1,
        stats: ClientStats | None = None,
        receive_timeout: float = RECEIVE_TIMEOUT,
    ) -> None:
        self.generation = generation
        self.link = login.link
        self.session = login.session
        self.tls = login.tls
        self._fast_start = login.fast_start
        self.http_answer: FastStart | None = None  # that of the fast start, if there is one
        self.stats = stats if stats is not None else ClientStats()
        self.messages: deque[Message] = deque()
        self.ended = False
        self.write_failed = False
        """What was sent last did not get out."""
        self.restarting: Restarting | None = None
        self.admitted = False  # ServerInfo came
        self.refused = False  # the relay hung up before it
        self._loop = asyncio.get_running_loop()
        self._error: Exception | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._receiver: asyncio.Future[None] | None = None
        self._senders: set[asyncio.Future[None]] = set()
        self._pings = Pings()
        self._bucket: TokenBucket | None = None
        self._out = self.session.out
        self._flush_scheduled = False
        self.backed_up = False
        """More than 64 KiB wait for the kernel."""
        self.busy = False
        """`drain` before sending more: it is backed up, or 64 KiB left without a pause."""
        self._unread_bytes = 0
        self._paused = False
        self._heard = self._loop.time()
        self._receive_timeout = receive_timeout
        self._watch = self._loop.call_later(receive_timeout, self._look_for_silence)
        self._take(login.messages)
        self.link.start(self)

    # From the link

    def data_received(self, data: bytes) -> None:
        """Bytes of the DERP stream."""
        if self.ended:
            return
        self._heard = self._loop.time()
        self.stats.bytes_received += len(data)
        try:
            messages = self.session.receive_data(data)
        except RemoteProtocolError as e:
            self._unreadable(data, e)
            return
        if messages:
            self._take(messages)
        if self.messages:
            self._unread_bytes += len(data)
            if self._unread_bytes > CLIENT_UNREAD and not self._paused:
                self._paused = True
                self.link.pause_reading()
        if self.session.error is not None:
            self.end(self.session.error, "protocol")

    def _unreadable(self, data: bytes, error: RemoteProtocolError) -> None:
        """What came is not DERP; after a fast start it may be HTTP, which is read to its end."""
        start = self._fast_start
        reason = error if start is None else start.read(data, error)
        if reason is None:
            self._watch.cancel()
            self._watch = self._loop.call_later(BODY_WAIT, self._unreadable, b"", error)
        else:
            self.http_answer = start if start is not None and start.over else None
            self.end(reason, "upgrade" if self.http_answer else "protocol")

    def connection_lost(self, error: Exception | None) -> None:
        """The stream ended."""
        if not self._gone.done():
            self._gone.set_result(None)
        if self._fast_start is not None and self._fast_start.reading and self.session.error:
            self._unreadable(b"", self.session.error)
        if not (self.ended or self.admitted or self.restarting) and hung_up(error):
            self.refused, self.write_failed = True, isinstance(error, BrokenPipeError)
            self.end(error, "refused")
        elif error is None:
            self.end(None, "eof")
        else:
            self.write_failed = isinstance(error, BrokenPipeError)
            protocol = isinstance(error, RemoteProtocolError)
            self.end(error, "protocol" if protocol else "error")

    def writable(self) -> None:
        """The link took what it held."""
        self.backed_up = False
        self._wake_senders()

    def _take(self, messages: list[Message]) -> None:
        packets = 0
        for message in messages:
            if type(message) is ReceivedPacket:
                packets += 1
        self.stats.packets_received += packets
        if packets == len(messages):
            self.messages += messages
        else:
            self.messages += [m for m in messages if type(m) is ReceivedPacket or self._keep(m)]
        if self._receiver is not None and self.messages and not self._receiver.done():
            self._receiver.set_result(None)

    def _keep(self, message: Message) -> bool:
        """Act on what is ours; whether the program gets it, too."""
        match message:
            case Pong(data):
                return not self._pings.answered(data)
            case ServerInfo(_, rate, burst):
                self.admitted = True
                self._bucket = TokenBucket(rate, burst, self._loop.time()) if rate else None
            case Restarting():
                self.restarting = message
        return True

    def _look_for_silence(self) -> None:
        now = self._loop.time()
        if self._paused:
            self._heard = now  # it is we that do not listen
        left = self._heard + self._receive_timeout - now
        if left <= 0:
            self.end(TimeoutError(f"nothing received for {self._receive_timeout:g} s"), "timeout")
        else:
            self._watch = self._loop.call_later(left, self._look_for_silence)

    # Receiving

    async def wait(self) -> None:
        """Wait until `messages` has one.

        Raises:
            ConnectionClosed: it ended, and all that came was taken.
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
        """All messages were taken: read on, if reading was stopped."""
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._heard = self._loop.time()
            self.link.resume_reading()

    # Sending

    def send_packets(self, dst: NodePublic, packets: Sequence[bytes], start: int = 0) -> int:
        """Queue packets for one peer, from the one at `start`.

        Stops early when the caller should `drain` first (`busy`). What the relay's
        token bucket does not allow is dropped in silence, and counted.

        Args:
            packets: they went through `as_packet`.

        Returns:
            the position after the last packet that was queued or dropped.
        """
        if self.ended:
            raise self.error("derp.Send")
        allowed = None if self._bucket is None else self._allowed
        position = self._out.add_packets(dst, packets, start, CLIENT_WRITE_BUFFER, allowed)
        self._added()
        return position

    def _allowed(self, size: int) -> bool:
        assert self._bucket is not None
        if self._bucket.take(size, self._loop.time()):
            return True
        self.stats.packets_dropped += 1
        return False

    def forward_packet(self, src: NodePublic, dst: NodePublic, packet: bytes) -> None:
        """Queue a packet from another client; needs the mesh key."""
        frame = pack_forward_packet(src, dst, packet)
        if self.ended:
            raise self.error("derp.ForwardPacket")
        self._out.add(frame, packets=1)
        self._added()

    def forward_frames(self, frames: Sequence[bytes]) -> None:
        """Write ForwardPacket frames that are ready, at once; needs the mesh key.

        They are not queued here: the relay that calls this has a queue of them.
        """
        if self.ended:
            raise self.error("derp.ForwardPacket")
        packets = self._out.packets + len(frames)
        self._write(b"".join([*self._out.take(), *frames]), packets)

    def send_frame(self, frame: bytes) -> None:
        """Queue a whole frame, or several."""
        if self.ended:
            raise self.error("derp.Send")
        self._out.add(frame)
        self._added()

    def _added(self) -> None:
        """Write what is queued if it is much, or else at the end of this turn of the loop."""
        size = self._out.size
        if size > CLIENT_WRITE_BUFFER:
            self.flush()
            self.busy = True
        elif size and not self._flush_scheduled:
            self._loop.call_soon(self._scheduled_flush)  # raises if the loop is closed
            self._flush_scheduled = True

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what is queued."""
        out = self._out
        if out.size and not self.ended:
            packets = out.packets
            self._write(b"".join(out.take()), packets)

    def _write(self, data: bytes, packets: int) -> None:
        self.stats.packets_sent += packets
        self.stats.bytes_sent += len(data)
        self.link.write(data)
        self.backed_up = self.link.pending > CLIENT_WRITE_BUFFER
        if self.backed_up:
            self.busy = True

    async def drain(self) -> None:
        """Wait until no more than 64 KiB wait for the kernel; at least, let others run.

        Raises:
            ConnectionClosed: it ended meanwhile.
        """
        if self.ended:
            raise self.error("derp.Send")  # at once, so that only one sender gets it
        if not self.backed_up:
            self.busy = False
            await asyncio.sleep(0)
        while self.backed_up:
            if self.ended:
                raise self.error("derp.Send")
            waiter = self._loop.create_future()
            self._senders.add(waiter)
            try:
                await waiter
            finally:
                self._senders.discard(waiter)
        self.busy = False

    async def drain_forward(self) -> None:
        """As `drain`; ends the connection after five seconds, as Go's ForwardPacket."""
        try:
            async with asyncio.timeout(FORWARD_TIMEOUT):
                await self.drain()
        except TimeoutError:
            error = TimeoutError(f"the relay took no packet for {FORWARD_TIMEOUT:g} s")
            self.end(error, "timeout")
            raise self.error("derp.ForwardPacket") from error

    async def ping(self) -> float:
        """Seconds until the relay has answered a ping."""
        seconds = await self._pings.ping(self._send_at_once)
        if seconds is None:
            raise self.error("derp.Recv")
        return seconds

    def _send_at_once(self, frame: bytes) -> None:
        self.send_frame(frame)
        self.flush()

    # The end

    async def aclose(self, error: ClientClosed) -> None:
        """End it once what was sent is out, which may take a second."""
        self.flush()
        self.messages.clear()
        self.end(error, "closed", abort=False)
        self.link.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await asyncio.shield(self._gone)
        finally:
            self.link.abort()

    def end(self, error: Exception | None, reason: str, *, abort: bool = True) -> None:
        """End it for all calls that wait; the first error stays."""
        if self.ended:
            return
        self.ended = True
        self._error = None if error is None else without_frames(error)
        self.write_failed = self.write_failed or self._out.size > 0 or self.backed_up
        if self.restarting is not None and reason in ("eof", "error"):
            reason = "restarting"
        if not isinstance(error, ClientClosed):
            self.stats.disconnects[reason] += 1
            log.debug("connection %d ended: %s", self.generation, error or "EOF")
        self._watch.cancel()
        if abort:
            self.link.abort()
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        self._wake_senders()
        self._pings.end()

    def _wake_senders(self) -> None:
        for waiter in self._senders:
            if not waiter.done():
                waiter.set_result(None)

    def error(self, where: str) -> ConnectionClosed:
        """Why it ended, to be raised; made anew so that tracebacks do not pile up."""
        return connection_error(where, self._error, self.refused, self.generation, self.restarting)
