"""What the log says of a link to another relay, which may fail for days."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

__all__ = ["MeshLog"]

log = logging.getLogger("pyderp.mesh")

_FIRST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0
"""Seconds between two lines about a link that keeps failing, at first and at most."""
_MOST_REASONS: Final = 8
"""Reasons that are logged at once between two such lines; each is logged once."""
_STABLE: Final = 60.0
"""A connection that held so long has mended the link; sooner it is the old trouble."""


class MeshLog:
    """Lines about one link: each new failure, then ever fewer; and that it is mended.

    Args:
        host: what it is called.
        clock: seconds, monotonic.
    """

    def __init__(self, host: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._pause = _FIRST_PAUSE
        self._said_at: float | None = None
        """When a failure was last logged; `None`: not since all was well."""
        self._told = False
        """The last line says that it fails."""
        self._reasons: set[str] = set()
        """Logged since the last line that was due."""
        self._failures = 0
        self._connected_at: float | None = None

    def connected(self) -> None:
        """It works."""
        self._connected_at = self._clock()
        if self._told:
            log.info("mesh with %s: connected again", self._host)
        elif self._said_at is None:
            log.info("mesh with %s: connected", self._host)
        self._told = False

    def full(self, keys: int) -> None:
        """The other relay named more keys than are kept; the caller says so once a connection."""
        log.warning(
            "mesh with %s: it has more than %d keys; packets to the others are dropped",
            self._host,
            keys,
        )

    def failed(self, error: str, bug: Exception | None) -> None:
        """It does not, or not any more."""
        now = self._clock()
        if self._connected_at is not None and now - self._connected_at >= _STABLE:
            self._said_at = None
        self._connected_at = None
        self._failures += 1
        if self._said_at is None:
            self._pause = _FIRST_PAUSE
            log.warning("mesh with %s: %s", self._host, error, exc_info=bug)
            self._begin_pause(now)
        elif now - self._said_at >= self._pause:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            log.warning(
                "mesh with %s: %s (failed %d times in %.0f s)",
                self._host,
                error,
                self._failures,
                now - self._said_at,
                exc_info=bug,
            )
            self._begin_pause(now)
        elif error not in self._reasons and len(self._reasons) < _MOST_REASONS:
            log.warning("mesh with %s: %s", self._host, error, exc_info=bug)
        else:
            return
        self._told = True
        self._reasons.add(error)

    def _begin_pause(self, now: float) -> None:
        self._said_at = now
        self._failures = 0
        self._reasons.clear()
