from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyderp.server.conn.context import TimerWheel

TICK = 0.25


def test_no_item_is_returned_before_its_time() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 100.0)
    wheel.add("a", 101.1)
    assert wheel.advance(101.0) == []
    assert wheel.advance(101.24) == []
    assert wheel.advance(101.25) == ["a"]


def test_an_item_due_on_a_tick_is_returned_on_it() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 100.0)
    wheel.add("a", 101.0)
    assert wheel.advance(100.75) == []
    assert wheel.advance(101.0) == ["a"]


def test_an_item_is_returned_once() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 0.0)
    wheel.add("a", 1.0)
    assert wheel.advance(5.0) == ["a"]
    assert wheel.advance(10.0) == []
    assert len(wheel) == 0


def test_earlier_slots_come_first_after_a_long_gap() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 0.0)
    for name, when in (("late", 9.0), ("early", 1.0), ("middle", 5.0)):
        wheel.add(name, when)
    assert wheel.advance(3600.0) == ["early", "middle", "late"]


def test_a_time_in_the_past_is_due_at_the_next_tick() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 100.0)
    assert wheel.advance(100.0) == []
    wheel.add("a", 50.0)
    assert wheel.advance(100.25) == ["a"]


def test_cancelled_items_are_not_returned() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 0.0)
    slot = wheel.add("a", 1.0)
    assert wheel.add("b", 1.0) == slot
    wheel.cancel("a", slot)
    assert len(wheel) == 1
    assert wheel.advance(2.0) == ["b"]


def test_cancelling_twice_or_too_late_is_harmless() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 0.0)
    slot = wheel.add("a", 1.0)
    wheel.cancel("a", slot)
    wheel.cancel("a", slot)
    wheel.add("b", 1.0)
    wheel.cancel("a", slot)
    assert wheel.advance(1.0) == ["b"]
    wheel.cancel("b", slot)


def test_cancelling_leaves_no_empty_slot_behind() -> None:
    wheel: TimerWheel[int] = TimerWheel(TICK, 0.0)
    for i in range(1000):
        wheel.cancel(i, wheel.add(i, float(i)))
    assert not wheel._slots


def test_cancelling_an_old_slot_keeps_the_item_in_its_new_one() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK, 0.0)
    old = wheel.add("a", 1.0)
    assert wheel.advance(1.0) == ["a"]
    wheel.add("a", 2.0)
    wheel.cancel("a", old)
    assert wheel.advance(2.0) == ["a"]


@given(st.lists(st.floats(0, 50), max_size=30), st.floats(0.01, 3))
def test_each_item_is_returned_once_never_early_and_at_most_a_tick_late(
    times: list[float], step: float
) -> None:
    wheel: TimerWheel[int] = TimerWheel(TICK, 0.0)
    for i, when in enumerate(times):
        wheel.add(i, when)
    now = before = 0.0
    returned_at: dict[int, tuple[float, float]] = {}
    while now < 55:
        before, now = now, now + step
        for item in wheel.advance(now):
            assert item not in returned_at
            returned_at[item] = (before, now)
    assert sorted(returned_at) == list(range(len(times)))
    for i, (previous, at) in returned_at.items():
        assert at >= times[i]
        # The call before it was too early.
        assert previous < times[i] + TICK
