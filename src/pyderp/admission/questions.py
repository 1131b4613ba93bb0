"""Puts the questions about clients to one source: newcomers in turns, rechecks apart from them."""

from __future__ import annotations

import asyncio
from typing import Final

from pyderp.admission.failurelog import FailureLog
from pyderp.admission.turns import Turns, share_of
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Source, Verdict
from pyderp.defaults import ADMISSION_QUESTIONS, ADMISSION_RECHECKS, ADMISSION_SHARE

__all__ = ["Questions"]

_SLOW: Final = 0.5
"""An answer that takes more than this part of the time allowed says that fewer should be asked."""


class Questions:
    """One source, and who may ask it when.

    Newcomers get turns, and each address a share of them: whoever logs in again and again, with
    a fresh key each time, delays itself more than others. Rechecks have turns of their own, so
    that no flood of newcomers keeps in who must leave.

    Args:
        source: answers.
        counters: who had no turn is counted there.
        timeout: seconds that a newcomer waits for a turn. The source bounds its own answers, by
            as much.
    """

    def __init__(self, source: Source, counters: AdmissionCounters, *, timeout: float) -> None:
        self._source = source
        self._counters = counters
        self._timeout = timeout
        self._newcomers = Turns(ADMISSION_QUESTIONS, ADMISSION_SHARE)
        self._rechecks = Turns(ADMISSION_RECHECKS, ADMISSION_RECHECKS)
        self._failures = FailureLog(source.name)

    async def ask(self, client: ClientIdentity, *, recheck: bool) -> Verdict:
        """What the source says; raises nothing but `CancelledError` and what the source raises.

        Args:
            recheck: nobody waits for the answer at a door. It waits for its turn without bound.
        """
        turns = self._rechecks if recheck else self._newcomers
        try:
            async with asyncio.timeout(None if recheck else self._timeout):
                turn = await turns.take(share_of(client.address))
        except TimeoutError:
            return self._crowded()
        clock = asyncio.get_running_loop().time
        begin = clock()
        slow: bool | None = None
        try:
            verdict = await self._source.ask(client)
            if verdict.cause is not Cause.UNREACHABLE:
                slow = clock() - begin > _SLOW * self._timeout
        finally:
            turn.end(slow=slow)
        return verdict

    async def aclose(self) -> None:
        """Close what the source keeps open."""
        await self._source.aclose()

    def _crowded(self) -> Verdict:
        what = f"too many questions at once: no turn within {self._timeout:g} s"
        self._counters.crowded += 1
        self._failures.failed(what)
        return Verdict(False, f"{self._source.name}: {what}", cause=Cause.CROWDED)
