"""A clock for time limits of pyderp's own work, which a busy machine does not prolong."""

from __future__ import annotations

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def own_time() -> float:
    """Seconds on a clock that stops while this thread is ready to run and has to wait.

    Where the kernel does not count that, it is the monotonic clock.
    """
    try:
        queued = int(_SCHEDSTAT.read_text().split()[1])
    except OSError:
        queued = 0
    return time.monotonic() - queued / 1e9
