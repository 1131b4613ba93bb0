"""Health frames: which clients are warned of which trouble, and when the warning is cleared.

Health frames are part of the protocol, and stock Tailscale clients show their text as a
warning; Go's `derper` never sends any. Time comes in as an argument, seconds of a monotonic
clock; nothing here is called once a packet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from typing import Final

from pyderp.relay.connection import Connection
from pyderp.relay.router import Router
from pyderp.wire.frames import pack_health

__all__ = ["HealthTeller", "Trouble", "expiry_text"]

ALTERNATIONS: Final = 4
"""Takeovers between connections of one key …"""
ALTERNATIONS_WITHIN: Final = 10.0
"""… within this many seconds that count as a fight over the key."""
WAIT_WINDOW: Final = 30.0
WAIT_SHARE: Final = 0.5
"""A client that had to wait for more than this share of `WAIT_WINDOW` is warned."""
QUIET: Final = 60.0
"""Seconds after which a trouble that was not seen again is over."""
_LOOK: Final = 1.0
"""Seconds between two looks at which clients to warn."""
_TOLD_AT_ONCE: Final = 1000
"""Most clients that one look sends to; the others follow in the next."""


class Trouble(Enum):
    """A single client's trouble; the value is the text of its Health frame."""

    DUPLICATE = (
        "another device is connected with the same node key, and the two take each other's "
        "packets; this comes from a copied disk or state file: log one of them out and in again"
    )
    RATE_LIMITED = (
        "this node sends faster than the relay allows and is slowed down most of the time; send "
        "less, find out why it has no direct connection, or ask the relay's operator for a "
        "higher limit"
    )


class _Waits:
    """How long a client had to wait of late. Waits are known ahead, so the last may go on."""

    __slots__ = ("_begin", "_end", "_past", "_since")

    def __init__(self, now: float) -> None:
        self._past: deque[tuple[float, float]] = deque()
        self._since = 0.0
        """Seconds of waits that ended since the last look."""
        self._begin = self._end = now

    def add(self, seconds: float, now: float) -> None:
        """The client waits from now on."""
        if now > self._end:
            self._since += self._end - self._begin
            self._begin = now
        self._end = max(self._end, now + seconds)

    def stop(self, now: float) -> None:
        """The client waits no longer."""
        self._end = min(self._end, now)

    def look(self, now: float) -> float:
        """Seconds that it waited within the window that ends now; call it every second or so."""
        until = max(min(now, self._end), self._begin)
        waited = self._since + until - self._begin
        self._begin = until
        self._since = 0.0
        past = self._past
        if waited:
            past.append((now, waited))
        while past and past[0][0] <= now - WAIT_WINDOW:
            past.popleft()
        return sum(each for _, each in past)

    def is_over(self, now: float) -> bool:
        """Whether there is nothing left to remember."""
        return not self._past and not self._since and now >= self._end


