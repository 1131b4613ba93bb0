"""The plan of faults, and one direction of a connection with them: losses and delays."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Literal, TypeAlias

from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade, ConfigError
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    MAX_CLIENT_FRAME,
    FrameType,
    frame_header,
    pack_frame,
)
from pyderp.wire.http import HttpConnection, Upgrade

__all__ = [
    "CutAfter",
    "Cutter",
    "FaultCounters",
    "FaultPlan",
    "Junk",
    "Mode",
    "Pipe",
    "Way",
    "make_junk",
    "read_request",
]

_HEAD_END: Final = b"\r\n\r\n"

Way: TypeAlias = Literal["up", "down"]
"""`up`: from clients to the relay; `down`: from the relay to clients."""

Junk: TypeAlias = Literal["unknown", "short", "oversized", "garbage"]
"""`unknown`: frames of unknown types. `short`: frames of known types that are too short. A client
skips both kinds. `oversized`: a header that announces a frame larger than a client accepts.
`garbage`: bytes that are no frames. A client ends the connection on both."""

_PACKET_FRAMES: Final = frozenset(
    (FrameType.SEND_PACKET, FrameType.RECV_PACKET, FrameType.FORWARD_PACKET)
)
_UNKNOWN_TYPES: Final = range(0x16, 0xFF)
_NEVER_EMPTY: Final = (
    FrameType.RECV_PACKET,
    FrameType.PEER_GONE,
    FrameType.PEER_PRESENT,
    FrameType.PING,
    FrameType.PONG,
    FrameType.RESTARTING,
)


@dataclass(slots=True)
class FaultCounters:
    """Counters of what the proxy did; they only increase."""

    connections: int = 0
    """TCP connections accepted."""
    passed: int = 0
    """Frames with a packet that were passed on, up and down together: a packet that reaches its
    receiver counts twice."""
    dropped: int = 0
    """Frames with a packet that were dropped, up and down together."""
    cut: int = 0
    """Connections cut."""
    injected: int = 0
    """Times that bytes were inserted into a connection."""
    rejected: int = 0
    """Upgrades answered with another HTTP status."""
    wrong_keys: int = 0
    """Logins answered with another key than the announced one."""
    restarts: int = 0


@dataclass(slots=True)
class CutAfter:
    """A cut of one connection after so many more bytes.

    Args:
        left: bytes that still pass before the cut.
        way: the direction in which they count.
        reset: cut with RST; otherwise with FIN.
    """

    left: int
    way: Way
    reset: bool


@dataclass(slots=True)
class FaultPlan:
    """The faults of a relay, shared by all its connections."""

    seed: int
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    frozen: bool = False
    drop_next: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    cut_after: CutAfter | None = None
    statuses: deque[int] = field(default_factory=deque)
    wrong_keys: int = 0
    counters: FaultCounters = field(default_factory=FaultCounters)

    def random(self, *purpose: object) -> random.Random:
        """Returns random numbers that depend on the seed and on their purpose only."""
        return random.Random("/".join(map(str, (self.seed, *purpose))))

    def loses(self, way: Way, drawn: float) -> bool:
        """Decide whether a packet is lost, and count it.

        Args:
            drawn: the packet's random number, from [0, 1).
        """
        lost = drawn < self.loss
        if self.drop_next[way]:
            self.drop_next[way] -= 1
            lost = True
        if lost:
            self.counters.dropped += 1
        else:
            self.counters.passed += 1
        return lost


def make_junk(kind: Junk, rng: random.Random) -> bytes:
    """Returns bytes that a relay should not send.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind == "unknown":
        return pack_frame(rng.choice(_UNKNOWN_TYPES), rng.randbytes(rng.randrange(200)))
    if kind == "short":
        return b"".join(pack_frame(each, rng.randbytes(7)) for each in _NEVER_EMPTY)
    if kind == "oversized":
        length = rng.randrange(MAX_CLIENT_FRAME + 1, 1 << 32)
        return frame_header(FrameType.RECV_PACKET, length) + rng.randbytes(100)
    if kind == "garbage":
        # The second byte is the highest of a frame's length: if it is not 0, the length exceeds
        # what a client accepts.
        return bytes((rng.randrange(256), rng.randrange(1, 256))) + rng.randbytes(200)
    raise ConfigError(f"no junk of kind {kind!r}; there is unknown, short, oversized, garbage")


class Mode(Enum):
    """Kind of the next bytes of a stream."""

    HEAD = auto()
    """The head of an HTTP request or answer."""
    FRAMES = auto()
    OPAQUE = auto()
    """Other bytes, such as a websocket; all that follows is passed on as it comes."""


class Cutter:
    """Cuts one direction of a connection into its HTTP head and its frames.

    The pieces joined together are always the bytes that were added.

    Args:
        on_head: called with the whole head; returns what follows it.
    """

    __slots__ = ("_buffer", "_on_head", "mode")

    def __init__(self, on_head: Callable[[bytes], Mode]) -> None:
        self.mode = Mode.HEAD
        self._on_head = on_head
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> Iterator[tuple[int | None, bytes]]:
        """Add bytes; yields whole frames as (type byte, frame with its header).

        Heads and opaque bytes have `None` as their type. Exhaust the iterator before the next call.
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
            # This frame is a fault. Waiting for all of it would keep it from the client that is
            # tested with it.
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
        """Returns the bytes of an incomplete piece, after the stream has ended."""
        return self._take(len(self._buffer))[1]


def read_request(head: bytes) -> tuple[Upgrade, bool]:
    """Returns the upgrade that a request asks for, and whether it wants no answer (fast start)."""
    http = HttpConnection()
    http.receive_data(head)
    with contextlib.suppress(BadUpgrade):
        request = http.next_request()
        if request is not None:
            return request.upgrade, request.wants_fast_start
    return Upgrade.NONE, False


class Pipe:
    """One direction of a connection: drops packets, and delays the rest.

    Args:
        plan: the faults; read anew for each frame.
        way: the direction.
        number: the connection's number, for the random numbers.
        cutter: cuts the bytes into frames.
        change: returns a frame that is not a packet, changed or unchanged.
        deliver: called with bytes when they are due.
        finish: called after the source has ended and all was delivered.
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
            if self._ended:  # the piece before has ended it
                return
            if kind is None:
                self.put(piece)
            elif kind not in _PACKET_FRAMES:
                self.put(self._change(kind, piece))
            # A number is drawn for every packet, so that a packet's fate does not depend on when
            # `loss` was set.
            elif not self._plan.loses(self._way, self._loss.random()):
                self.put(piece)

    def receive_eof(self) -> None:
        """Note that the source has ended; delayed bytes are still delivered."""
        if not self._ended:
            if rest := self.cutter.rest():
                self.put(rest)
            self._ended = True
            self._schedule(None)

    def put(self, data: bytes) -> None:
        """Deliver bytes after the delay, and after all earlier bytes."""
        if not self._ended:
            self._schedule(data)

    def stop(self) -> None:
        """Drop all bytes, those that wait and those that come."""
        self._ended = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def discard(self) -> None:
        """Stop, and drop all references, so that no cycle remains; it is not used again."""
        self.stop()
        self.cutter = Cutter(lambda _: Mode.OPAQUE)
        self._change = lambda _, frame: frame
        self._deliver = lambda _: None
        self._finish = lambda: None

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
        # With jitter it may be due before earlier bytes; it still waits for them.
        self._queue.append((self._loop.time() + delay, data))
        if self._timer is None:
            self.run()

    def _out(self, data: bytes | None) -> None:
        if data is None:
            self._finish()
        else:
            self._deliver(data)
