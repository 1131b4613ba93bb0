"""The order of checks, skipped checks, time limits, and what a cancelled run leaves."""

from __future__ import annotations

import asyncio

import pytest

from pyderp.doctor.finding import Check, Finding, Result, Seen, failed, ok, skipped, warned
from pyderp.doctor.runner import run_checks
from pyderp.errors import DialError, FailureReason, LoginRefused

from .support import run


async def results_of(*checks: Check[None], limit: float = 5.0) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    await run_checks(
        checks, None, "it", limit=limit, report=lambda f: found.__setitem__(f.check, f)
    )
    return found


def check(name: str, seen: Seen, *needs: str, after: tuple[str, ...] = ()) -> Check[None]:
    async def look(_: None) -> Seen:
        await asyncio.sleep(0)
        return seen

    return Check(name=name, run=look, needs=needs, after=after)


@pytest.mark.parametrize(
    ("seen", "result"),
    [
        (ok("good"), Result.OK),
        (warned("so so", "look"), Result.OK),
        (failed("bad", "fix it"), Result.SKIP),
        (skipped("nothing there"), Result.SKIP),
    ],
)
def test_a_check_needs_others_that_passed(seen: Seen, result: Result) -> None:
    async def main() -> None:
        # They may be passed in any order.
        found = await results_of(check("b.two", ok("fine"), "a.one"), check("a.one", seen))
        assert found["a.one"].seen is seen
        assert found["b.two"].result is result
        if result is Result.SKIP:
            how = "failed" if seen.result is Result.FAIL else "was skipped"
            assert found["b.two"].seen.text == f"not checked, as a.one {how}"

    run(main())


def test_one_of_several_needed_checks_is_enough() -> None:
    async def main() -> None:
        either = Check(name="c.three", run=check("", ok("fine")).run, needs=(("a.one", "b.two"),))
        bad, good = check("a.one", failed("no", "fix it")), check("b.two", ok("yes"))
        assert (await results_of(either, bad, good))["c.three"].result is Result.OK
        worse = check("b.two", failed("no", "fix it"))
        assert (await results_of(either, bad, worse))["c.three"].result is Result.SKIP
        # Needed checks that are not in the run do not count.
        assert (await results_of(either))["c.three"].result is Result.OK

    run(main())


def test_after_waits_for_a_check_that_may_fail() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def slow(_: None) -> Seen:
            for _turn in range(5):
                await asyncio.sleep(0)
            ended.append("slow")
            return failed("no", "fix it")

        async def quick(_: None) -> Seen:
            ended.append("quick")
            return ok("yes")

        found = await results_of(
            Check(name="b.quick", run=quick, after=("a.slow",)), Check(name="a.slow", run=slow)
        )
        assert ended == ["slow", "quick"]
        assert found["b.quick"].result is Result.OK

    run(main())


def test_a_check_that_hangs_ends_and_others_do_not_wait() -> None:
    async def main() -> None:
        async def hang(_: None) -> Seen:
            await asyncio.Event().wait()
            raise AssertionError

        found = await results_of(
            Check(name="a.hangs", run=hang), check("b.good", ok("yes")), limit=0.05
        )
        assert found["a.hangs"].result is Result.FAIL
        assert found["a.hangs"].seen.text == "not finished within 0.05 s"
        assert found["b.good"].result is Result.OK

    run(main())


@pytest.mark.parametrize(
    ("error", "text", "reason"),
    [
        (DialError("nothing there", reason=FailureReason.REFUSED), "nothing there", "refused"),
        (TimeoutError("of its own"), "of its own", "timeout"),
        (TimeoutError(), "TimeoutError", "timeout"),
        (LoginRefused("hung up"), "hung up", "login refused"),
        (RuntimeError("oh"), "a bug in pyderp: RuntimeError: oh", None),
    ],
)
def test_errors_are_failures_with_advice(error: Exception, text: str, reason: str | None) -> None:
    async def main() -> None:
        async def fail(_: None) -> Seen:
            raise error

        found = (await results_of(Check(name="a.bad", run=fail)))["a.bad"]
        assert found.result is Result.FAIL
        assert found.seen.text == text
        assert found.seen.advice
        assert found.seen.data.get("reason") == reason

    run(main())


def test_an_error_of_the_report_ends_the_run() -> None:
    """As when standard output is closed: no check waits for one that was not reported."""

    async def main() -> None:
        def report(_: Finding) -> None:
            raise BrokenPipeError

        checks = [check("a.one", ok("yes")), check("b.two", ok("yes"), "a.one")]
        with pytest.raises(BrokenPipeError):
            await run_checks(checks, None, "it", limit=60, report=report)

    run(main())


def test_cancelling_keeps_the_findings() -> None:
    async def main() -> None:
        ended = asyncio.Event()
        cleaned: list[str] = []

        async def hang(_: None) -> Seen:
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append("hang")
            raise AssertionError

        found: list[str] = []

        def report(finding: Finding) -> None:
            found.append(finding.check)
            ended.set()

        checks = [Check(name="a.hangs", run=hang), check("b.good", ok("yes"))]
        task = asyncio.create_task(run_checks(checks, None, "it", limit=60, report=report))
        await ended.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (found, cleaned) == (["b.good"], ["hang"])

    run(main())
