"""The background thread in which blocking clients live, and calls into it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from pyderp.client.client import Client
from pyderp.errors import ClientClosed, LocalProtocolError

__all__ = ["LoopThread", "shared"]

T = TypeVar("T")

_EXIT_TIMEOUT: Final = 3.0
"""Seconds that the end of the process waits for connections to close."""


class Call(Generic[T]):
    """Something that the loop's thread does and another thread waits for."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.results: list[T] = []
        """What came out, if it is over and nothing was raised; else nothing."""
        self._error: BaseException = ClientClosed("the process is ending")
        # A bare lock and not an Event, whose own locks a signal handler could leave taken.
        self._running = threading.Lock()
        self._running.acquire()

    def start(self) -> None:
        """Begin; in the loop's thread."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="pyderp.blocking")
        # Not in the task itself: a task that is cancelled at once never runs.
        self._task.add_done_callback(lambda _: self._running.release())

    def cancel(self) -> None:
        """Give up; in the loop's thread, after `start`, or instead of it."""
        if self._task is None:
            self._running.release()
        else:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self.results.append(await self._work())
        except asyncio.CancelledError:
            raise
        except BaseException as e:
            self._error = e

    def wait(self) -> None:
        """Wait until it is over."""
        with self._running:
            pass

    def outcome(self) -> T:
        """Return what came out, or raise it."""
        if self.results:
            return self.results[0]
        try:
            raise self._error
        finally:
            del self._error  # this frame is in its traceback


class LoopThread:
    """A daemon thread with an event loop."""

    def __init__(self) -> None:
        # Not the policy's, which a program may have set to another kind.
        self.loop = asyncio.SelectorEventLoop()
        self.clients: set[Client] = set()
        """Those that were used and not closed; belongs to the thread."""
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="pyderp.blocking", daemon=True
        )
        self._thread.start()

    def call(self, work: Callable[[], Awaitable[T]], *, unclaimed: Callable[[T], None]) -> T:
        """Do something in the thread and wait for it.

        Args:
            unclaimed: called in the thread with a result that came although the waiting ended,
                as by Ctrl-C.
        """
        if self.is_current():
            raise LocalProtocolError("a blocking client was called from its own event loop")
        call = Call(work)
        try:
            self.loop.call_soon_threadsafe(call.start)
            call.wait()
        except BaseException:
            # KeyboardInterrupt, or what a signal handler raised. The task must be gone when
            # this returns: the next call may receive again.
            self.loop.call_soon_threadsafe(call.cancel)
            call.wait()
            for result in call.results:
                self.loop.call_soon_threadsafe(unclaimed, result)
            raise
        return call.outcome()

    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.get_ident() == self._thread.ident

    def close_later(self, client: Client) -> None:
        """Close a client that the program has dropped."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the client
            self.loop.call_soon_threadsafe(self._close, client)

    def _close(self, client: Client) -> None:
        self.loop.create_task(self.aclose(client), name="pyderp.blocking close")

    async def aclose(self, client: Client) -> None:
        """Close a client; in the thread."""
        await client.aclose()
        self.clients.discard(client)

    def stop(self) -> None:
        """Close all clients, end the thread, close the loop."""
        asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop)
        self._thread.join(_EXIT_TIMEOUT)
        if not self._thread.is_alive():
            self.loop.close()

    async def _wind_up(self) -> None:
        await asyncio.gather(*map(self.aclose, self.clients))
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        self.loop.stop()


class Shared:
    """The process's loop thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._of_parents: list[LoopThread] = []
        atexit.register(self._stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def get(self) -> LoopThread:
        """The thread; started if there is none."""
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def has(self, thread: LoopThread) -> bool:
        """Whether it is this process's, and not that of the process it was forked from."""
        return thread is self._thread

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _forget(self) -> None:
        # The thread is not here, and the loop's epoll object is the parent's, too: closing it
        # here would make the parent deaf. So it is kept.
        self._lock = threading.Lock()
        if self._thread is not None:
            self._of_parents.append(self._thread)
            self._thread = None


shared: Final = Shared()
