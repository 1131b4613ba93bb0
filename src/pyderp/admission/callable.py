"""Ask a function of the program that embeds the relay."""

from __future__ import annotations

import asyncio
import inspect

from pyderp.admission.failurelog import FailureLog
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict
from pyderp.config import Decide
from pyderp.defaults import ADMISSION_TIMEOUT

__all__ = ["AdmissionFunction"]


class AdmissionFunction:
    """A function that takes key and address, and returns or awaits whether the client may come in.

    A plain function runs in the event loop and must not block. One that raises, gives anything
    but `True` or `False`, or takes too long keeps the client out.

    Args:
        decide: the function.
        counters: queries and errors are counted there.
        timeout: seconds for one awaited answer.
    """

    def __init__(
        self, decide: Decide, counters: AdmissionCounters, *, timeout: float = ADMISSION_TIMEOUT
    ) -> None:
        self._decide = decide
        self._counters = counters
        self._timeout = timeout
        self.name = "admission function"
        self._failures = FailureLog(self.name)

    async def ask(self, client: ClientIdentity) -> Verdict:
        """What the function says, as `Source.ask`."""
        self._counters.queries += 1
        try:
            async with asyncio.timeout(self._timeout) as limit:
                allowed = self._decide(client.key, client.address)
                if inspect.isawaitable(allowed):
                    allowed = await allowed
        except TimeoutError as e:
            if limit.expired():
                what = f"no answer within {self._timeout:g} s"
                return self._failed(what, cause=Cause.TIMED_OUT)
            return self._failed("failed", e)
        except Exception as e:
            return self._failed("failed", e)
        finally:
            del limit  # it holds the task, which, cancelled, holds this frame
        if not isinstance(allowed, bool):
            what = f"gave a {type(allowed).__name__}; want True or False"
            return self._failed(what, cause=Cause.BAD_ANSWER)
        self._failures.worked()
        if allowed:
            return Verdict(True)
        who = f"{client.key}/{client.address}"
        return Verdict(False, f"admission function: {who} not allowed")

    async def aclose(self) -> None:
        """Nothing is kept open."""

    def _failed(
        self, what: str, error: Exception | None = None, *, cause: Cause = Cause.FAILED
    ) -> Verdict:
        self._counters.errors += 1
        self._failures.failed(what, error)
        return Verdict(False, f"admission function: {what}", cause=cause)
