"""How often something may happen: bytes sent to a relay, connections accepted, lines logged."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Allows a burst at once, then a rate (as `rate.Limiter` in Go); of bytes, or of events.

    Starts full and refills continuously. What is larger than the burst never passes;
    a burst of 0 lets nothing pass. No limit is no bucket.

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
        """Take `n` tokens, all or none. Returns whether they were there.

        A clock that goes back refills nothing.
        """
        if now > self._last:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
            self._last = now
        if n > self._tokens:
            return False
        self._tokens -= n
        return True
