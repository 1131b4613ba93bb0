from __future__ import annotations

import asyncio
import logging

import pytest

from pyderp import NodePublic
from pyderp.admission.source import AdmissionFunction, FailureLog
from pyderp.admission.verdict import AdmissionCounters, Cause, Verdict
from pyderp.config import Decide

from .fakes import identity, key

REFUSED = Verdict(False, f"admission function: {key(1)}/192.0.2.7 not allowed")


async def ask(decide: Decide, *, budget: float = 20) -> Verdict:
    return await AdmissionFunction(decide, AdmissionCounters(), timeout=budget).ask(identity())


async def test_a_function_may_be_plain_or_async() -> None:
    seen: list[tuple[NodePublic, str]] = []

    def plain(key: NodePublic, address: str) -> bool:
        seen.append((key, address))
        return len(seen) == 1

    async def waiting(key: NodePublic, address: str) -> bool:
        await asyncio.sleep(0)
        return plain(key, address)

    assert [await ask(plain), await ask(waiting)] == [Verdict(True), REFUSED]
    seen.clear()
    assert [await ask(waiting), await ask(plain)] == [Verdict(True), REFUSED]
    assert seen == [(key(1), "192.0.2.7")] * 2


@pytest.mark.parametrize("error", [ValueError("oops"), TimeoutError("oops"), OSError("oops")])
async def test_a_function_that_raises_refuses(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(key: NodePublic, address: str) -> bool:
        raise error

    async def waiting(key: NodePublic, address: str) -> bool:
        await asyncio.sleep(0)
        raise error

    for decide in (plain, waiting):
        assert await ask(decide) == Verdict(False, "admission function: failed", cause=Cause.FAILED)
    assert caplog.text.count("oops") >= 2
    assert "Traceback" in caplog.text


async def test_other_values_than_true_and_false_refuse(caplog: pytest.LogCaptureFixture) -> None:
    async def forgot(key: NodePublic, address: str) -> None:
        await asyncio.sleep(0)

    wrong: list[object] = [lambda *_: 1, lambda *_: "yes", forgot]
    for decide in wrong:
        assert callable(decide)
        verdict = await ask(decide)
        assert (verdict.allowed, verdict.cause) == (False, Cause.BAD_ANSWER)
    assert "gave a NoneType; want True or False" in caplog.text


async def test_a_function_that_hangs_refuses() -> None:
    async def hang(key: NodePublic, address: str) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    verdict = await ask(hang, budget=0.05)
    assert (verdict.allowed, verdict.cause) == (False, Cause.TIMED_OUT)
    assert "no answer within 0.05 s" in verdict.reason


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_are_logged_once_a_minute_and_their_end_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    failures = FailureLog("controller", clock=clock)
    caplog.set_level(logging.INFO, "pyderp.admission")
    failures.worked()
    for _ in range(130):
        failures.failed("gone")
        clock.now += 1
    failures.worked()
    failures.worked()
    clock.now += 60
    failures.failed("gone again")
    assert [record.getMessage() for record in caplog.records] == [
        "controller: gone",
        "controller: gone (59 more failures since the last such line)",
        "controller: gone (59 more failures since the last such line)",
        "controller: answers again",
        "controller: gone again (9 more failures since the last such line)",
    ]


def test_a_single_failure_that_was_left_out_is_counted_in_the_singular(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    failures = FailureLog("controller", clock=clock)
    for pause in (1, 60, 0):
        failures.failed("gone")
        clock.now += pause
    assert caplog.messages[1:] == ["controller: gone (1 more failure since the last such line)"]


def test_failing_and_answering_by_turns_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    failures = FailureLog("controller", clock=clock)
    caplog.set_level(logging.INFO, "pyderp.admission")
    for _ in range(600):
        failures.failed("gone")
        failures.worked()
        clock.now += 0.1
    failures.failed("gone")
    assert [record.getMessage() for record in caplog.records] == [
        "controller: gone",
        "controller: answers again",
        "controller: gone (599 more failures since the last such line)",
    ]


def test_an_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    FailureLog("function").failed("failed", ValueError("why"))
    assert "ValueError: why" in caplog.text
