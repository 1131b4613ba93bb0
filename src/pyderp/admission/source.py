"""What answers questions about clients, in turns; the simplest kind is a function.

There are so many turns at once, a share for each address, and fewer if the answers are slow.

The other kinds, `tailscaled` and `url`, bring an HTTP library with them and are imported only
when they are used.
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
"""Seconds between two lines about the same trouble."""
_FEWEST: Final = 4
"""Turns that are left however slow the answers are, so that it shows when they improve."""
_GAIN: Final = 0.25
"""Turns that a quick answer adds."""
_SLOW: Final = 0.5
"""An answer that takes more than this part of the time allowed says that fewer should be asked."""
_NO_SHARE: Final = object()


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
        failures = counted(left_out, "more failure")
        more = f" ({failures} since the last such line)" if left_out else ""
        log.warning("%s: %s%s", self._source, text, more, exc_info=error)
        self._failing = True

    def worked(self) -> None:
        """Log the end of the trouble, if there was any."""
        if self._failing:
            self._failing = False
            log.info("%s: answers again", self._source)


class Source:
    """Something that is asked about each client.

    Args:
        name: how the log calls it.
        counters: queries and errors are counted there.
        timeout: seconds for one question.
    """

    def __init__(self, name: str, counters: AdmissionCounters, timeout: float) -> None:
        self.name = name
        self._counters = counters
        self._timeout = timeout
        self._failures = FailureLog(name)
        self.trouble = ""
        """Why the last question had no answer, and what became of the client; empty: it had one.
        What a client can cause by itself is no trouble of the source."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict; never raises anything but `CancelledError`."""
        raise NotImplementedError

    async def probe(self, client: ClientIdentity | None) -> None:
        """Find out whether the source works, and note it in `trouble`; lets no client in.

        Args:
            client: the last one that the source had no answer about; `None`: the source had an
                answer to the last question, or was not asked yet.
        """
        if client is not None:
            await self.ask(client)

    async def aclose(self) -> None:
        """Close what is kept open for the next question."""

    def _answered(self, client: ClientIdentity, *, allowed: bool) -> Verdict:
        self._worked()
        return Verdict(allowed, "" if allowed else f"{self.name}: {client} not allowed")

    def _worked(self) -> None:
        """There was an answer, whatever it says."""
        self.trouble = ""
        self._failures.worked()

    def _failed(self, what: str, cause: Cause, error: Exception | None = None) -> Verdict:
        """Count and log that there is no usable answer, which keeps the client out."""
        self._counters.errors += 1
        if cause is not Cause.CROWDED:
            self.trouble = self._kept_out(what)
        self._failures.failed(what, error)
        return Verdict(False, f"{self.name}: {what}", cause=cause)

    def _kept_out(self, what: str) -> str:
        return f"{self.name} brings no answer, clients are kept out: {what}"


class AdmissionFunction(Source):
    """A function that takes key and address, and returns or awaits whether the client may come in.

    A plain function runs in the event loop and must not block. One that raises, returns anything
    but `True` or `False`, or takes too long keeps the client out.
    """

    def __init__(
        self, decide: Decide, counters: AdmissionCounters, *, timeout: float = ADMISSION_TIMEOUT
    ) -> None:
        super().__init__("admission function", counters, timeout)
        self._decide = decide

    async def ask(self, client: ClientIdentity) -> Verdict:
        """What the function says."""
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
            del limit  # it holds the task, which, cancelled, holds this frame
        if not isinstance(allowed, bool):
            what = f"gave a {type(allowed).__name__}; want True or False"
            return self._failed(what, Cause.BAD_ANSWER)
        return self._answered(client, allowed=allowed)


def share_of(address: str) -> Hashable:
    """What has one share of the turns: an IPv4 address, or an IPv6 network of 64 bits.

    One subscriber has at least a whole /64, and could give each question an address of its own.

    Args:
        address: an IP address. All that are none share one share.
    """
    ip = parse_ip(address)
    return None if ip is None else ip.packed[:8]


