"""Decides which problems are reported to which clients in Health frames, and when they are cleared.

Health frames are part of the protocol, and stock Tailscale clients show their text as a
warning; Go's `derper` never sends any. All times are seconds of a monotonic clock, which the
caller passes in. Nothing here is called once a packet.
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

__all__ = ["HealthReporter", "Trouble", "expiry_text"]

ALTERNATIONS: Final = 4
"""A key is contested after this many takeovers between its connections …"""
ALTERNATIONS_WITHIN: Final = 10.0
"""… within this many seconds."""
WAIT_WINDOW: Final = 30.0
"""Seconds over which the waits of a client are added up."""
WAIT_SHARE: Final = 0.5
"""A client that had to wait for more than this share of `WAIT_WINDOW` is warned."""
QUIET: Final = 60.0
"""Seconds after which a problem that was not seen again counts as solved."""
_CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of which Health frames are due."""
_MOST_SENDS_A_TICK: Final = 1000
"""Most clients that get a Health frame in one check; the others follow in the next."""


class Trouble(Enum):
    """A problem of a single client; the value is the text of its Health frame."""

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
    """How long a client had to wait within the last `WAIT_WINDOW` seconds.

    The length of a wait is known when it begins; the last one may not have ended.
    """

    __slots__ = ("_begin", "_end", "_past", "_since")

    def __init__(self, now: float) -> None:
        self._past: deque[tuple[float, float]] = deque()
        self._since = 0.0
        """Seconds of waits that ended since the last call of `total`."""
        self._begin = self._end = now

    def add(self, seconds: float, now: float) -> None:
        """Note that the client waits for `seconds` from now on."""
        if now > self._end:
            self._since += self._end - self._begin
            self._begin = now
        self._end = max(self._end, now + seconds)

    def stop(self, now: float) -> None:
        """Note that the client does not wait any more."""
        self._end = min(self._end, now)

    def total(self, now: float) -> float:
        """Return the seconds that it waited within the window that ends now.

        To be called about once a second: the result is exact to the interval between two calls.
        """
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
        """Return whether no wait lasts or falls into the window."""
        return not self._past and not self._since and now >= self._end


class HealthReporter:
    """Decides which Health frames to send, from events and the clock, and sends them.

    Stock Tailscale clients show them in `tailscale status`. The relay keeps an entry only for a
    client that has a problem, or whose last Health frame was not empty: a new client counts as
    healthy.

    Args:
        clock: seconds, monotonic.
        send_to_all: send Health frames also to clients that are not known to accept them.

    Attributes:
        sent_problems: Health frames with a text that were sent.
        cleared: empty Health frames that were sent, each of which takes back a text.
    """

    def __init__(
        self, router: Router, clock: Callable[[], float], *, send_to_all: bool = False
    ) -> None:
        self._router = router
        self._clock = clock
        self._send_to_all = send_to_all
        router.registry.on_takeover = self.on_takeover
        self._next_check = -math.inf
        self.sent_problems = 0
        self.cleared = 0
        self._certificate = ""
        self._takeovers: dict[bytes, deque[float]] = {}
        self._contested_keys: set[bytes] = set()
        self._waits: dict[Connection, _Waits] = {}
        self._troubles: dict[Connection, dict[Trouble, float]] = {}
        self._texts: dict[Connection, str] = {}
        """The last text sent to each connection; none after an empty Health frame."""
        self._changed: dict[Connection, None] = {}
        """Connections whose text may differ from the last one sent, in order of the change."""

    def close(self) -> None:
        """Stop receiving takeover events; to be called when the relay stops.

        Until then the router's registry refers to this object.
        """
        self._router.registry.on_takeover = None

    # Events

    def on_login(self, connection: Connection) -> None:
        """Note that a client logged in; a problem with the certificate is sent to it at once."""
        if self._certificate and self._accepts_health(connection):
            self._send(connection, self._certificate)

    def on_leave(self, connection: Connection) -> None:
        """Note that a client left, and drop all that was stored for it."""
        for table in (self._waits, self._troubles, self._texts, self._changed):
            table.pop(connection, None)

    def on_takeover(self, connection: Connection) -> None:
        """Note that a connection sent a frame and became the active one of its key."""
        now = self._clock()
        times = self._takeovers.get(connection.key)
        if times is None:
            times = self._takeovers[connection.key] = deque(maxlen=ALTERNATIONS)
        times.append(now)
        if len(times) == ALTERNATIONS and now - times[0] <= ALTERNATIONS_WITHIN:
            self._contested_keys.add(connection.key)

    def on_wait(self, connection: Connection, seconds: float) -> None:
        """Note that the relay does not read from a client for `seconds`: it exceeds its rate."""
        if not self._accepts_health(connection):
            return
        now = self._clock()
        waits = self._waits.get(connection)
        if waits is None:
            waits = self._waits[connection] = _Waits(now)
        waits.add(seconds, now)

    def end_wait(self, connection: Connection) -> None:
        """Note that the relay reads from a client again, perhaps before its wait was to end."""
        waits = self._waits.get(connection)
        if waits is not None:
            waits.stop(self._clock())

    def set_certificate_problem(self, text: str | None) -> None:
        """Set the problem with the relay's certificate, for all clients. `None`: there is none."""
        text = text or ""
        if text != self._certificate:
            self._certificate = text
            recipients = filter(self._accepts_health, self._router.registry.connections())
            self._changed.update(dict.fromkeys(recipients))

    def _accepts_health(self, connection: Connection) -> bool:
        # A client that does not know the frame may close its connection and never come back.
        return self._send_to_all or connection.takes_health

    # Sending

    def tick(self, now: float) -> None:
        """Send the Health frames that are due; to be called at least once a second."""
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_INTERVAL
        if self._contested_keys or self._takeovers:
            self._check_contested_keys(now)
        if self._waits:
            self._check_waits(now)
        if self._troubles:
            self._forget_old_troubles(now)
        for connection in list(islice(self._changed, _MOST_SENDS_A_TICK)):
            del self._changed[connection]
            text = self._text_for(connection)
            if text != self._texts.get(connection, ""):
                self._send(connection, text)

    def _check_contested_keys(self, now: float) -> None:
        for key in self._contested_keys:
            for connection in self._router.registry.connections_of(key):
                if self._accepts_health(connection):
                    self._note(connection, Trouble.DUPLICATE, now)
        self._contested_keys.clear()
        old = now - ALTERNATIONS_WITHIN
        for key in [key for key, times in self._takeovers.items() if times[-1] < old]:
            del self._takeovers[key]

    def _check_waits(self, now: float) -> None:
        over = []
        for connection, waits in self._waits.items():
            if waits.total(now) > WAIT_SHARE * WAIT_WINDOW:
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

    def _send(self, connection: Connection, text: str) -> None:
        if text:
            self._texts[connection] = text
            self.sent_problems += 1
        else:
            del self._texts[connection]
            self.cleared += 1
        self._router.send_control(connection, pack_health(text))


def expiry_text(name: str, not_after: datetime, now: datetime) -> str:
    """Return the Health text about a certificate that should have been renewed long ago.

    The text stays the same until the certificate expires, so that each client gets it once.

    Args:
        name: what the certificate is for.
        not_after: when it expires, with a time zone.
        now: the current time, with a time zone.
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
