"""A clock for bounds on what takes us long, and not on what keeps the machine busy."""

from __future__ import annotations

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def own_time() -> float:
    """Seconds on a clock that stands while this thread is ready to run and has to wait.

    Where the kernel does not tell, it is the monotonic clock.
    """
    try:
        queued = int(_SCHEDSTAT.read_text().split()[1])
    except OSError:
        queued = 0
    return time.monotonic() - queued / 1e9
