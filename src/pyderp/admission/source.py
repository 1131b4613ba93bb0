"""Sources, which are asked about clients; the turns in which they are asked; the function source.

The number of questions at once is limited: in total, for each address, and further if answers are
slow.

The other kinds of source, `tailscaled` and `url`, need an HTTP library. They are imported only
where they are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from pyderp.addresses import parse_ip
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict
from pyderp.config import Decide
from pyderp.defaults import (
    ADMISSION_QUESTIONS,
    ADMISSION_RECHECKS,
    ADMISSION_SHARE,
    ADMISSION_TIMEOUT,
)
from pyderp.text import counted
from pyderp.throttle import Throttle

__all__ = [
    "AdmissionFunction",
    "FailureLog",
    "Questions",
    "Source",
    "Turn",
    "Turns",
    "share_of",
]

log = logging.getLogger("pyderp.admission")

_QUIET: Final = 60.0
"""Seconds between two log lines about the same trouble."""
_FEWEST: Final = 4
"""Turns that stay however slow the answers are; without questions, no answer could be quick."""
_GAIN: Final = 0.25
"""Turns that a quick answer adds."""
_SLOW: Final = 0.5
"""An answer that takes more than this part of the timeout is slow."""
_NO_SHARE: Final = object()


class FailureLog:
    """Logs the first failure of a source at once, later ones once a minute, and its recovery.

    A source that alternates between failures and answers is logged as often as one that fails
    always.

    Args:
        source: the name of the source in the log.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._throttle = Throttle(_QUIET)
        self._failing = False
        """Whether the last line in the log was a failure."""

    def failed(self, text: str, error: BaseException | None = None) -> None:
        """Log a failure, or count it for the next line.

        Args:
            text: what failed.
            error: is logged with its traceback.
        """
        left_out = self._throttle.admit(self._clock())
        if left_out is None:
            return
        failures = counted(left_out, "more failure")
        more = f" ({failures} since the last such line)" if left_out else ""
        log.warning("%s: %s%s", self._source, text, more, exc_info=error)
        self._failing = True

    def worked(self) -> None:
        """Log the recovery, if the last line in the log was a failure."""
        if self._failing:
            self._failing = False
            log.info("%s: answers again", self._source)


class Source:
    """Something that is asked about each client.

    Args:
        name: its name in the log.
        counters: counts queries and errors.
        timeout: seconds for one question.
    """

    def __init__(self, name: str, counters: AdmissionCounters, timeout: float) -> None:
        self.name = name
        self._counters = counters
        self._timeout = timeout
        self._failures = FailureLog(name)
        self.trouble = ""
        """Why the last question had no answer, and whether the client was allowed; empty if it had
        an answer. Failures that a client can cause are not noted here."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict about a client; raises only `CancelledError`."""
        raise NotImplementedError

    async def probe(self, client: ClientIdentity | None) -> None:
        """Check whether the source works, and note the result in `trouble`.

        Args:
            client: the last client that the source had no answer about; `None` if the source
                answered the last question, or was not asked yet.
        """
        if client is not None:
            await self.ask(client)

    async def aclose(self) -> None:
        """Close the connections that are kept for the next question."""

    def _answered(self, client: ClientIdentity, *, allowed: bool) -> Verdict:
        self._worked()
        return Verdict(allowed, "" if allowed else f"{self.name}: {client} not allowed")

    def _worked(self) -> None:
        """Note that the source answered, with yes or no."""
        self.trouble = ""
        self._failures.worked()

    def _failed(self, what: str, cause: Cause, error: Exception | None = None) -> Verdict:
        """Count and log a question without a usable answer; return the verdict, a refusal."""
        self._counters.errors += 1
        if cause is not Cause.CROWDED:
            self.trouble = self._refusing(what)
        self._failures.failed(what, error)
        return Verdict(False, f"{self.name}: {what}", cause=cause)

    def _refusing(self, what: str) -> str:
        return f"{self.name} does not answer, clients are refused: {what}"


