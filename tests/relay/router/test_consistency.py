from __future__ import annotations

from collections.abc import Callable

import pytest

from pyderp.keys import NodePrivate
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.router import Router, check
from pyderp.wire.frames import FrameType


class NullSink:
    def send(self, chunks: list[bytes]) -> bool:
        return True

    def unsent_size(self) -> int:
        return 0

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        pass


def key() -> bytes:
    return NodePrivate.generate().public.raw


def busy() -> tuple[Router, list[Connection]]:
    """Return a router with a lone client, three connections of one key, and a watcher."""
    router = Router(key(), lambda: 100.0)
    shared = key()
    connections = [
        Connection(key(), NullSink(), not_ideal=True),
        *(Connection(shared, NullSink()) for _ in range(3)),
        Connection(key(), NullSink(), can_mesh=True),
    ]
    for connection in connections:
        router.login(connection)
    router.on_frame(connections[0], FrameType.NOTE_PREFERRED, b"\1")
    router.on_frame(connections[1], FrameType.NOTE_PREFERRED, b"\1")
    router.on_frame(connections[4], FrameType.WATCH_CONNS, b"")
    return router, connections


def test_counters_match_with_duplicates_homes_and_watchers() -> None:
    router, _ = busy()
    assert check(router) == []


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 3, 4, 1)])
def test_counters_match_after_each_departure(order: tuple[int, ...]) -> None:
    router, connections = busy()
    for index in order:
        router.leave(connections[index])
        assert check(router) == []


def _size(router: Router, _: list[Connection]) -> None:
    router.registry.size += 1


def _home(router: Router, _: list[Connection]) -> None:
    router.counters.home_connections -= 1


def _not_ideal(router: Router, _: list[Connection]) -> None:
    router.registry.not_ideal += 1


def _left(_: Router, connections: list[Connection]) -> None:
    connections[0].has_left = True


def _flag(_: Router, connections: list[Connection]) -> None:
    connections[2].is_dup = False


def _wrong_key(router: Router, connections: list[Connection]) -> None:
    router.registry.active[connections[0].key] = connections[4]


def _unregistered(router: Router, connections: list[Connection]) -> None:
    router.registry.active[connections[1].key] = Connection(connections[1].key, NullSink())


def _single(router: Router, connections: list[Connection]) -> None:
    duplicates = router.registry.duplicates[connections[1].key]
    for connection in connections[1:3]:
        duplicates.remove(connection)


def _watcher(router: Router, _: list[Connection]) -> None:
    router.registry.watchers[Connection(key(), NullSink())] = None


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_size, "connections = 6 != the connections say 5"),
        (_home, "home connections = 1 != the connections say 2"),
        (_not_ideal, "not-ideal connections = 2 != the connections say 1"),
        (_left, "registered connections that have left = 0 != the connections say 1"),
        (_flag, "connections that share a key = 3 != the connections say 2"),
        (_wrong_key, "keys that lead to a connection with another key: 1"),
        (_unregistered, "keys with several connections of which none is active: 1"),
        (_single, "keys that count as having several connections and do not: 1"),
        (_watcher, "watchers that are not registered: 1"),
    ],
)
def test_a_difference_is_named(
    spoil: Callable[[Router, list[Connection]], None], text: str
) -> None:
    router, connections = busy()
    spoil(router, connections)
    assert text in check(router)
