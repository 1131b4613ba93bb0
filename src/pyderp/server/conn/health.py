"""Telling clients of trouble: from the relay's events to Health frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from pyderp.relay.connection import Connection
from pyderp.relay.health import HealthWatch
from pyderp.relay.router import Router
from pyderp.wire.frames import pack_health

__all__ = ["HealthTeller"]

_LOOK: Final = 1.0
"""Seconds between two looks at whom to tell."""


class HealthTeller:
    """Sends Health frames; stock Tailscale clients show them in `tailscale status`.

    Args:
        clock: seconds, monotonic.
        tell_all: tell also clients that are not known to take Health frames.

    Attributes:
        told: problems that single clients were told of.
        cleared: clients that were told that all is well again.
    """

    def __init__(
        self, router: Router, clock: Callable[[], float], *, tell_all: bool = False
    ) -> None:
        self._router = router
        self._clock = clock
        registry = router.registry
        self._watch = HealthWatch(registry.connections, registry.connections_of, tell_all=tell_all)
        registry.on_takeover = self.on_takeover
        self._next_look = -math.inf
        self.told = 0
        self.cleared = 0

    def close(self) -> None:
        """Hear no more; for the end of a relay, whose registry refers to this until then."""
        self._router.registry.on_takeover = None

    def on_login(self, connection: Connection) -> None:
        """A client logged in."""
        if text := self._watch.on_login(connection):
            self._tell(connection, text)

    def on_leave(self, connection: Connection) -> None:
        """A client left."""
        self._watch.on_leave(connection)

    def on_takeover(self, connection: Connection) -> None:
        """A connection took its key's packets from another one with the same key."""
        self._watch.on_takeover(connection, self._clock())

    def on_wait(self, connection: Connection, seconds: float) -> None:
        """A client is not read from for so long."""
        self._watch.on_wait(connection, seconds, self._clock())

    def end_wait(self, connection: Connection) -> None:
        """A client is read from again, maybe earlier than `on_wait` was told."""
        self._watch.end_wait(connection, self._clock())

    def set_certificate_problem(self, text: str | None) -> None:
        """What is wrong with the relay's certificate; all clients are told. `None`: nothing."""
        self._watch.set_certificate_problem(text)

    def tick(self, now: float) -> None:
        """Tell whoever must be told by now; to be called once a second or more often."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for connection, text in self._watch.tick(now):
            self._tell(connection, text)

    def _tell(self, connection: Connection, text: str) -> None:
        if text:
            self.told += 1
        else:
            self.cleared += 1
        self._router.send_control(connection, pack_health(text))
