"""Concurrent questions about the same thing share one query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["Shared"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shared(Generic[K, V]):
    """Queries under way. A query nobody waits for any more is cancelled.

    Args:
        name: what its tasks are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._current: dict[K, asyncio.Task[V]] = {}
        self._waiting: dict[asyncio.Task[V], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def get(self, key: K, query: Callable[[], Coroutine[Any, Any, V]]) -> V | None:
        """The outcome of the query under way for the key, or of a new one.

        Cancelling a caller leaves the query to the others.

        Returns:
            the outcome; `None` if the query was cancelled, by `aclose` or by itself.
        """
        task = self._current.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(query(), name=self._name)
            self._current[key] = task
            self._waiting[task] = 0
            task.add_done_callback(lambda done: self._forget(key, done))
        self._waiting[task] += 1
        try:
            # Not awaited itself: its cancellation would look like the caller's own.
            await asyncio.wait((task,))
        finally:
            self._leave(key, task)
        try:
            return None if task.cancelled() else task.result()
        finally:
            del task  # it may hold an error, which holds this frame

    def renew(self) -> None:
        """Share nothing that is under way with who comes from now on."""
        self._current.clear()

    async def aclose(self) -> None:
        """Cancel all queries and wait for their ends."""
        tasks = list(self._waiting)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _leave(self, key: K, task: asyncio.Task[V]) -> None:
        if task not in self._waiting:
            return
        self._waiting[task] -= 1
        if not self._waiting[task] and not task.done():
            # Who asks now must not get a query that is being cancelled. It stays in
            # `_waiting`, for `aclose`, until it has ended.
            self._take_out(key, task)
            task.cancel()

    def _forget(self, key: K, task: asyncio.Task[V]) -> None:
        self._take_out(key, task)
        self._waiting.pop(task, None)

    def _take_out(self, key: K, task: asyncio.Task[V]) -> None:
        if self._current.get(key) is task:
            del self._current[key]
