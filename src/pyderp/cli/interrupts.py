"""Ctrl-C (SIGINT) and SIGTERM, for every command: the first stops it, the second ends the process.

Python's own handler raises `KeyboardInterrupt` wherever the main thread is, also within the
clean-up that the first Ctrl-C began, and event loops put it back before they are closed. So one
handler is there from before the slow imports to the end of the process, and it raises nothing.
Before `stop_with` there is nothing to clean up: SIGINT ends the process at once with exit
status 130, and SIGTERM does what it does by default.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["held", "install", "stop_with"]

_REPEAT = 0.1
"""Seconds. `timeout` signals its command and then its process group, so the command twice."""


class _Stopping:
    """What the first signal does, and the second."""

    def __init__(
        self, stop: Callable[[int], None], again: Callable[[int], int] | None = None
    ) -> None:
        self._stop = stop
        self._again = again
        self._first: tuple[int, float] | None = None

    def on_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            self._stop(number)
        elif self._again is not None:
            os._exit(self._again(number))
        elif self._first[0] != number or now - self._first[1] > _REPEAT:
            os._exit(128 + number)


_now: _Stopping | None = None


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _now is None:
        os._exit(128 + number)
    _now.on_signal(number)


def install() -> None:
    """End the process on Ctrl-C without a traceback from now on, if it is not to be ignored."""
    # A shell ignores it for what a script starts in the background.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _handle(signal.SIGINT)


def _handle(number: int) -> None:
    with contextlib.suppress(ValueError):  # not the main thread, as in a test
        signal.signal(number, _on_signal)


def stop_with(
    stop: Callable[[int], None],
    again: Callable[[int], int] | None = None,
    *,
    ignored_too: bool = False,
) -> None:
    """From now on, to the end of the process, SIGINT and SIGTERM stop a command.

    Args:
        stop: called by the first signal, with its number, between any two steps of the main
            thread, perhaps when the command has ended. It must raise nothing.
        again: called by each later one; returns the exit status with which the process then ends
            at once. Without it that is 128 + number, and the same signal within a tenth of a
            second counts as the first.
        ignored_too: handle SIGINT even if the process was started with it ignored.
    """
    global _now
    _now = _Stopping(stop, again)
    if ignored_too:
        _handle(signal.SIGINT)
    _handle(signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """In the block, which must be short, both signals wait: what it began is finished."""
    global _now
    waiting: list[int] = []
    stop_with(waiting.append)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _now = None
    if waiting:
        os._exit(128 + waiting[0])