class HealthTeller:
    """Decides which client is told what, from what happens and the time, and sends Health frames.

    Stock Tailscale clients show them in `tailscale status`. It remembers only those that have
    trouble or were told of any. A client that is new counts as healthy.

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
        self._tell_all = tell_all
        router.registry.on_takeover = self.on_takeover
        self._next_look = -math.inf
        self.told = 0
        self.cleared = 0
        self._certificate = ""
        self._takeovers: dict[bytes, deque[float]] = {}
        self._fights: set[bytes] = set()
        self._waits: dict[Connection, _Waits] = {}
        self._troubles: dict[Connection, dict[Trouble, float]] = {}
        self._texts: dict[Connection, str] = {}
        """What each was told last, if that was not taken back."""
        self._changed: dict[Connection, None] = {}

    def close(self) -> None:
        """Hear no more; for the end of a relay, whose registry refers to this until then."""
        self._router.registry.on_takeover = None

    # What happens

    def on_login(self, connection: Connection) -> None:
        """A client logged in; it is told at once what concerns all."""
        if self._certificate and self._is_told(connection):
            self._tell(connection, self._certificate)

    def on_leave(self, connection: Connection) -> None:
        """A client left."""
        for memory in (self._waits, self._troubles, self._texts, self._changed):
            memory.pop(connection, None)

    def on_takeover(self, connection: Connection) -> None:
        """A connection spoke, and takes its key's packets from another one."""
        now = self._clock()
        times = self._takeovers.get(connection.key)
        if times is None:
            times = self._takeovers[connection.key] = deque(maxlen=ALTERNATIONS)
        times.append(now)
        if len(times) == ALTERNATIONS and now - times[0] <= ALTERNATIONS_WITHIN:
            self._fights.add(connection.key)

    def on_wait(self, connection: Connection, seconds: float) -> None:
        """Note that the relay does not read from a client for `seconds`: it exceeds its rate."""
        if not self._is_told(connection):
            return
        now = self._clock()
        waits = self._waits.get(connection)
        if waits is None:
            waits = self._waits[connection] = _Waits(now)
        waits.add(seconds, now)

    def end_wait(self, connection: Connection) -> None:
        """Note that a client is read from again, perhaps earlier than `on_wait` said."""
        waits = self._waits.get(connection)
        if waits is not None:
            waits.stop(self._clock())

    def set_certificate_problem(self, text: str | None) -> None:
        """Set the trouble with the relay's certificate, for all clients. `None`: there is none."""
        text = text or ""
        if text != self._certificate:
            self._certificate = text
            told = filter(self._is_told, self._router.registry.connections())
            self._changed.update(dict.fromkeys(told))

    def _is_told(self, connection: Connection) -> bool:
        # A client that does not know the frame may leave the relay for good.
        return self._tell_all or connection.takes_health

    # Sending

    def tick(self, now: float) -> None:
        """Send the Health frames that are due; to be called at least once a second."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        if self._fights or self._takeovers:
            self._look_at_fights(now)
        if self._waits:
            self._look_at_waits(now)
        if self._troubles:
            self._forget_old_troubles(now)
        for connection in list(islice(self._changed, _TOLD_AT_ONCE)):
            del self._changed[connection]
            text = self._text_for(connection)
            if text != self._texts.get(connection, ""):
                self._tell(connection, text)

    def _look_at_fights(self, now: float) -> None:
        for key in self._fights:
            for connection in filter(self._is_told, self._router.registry.connections_of(key)):
                self._note(connection, Trouble.DUPLICATE, now)
        self._fights.clear()
        old = now - ALTERNATIONS_WITHIN
        for key in [key for key, times in self._takeovers.items() if times[-1] < old]:
            del self._takeovers[key]

    def _look_at_waits(self, now: float) -> None:
        over = []
        for connection, waits in self._waits.items():
            if waits.look(now) > WAIT_SHARE * WAIT_WINDOW:
                self._note(connection, Trouble.RATE_LIMITED, now)
            elif waits.is_over(now):
                over.append(connection)
        for connection in over:
            del self._waits[connection]

    def _note(self, connection: Connection, trouble: Trouble, now: float) -> None:
        troubles = self._troubles.setdefault(connection, {})
        if trouble not in troubles:
            self._changed[connection] = None
        troubles[trouble] = now

    def _forget_old_troubles(self, now: float) -> None:
        for connection, troubles in list(self._troubles.items()):
            for trouble in [each for each, seen in troubles.items() if now - seen >= QUIET]:
                del troubles[trouble]
                self._changed[connection] = None
            if not troubles:
                del self._troubles[connection]

    def _text_for(self, connection: Connection) -> str:
        troubles = self._troubles.get(connection, {})
        texts = [each.value for each in Trouble if each in troubles]
        return "; ".join([*texts, self._certificate] if self._certificate else texts)

    def _tell(self, connection: Connection, text: str) -> None:
        if text:
            self._texts[connection] = text
            self.told += 1
        else:
            del self._texts[connection]
            self.cleared += 1
        self._router.send_control(connection, pack_health(text))


def expiry_text(name: str, not_after: datetime, now: datetime) -> str:
    """Return the Health text about a certificate that should have been renewed long ago.

    It stays the same until the certificate expires, so that clients get it once.

    Args:
        name: what the certificate is for.
        not_after: when it expires, and the time of day; both with their zone.
    """
    when = not_after.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if now < not_after:
        return (
            f"the relay's certificate for {name} expires on {when} and was not renewed; no client "
            "can connect after that: tell the relay's operator"
        )
    return (
        f"the relay's certificate for {name} expired on {when}; no client can connect any more: "
        "tell the relay's operator"
    )
