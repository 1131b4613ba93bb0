"""Limits how often something is logged."""

from __future__ import annotations

import math

__all__ = ["Throttle"]


class Throttle:
    """Admits so many log lines and counts the rest: a flood of events is no flood of lines.

    Args:
        interval: seconds between two lines in the long run.
        burst: lines at once after a quiet time.
    """

    __slots__ = ("_burst", "_interval", "_left_out", "_next")

    def __init__(self, interval: float, *, burst: int = 1) -> None:
        self._interval = interval
        self._burst = (burst - 1) * interval
        self._next = -math.inf
        """When the next line is due if lines come evenly; a burst runs ahead of it."""
        self._left_out = 0

    def admit(self, now: float) -> int | None:
        """Count an event.

        Args:
            now: seconds of a monotonic clock.

        Returns:
            `None`: leave it out. Otherwise log it; the number is how many were left out since
            the last line.
        """
        if now < self._next - self._burst:
            self._left_out += 1
            return None
        self._next = max(self._next, now) + self._interval
        left_out, self._left_out = self._left_out, 0
        return left_out
