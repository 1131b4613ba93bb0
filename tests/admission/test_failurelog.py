from __future__ import annotations

import logging

import pytest

from pyderp.admission.failurelog import FailureLog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_is_a_line_a_minute_and_its_end_one(caplog: pytest.LogCaptureFixture) -> None:
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


def test_failing_and_answering_by_turns_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
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


def test_an_error_is_shown_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    FailureLog("function").failed("failed", ValueError("why"))
    assert "ValueError: why" in caplog.text
