"""Blocking work on a thread that does not hold up the end of the program."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

__all__ = ["Stopped", "Worker"]

T = TypeVar("T")

_PATIENCE: Final = 2.0


class Stopped(Exception):
    """The work was told to stop."""


class Worker:
    """Runs one job after the other, each on a thread of its own.

    The executor of the event loop would not do: ending the loop, and the program, waits for
    its threads, and these wait for the server of an authority.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self) -> None:
        """To be called by jobs before each long step.

        Raises:
            Stopped: there is no use in going on.
        """
        if self._stop.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait, within a job.

        Raises:
            Stopped: it was told to stop meanwhile.
        """
        self._stop.wait(seconds)
        self.check()

    async def run(self, job: Callable[[], T]) -> T:
        """Run a job. Returns its result, or raises its error.

        Raises:
            RuntimeError: no thread can be started now.
        """
        await self._idle.wait()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._idle.clear()
        try:
            threading.Thread(
                target=self._in_thread, args=(job, future), name="pyderp-acme", daemon=True
            ).start()
        except RuntimeError:  # the system has no thread left
            self._idle.set()
            raise
        try:
            return await future
        finally:
            del future  # it holds its error, which holds this frame

    def _in_thread(self, job: Callable[[], T], future: asyncio.Future[T]) -> None:
        deliver = partial(self._deliver, future)
        try:
            deliver = partial(deliver, job(), None)
        except BaseException as e:
            deliver = partial(deliver, None, e)
        try:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                future.get_loop().call_soon_threadsafe(deliver)
        finally:
            del deliver, future  # they hold the error, which holds this frame

    def _deliver(
        self, future: asyncio.Future[T], result: T | None, error: BaseException | None
    ) -> None:
        self._idle.set()
        if future.done():
            return  # the caller was cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # a T, as there is no error

    def stop(self) -> None:
        """Tell the job to stop."""
        self._stop.set()

    async def stopped(self) -> bool:
        """Wait a moment for the job to stop. Returns whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._idle.wait()
        return self._idle.is_set()
