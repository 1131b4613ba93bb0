from __future__ import annotations

from .world import NOON, bare


def test_a_relay_starts_when_its_facts_are_collected() -> None:
    view = bare()
    assert view.started == NOON.timestamp()
    assert view.uptime == 0


def test_the_uptime_follows_the_clock() -> None:
    now = 500.0
    view = bare(wall=lambda: now)
    now = 512.5
    assert view.uptime == 12.5
