"""Log that somebody cannot be asked: at once, then only now and then, and when it is over.

A source that fails and answers by turns is logged no more often than one that fails all the time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["FailureLog"]

log = logging.getLogger("pyderp.admission")

_QUIET: Final = 60.0
"""Seconds between two lines about the same trouble."""


class FailureLog:
    """What one source of answers has failed at, so that a flood of clients is no flood of lines.

    Args:
        who: how the log calls the source.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, who: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._who = who
        self._clock = clock
        self._told = False
        """The log's last word is that it fails."""
        self._next = -math.inf
        self._untold = 0

    def failed(self, text: str, error: BaseException | None = None) -> None:
        """Log a failure, or count it for the next line.

        Args:
            text: what is wrong.
            error: logged with its traceback.
        """
        now = self._clock()
        if now < self._next:
            self._untold += 1
            return
        more = f" ({self._untold} more failures since the last such line)" if self._untold else ""
        log.warning("%s: %s%s", self._who, text, more, exc_info=error)
        self._told = True
        self._next = now + _QUIET
        self._untold = 0

    def worked(self) -> None:
        """Log the end of the trouble, if there was any."""
        if self._told:
            self._told = False
            log.info("%s: answers again", self._who)
