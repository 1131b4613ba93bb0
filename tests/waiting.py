"""Waiting for what has no event: another process, a thread, a counter."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

__all__ = ["until"]

_BOUND = 30.0
_POLL = 0.002
"""Seconds between two checks: a turn of the loop would keep the other side from running."""


async def until(condition: Callable[[], object], seconds: float = _BOUND) -> None:
    """Wait until a condition holds, which may be a coroutine function.

    Raises:
        TimeoutError: it does not hold within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(_POLL)
