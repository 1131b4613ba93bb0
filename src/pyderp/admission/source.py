"""What answers questions about clients, and the simplest kind: a function of the program around.

The other kinds, `tailscaled` and `url`, bring an HTTP library with them and are imported only
when they are used.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict
from pyderp.config import Decide
from pyderp.defaults import ADMISSION_TIMEOUT
from pyderp.throttle import Throttle

__all__ = ["AdmissionFunction", "FailureLog", "Source"]

log = logging.getLogger("pyderp.admission")

_QUIET: Final = 60.0
"""Seconds between two lines about the same trouble."""


class Source(Protocol):
    """Something that is asked about each client."""

    name: str
    """How the log calls it."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict; never raises anything but `CancelledError`."""

    async def aclose(self) -> None:
        """Close what is kept open for the next question."""


class FailureLog:
    """Logs that a source fails: at once, then only now and then, and when it answers again.

    A source that fails and answers by turns is logged no more often than one that always fails.

    Args:
        source: how the log calls the source.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._throttle = Throttle(_QUIET)
        self._failing = False
        """The last line says that it fails."""

    def failed(self, text: str, error: BaseException | None = None) -> None:
        """Log a failure, or count it for the next line.

        Args:
            text: what is wrong.
            error: logged with its traceback.
        """
        left_out = self._throttle.admit(self._clock())
        if left_out is None:
            return
        more = f" ({left_out} more failures since the last such line)" if left_out else ""
        log.warning("%s: %s%s", self._source, text, more, exc_info=error)
        self._failing = True

    def worked(self) -> None:
        """Log the end of the trouble, if there was any."""
        if self._failing:
            self._failing = False
            log.info("%s: answers again", self._source)


class AdmissionFunction:
    """A function that takes key and address, and returns or awaits whether the client may come in.

    A plain function runs in the event loop and must not block. One that raises, returns anything
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
        return Verdict(False, f"{self.name}: {client} not allowed")

    async def aclose(self) -> None:
        """Nothing is kept open."""

    def _failed(
        self, what: str, error: Exception | None = None, *, cause: Cause = Cause.FAILED
    ) -> Verdict:
        self._counters.errors += 1
        self._failures.failed(what, error)
        return Verdict(False, f"{self.name}: {what}", cause=cause)
