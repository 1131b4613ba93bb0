"""A burst at once, then the rate, never more: for bytes, events and log lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp.throttle import Throttle, TokenBucket

quick = settings(derandomize=True, deadline=None)


def test_a_bucket_starts_full_and_is_then_empty() -> None:
    bucket = TokenBucket(100, 1000, now=7.0)
    assert bucket.take(999, 7.0)
    assert bucket.take(1, 7.0)
    assert not bucket.take(1, 7.0)


def test_a_bucket_refills_continuously_up_to_the_burst() -> None:
    bucket = TokenBucket(100, 1000, now=0.0)
    assert bucket.take(1000, 0.0)
    assert not bucket.take(51, 0.5)
    assert bucket.take(50, 0.5)
    assert not bucket.take(1, 0.5)
    assert bucket.take(1000, 1e6)
    assert not bucket.take(1, 1e6)


def test_a_refused_amount_costs_nothing() -> None:
    bucket = TokenBucket(1, 100, now=0.0)
    assert not bucket.take(101, 0.0)
    assert bucket.take(100, 0.0)


def test_more_than_the_burst_never_passes() -> None:
    bucket = TokenBucket(1_000_000, 100, now=0.0)
    assert not bucket.take(101, 1e9)


def test_a_burst_of_0_blocks_all() -> None:
    bucket = TokenBucket(1_000_000, 0, now=0.0)
    assert not bucket.take(37, 0.0)
    assert not bucket.take(37, 1e9)


def test_a_clock_that_goes_back_removes_nothing() -> None:
    bucket = TokenBucket(10, 100, now=50.0)
    assert bucket.take(50, 50.0)
    assert bucket.take(50, 40.0)
    assert not bucket.take(1, 40.0)


def test_a_clock_that_goes_back_refills_nothing() -> None:
    bucket = TokenBucket(10, 100, now=50.0)
    assert bucket.take(100, 50.0)
    assert not bucket.take(1, 40.0)
    assert not bucket.take(1, 50.0)
    assert bucket.take(10, 51.0)


@quick
@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 200_000)), max_size=30),
)
def test_never_more_than_burst_and_rate_and_never_less(
    rate: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    """Compared with the definition of the bucket, in exact arithmetic on the sums."""
    bucket = TokenBucket(rate, burst, now=0.0)
    now = taken = 0.0
    level = float(burst)
    for wait, n in steps:
        now += wait
        level = min(float(burst), level + wait * rate)
        passed = bucket.take(n, now)
        if not math.isclose(level, n, rel_tol=1e-6, abs_tol=1e-3):
            assert passed is (n <= level)
        if passed:
            taken += n
            level -= n
        assert taken <= (burst + rate * now) * (1 + 1e-9)


@pytest.mark.parametrize("size", [1237, 37])
def test_a_flood_passes_at_the_rate(size: int) -> None:
    bucket = TokenBucket(10_000, 2 * size, now=0.0)
    passed = sum(bucket.take(size, step / 1000) for step in range(10_001))
    assert passed == pytest.approx(2 + 100_000 / size, abs=1.5)


# Lines of a log


def test_one_line_an_interval_passes_and_counts_those_left_out() -> None:
    throttle = Throttle(60)
    times = [0, 1, 59.9, 60, 119, 120, 1000]
    assert [throttle.admit(now) for now in times] == [0, None, None, 2, None, 1, 0]


def test_a_burst_is_admitted_at_once_and_again_after_silence() -> None:
    throttle = Throttle(10, burst=3)
    assert [throttle.admit(0) for _ in range(4)] == [0, 0, 0, None]
    assert [throttle.admit(10) for _ in range(2)] == [1, None]
    assert [throttle.admit(1000) for _ in range(4)] == [1, 0, 0, None]


@pytest.mark.parametrize("interval", [0.1, 0.2, 1 / 3, 7.0])
@pytest.mark.parametrize("now", [0.0, 1234.5678, 98765.4321])
def test_a_burst_is_admitted_whole_at_any_rounding_of_the_interval(
    interval: float, now: float
) -> None:
    throttle = Throttle(interval, burst=50)
    assert [throttle.admit(now) for _ in range(51)] == [0] * 50 + [None]
    flood = [throttle.admit(now + interval * n / 10) for n in range(1, 10_001)]
    lines = [n for n in flood if n is not None]
    assert len(lines) in (999, 1000)
    assert set(lines[1:-1]) <= {8, 9, 10}


@pytest.mark.parametrize("now", [-1e9, 0.0, 1e9])
def test_the_first_line_is_admitted_at_any_time_of_the_clock(now: float) -> None:
    assert Throttle(60).admit(now) == 0