class AdmissionFunction(Source):
    """A function of key and address that returns whether the client may log in, or awaits it.

    A plain function runs in the event loop and must not block. If the function raises, returns
    anything but `True` or `False`, or takes too long, the client is refused.
    """

    def __init__(
        self, decide: Decide, counters: AdmissionCounters, *, timeout: float = ADMISSION_TIMEOUT
    ) -> None:
        super().__init__("admission function", counters, timeout)
        self._decide = decide

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict of the function."""
        self._counters.queries += 1
        try:
            async with asyncio.timeout(self._timeout) as limit:
                allowed = self._decide(client.key, client.address)
                if inspect.isawaitable(allowed):
                    allowed = await allowed
        except TimeoutError as e:
            if limit.expired():
                return self._failed(f"no answer within {self._timeout:g} s", Cause.TIMED_OUT)
            return self._failed("failed", Cause.FAILED, e)
        except Exception as e:
            return self._failed("failed", Cause.FAILED, e)
        finally:
            # It refers to the task. A cancelled task refers to this frame: a reference cycle.
            del limit
        if not isinstance(allowed, bool):
            what = f"gave a {type(allowed).__name__}; want True or False"
            return self._failed(what, Cause.BAD_ANSWER)
        return self._answered(client, allowed=allowed)


def share_of(address: str) -> Hashable:
    """Return the share of the turns that an address uses: one per IPv4 address or IPv6 /64.

    A subscriber has at least a /64, and could otherwise use another address for each question.

    Args:
        address: an IP address. All other texts use one share together.
    """
    ip = parse_ip(address)
    return None if ip is None else ip.packed[:8]


class Turn(NamedTuple):
    """The right to ask one question."""

    share: Hashable
    generation: int


class Turns:
    """Hands out turns: in order within a share, and round robin among the shares.

    After a slow answer there are fewer turns. Otherwise questions would queue in the source, and
    the answers to all of them would come too late.

    Args:
        most: turns at once.
        share: turns at once for one share.
    """

    def __init__(self, most: int, share: int) -> None:
        self._most = most
        self._share = share
        self._limit = float(most)
        self._generation = 0
        """How often the limit was cut. Late answers to questions of one generation cut it once."""
        self._taken: dict[Hashable, int] = {}
        self._total = 0
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The waiting questions of each share; the first share has the next turn."""

    @property
    def limit(self) -> int:
        """The number of turns at once, at the moment."""
        return int(self._limit)

    @property
    def taken(self) -> int:
        """The number of turns that are taken."""
        return self._total

    @property
    def waiting(self) -> int:
        """The number of questions that wait for a turn."""
        return sum(map(len, self._waiting.values()))

    async def take(self, share: Hashable) -> Turn:
        """Wait for a turn and return it. Cancelling gives up the place in the queue."""
        # This cannot overtake: while a share waits, either it or the total is at its limit.
        if not self._has_room(share):
            queue = self._waiting.setdefault(share, deque())
            ready = asyncio.get_running_loop().create_future()
            queue.append(ready)
            try:
                await ready
            except asyncio.CancelledError:
                if ready.done() and not ready.cancelled():
                    # The turn was handed out just before the cancellation.
                    self.end(Turn(share, self._generation))
                else:
                    self._forget(share, ready)
                raise
        else:
            self._count(share, 1)
        return Turn(share, self._generation)

    def end(self, turn: Turn, *, slow: bool | None = None) -> None:
        """Take a turn back, and lower the limit after a slow answer or raise it after a quick one.

        Args:
            slow: whether the answer was slow; `None` if there was none to measure.
        """
        if slow is False:
            self._limit = min(self._limit + _GAIN, self._most)
        # A slow answer to a question from before the last cut is a result of the old limit.
        elif slow and turn.generation == self._generation:
            self._generation += 1
            self._limit = max(self._limit / 2, min(_FEWEST, self._most))
        self._count(turn.share, -1)
        self._hand_out()

    def _has_room(self, share: Hashable) -> bool:
        return self._total < self.limit and self._taken.get(share, 0) < self._share

    def _count(self, share: Hashable, change: int) -> None:
        self._total += change
        taken = self._taken.get(share, 0) + change
        if taken:
            self._taken[share] = taken
        else:
            del self._taken[share]

    def _hand_out(self) -> None:
        while self._total < self.limit:
            # This passes over shares that are at their limit only, and the total leaves room for
            # a few of those. So the search is short.
            share = next((each for each in self._waiting if self._has_room(each)), _NO_SHARE)
            if share is _NO_SHARE:
                return
            queue = self._waiting.pop(share)
            ready = queue.popleft()
            if queue:
                self._waiting[share] = queue  # behind all others
            # A question that was cancelled stays in the queue until its task runs again.
            if not ready.cancelled():
                self._count(share, 1)
                ready.set_result(None)

    def _forget(self, share: Hashable, ready: asyncio.Future[None]) -> None:
        queue = self._waiting.get(share, deque())
        with contextlib.suppress(ValueError):  # `_hand_out` has taken it out meanwhile
            queue.remove(ready)
        if not queue:
            self._waiting.pop(share, None)


