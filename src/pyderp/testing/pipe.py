"""The faults to come, and one way of a connection through them: what is lost, and what is late."""

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
"""`unknown`: frames of unknown types. `short`: frames of known types, too short for
them. A client skips both. `oversized`: a header that announces more than a client takes.
`garbage`: bytes that are no frames. Both end the connection."""

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
    """What was done; only ever goes up."""

    connections: int = 0
    """TCP connections accepted."""
    passed: int = 0
    """Frames with a packet that went on; one that reaches its receiver is two, up and down."""
    dropped: int = 0
    """Frames with a packet that did not, up and down together."""
    cut: int = 0
    """Connections cut."""
    injected: int = 0
    """Times that bytes were put into a connection."""
    rejected: int = 0
    """Upgrades answered with another HTTP status."""
    wrong_keys: int = 0
    """Logins answered with another key than announced."""
    restarts: int = 0


@dataclass(slots=True)
class CutAfter:
    """A cut that is due."""

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
        """Random numbers that depend on the seed and on what they are for, and nothing else."""
        return random.Random("/".join(map(str, (self.seed, *purpose))))

    def loses(self, way: Way, drawn: float) -> bool:
        """Whether a packet is lost.

        Args:
            drawn: its random number, from [0, 1).
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
    """Bytes that a relay should not send.

    Raises:
        ConfigError: no such kind.
    """
    if kind == "unknown":
        return pack_frame(rng.choice(_UNKNOWN_TYPES), rng.randbytes(rng.randrange(200)))
    if kind == "short":
        return b"".join(pack_frame(each, rng.randbytes(7)) for each in _NEVER_EMPTY)
    if kind == "oversized":
        length = rng.randrange(MAX_CLIENT_FRAME + 1, 1 << 32)
        return frame_header(FrameType.RECV_PACKET, length) + rng.randbytes(100)
    if kind == "garbage":
        # The second byte is the first of a length: set, it is never one that a client awaits.
        return bytes((rng.randrange(256), rng.randrange(1, 256))) + rng.randbytes(200)
    raise ConfigError(f"no junk of kind {kind!r}; there is unknown, short, oversized, garbage")


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
            # Waiting for all of it would keep the fault from the client that is to find it.
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
            elif kind not in _PACKET_FRAMES:
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
        # One that is due before those in front of it still waits for them.
        self._queue.append((self._loop.time() + delay, data))
        if self._timer is None:
            self.run()

    def _out(self, data: bytes | None) -> None:
        if data is None:
            self._finish()
        else:
            self._deliver(data)
