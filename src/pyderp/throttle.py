"""Limits on rates: bytes sent to a relay, connections accepted, lines logged."""

from __future__ import annotations

import math

__all__ = ["Throttle", "TokenBucket"]


class TokenBucket:
    """Allows a burst at once, then a rate (as `rate.Limiter` in Go); of bytes, or of events.

    Starts full and refills continuously. More than `burst` at a time is never allowed; a burst of
    0 allows nothing. Where there is no limit, use no bucket.

    Args:
        rate: tokens a second.
        burst: how many it holds.
        now: seconds of a monotonic clock, as for `take`.
    """

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last = now

    def take(self, n: int, now: float) -> bool:
        """Take `n` tokens, all or none; return whether they were taken.

        A clock that goes back refills nothing.
        """
        if now > self._last:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
            self._last = now
        if n > self._tokens:
            return False
        self._tokens -= n
        return True


class Throttle:
    """Allows a limited number of log lines and counts the others, for events that may be frequent.

    Args:
        interval: seconds between two lines in the long run.
        burst: lines at once after a quiet time.
    """

    __slots__ = ("_begun", "_burst", "_interval", "_left_out", "_lines")

    def __init__(self, interval: float, *, burst: int = 1) -> None:
        self._interval = interval
        self._burst = burst
        self._begun = -math.inf
        """When a quiet time ended."""
        self._lines = 0
        """Lines since then. Counted, and not summed up as intervals or tokens: by rounding, such a
        sum would reach the next whole line a moment too late."""
        self._left_out = 0

    def admit(self, now: float) -> int | None:
        """Count an event, and say whether to log it.

        Args:
            now: seconds of a monotonic clock.

        Returns:
            `None` if the event is not to be logged; otherwise how many events were left out since
            the last line.
        """
        if now >= self._begun + self._lines * self._interval:
            self._begun, self._lines = now, 0
        elif now < self._begun + (self._lines - self._burst + 1) * self._interval:
            self._left_out += 1
            return None
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
