"""Counters: every series exists from the start; drops by reason and kind."""

from __future__ import annotations

import pytest

from pyderp.relay.connection import EndReason
from pyderp.relay.counters import KINDS, Counters, DropReason, Histogram, QueueTime

GO_REASONS = [
    "unknown_dest",
    "unknown_dest_on_fwd",
    "gone_disconnected",
    "queue_head",
    "queue_tail",
    "write_error",
    "dup_client",
]
"""Labels of Go's `derpserver.dropReason*`, in their order."""


NOT_PLAIN = {
    "drops",
    "ends",
    "mesh_update_batch_size",
    "mesh_update_loop_count",
    "queue_time",
    "tcp_rtt",
    "writes",
}


def test_the_first_drop_reasons_are_the_labels_of_go() -> None:
    labels = [reason.value for reason in DropReason]
    assert labels[: len(GO_REASONS)] == GO_REASONS
    assert labels[len(GO_REASONS) :] == ["mesh_link_full", "mesh_link_down", "write_timeout"]


def test_every_series_exists_and_is_zero_at_the_start() -> None:
    counters = Counters()
    assert counters.drops == {
        (reason, kind): [0, 0] for reason in DropReason for kind in ("other", "disco")
    }
    plain = [name for name in Counters.__slots__ if isinstance(getattr(counters, name), int)]
    assert {name: getattr(counters, name) for name in plain} == dict.fromkeys(plain, 0)
    assert len(plain) == len(Counters.__slots__) - len(NOT_PLAIN)
    assert counters.buffered_write_frames.count == counters.buffered_write_frames.sum == 0
    assert counters.average_queue_ms == 0


@pytest.mark.parametrize("disco", [False, True])
def test_a_drop_counts_its_packet_and_its_bytes_in_one_series_only(disco: bool) -> None:
    counters = Counters()
    counters.drop(DropReason.QUEUE_HEAD, disco=disco, size=100)
    counters.drop(DropReason.QUEUE_HEAD, disco=disco, size=0)
    changed = {at: series for at, series in counters.drops.items() if series != [0, 0]}
    assert changed == {(DropReason.QUEUE_HEAD, ("other", "disco")[disco]): [2, 100]}


def test_dropped_adds_up_both_kinds_of_one_reason() -> None:
    counters = Counters()
    counters.drop(DropReason.QUEUE_HEAD, disco=False, size=10)
    counters.drop(DropReason.QUEUE_HEAD, disco=True, size=20)
    counters.drop(DropReason.QUEUE_TAIL, disco=True, size=30)
    assert counters.dropped(DropReason.QUEUE_HEAD) == 2
    assert counters.dropped(DropReason.QUEUE_TAIL) == 1
    assert counters.dropped(DropReason.WRITE_ERROR) == 0


def test_two_relays_have_separate_counters() -> None:
    one, other = Counters(), Counters()
    one.drop(DropReason.UNKNOWN_DEST, disco=False, size=1)
    assert other.dropped(DropReason.UNKNOWN_DEST) == 0


def test_protocol_errors_are_the_ends_with_that_reason() -> None:
    counters = Counters()
    for reason in (EndReason.PROTOCOL_ERROR, EndReason.RESET, EndReason.PROTOCOL_ERROR):
        counters.ends[reason] += 1
    assert counters.protocol_errors == 2


def test_kinds_are_indexed_by_whether_a_packet_is_disco() -> None:
    assert (KINDS[False], KINDS[True]) == ("other", "disco")


def test_writes_are_counted_by_their_frames() -> None:
    counters = Counters()
    for frames in (1, 1, 8, 12, 100, 101, 250):
        counters.wrote(frames)
    histogram = counters.buffered_write_frames
    assert histogram.count == 7
    assert histogram.sum == 1 + 1 + 8 + 12 + 100 + 101 + 250
    assert histogram.cumulative()[-2:] == [("100", 5), ("+Inf", 7)]
    assert dict(histogram.cumulative())["10"] == 3


def test_the_average_wait_includes_packets_that_did_not_wait() -> None:
    time = QueueTime()
    time.waited(1, 100.0, 1)
    assert time.average(1) == pytest.approx(10.0)
    assert time.average(2) == pytest.approx(9.0)
    time.waited(2, 50.0, 5)  # one more went through at once
    assert time.average(5) == pytest.approx(8.1 * 0.81 + 50 * 0.19)


def test_a_number_in_a_histogram_counts_for_the_first_bound_that_is_not_smaller() -> None:
    histogram = Histogram([0, 1, 5])
    for number in (0, 1, 2, 5, 6, 1000):
        histogram.observe(number)
    assert histogram.counts == [1, 1, 2, 2]
    assert histogram.sum == 1014
    assert histogram.count == 6


def test_a_number_in_a_histogram_may_be_added_several_times() -> None:
    histogram = Histogram([1, 2])
    histogram.add(2, 3)
    histogram.add(1, 0)
    assert histogram.counts == [0, 3, 0]
    assert histogram.sum == 6


def test_cumulative_counts_of_a_histogram_end_with_the_total() -> None:
    histogram = Histogram([1, 5])
    for number in (1, 3, 4, 9):
        histogram.observe(number)
    assert histogram.cumulative() == [("1", 1), ("5", 3), ("+Inf", 4)]


def test_an_empty_histogram_is_zero() -> None:
    histogram = Histogram([1])
    assert histogram.cumulative() == [("1", 0), ("+Inf", 0)]
    assert histogram.count == histogram.sum == 0
