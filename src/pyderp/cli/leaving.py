"""The end of a process whose work is done, whatever its threads still wait for."""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

__all__ = ["leave_soon"]

_PATIENCE: Final = 0.5
"""Seconds. Nothing that matters is left to do."""


def leave_soon(patience: float = _PATIENCE) -> threading.Timer:
    """End this process, with exit status 0, unless it ends by itself in time.

    A name that is being looked up cannot be given up: the thread waits for the name server for
    many seconds, and asyncio and Python wait for the thread.

    Args:
        patience: seconds.

    Returns:
        its `cancel` calls that off.
    """
    timer = threading.Timer(patience, _leave)
    timer.daemon = True
    timer.start()
    return timer


def _leave() -> None:
    logging.shutdown()
    os._exit(0)
