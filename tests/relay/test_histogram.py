from __future__ import annotations

from pyderp.relay.counters import Histogram


def test_a_number_belongs_to_the_first_bound_that_is_not_smaller() -> None:
    histogram = Histogram([0, 1, 5])
    for number in (0, 1, 2, 5, 6, 1000):
        histogram.observe(number)
    assert histogram.counts == [1, 1, 2, 2]
    assert histogram.sum == 1014
    assert histogram.count == 6


def test_a_number_may_come_several_times() -> None:
    histogram = Histogram([1, 2])
    histogram.add(2, 3)
    histogram.add(1, 0)
    assert histogram.counts == [0, 3, 0]
    assert histogram.sum == 6


def test_cumulative_counts_end_with_all() -> None:
    histogram = Histogram([1, 5])
    for number in (1, 3, 4, 9):
        histogram.observe(number)
    assert histogram.cumulative() == [("1", 1), ("5", 3), ("+Inf", 4)]


def test_an_empty_one_is_all_zero() -> None:
    histogram = Histogram([1])
    assert histogram.cumulative() == [("1", 0), ("+Inf", 0)]
    assert histogram.count == histogram.sum == 0
