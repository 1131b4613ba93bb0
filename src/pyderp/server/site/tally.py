"""Looking at all connections without making anybody wait."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, TypeVar

__all__ = ["slices"]

T = TypeVar("T")

_SLICE: Final = 50
"""Connections looked at in one turn of the loop, for about 2 ms."""


def slices(protocols: Collection[T]) -> Iterator[list[T]]:
    """The connections that are open now, some at a time: let others work after each.

    Those that end meanwhile may be among them.
    """
    everything = list(protocols)
    for start in range(0, len(everything), _SLICE):
        yield everything[start : start + _SLICE]
