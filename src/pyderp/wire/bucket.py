"""The rate limit that a relay asks a client to keep, told in ServerInfo."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Bytes that may be sent: a burst at once, then a rate (as `rate.Limiter` in Go).

    Starts full and refills continuously. What is larger than the burst never passes;
    a burst of 0 lets nothing pass. No limit is no bucket.

    Args:
        rate_bytes_per_second: how fast it refills.
        burst_bytes: how much it holds.
        now: seconds of a monotonic clock, as for `take`.
    """

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate_bytes_per_second: float, burst_bytes: float, now: float) -> None:
        self._rate = rate_bytes_per_second
        self._burst = burst_bytes
        self._tokens = burst_bytes
        self._last = now

    def take(self, n: int, now: float) -> bool:
        """Take `n` bytes, all or none; whether they may be sent now.

        A clock that goes back refills nothing.
        """
        if now > self._last:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
            self._last = now
        if n > self._tokens:
            return False
        self._tokens -= n
        return True
