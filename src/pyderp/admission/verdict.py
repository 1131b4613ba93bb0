"""The client to decide about, the verdict, how long it is remembered, and what is counted."""

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
    """A client that has proven its key and waits to be admitted."""

    key: NodePublic
    address: str
    """Its IP address as text, without a port; empty if it is unknown."""

    def __str__(self) -> str:
        return f"{self.key}/{self.address}"


class Cause(enum.Enum):
    """How a verdict came about."""

    ANSWERED = "answered"
    """All sources that were asked said yes or no."""

    UNREACHABLE = "unreachable"
    """No connection to the source could be made."""

    TIMED_OUT = "timed out"
    """There was a connection, but no complete answer in time."""

    BAD_ANSWER = "bad answer"
    """The answer was neither yes nor no, or the connection closed without an answer."""

    CROWDED = "crowded"
    """Too many questions were waiting, or a connection failed while others reach the source."""

    FAILED = "failed"
    """The relay could not ask the source, or a function raised."""

    STOPPING = "stopping"
    """The relay is stopping."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client may log in."""

    allowed: bool
    reason: str = ""
    """Why not, for a log. Text from a source is cut and escaped in it."""

    label: str = ""
    """The label of the client's key in the allow file."""

    cause: Cause = Cause.ANSWERED
    """How the verdict came about."""

    @property
    def definitive(self) -> bool:
        """Whether all sources that were asked answered.

        Any other verdict holds for one connection only: it is not remembered, and it closes no
        connection that exists.
        """
        return self.cause is Cause.ANSWERED


@dataclass(slots=True)
class AdmissionCounters:
    """Counts since the start. Rechecks and self checks count only in `queries` and those below."""

    allowed: int = 0
    denied: int = 0
    cache_hits: int = 0
    """Connections that were decided by a remembered answer."""

    queries: int = 0
    """Times that tailscaled, the URL or the function was asked."""

    errors: int = 0
    """Queries without a usable answer."""

    failed_open: int = 0
    """Clients that were allowed because the URL was unreachable."""

    crowded: int = 0
    """Clients that were refused because too many questions were waiting. They are not queries."""

    revoked: int = 0
    """Keys whose connections were closed because they are no longer allowed. A key that a source
    refused at several addresses counts once for each address."""


class Memory(Generic[K, V]):
    """Values that expire a fixed time after they were stored, however often they are used.

    Args:
        lifetime: seconds; 0 keeps nothing.
        size: values at most. If there are more, the one that was not used for longest is dropped.
    """

    __slots__ = ("_entries", "_lifetime", "_size")

    def __init__(self, lifetime: float, size: int) -> None:
        self._lifetime = lifetime
        self._size = size
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """Return the value of a key, or `None` if there is none or it has expired.

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
        """Store a value in place of an older one, and drop another if there are too many."""
        if self._lifetime <= 0:
            return
        self._entries[key] = (now + self._lifetime, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


def excerpt(text: str) -> str:
    """Return the start of a source's text, as one line that is safe to print."""
    return printable(text.strip(), _LONGEST_EXCERPT)
