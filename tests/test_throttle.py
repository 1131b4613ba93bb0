from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.throttle import Throttle
from pyderp.wire.bucket import TokenBucket


def test_one_line_an_interval_and_the_next_tells_how_many_were_left_out() -> None:
    throttle = Throttle(60)
    times = [0, 1, 59.9, 60, 119, 120, 1000]
    assert [throttle.admit(now) for now in times] == [0, None, None, 2, None, 1, 0]


def test_a_burst_is_admitted_at_once_and_is_regained_by_silence() -> None:
    throttle = Throttle(10, burst=3)
    assert [throttle.admit(0) for _ in range(4)] == [0, 0, 0, None]
    assert [throttle.admit(10) for _ in range(2)] == [1, None]
    assert [throttle.admit(1000) for _ in range(4)] == [1, 0, 0, None]


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(1, 6))
def test_what_is_admitted_is_what_a_bucket_of_tokens_admits(pauses: list[int], burst: int) -> None:
    throttle = Throttle(8, burst=burst)
    bucket = TokenBucket(1 / 8, burst, 0)
    now = 0
    for pause in pauses:
        now += pause
        assert (throttle.admit(now) is not None) == bucket.take(1, now)


@pytest.mark.parametrize("now", [-1e9, 0.0, 1e9])
def test_the_first_line_is_admitted_whatever_the_clock_says(now: float) -> None:
    assert Throttle(60).admit(now) == 0
