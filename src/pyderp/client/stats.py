"""What a client counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["ClientStats"]


@dataclass(slots=True)
class ClientStats:
    """Counts of one client over all its connections; the object is live."""

    connects: int = 0
    """Successful connects."""

    failed_connects: int = 0

    packets_sent: int = 0
    """Packets handed to a connection; DERP never confirms delivery."""

    packets_received: int = 0

    bytes_sent: int = 0
    """Bytes of the DERP stream: frames of every kind, without HTTP and TLS."""

    bytes_received: int = 0

    packets_dropped: int = 0
    """Packets not sent because the relay's token bucket was empty."""

    disconnects: Counter[str] = field(default_factory=Counter)
    """Why connections ended, the reason of each reconnect: `eof`, `restarting`, `timeout`,
    `error` (the network), `protocol` (the relay broke it)."""
