"""Answers that are remembered for a while: at most so many, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Memory"]

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Values that are good for some time after they were stored, however often they are used.

    Args:
        lifetime: seconds; 0: nothing is kept.
        size: how many are kept.
    """

    __slots__ = ("_entries", "_lifetime", "_size")

    def __init__(self, lifetime: float, size: int) -> None:
        self._lifetime = lifetime
        self._size = size
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """What was stored under the key, if it is still good.

        Args:
            now: seconds of a monotonic clock, as for `put`.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, value = entry
        if now >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V, now: float) -> None:
        """Store a value, instead of an older one; forget another if there are too many."""
        if self._lifetime <= 0:
            return
        self._entries[key] = (now + self._lifetime, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
