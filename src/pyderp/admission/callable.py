"""Ask a function of the program that embeds the relay."""

from __future__ import annotations

import asyncio
import inspect
from typing import Final

from pyderp.admission.failurelog import FailureLog
from pyderp.admission.verdict import AdmissionCounters, Applicant, Verdict
from pyderp.config import Decide
from pyderp.defaults import ADMISSION_TIMEOUT

__all__ = ["AdmissionFunction"]

_AT_ONCE: Final = 64


class AdmissionFunction:
    """A function that takes key and address, and returns or awaits whether the client may come in.

    A plain function runs in the event loop and must not block. One that raises, gives anything
    but `True` or `False`, or takes too long keeps the client out.

    Args:
        decide: the function.
        counters: queries and errors are counted there.
        timeout: seconds for one awaited answer, waiting for its turn included.
    """

    def __init__(
        self, decide: Decide, counters: AdmissionCounters, *, timeout: float = ADMISSION_TIMEOUT
    ) -> None:
        self._decide = decide
        self._counters = counters
        self._timeout = timeout
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._failures = FailureLog("admission function")

    async def ask(self, applicant: Applicant) -> Verdict:
        """What the function says, as `Source.ask`."""
        self._counters.queries += 1
        try:
            async with asyncio.timeout(self._timeout) as limit, self._slots:
                allowed = self._decide(applicant.key, applicant.address)
                if inspect.isawaitable(allowed):
                    allowed = await allowed
        except TimeoutError as e:
            if limit.expired():
                return self._failed(f"no answer within {self._timeout:g} s")
            return self._failed("failed", e)
        except Exception as e:
            return self._failed("failed", e)
        finally:
            del limit  # it holds the task, which, cancelled, holds this frame
        if not isinstance(allowed, bool):
            return self._failed(f"gave a {type(allowed).__name__}; want True or False")
        self._failures.worked()
        if allowed:
            return Verdict(True)
        who = f"{applicant.key}/{applicant.address}"
        return Verdict(False, f"admission function: {who} not allowed")

    async def aclose(self) -> None:
        """Nothing is kept open."""

    def _failed(self, what: str, error: Exception | None = None) -> Verdict:
        self._counters.errors += 1
        self._failures.failed(what, error)
        return Verdict(False, f"admission function: {what}", sure=False)
