from __future__ import annotations

from pyderp.server.site.connections import slices

from .world import FakeServed


def test_all_connections_come_in_small_parts() -> None:
    served = [FakeServed() for _ in range(250)]
    parts = list(slices(served))
    assert [each for part in parts for each in part] == served
    assert max(map(len, parts)) == 50


def test_connections_may_end_and_begin_meanwhile() -> None:
    served = {FakeServed() for _ in range(150)}
    parts = slices(served)
    first = next(parts)
    served.clear()
    served.add(FakeServed())
    assert len(first) + sum(map(len, parts)) == 150


def test_without_connections_there_is_nothing_to_do() -> None:
    assert list(slices([])) == []
