"""Counts of how large something was, in buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Histogram"]


class Histogram:
    """How often a number was at most each of some bounds, and not at most the one before.

    Args:
        bounds: upper bounds, ascending; each belongs to its own bucket. What is larger than
            the last one has a bucket of its own.

    Attributes:
        counts: one for each bound and one more, not cumulative.
        sum: all observed numbers together.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0

    def observe(self, number: int) -> None:
        """Count one number."""
        self.add(number, 1)

    def add(self, number: int, times: int) -> None:
        """Count a number so many times."""
        self.counts[bisect_left(self.bounds, number)] += times
        self.sum += number * times

    @property
    def count(self) -> int:
        """How many numbers were observed."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Each bound as text, the last one `+Inf`, with how many numbers were at most that."""
        total = 0
        pairs = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs
