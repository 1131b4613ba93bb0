"""Errors that Python can raise nowhere: one line, and not one for each that strangers cause.

Python's own hook prints a traceback. OpenSSL's callbacks end there, so a client could fill the
log with the names that it asks for.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pyderp.text import printable

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["UnraisableLog", "log_unraisable"]

log = logging.getLogger("pyderp.relay")

_PAUSE: Final = 1.0
"""Seconds between two lines."""
_LONGEST: Final = 200


class UnraisableLog:
    """A hook for `sys.unraisablehook` that logs a line a second at most.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def __call__(self, unraisable: UnraisableHookArgs) -> None:
        """Log it, or count it for the next line."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + _PAUSE
        left_out, self._left_out = self._left_out, 0
        more = f"; {left_out} more since the last such line" if left_out else ""
        log.warning("%s%s", _told(unraisable), more)


def _told(unraisable: UnraisableHookArgs) -> str:
    # The object may be what a stranger sent, and one that is being deleted must not be kept.
    where = _cut(repr(unraisable.object))
    error = unraisable.exc_value
    what = f"{unraisable.exc_type.__name__}: {_cut(str(error))}"
    frame = unraisable.exc_traceback
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    line = "" if frame is None else f", {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    return f"{unraisable.err_msg or 'exception ignored in'} {where}{line}: {what}"


def _cut(text: str) -> str:
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def log_unraisable() -> None:
    """Log such errors from now on."""
    sys.unraisablehook = UnraisableLog()
