"""What is asked, what is answered, and what is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pyderp.keys import NodePublic
from pyderp.wire.text import printable

__all__ = ["AdmissionCounters", "Applicant", "Source", "Verdict", "excerpt"]

_LONGEST_EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Applicant:
    """A client that has proven its key and wants to come in."""

    key: NodePublic
    address: str
    """Its IP address as text, without a port; empty: unknown."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client may come in."""

    allowed: bool
    reason: str = ""
    """Why not, for a log; what others said in it is cut and escaped."""

    label: str = ""
    """What the key file calls the client."""

    sure: bool = True
    """`False`: somebody who should have been asked did not answer, or answered nonsense. Such a
    verdict holds for this one connection: it is not remembered and ends no other."""


@dataclass(slots=True)
class AdmissionCounters:
    """Counts since the start. Rechecks and self checks count only in the last four."""

    allowed: int = 0
    denied: int = 0
    cache_hits: int = 0
    """Connections that a remembered answer decided."""

    queries: int = 0
    """Times that tailscaled, the URL or the function was asked."""

    errors: int = 0
    """Queries that brought no usable answer."""

    failed_open: int = 0
    """Of these: clients let in because the URL could not be asked."""

    revoked: int = 0
    """Keys whose connections were closed because they are no longer allowed; for each address
    that somebody was asked about, once."""


class Source(Protocol):
    """Somebody who is asked about each client."""

    async def ask(self, applicant: Applicant) -> Verdict:
        """Give the verdict; never raises anything but `CancelledError`."""

    async def aclose(self) -> None:
        """Close what is kept open for the next question."""


def excerpt(text: str) -> str:
    """The start of what somebody else said, in one line that is safe to print."""
    return printable(text.strip(), _LONGEST_EXCERPT)
