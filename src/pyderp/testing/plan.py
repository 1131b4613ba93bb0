"""What a faulty relay will do next, and what it did so far."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from pyderp.errors import ConfigError
from pyderp.wire.frames import MAX_CLIENT_FRAME, FrameType, frame_header, pack_frame

__all__ = ["FaultCounters", "Junk", "Way", "make_junk"]

Way: TypeAlias = Literal["up", "down"]
"""`up`: from clients to the relay; `down`: from the relay to clients."""

Junk: TypeAlias = Literal["unknown", "short", "oversized", "garbage"]
"""`unknown`: frames of unknown types. `short`: frames of known types, too short for
them. A client skips both. `oversized`: a header that announces more than a client takes.
`garbage`: bytes that are no frames. Both end the connection."""

PACKET_FRAMES: Final = frozenset(
    (FrameType.SEND_PACKET, FrameType.RECV_PACKET, FrameType.FORWARD_PACKET)
)
_UNKNOWN_TYPES: Final = tuple(set(range(0x16, 0xFF)))
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
