"""One host name or address that a certificate is wanted for."""

from __future__ import annotations

from dataclasses import dataclass

from pyderp.certs.schedule import Schedule
from pyderp.certs.store import Certificate, Stamp

__all__ = ["Slot"]


@dataclass(slots=True)
class Slot:
    """A subject, its certificate if there is one, and when to do something about it."""

    subject: str
    """DNS name or IP address, in normal form."""

    schedule: Schedule
    certificate: Certificate | None = None

    stamp: Stamp = None
    """Of the file when it was last read or written."""

    unsaved: bool = False
    save_at: float = 0.0
