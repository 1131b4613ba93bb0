"""Deadlines of many connections on one timer."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

__all__ = ["TimerWheel"]

T = TypeVar("T")


class TimerWheel(Generic[T]):
    """Items that are due at some time, in slots of `tick` seconds.

    A timer handle of the loop costs hundreds of bytes and a heap operation; an entry here
    costs a place in a set. Items are given back at most one tick late.

    Args:
        tick: seconds a slot.
    """

    __slots__ = ("_next", "_slots", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._slots: dict[int, set[T]] = {}
        self._next = math.floor(now / tick)

    def add(self, item: T, when: float) -> int:
        """Have `advance` give `item` soon after `when`; gives the slot, for `cancel`."""
        slot = max(math.ceil(when / self.tick), self._next)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = {item}
        else:
            items.add(item)
        return slot

    def cancel(self, item: T, slot: int) -> None:
        """Forget an item; harmless when it was given already."""
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[slot]

    def advance(self, now: float) -> list[T]:
        """The items that are due by `now`, earliest slot first; they are forgotten."""
        due: list[T] = []
        last = math.floor(now / self.tick)
        while self._next <= last:
            due.extend(self._slots.pop(self._next, ()))
            self._next += 1
        return due

    def __len__(self) -> int:
        return sum(len(items) for items in self._slots.values())
