"""One way of a connection through a proxy, and one end of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from pyderp.testing.framing import Cutter, Mode
from pyderp.testing.plan import PACKET_FRAMES, Plan, Way

__all__ = ["Leg", "Pipe"]

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close sends RST and throws away what was not sent."""


class Leg(asyncio.Protocol):
    """One of a connection's two TCP connections.

    Args:
        source: takes what this leg brings.
        update: called when a leg can take more, or no more.
    """

    def __init__(self, source: Pipe, update: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.lost = asyncio.Event()
        self._source = source
        self._update = update
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # A cast, because uvloop's transports are no subclasses of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)
        self._update()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._source.receive_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._source.receive_eof()
        self.lost.set()

    def pause_writing(self) -> None:
        """Called by the event loop: enough is waiting."""
        self.full = True
        self._update()

    def resume_writing(self) -> None:
        """Called by the event loop: little is waiting again."""
        self.full = False
        self._update()

    def discard(self) -> None:
        """Drop what it refers to; it is not used again."""
        self.transport = None
        self._update = _nothing

    def read(self, wanted: bool) -> None:
        """Read, or leave what comes to the kernel."""
        if self.transport is None or self.transport.is_closing() or wanted is self._reading:
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def write(self, data: bytes) -> None:
        """Send bytes; silently none after the end."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """End it after what was written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End it now."""
        # asyncio trips over an abort after a close that had something left to write.
        if self.transport is not None and not self.lost.is_set():
            self.transport.abort()

    def cut(self, *, reset: bool) -> None:
        """End it now: with RST, or with FIN after what was written."""
        if self.transport is None or self.lost.is_set():
            return
        if reset:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other side was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif self.transport.get_write_buffer_size():
            self.transport.close()
            return
        # Unlike close, this does not say goodbye in TLS.
        self.transport.abort()


class Pipe:
    """One way of a connection: what is lost of it, and when the rest goes on.

    Args:
        plan: the faults; looked at for each frame.
        way: which way it is.
        number: the connection's number, for the random numbers.
        cutter: knows the frames.
        change: replaces a frame that is no packet, or lets it be.
        deliver: takes what goes on.
        finish: called after all was delivered and the source has ended.
    """

    def __init__(
        self,
        plan: Plan,
        way: Way,
        number: int,
        *,
        cutter: Cutter,
        change: Callable[[int, bytes], bytes],
        deliver: Callable[[bytes], None],
        finish: Callable[[], None],
    ) -> None:
        self.cutter = cutter
        self._plan = plan
        self._way = way
        self._change = change
        self._deliver = deliver
        self._finish = finish
        self._loss: random.Random = plan.random(number, way, "loss")
        self._jitter: random.Random = plan.random(number, way, "jitter")
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._loop = asyncio.get_running_loop()

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the source."""
        for kind, piece in self.cutter.receive_data(data):
            if self._ended:  # by what the piece before did
                return
            if kind is None:
                self.put(piece)
            elif kind not in PACKET_FRAMES:
                self.put(self._change(kind, piece))
            # Drawn for every packet, so that none depends on when the loss was set.
            elif not self._plan.loses(self._way, self._loss.random()):
                self.put(piece)

    def receive_eof(self) -> None:
        """The source has ended; what is under way still arrives."""
        if not self._ended:
            if rest := self.cutter.rest():
                self.put(rest)
            self._ended = True
            self._schedule(None)

    def put(self, data: bytes) -> None:
        """Send bytes on, in time and behind what is already under way."""
        if not self._ended:
            self._schedule(data)

    def stop(self) -> None:
        """Drop everything, now and later."""
        self._ended = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def discard(self) -> None:
        """Stop, and drop what it refers to; it is not used again."""
        self.stop()
        self.cutter = Cutter(_opaque)
        self._change = _unchanged
        self._deliver = self._finish = _nothing

    def run(self) -> None:
        """Deliver what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._queue and not self._plan.frozen and self._queue[0][0] <= now:
            self._out(self._queue.popleft()[1])
        if self._queue and not self._plan.frozen:
            self._timer = self._loop.call_at(self._queue[0][0], self.run)

    def _schedule(self, data: bytes | None) -> None:
        delay = self._plan.latency
        if self._plan.jitter > 0:
            delay += self._plan.jitter * self._jitter.random()
        if not self._queue and delay <= 0 and not self._plan.frozen:
            self._out(data)
            return
        # One that is due before those in front of it still waits for them.
        self._queue.append((self._loop.time() + delay, data))
        if self._timer is None:
            self.run()

    def _out(self, data: bytes | None) -> None:
        if data is None:
            self._finish()
        else:
            self._deliver(data)


def _opaque(_: bytes) -> Mode:
    return Mode.OPAQUE


def _unchanged(_: int, frame: bytes) -> bytes:
    return frame


def _nothing(*_: object) -> None:
    pass
