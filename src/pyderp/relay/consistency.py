"""Whether a relay's books agree with each other; a difference is a bug."""

from __future__ import annotations

from collections.abc import Iterator

from pyderp.relay.registry import Registry
from pyderp.relay.router import Router

__all__ = ["check"]


def check(router: Router) -> list[str]:
    """What does not agree, a line each; empty: all does.

    Several connections with one key are no difference, unlike in Go's `ConsistencyCheck`.
    """
    return [*_keys(router.registry), *_numbers(router), *_watchers(router.registry)]


def _keys(registry: Registry) -> Iterator[str]:
    wrong_key = sum(connection.key != key for key, connection in registry.active.items())
    if wrong_key:
        yield f"{wrong_key} keys lead to a connection with another key"
    strangers = sum(
        registry.active.get(key) not in duplicates.members
        for key, duplicates in registry.duplicates.items()
    )
    if strangers:
        yield f"{strangers} keys with several connections have none of them active"
    single = sum(len(duplicates.members) < 2 for duplicates in registry.duplicates.values())
    if single:
        yield f"{single} keys count as having several connections and do not"


def _numbers(router: Router) -> Iterator[str]:
    registry = router.registry
    total = home = not_ideal = shared = left = 0
    for connection in registry.connections():
        total += 1
        home += connection.preferred
        not_ideal += connection.not_ideal
        shared += connection.is_dup
        left += connection.has_left
    conns = sum(len(duplicates.members) for duplicates in registry.duplicates.values())
    for what, counted, found in (
        ("connections", registry.size, total),
        ("home connections", router.counters.home_connections, home),
        ("not-ideal connections", registry.not_ideal, not_ideal),
        ("connections that share a key", conns, shared),
        ("registered connections that have left", 0, left),
        ("noted pairs", registry.pairs, sum(map(len, registry.sent_to.values()))),
    ):
        if counted != found:
            yield f"{what} = {counted} != the connections say {found}"


def _watchers(registry: Registry) -> Iterator[str]:
    unknown = sum(
        watcher not in registry.connections_of(watcher.key) for watcher in registry.watchers
    )
    if unknown:
        yield f"{unknown} watchers are not registered"
