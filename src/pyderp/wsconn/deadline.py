"""The deadline of one direction of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator

from pyderp.errors import DerpError

__all__ = ["Deadline"]


class Deadline:
    """When the operations of one direction must be over.

    There is a timer only while an operation runs: between operations the clock is enough,
    and a check that is made when the operation starts cannot miss it.

    Args:
        direction: "read" or "write", for the error.
        cut: called when time is up in the middle of an operation; must make it end.
    """

    def __init__(self, direction: str, cut: Callable[[], None]) -> None:
        self.busy = False
        self._direction = direction
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._when: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._was_cut = False

    def set(self, when: float | None) -> None:
        """Set it to a time of the loop's clock, or to none at all."""
        self._disarm()
        self._when = when
        if self.busy:
            self._arm()

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Around an operation; one at a time.

        Raises:
            TimeoutError: time was up already, or ran out meanwhile.
        """
        if self._is_over():
            raise self._error()
        self.busy = True
        self._was_cut = False
        self._arm()
        try:
            yield
        except DerpError:
            if not self._was_cut:
                raise
        finally:
            self.busy = False
            self._disarm()
        if self._was_cut:
            raise self._error()

    def _is_over(self) -> bool:
        return self._when is not None and self._when <= self._loop.time()

    def _arm(self) -> None:
        if self._when is None:
            return
        if self._is_over():
            self._fire()
        else:
            self._timer = self._loop.call_at(self._when, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        # Loops fire timers up to a millisecond early, and what was cut must stay over.
        self._when = -math.inf
        self._timer = None
        self._was_cut = True
        self._cut()

    def _error(self) -> TimeoutError:
        return TimeoutError(f"the {self._direction} deadline has passed")
