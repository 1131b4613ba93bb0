from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pyderp.certs.credential import CertificateInfo
from pyderp.certs.schedule import Record, RetryPolicy, Schedule

DAY = 86400.0
NOW = 1_800_000_000.0


def info(start: float = NOW, days: float = 90) -> CertificateInfo:
    times = [datetime.fromtimestamp(each, UTC) for each in (start, start + days * DAY)]
    return CertificateInfo(("x",), times[0], times[1])


def schedule(**policy: float) -> Schedule:
    """Return a schedule without jitter."""
    return Schedule(RetryPolicy(**policy), lambda low, high: low)


def test_a_new_schedule_requests_at_once() -> None:
    assert schedule().next_request(NOW, None) <= NOW


def test_each_failure_doubles_the_wait_up_to_a_bound() -> None:
    each = schedule()
    waits = []
    for _ in range(12):
        each.failed(NOW, None, limited=False)
        waits.append(each.next_request(NOW, None) - NOW)
    assert waits[:4] == [60, 120, 240, 480]
    assert waits[-1] == 3 * 3600
    assert waits == sorted(waits)


def test_the_wait_is_jittered_upwards() -> None:
    each = Schedule(RetryPolicy(), lambda low, high: high)
    each.failed(NOW, None, limited=False)
    assert each.retry_at - NOW == pytest.approx(75)


@pytest.mark.parametrize(
    ("retry_after", "limited", "wait"),
    [
        (None, False, 60),
        (5.0, False, 60),
        (1800.0, False, 1800),
        (None, True, 3600),
        (120.0, True, 120),
        (1e9, True, 86400),
    ],
)
def test_retry_after_of_the_authority_counts_up_to_a_day(
    retry_after: float | None, limited: bool, wait: float
) -> None:
    each = schedule()
    each.failed(NOW, retry_after, limited=limited)
    assert each.next_request(NOW, None) - NOW == wait


def test_hurry_retries_at_once_but_not_before_retry_after() -> None:
    each = schedule()
    each.failed(NOW, None, limited=False)
    each.hurry(NOW + 1)
    assert each.next_request(NOW + 1, None) == NOW + 1
    each.failed(NOW + 1, 500.0, limited=False)
    each.hurry(NOW + 2)
    assert each.next_request(NOW + 2, None) == NOW + 501


def test_success_forgets_failures() -> None:
    each = schedule()
    each.failed(NOW, None, limited=True)
    each.obtained(NOW, info())
    assert (each.failures, each.retry_at, each.authority_retry_at) == (0, 0, 0)


def test_without_advice_renewal_is_due_with_a_third_of_the_lifetime_left() -> None:
    each = schedule()
    each.obtained(NOW, info())
    assert each.next_request(NOW, info()) == NOW + 60 * DAY
    late = Schedule(RetryPolicy(), lambda low, high: high)
    late.obtained(NOW, info())
    assert late.next_request(NOW, info()) == NOW + 90 * DAY - 37.5 * DAY, "jitter: earlier"


def test_advice_moves_renewal_within_the_validity() -> None:
    each = schedule()
    each.obtained(NOW, info())
    each.advised(NOW, info(), NOW + 10 * DAY, NOW + DAY)
    assert each.next_request(NOW, info()) == NOW + 10 * DAY
    each.advised(NOW, info(), NOW + 70 * DAY, NOW + DAY)
    assert each.next_request(NOW, info()) == NOW + 70 * DAY
    each.advised(NOW, info(), NOW + 1000 * DAY, NOW + DAY)
    assert each.next_request(NOW, info()) == NOW + 81 * DAY
    each.advised(NOW, info(), None, NOW + DAY)
    assert each.next_request(NOW, info()) == NOW + 81 * DAY


def test_advice_to_renew_at_once_waits_while_the_certificate_is_fresh() -> None:
    each = schedule()
    each.obtained(NOW, info())
    each.advised(NOW, info(), NOW - DAY, NOW + DAY)
    assert each.next_request(NOW, info()) == NOW + 3600
    short = info(days=30 / DAY)
    each.obtained(NOW, short)
    assert each.next_request(NOW, short) == NOW + 20
    each.advised(NOW, short, NOW - DAY, NOW + DAY)
    assert each.next_request(NOW, short) == NOW + 10


@pytest.mark.parametrize(("asks", "waits"), [(0, 60), (-5, 60), (7200, 7200), (1e9, 86400)])
def test_advice_is_requested_again_within_bounds(asks: float, waits: float) -> None:
    each = schedule()
    each.obtained(NOW, info())
    assert each.advice_at == NOW + 60
    each.advised(NOW, info(), None, NOW + asks)
    assert each.advice_at == NOW + waits


def test_a_failed_renewal_waits_like_any_failure() -> None:
    each = schedule()
    each.obtained(NOW, info())
    late = NOW + 61 * DAY
    assert each.next_request(late, info()) < late
    each.failed(late, None, limited=False)
    assert each.next_request(late, info()) == late + 60


def test_an_expired_certificate_is_requested_like_a_missing_one() -> None:
    each = schedule()
    each.obtained(NOW, info())
    late = NOW + 91 * DAY
    assert each.next_request(late, info()) <= late
    each.failed(late, None, limited=False)
    assert each.next_request(late, info()) == late + 60


def test_a_certificate_from_a_file_is_renewed_at_once_if_due() -> None:
    each = schedule()
    each.obtained(NOW + 70 * DAY, info(), fresh=False)
    assert each.next_request(NOW + 70 * DAY, info()) < NOW + 70 * DAY


def test_a_certificate_of_another_authority_is_replaced_at_once() -> None:
    each = schedule()
    each.obtained(NOW, info(), fresh=False)
    each.replace_now()
    assert each.next_request(NOW, info()) <= NOW


def test_a_time_from_a_wrong_clock_delays_a_request_for_little_more_than_a_day() -> None:
    each = schedule()
    each.retry_at = NOW + 1000 * DAY
    assert each.next_request(NOW, None) <= NOW + 1.25 * DAY


@pytest.mark.parametrize(
    ("failures", "retry_at", "authority_retry_at", "adopted"),
    [
        (2, NOW + 300, 0.0, True),
        (1, NOW + 300, NOW + 300, True),
        (0, NOW + 300, NOW + 300, True),
        (1, NOW + 300, 0.0, False),  # saved by this process
        (2, NOW - 1, 0.0, False),  # over
    ],
)
def test_the_state_of_another_process_counts_if_it_is_newer(
    failures: int, retry_at: float, authority_retry_at: float, adopted: bool
) -> None:
    each = schedule()
    each.failed(NOW - 100, None, limited=False)
    record = Record("", failures, retry_at, authority_retry_at)
    assert each.adopt(NOW, record) is adopted
    assert each.next_request(NOW, None) == (retry_at if adopted else NOW - 40)
    assert each.failures == (max(failures, 1) if adopted else 1)


def test_without_a_request_the_wait_is_no_failure() -> None:
    each = schedule()
    each.postponed(NOW + 5)
    assert each.next_request(NOW, None) == NOW + 5
    assert each.failures == 0
