"""Tasks that belong together, without what `asyncio.TaskGroup` leaves for the cyclic collector.

The frames of a group that is cancelled, or whose tasks fail, hold the error that came through
them, and the group holds the task around it, which fails with that error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeAlias, TypeVar

__all__ = ["cancel_and_wait", "in_own_thread", "run_together"]

Tasks: TypeAlias = Collection[asyncio.Task[Any]]
T = TypeVar("T")


async def in_own_thread(work: Callable[[], T], *, name: str) -> T:
    """Call something that may block for long, in a thread that nothing else waits for.

    Cancelling abandons the thread, which ends with the call, or with the process.

    Raises:
        OSError: the system has no thread left.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    # The thread holds the outcome, and so the task that waits for it, if nothing else does.
    thread = threading.Thread(target=_run, args=(outcome, work), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as e:
        raise OSError(errno.EAGAIN, str(e)) from e
    try:
        return await outcome
    finally:
        del outcome  # it may hold an error, which holds this frame


def _run(outcome: asyncio.Future[T], work: Callable[[], T]) -> None:
    try:
        _deliver(outcome, asyncio.Future.set_result, work())
    except Exception as e:
        _deliver(outcome, asyncio.Future.set_exception, e)
    finally:
        del outcome  # it may hold an error, which holds this frame


def _deliver(outcome: asyncio.Future[T], setter: Callable[..., None], value: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        outcome.get_loop().call_soon_threadsafe(_set, outcome, setter, value)


def _set(outcome: asyncio.Future[Any], setter: Callable[..., None], value: object) -> None:
    if not outcome.done():
        setter(outcome, value)


async def cancel_and_wait(tasks: Tasks) -> None:
    """Cancel tasks and wait until they have ended; what they end with is dropped.

    Cancelling this does not cut the waiting short: it is raised when all have ended.
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
            task.exception()  # retrieved, or the loop would report it
    if cancelled:
        raise asyncio.CancelledError


async def run_together(*tasks: asyncio.Task[None]) -> None:
    """Wait until all tasks have ended. The first that fails ends the others and is raised.

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
