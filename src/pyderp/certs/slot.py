"""What is known of one certificate that an authority is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pyderp.certs.schedule import Schedule
from pyderp.certs.store import Certificate
from pyderp.keyfile import FileStamp

__all__ = ["Slot"]


@dataclass(slots=True)
class Slot:
    """A host name or address that a certificate is wanted for, and when to do what about it."""

    subject: str
    """DNS name or IP address, in normal form."""

    schedule: Schedule
    certificate: Certificate | None = None

    stamp: FileStamp | None = None
    """Of the file when it was last read or written."""

    unsaved: bool = False
    save_at: float = 0.0

    waiting: bool = False
    """For another process that asks."""
