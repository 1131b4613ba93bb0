"""A way of a connection through the proxy: its frames, what is lost of them, and its ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final, cast

from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade
from pyderp.testing.plan import PACKET_FRAMES, FaultPlan, Way
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER, MAX_CLIENT_FRAME
from pyderp.wire.http import HttpConnection, Upgrade

__all__ = ["Cutter", "Leg", "Mode", "Pipe", "read_request"]

_HEAD_END: Final = b"\r\n\r\n"


class Mode(Enum):
    """What the next bytes of a stream are."""

    HEAD = auto()
    """The head of an HTTP request or answer."""
    FRAMES = auto()
    OPAQUE = auto()
    """Something else, such as a websocket; passed on as it comes, for good."""


class Cutter:
    """Cuts one way of a connection into its head and its frames.

    Whatever is read, the pieces joined together are what was put in.

    Args:
        on_head: takes the whole head and says what follows it.
    """

    __slots__ = ("_buffer", "_on_head", "mode")

    def __init__(self, on_head: Callable[[bytes], Mode]) -> None:
        self.mode = Mode.HEAD
        self._on_head = on_head
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> Iterator[tuple[int | None, bytes]]:
        """Add bytes; yields whole frames as (type byte, frame with its header).

        Heads and opaque bytes have `None` for a type. Use the iterator up before the next call.
        """
        self._buffer += data
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> tuple[int | None, bytes] | None:
        if self.mode is Mode.HEAD:
            return self._head()
        if self.mode is Mode.FRAMES:
            return self._frame()
        return self._take(len(self._buffer)) if self._buffer else None

    def _head(self) -> tuple[int | None, bytes] | None:
        end = self._buffer.find(_HEAD_END)
        if end >= 0:
            head = bytes(self._buffer[: end + len(_HEAD_END)])
            self.mode = self._on_head(head)
            return self._take(len(head))
        if len(self._buffer) > MAX_HTTP_HEAD or (self._buffer and not self._buffer[:1].isalpha()):
            self.mode = Mode.OPAQUE
            return self._take(len(self._buffer))
        return None

    def _frame(self) -> tuple[int | None, bytes] | None:
        if len(self._buffer) < FRAME_HEADER_LEN:
            return None
        kind, length = HEADER.unpack_from(self._buffer)
        if length > MAX_CLIENT_FRAME:
            # Waiting for all of it would keep the fault from who is to find it.
            self.mode = Mode.OPAQUE
            return self._take(len(self._buffer))
        if len(self._buffer) < FRAME_HEADER_LEN + length:
            return None
        return kind, self._take(FRAME_HEADER_LEN + length)[1]

    def _take(self, size: int) -> tuple[None, bytes]:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return None, taken

    def rest(self) -> bytes:
        """What is held of a piece that will not be whole any more."""
        return self._take(len(self._buffer))[1]


def read_request(head: bytes) -> tuple[Upgrade, bool]:
    """What a request head asks for, and whether it wants no answer (fast start)."""
    http = HttpConnection()
    http.receive_data(head)
    with contextlib.suppress(BadUpgrade):
        request = http.next_request()
        if request is not None:
            return request.upgrade, request.wants_fast_start
    return Upgrade.NONE, False


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
        plan: FaultPlan,
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
