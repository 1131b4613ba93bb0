"""Who is asked about, what is answered, how long that is remembered, and what is counted."""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from pyderp.keys import NodePublic
from pyderp.text import printable

__all__ = ["AdmissionCounters", "Cause", "ClientIdentity", "Memory", "Verdict", "excerpt"]

K = TypeVar("K")
V = TypeVar("V")

_LONGEST_EXCERPT = 200


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client that has proven its key and wants to come in."""

    key: NodePublic
    address: str
    """Its IP address as text, without a port; empty: unknown."""

    def __str__(self) -> str:
        return f"{self.key}/{self.address}"


class Cause(enum.Enum):
    """What a verdict rests on."""

    ANSWERED = "answered"
    """All sources that were asked said yes or no."""

    UNREACHABLE = "unreachable"
    """There was no connection to the source."""

    TIMED_OUT = "timed out"
    """There was a connection, and no whole answer in time."""

    BAD_ANSWER = "bad answer"
    """There was an answer, and it was neither yes nor no; or a connection closed without one."""

    CROWDED = "crowded"
    """The question was not asked, as too many others were."""

    FAILED = "failed"
    """This program could not ask, or a function raised."""

    STOPPING = "stopping"
    """The relay is about to stop."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client may come in."""

    allowed: bool
    reason: str = ""
    """Why not, for a log; what a source said in it is cut and escaped."""

    label: str = ""
    """What the key file calls the client."""

    cause: Cause = Cause.ANSWERED
    """What it rests on."""

    @property
    def definitive(self) -> bool:
        """Whether all sources that were asked answered.

        Any other verdict holds for this one connection: it is not remembered and ends no other.
        """
        return self.cause is Cause.ANSWERED


@dataclass(slots=True)
class AdmissionCounters:
    """Counts since the start. Rechecks and self checks count only in the last five."""

    allowed: int = 0
    denied: int = 0
    cache_hits: int = 0
    """Connections that a remembered answer decided."""

    queries: int = 0
    """Times that tailscaled, the URL or the function was asked."""

    errors: int = 0
    """Queries that brought no usable answer."""

    failed_open: int = 0
    """Clients let in because no question reaches the URL."""

    crowded: int = 0
    """Clients kept out because too many were asked about at once; none of the queries."""

    revoked: int = 0
    """Keys whose connections were closed because they are no longer allowed; for each address
    that a source was asked about, once."""


class Memory(Generic[K, V]):
    """Values that are good for some time after they were stored, however often they are used.

    Args:
        lifetime: seconds; 0: nothing is kept.
        size: how many are kept.
    """

    __slots__ = ("_entries", "_lifetime", "_size")

    def __init__(self, lifetime: float, size: int) -> None:
        self._lifetime = lifetime
        self._size = size
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """What was stored under the key, if it is still good.

        Args:
            now: seconds of a monotonic clock, as for `put`.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, value = entry
        if now >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V, now: float) -> None:
        """Store a value, instead of an older one; forget another if there are too many."""
        if self._lifetime <= 0:
            return
        self._entries[key] = (now + self._lifetime, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


def excerpt(text: str) -> str:
    """The start of what a source said, in one line that is safe to print."""
    return printable(text.strip(), _LONGEST_EXCERPT)
