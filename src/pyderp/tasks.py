"""Tasks that end together, work that callers share, calls in a thread of their own.

Nothing here leaves reference cycles for the cyclic collector. `asyncio.TaskGroup` does: the frames
of a group that is cancelled, or whose tasks fail, hold the error that came through them, and the
group holds the task around it, which fails with that error.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import threading
from collections.abc import Callable, Collection, Coroutine, Hashable
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

__all__ = ["SingleFlight", "call_in_thread", "cancel_and_wait", "in_own_thread", "run_together"]
__all__ += ["running_loop"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs work for a key once at a time, in a task that all callers for the key wait for.

    Args:
        keep: work goes on when its last caller is cancelled, and the next caller joins it. It is
            for work that cannot be cancelled, such as a thread. Otherwise the work is cancelled.
        wait: the last caller that is cancelled waits until the work has ended, so that no task is
            left when it returns.
    """

    def __init__(self, *, keep: bool = False, wait: bool = False) -> None:
        self._keep = keep
        self._wait = wait
        # Weak, because an event loop may be closed while work runs, and a task holds its loop. The
        # callers hold the task as long as there are any; afterwards its loop does.
        self._current: WeakValueDictionary[K, asyncio.Task[V]] = WeakValueDictionary()
        self._callers: WeakKeyDictionary[asyncio.Task[V], int] = WeakKeyDictionary()
        """Number of waiting callers per task, also of tasks that are cancelled and not ended."""

    def __len__(self) -> int:
        return len({*self._current.values(), *self._callers})

    async def get(
        self, key: K, work: Callable[[], Coroutine[Any, Any, V]], *, name: str
    ) -> V | None:
        """Join the work that runs for the key, or start it; return its result.

        Cancelling one caller does not affect the others. Cancelling the last one cancels the work.

        Args:
            name: of the new task.

        Returns:
            the result; `None` if the work was cancelled, by `aclose` or by itself.
        """
        task = self._current.get(key)
        if task is None or task.done():
            task = self._start(key, work, name)
        self._callers[task] = self._callers.get(task, 0) + 1
        try:
            # Not `await task`: a cancelled task would look like a cancelled caller.
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            if self._leave(key, task) and self._wait:
                await asyncio.wait((task,))
            raise
        try:
            return None if task.cancelled() else task.result()
        finally:
            del task  # it may hold an error, which holds this frame

    def renew(self) -> None:
        """Let later callers start new work; those that wait keep the work that they joined."""
        self._current.clear()

    async def aclose(self) -> None:
        """Cancel all work and wait for its end."""
        tasks = list(self._callers)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(
        self, key: K, work: Callable[[], Coroutine[Any, Any, V]], name: str
    ) -> asyncio.Task[V]:
        task = asyncio.create_task(work(), name=name)
        task.add_done_callback(lambda done: self._on_done(key, done))
        self._current[key] = task
        return task

    def _leave(self, key: K, task: asyncio.Task[V]) -> bool:
        """Note that a caller was cancelled; return whether that cancelled the work."""
        if task.done():
            return False
        self._callers[task] -= 1
        if self._callers[task] or self._keep:
            return False
        # The next caller must not join work that is being cancelled.
        self._take_out(key, task)
        task.cancel()
        return True

    def _on_done(self, key: K, task: asyncio.Task[V]) -> None:
        self._take_out(key, task)
        self._callers.pop(task, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: asyncio would log it if no caller is left

    def _take_out(self, key: K, task: asyncio.Task[V]) -> None:
        if self._current.get(key) is task:
            del self._current[key]


Tasks: TypeAlias = Collection[asyncio.Task[Any]]
T = TypeVar("T")


def call_in_thread(work: Callable[[], T], *, name: str) -> concurrent.futures.Future[T]:
    """Begin a call that may block for long, in a thread of its own.

    The exit of the process does not wait for the thread, as it would for one of an executor.

    Raises:
        OSError: the system can start no more threads (EAGAIN).
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    try:
        threading.Thread(target=_call, args=(outcome, work), name=name, daemon=True).start()
    except RuntimeError as e:
        raise OSError(errno.EAGAIN, str(e)) from e
    return outcome


def _call(outcome: concurrent.futures.Future[T], work: Callable[[], T]) -> None:
    try:
        outcome.set_result(work())
    except BaseException as e:
        outcome.set_exception(e)
    finally:
        del outcome  # it may hold an error, which holds this frame


async def in_own_thread(work: Callable[[], T], *, name: str) -> T:
    """Await a call in a thread of its own (`call_in_thread`). Cancelling abandons the thread."""
    # Not `asyncio.wrap_future`: the callbacks and the future that it makes hold each other.
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    call_in_thread(work, name=name).add_done_callback(functools.partial(_hand_over, outcome))
    try:
        return await outcome
    finally:
        del outcome  # it may hold an error, which holds this frame


def _hand_over(outcome: asyncio.Future[T], done: concurrent.futures.Future[T]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        outcome.get_loop().call_soon_threadsafe(_settle, outcome, done)


def _settle(outcome: asyncio.Future[T], done: concurrent.futures.Future[T]) -> None:
    if outcome.done():
        return  # cancelled
    error = done.exception()
    if error is None:
        outcome.set_result(done.result())
    else:
        outcome.set_exception(error)


async def cancel_and_wait(tasks: Tasks) -> None:
    """Cancel tasks and wait until they have ended; their results and errors are dropped.

    If the caller is cancelled meanwhile, `CancelledError` is raised when all have ended.
    """
    cancelled = False
    for task in tasks:
        task.cancel()
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError:
            cancelled = True
    for task in tasks:
        if not task.cancelled():
            task.exception()  # marks it as seen: the loop would log it
    if cancelled:
        raise asyncio.CancelledError


async def run_together(*tasks: asyncio.Task[None]) -> None:
    """Wait until all tasks have ended. When one fails, cancel the others and raise its error.

    Cancelling cancels all of them.
    """
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = _first_error(tasks)
    finally:
        await cancel_and_wait(tasks)
        tasks = ()  # they hold their errors, which hold this frame
    if failed is not None:
        try:
            raise failed
        finally:
            del failed


def _first_error(tasks: Tasks) -> BaseException | None:
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            return task.exception()
    return None


def running_loop() -> asyncio.AbstractEventLoop:
    """Returns the running asyncio event loop.

    Raises:
        RuntimeError: there is none, as under trio; the text says what to use instead.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "no asyncio event loop runs here, which this part of pyderp needs: call it from a "
            "coroutine under asyncio.run; without asyncio, and in threads of a trio program "
            "(trio.to_thread.run_sync), use pyderp.blocking"
        ) from None