class Questions:
    """Asks one source about clients that log in, in turns, and about connected clients.

    Each address has a share of the turns: a client that logs in again and again, with a new key
    each time, delays itself more than others. Rechecks of connected clients have turns of their
    own, so that many logins cannot delay the end of a client that must go.

    Args:
        source: is asked.
        counters: counts clients that had no turn.
        timeout: seconds that a login waits for a turn. The source has the same time to answer.
    """

    def __init__(self, source: Source, counters: AdmissionCounters, *, timeout: float) -> None:
        self._source = source
        self._counters = counters
        self._timeout = timeout
        self._logins = Turns(ADMISSION_QUESTIONS, ADMISSION_SHARE)
        self._rechecks = Turns(ADMISSION_RECHECKS, ADMISSION_RECHECKS)
        self._failures = FailureLog(source.name)
        self._unanswered: ClientIdentity | None = None
        """The client of the last question, if the source had no answer to it."""

    @property
    def trouble(self) -> str:
        """Why the source had no answer to the last question; empty if it had one."""
        return self._source.trouble

    @property
    def name(self) -> str:
        """The name of the source in the log."""
        return self._source.name

    async def ask(self, client: ClientIdentity, *, recheck: bool) -> Verdict:
        """Return the verdict of the source; raises only `CancelledError` and what the source does.

        Args:
            recheck: the client is connected, so this waits for a turn without a limit.
        """
        turns = self._rechecks if recheck else self._logins
        try:
            async with asyncio.timeout(None if recheck else self._timeout):
                turn = await turns.take(share_of(client.address))
        except TimeoutError:
            what = f"too many questions at once: no turn within {self._timeout:g} s"
            self._counters.crowded += 1
            self._failures.failed(what)
            return Verdict(False, f"{self._source.name}: {what}", cause=Cause.CROWDED)
        clock = asyncio.get_running_loop().time
        begin = clock()
        slow: bool | None = None
        try:
            verdict = await self._source.ask(client)
            if verdict.cause is not Cause.UNREACHABLE:
                slow = clock() - begin > _SLOW * self._timeout
        finally:
            turns.end(turn, slow=slow)
        self._unanswered = client if self._source.trouble else None
        return verdict

    async def probe(self) -> None:
        """Check whether the source works, so that `trouble` is right while no client logs in."""
        await self._source.probe(self._unanswered)
        if not self._source.trouble:
            self._unanswered = None

    async def aclose(self) -> None:
        """Close the connections of the source."""
        await self._source.aclose()
