"""Ask again, and again, about those who are connected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

from pyderp.admission.verdict import ClientIdentity
from pyderp.defaults import ADMISSION_RECHECKS
from pyderp.tasks import cancel_and_wait

__all__ = ["recheck_for_ever"]

log = logging.getLogger("pyderp.admission")


async def recheck_for_ever(
    interval: float,
    live: Callable[[], Iterable[ClientIdentity]],
    check: Callable[[ClientIdentity], Coroutine[Any, Any, None]],
) -> NoReturn:
    """Call `check` for each live client once an interval, spread over it.

    Args:
        interval: seconds. A round takes longer if the answers do.
        live: who is connected; looked at when a round begins.
        check: asks about one client, and does what the answer demands.
    """
    while True:
        try:
            clients = list(dict.fromkeys(live()))
        except Exception:
            log.exception("rechecking clients failed, the next round is in %g s", interval)
            clients = []
        await _round(interval, clients, check)


async def _round(
    interval: float,
    clients: list[ClientIdentity],
    check: Callable[[ClientIdentity], Coroutine[Any, Any, None]],
) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    step = interval / max(1, len(clients))
    slots = asyncio.Semaphore(ADMISSION_RECHECKS)
    running: set[asyncio.Task[None]] = set()

    def over(task: asyncio.Task[None]) -> None:
        running.discard(task)
        slots.release()

    try:
        for n, client in enumerate(clients):
            await asyncio.sleep(begin + n * step - loop.time())
            await slots.acquire()
            name = "pyderp admission: recheck"
            task = asyncio.create_task(_carefully(check(client)), name=name)
            running.add(task)
            task.add_done_callback(over)
        if running:
            await asyncio.wait(running)
    finally:
        await cancel_and_wait(list(running))
    await asyncio.sleep(begin + interval - loop.time())


async def _carefully(work: Coroutine[Any, Any, None]) -> None:
    # A failure must not end the group: a cancellation at that moment would be lost.
    try:
        await work
    except Exception:
        log.exception("rechecking a client failed")
