"""What is asked, what is answered, and what is counted."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from pyderp.keys import NodePublic
from pyderp.wire.text import printable

__all__ = ["AdmissionCounters", "Cause", "ClientIdentity", "Source", "Verdict", "excerpt"]

_LONGEST_EXCERPT = 200


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client that has proven its key and wants to come in."""

    key: NodePublic
    address: str
    """Its IP address as text, without a port; empty: unknown."""


class Cause(enum.Enum):
    """What a verdict rests on."""

    ANSWERED = "answered"
    """Everybody who was asked said yes or no."""

    UNREACHABLE = "unreachable"
    """There was no connection to who should be asked."""

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
    """Why not, for a log; what others said in it is cut and escaped."""

    label: str = ""
    """What the key file calls the client."""

    cause: Cause = Cause.ANSWERED
    """What it rests on."""

    @property
    def definitive(self) -> bool:
        """Whether all who were asked answered.

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
    """Clients let in because nobody reaches the URL."""

    crowded: int = 0
    """Clients kept out because too many were asked about at once; none of the queries."""

    revoked: int = 0
    """Keys whose connections were closed because they are no longer allowed; for each address
    that somebody was asked about, once."""


class Source(Protocol):
    """Somebody who is asked about each client."""

    name: str
    """How the log calls it."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Give the verdict; never raises anything but `CancelledError`."""

    async def aclose(self) -> None:
        """Close what is kept open for the next question."""


def excerpt(text: str) -> str:
    """The start of what somebody else said, in one line that is safe to print."""
    return printable(text.strip(), _LONGEST_EXCERPT)
