"""The background thread with the event loop of blocking clients, and calls into it."""

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
"""Seconds that the exit of the process waits for connections to close."""


class Call(Generic[T]):
    """A call that runs in the loop's thread while another thread waits for it."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.results: list[T] = []
        """The result, once the call has returned; empty if it runs or has raised."""
        self._error: BaseException = ClientClosed("the process is ending")
        # A bare lock and not an Event: a signal handler that raises while an Event is being set or
        # waited for could leave its inner lock taken.
        self._running = threading.Lock()
        self._running.acquire()

    def start(self) -> None:
        """Begin the call; in the loop's thread."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="pyderp.blocking")
        # Not in `_run`, which never begins if the task is cancelled at once.
        self._task.add_done_callback(lambda _: self._running.release())

    def cancel(self) -> None:
        """Cancel the call; in the loop's thread, after `start` or instead of it."""
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
        """Wait until the call has ended."""
        with self._running:
            pass

    def outcome(self) -> T:
        """Return the result, or raise the error."""
        if self.results:
            return self.results[0]
        try:
            raise self._error
        finally:
            del self._error  # this frame is in its traceback


class LoopThread:
    """A daemon thread with an event loop."""

    def __init__(self) -> None:
        # Not by the policy, for which a program may have chosen another kind of loop.
        self.loop = asyncio.SelectorEventLoop()
        self.clients: set[Client] = set()
        """Clients that were used and not closed; accessed in the thread only."""
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="pyderp.blocking", daemon=True
        )
        self._thread.start()

    def call(self, work: Callable[[], Awaitable[T]], *, unclaimed: Callable[[T], None]) -> T:
        """Run a call in the thread, wait for it, and return its result.

        Args:
            unclaimed: called in the thread with a result that came although the caller's wait was
                interrupted, as by Ctrl-C.

        Raises:
            LocalProtocolError: this is the background thread itself, which would wait for ever.
        """
        if self.is_current():
            raise LocalProtocolError("a blocking client was called from its own event loop")
        call = Call(work)
        try:
            self.loop.call_soon_threadsafe(call.start)
            call.wait()
        except BaseException:
            # KeyboardInterrupt, or another error that a signal handler raised. The task must have
            # ended when this returns: the next call may receive, and one task at a time may.
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
        """Close a client that the program has dropped without closing it; in any thread."""
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
    """Holds the one loop thread of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._of_parents: list[LoopThread] = []
        atexit.register(self._stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def get(self) -> LoopThread:
        """Returns the thread; starts it if there is none."""
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def has(self, thread: LoopThread) -> bool:
        """Whether a thread is that of this process, and not of the process it was forked from."""
        return thread is self._thread

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _forget(self) -> None:
        # After a fork the child has no such thread, but shares the loop's epoll object with the
        # parent. Closing the loop here would unregister the parent's sockets, so it is kept open.
        self._lock = threading.Lock()
        if self._thread is not None:
            self._of_parents.append(self._thread)
            self._thread = None


shared: Final = Shared()