class Turn(NamedTuple):
    """The right to ask one question."""

    share: Hashable
    generation: int


class Turns:
    """Hands out turns: first within a share, and round about among the shares.

    A source that answers slowly is asked less at once. Otherwise questions queue at its end, all
    run out of time, and the answers to all come too late.

    Args:
        most: turns at once.
        share: turns at once for one share.
    """

    def __init__(self, most: int, share: int) -> None:
        self._most = most
        self._share = share
        self._limit = float(most)
        self._generation = 0
        """How often the limit was cut. Many late answers to questions of one moment cut it once."""
        self._taken: dict[Hashable, int] = {}
        self._total = 0
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """In the order in which the shares have their next turn."""

    @property
    def limit(self) -> int:
        """How many turns there are at the moment."""
        return int(self._limit)

    @property
    def taken(self) -> int:
        """How many turns are taken."""
        return self._total

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(map(len, self._waiting.values()))

    async def take(self, share: Hashable) -> Turn:
        """Wait for a turn; cancelling gives up the place in the queue."""
        # A share that waits is at its bounds, or there would be no room.
        if not self._has_room(share):
            queue = self._waiting.setdefault(share, deque())
            ready = asyncio.get_running_loop().create_future()
            queue.append(ready)
            try:
                await ready
            except asyncio.CancelledError:
                if ready.done() and not ready.cancelled():
                    # It came at the moment of the cancellation.
                    self.end(Turn(share, self._generation))
                else:
                    self._forget(share, ready)
                raise
        else:
            self._count(share, 1)
        return Turn(share, self._generation)

    def end(self, turn: Turn, *, slow: bool | None = None) -> None:
        """Take a turn back: fewer at once after a slow answer, and more after a quick one.

        Args:
            slow: whether the answer took long; `None`: it says nothing about that.
        """
        if slow is False:
            self._limit = min(self._limit + _GAIN, self._most)
        # A slow answer counts only if its question was asked since the limit was last cut.
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
            # Only shares at their bounds are passed over, and there is room for a few of those.
            share = next((each for each in self._waiting if self._has_room(each)), _NO_SHARE)
            if share is _NO_SHARE:
                return
            queue = self._waiting.pop(share)
            ready = queue.popleft()
            if queue:
                self._waiting[share] = queue  # behind all others
            # One that gave up is still here until its task runs again.
            if not ready.cancelled():
                self._count(share, 1)
                ready.set_result(None)

    def _forget(self, share: Hashable, ready: asyncio.Future[None]) -> None:
        queue = self._waiting.get(share, deque())
        with contextlib.suppress(ValueError):  # handed out and passed over meanwhile
            queue.remove(ready)
        if not queue:
            self._waiting.pop(share, None)


class Questions:
    """Asks one source about clients: newcomers in turns, rechecks apart from them.

    Each address has a share of the turns: a client that logs in again and again, with a fresh
    key each time, delays itself more than others. Rechecks have turns of their own, so that a
    flood of newcomers does not keep in a client that must leave.

    Args:
        source: answers.
        counters: clients that had no turn are counted there.
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
        self._unanswered: ClientIdentity | None = None
        """The client of the last question, if the source had no answer to it."""

    @property
    def trouble(self) -> str:
        """Why the source had no answer to the last question; empty: it had one."""
        return self._source.trouble

    @property
    def name(self) -> str:
        """How the log calls the source."""
        return self._source.name

    async def ask(self, client: ClientIdentity, *, recheck: bool) -> Verdict:
        """What the source says; raises nothing but `CancelledError` and what the source raises.

        Args:
            recheck: the client is connected already, so this waits for its turn without bound.
        """
        turns = self._rechecks if recheck else self._newcomers
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
        """Find out whether the source works now, so that `trouble` is right without clients."""
        await self._source.probe(self._unanswered)
        if not self._source.trouble:
            self._unanswered = None

    async def aclose(self) -> None:
        """Close what the source keeps open."""
        await self._source.aclose()
