"""Runs checks: each one after the checks that it needs, and with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from pyderp.doctor.advice import explain
from pyderp.doctor.finding import Check, Finding, Result, Seen, failed, skipped
from pyderp.errors import DerpError, without_frames
from pyderp.tasks import run_together

__all__ = ["run_checks"]

S = TypeVar("S")

_log = logging.getLogger("pyderp.doctor")


async def run_checks(
    checks: Sequence[Check[S]],
    subject: S,
    name: str,
    *,
    limit: float,
    report: Callable[[Finding], None],
) -> None:
    """Run the checks of one subject at the same time, as far as their needs allow.

    If this is cancelled, or `report` raises an error, the running checks are cancelled, and the
    error is raised.

    Args:
        checks: at least one. A name in `needs` or `after` that is not among them is ignored.
        subject: passed to each check.
        name: the name of the subject in findings.
        limit: seconds for one check, multiplied by its `times`.
        report: called with each finding when its check ends.
    """
    run = _Run(checks, subject, name, limit, report)
    await run_together(
        *(asyncio.create_task(run.one(check), name=f"doctor {check.name}") for check in checks)
    )


class _Run(Generic[S]):
    """Runs the checks of one subject, and keeps what they found."""

    def __init__(
        self,
        checks: Sequence[Check[S]],
        subject: S,
        name: str,
        limit: float,
        report: Callable[[Finding], None],
    ) -> None:
        self._subject = subject
        self._name = name
        self._limit = limit
        self._report = report
        self._ended = {check.name: asyncio.Event() for check in checks}
        self._seen: dict[str, Seen] = {}

    async def one(self, check: Check[S]) -> None:
        """Wait for the checks that one needs, run it, and report what it found."""
        needed = [each if isinstance(each, tuple) else (each,) for each in check.needs]
        for other in (*check.after, *(name for names in needed for name in names)):
            if other in self._ended:
                await self._ended[other].wait()
        missing = next((names for names in needed if not self._passed(names)), None)
        began = time.perf_counter()
        if missing is None:
            _log.debug("%s: %s begins", self._name, check.name)
        if missing is not None:
            seen = skipped(_why_skipped(missing, self._seen))
            seconds = 0.0
        else:
            seen = await self._run_limited(check)
            seconds = time.perf_counter() - began
        if missing is None:
            ended = (self._name, check.name, seen.result.value, seconds, seen.text)
            _log.debug("%s: %s: %s after %.3f s: %s", *ended)
        self._seen[check.name] = seen
        self._report(Finding(self._name, check.name, seen, seconds))
        self._ended[check.name].set()

    def _passed(self, names: Sequence[str]) -> bool:
        known = [name for name in names if name in self._ended]
        return not known or any(self._seen[name].passes for name in known)

    async def _run_limited(self, check: Check[S]) -> Seen:
        limit = self._limit * check.times + check.extra
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await check.run(self._subject)
        except (DerpError, OSError) as e:
            without_frames(e)
            if scope.expired():
                return failed(f"not finished within {limit:g} s", SLOW)
            return explain(e)
        except Exception as e:
            # Any error, so that no answer of a relay can end the whole run: it fails one check.
            _log.debug("%s", check.name, exc_info=e)
            with contextlib.suppress(AttributeError):
                without_frames(e)
            text = f"a bug in pyderp: {type(e).__name__}: {e}"
            return failed(text, "report it, with the output of -v")


def _why_skipped(names: Sequence[str], seen: dict[str, Seen]) -> str:
    """Return the text of a skipped check: which checks that it needs failed or were skipped."""
    failures = [name for name in names if name in seen and seen[name].result is Result.FAIL]
    if failures:
        return f"not checked, as {' and '.join(failures)} failed"
    return f"not checked, as {' and '.join(names)} {'was' if len(names) == 1 else 'were'} skipped"


SLOW: Final = (
    "the relay, or a proxy or firewall on the path, accepts the connection and then answers not at "
    "all or very slowly: look at the relay's load and log; {timeout} waits longer"
)
