"""What is logged when a link to another relay fails."""

from __future__ import annotations

import pytest

from pyderp.server.mesh.hosts import MeshLog

MINUTE = 60.0
HOUR = 60 * MINUTE


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(clock: Clock, caplog: pytest.LogCaptureFixture) -> MeshLog:
    caplog.set_level("INFO", "pyderp.mesh")
    return MeshLog("b", clock)


def test_the_first_failure_and_the_recovery_are_logged_at_once(
    link: MeshLog, caplog: pytest.LogCaptureFixture
) -> None:
    link.failed("refused", None)
    link.connected()
    assert caplog.messages == ["mesh with b: refused", "mesh with b: connected again"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_connection_that_works_at_once_is_logged(
    link: MeshLog, caplog: pytest.LogCaptureFixture
) -> None:
    link.connected()
    assert caplog.messages == ["mesh with b: connected"]


def test_a_host_that_fails_for_a_day_is_logged_ever_less_often(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """One failure each five seconds is logged now, after one minute, two, four, … each hour."""
    begin = clock.now
    times: list[float] = []
    while clock.now < begin + 24 * HOUR:
        lines = len(caplog.records)
        link.failed("refused", None)
        if len(caplog.records) > lines:
            times.append((clock.now - begin) / MINUTE)
        clock.now += 5
    assert times[:8] == [0, 1, 3, 7, 15, 31, 63, 123]
    assert len(times) < 35
    assert caplog.messages[2] == "mesh with b: refused (failed 24 times in 120 s)"
    link.connected()
    assert caplog.messages[-1] == "mesh with b: connected again"


def test_a_link_that_breaks_at_once_does_not_reset_the_log_interval(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(12):
        link.failed("EOF", None)
        clock.now += 5
        link.connected()
    assert caplog.messages == ["mesh with b: EOF", "mesh with b: connected again"]
    link.failed("EOF", None)
    link.connected()
    assert caplog.messages[2:] == [
        "mesh with b: EOF (failed 12 times in 60 s)",
        "mesh with b: connected again",
    ]


def test_a_link_that_held_for_a_minute_resets_the_log_interval(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    link.failed("refused", None)
    clock.now += 5
    link.connected()
    clock.now += MINUTE
    link.failed("EOF", None)
    clock.now += MINUTE
    link.failed("refused", None)
    assert caplog.messages[2:] == [
        "mesh with b: EOF",
        "mesh with b: refused (failed 1 time in 60 s)",
    ]


def test_a_new_reason_is_logged_at_once_and_once(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    link.failed("refused", None)
    for _ in range(11):
        clock.now += 5
        link.failed("keys differ", None)
        link.failed("refused", None)
    assert caplog.messages == ["mesh with b: refused", "mesh with b: keys differ"]
    clock.now += 5
    link.failed("keys differ", None)
    link.failed("refused", None)
    assert caplog.messages[2:] == [
        "mesh with b: keys differ (failed 23 times in 60 s)",
        "mesh with b: refused",
    ]


def test_a_new_reason_is_logged_at_once_after_a_day_of_another(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(24 * 60):
        link.failed("refused", None)
        clock.now += MINUTE
    lines = len(caplog.messages)
    link.connected()
    link.failed("keys differ", None)
    assert caplog.messages[lines:] == [
        "mesh with b: connected again",
        "mesh with b: keys differ",
    ]


def test_reasons_that_never_repeat_do_not_flood_the_log(
    link: MeshLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(1000):
        link.failed(f"port {n} refused", None)
        clock.now += 0.05
    assert len(caplog.messages) == 8


def test_a_bug_is_logged_with_its_traceback(
    link: MeshLog, caplog: pytest.LogCaptureFixture
) -> None:
    link.failed("oops", ZeroDivisionError("oops"))
    assert caplog.records[0].exc_info is not None
    assert "ZeroDivisionError: oops" in caplog.text
