"""Ctrl-C (SIGINT) and SIGTERM: the first signal stops the command, the second ends the process.

Python's own handler raises `KeyboardInterrupt` wherever the main thread is, also within the
clean-up that the first Ctrl-C began, and event loops restore it before they are closed. So one
handler, which raises nothing, is installed before the slow imports and stays until the process
ends. Before `stop_with` there is nothing to clean up: SIGINT ends the process at once with exit
status 130, and SIGTERM has its default effect.
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
"""Seconds in which a repeated signal counts as the first one. `timeout` signals its command and
then its process group, so the command gets each signal twice."""


class _Stopping:
    """What the first signal and each later one do."""

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


_stopping: _Stopping | None = None
"""What signals do at the moment; `None`: SIGINT ends the process."""


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _stopping is None:
        os._exit(128 + number)
    _stopping.on_signal(number)


def install() -> None:
    """From now on, Ctrl-C ends the process without a traceback, unless SIGINT is ignored."""
    # A shell starts the background commands of a script with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _handle(signal.SIGINT)


def _handle(number: int) -> None:
    with contextlib.suppress(ValueError):  # raised off the main thread, as in a test
        signal.signal(number, _on_signal)


def stop_with(
    stop: Callable[[int], None],
    again: Callable[[int], int] | None = None,
    *,
    ignored_too: bool = False,
) -> None:
    """Make SIGINT and SIGTERM stop a command, from now on to the end of the process.

    Args:
        stop: called by the first signal, with its number, between any two steps of the main
            thread, perhaps after the command has ended. It must raise nothing.
        again: called by each later signal; returns the exit status with which the process then
            ends at once. Without it the status is 128 + number, and the same signal within a
            tenth of a second counts as the first.
        ignored_too: handle SIGINT even if the process was started with it ignored.
    """
    global _stopping
    _stopping = _Stopping(stop, again)
    if ignored_too:
        _handle(signal.SIGINT)
    _handle(signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold both signals back while the block runs, so that it finishes; it must be short.

    If a signal came, the process ends after the block with exit status 128 + its number.
    """
    global _stopping
    waiting: list[int] = []
    stop_with(waiting.append)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _stopping = None
    if waiting:
        os._exit(128 + waiting[0])
