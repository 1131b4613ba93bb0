"""Which connections and other relays have a key; duplicates, watchers, PeerGone on departure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyderp.defaults import MAX_FORWARDED_SOURCES, MAX_REMOTE_PAIRS, MAX_REMOTE_SOURCES
from pyderp.relay.connection import Connection
from pyderp.relay.counters import Counters, DropReason

__all__ = ["Duplicates", "Forwarder", "ForwarderTable", "Registry"]

_FORGET_A_TURN: Final = 2_000
"""Sources of ended connections that are forgotten in one turn of the loop, in about 1 ms."""


class Duplicates:
    """The connections of one key, while there are at least two.

    As in Go (`dupClientSet`) a new connection is active until another one sends something. When
    the active one ends, the one that sent last before it becomes active. The second connection of
    a key counts as having sent only when it does.
    """

    __slots__ = ("_spoke", "last", "members")

    def __init__(self, first: Connection, second: Connection) -> None:
        self.members: dict[Connection, None] = {first: None, second: None}
        self.last = second
        self._spoke: dict[Connection, None] = {first: None}

    def add(self, connection: Connection) -> None:
        """Add a connection, which becomes the active one."""
        self.members[connection] = None
        self.note(connection)

    def note(self, connection: Connection) -> None:
        """Make a connection the active one: it sent something."""
        self.last = connection
        self._spoke.pop(connection, None)
        self._spoke[connection] = None

    def remove(self, connection: Connection) -> None:
        """Take out a connection; `last` is the active one afterwards."""
        del self.members[connection]
        self._spoke.pop(connection, None)
        if self.last is connection:
            self.last = next(reversed(self._spoke or self.members))


@dataclass(slots=True, eq=False)
class Registry:
    """The connections of a relay.

    Attributes:
        active: key → the connection that gets its packets; one look-up routes a run.
        duplicates: key → all its connections, for keys that have several.
        watchers: connections that get a PeerPresent or PeerGone for each client (WatchConns).
        sent_to: source key → connections that it has written to, which get a PeerGone.
        pairs: members of all sets in `sent_to`.
        departed: connections that have ended and are still in `sent_to`.
        on_takeover: called with the connection that becomes active for its key by sending.
    """

    counters: Counters
    active: dict[bytes, Connection] = field(default_factory=dict)
    duplicates: dict[bytes, Duplicates] = field(default_factory=dict)
    watchers: dict[Connection, None] = field(default_factory=dict)
    sent_to: dict[bytes, set[Connection]] = field(default_factory=dict)
    pairs: int = 0
    departed: deque[Connection] = field(default_factory=deque)
    size: int = 0
    not_ideal: int = 0
    on_takeover: Callable[[Connection], None] | None = None

    def add(self, connection: Connection) -> None:
        """Add a connection; it becomes the active one of its key."""
        key = connection.key
        was = self.active.get(key)
        if was is not None:
            duplicates = self.duplicates.get(key)
            if duplicates is None:
                self.duplicates[key] = Duplicates(was, connection)
            else:
                duplicates.add(connection)
            was.is_dup = connection.is_dup = True
            self.counters.dup_client_conn_total += 1
        self.active[key] = connection
        self.size += 1
        self.not_ideal += connection.not_ideal

    def remove(self, connection: Connection) -> bool:
        """Take out a connection; returns whether it was the last of its key."""
        key = connection.key
        duplicates = self.duplicates.get(key)
        if duplicates is None:
            del self.active[key]
            last = True
        else:
            duplicates.remove(connection)
            self.active[key] = duplicates.last
            if len(duplicates.members) == 1:
                del self.duplicates[key]
                self.active[key] = next(iter(duplicates.members))
                self.active[key].is_dup = False
            last = False
        self.watchers.pop(connection, None)
        self.size -= 1
        self.not_ideal -= connection.not_ideal
        if connection.received_from:
            self.departed.append(connection)
        return last

    def forget_departed(self) -> None:
        """Take ended connections out of `sent_to`, a slice in each turn of the loop.

        A client may have received packets from 100,000 sources, and 1,000 clients may leave at
        once; done in one turn this would block the loop for 60 ms or more. `left_region` leaves
        out the connections that are still to be taken out.
        """
        budget = _FORGET_A_TURN
        while self.departed and budget > 0:
            connection = self.departed[0]
            sources = connection.received_from
            while sources and budget > 0:
                self._forget(sources.pop(), connection)
                budget -= 1
            if not sources:
                connection.received_from = None
                self.departed.popleft()

    def note_activity(self, connection: Connection) -> None:
        """Make a connection the active one of its key, because it sent something."""
        self.duplicates[connection.key].note(connection)
        if self.active[connection.key] is not connection:
            self.active[connection.key] = connection
            if self.on_takeover is not None:
                self.on_takeover(connection)

    def connections(self) -> Iterator[Connection]:
        """Yield all connections, those of one key together."""
        for key, connection in self.active.items():
            duplicates = self.duplicates.get(key)
            yield from (connection,) if duplicates is None else duplicates.members

    def connections_of(self, key: bytes) -> list[Connection]:
        """Return all connections of a key, oldest first."""
        duplicates = self.duplicates.get(key)
        if duplicates is not None:
            return list(duplicates.members)
        connection = self.active.get(key)
        return [] if connection is None else [connection]

    def remember(self, source: bytes, destination: Connection) -> set[Connection]:
        """Note that `source` wrote to `destination`, which gets a PeerGone when `source` leaves.

        Returns:
            the set of all connections that `source` wrote to; the lane holds it, so that one
            test a run is enough.
        """
        destinations = self.sent_to.get(source)
        if destinations is None:
            destinations = self.sent_to[source] = set()
        if destination not in destinations:
            destinations.add(destination)
            self.pairs += 1
        if destination.received_from is None:
            destination.received_from = set()
        destination.received_from.add(source)
        return destinations

    def remember_forwarded(self, source: bytes, destination: Connection) -> None:
        """Note a source on another relay as `remember` does, within bounds.

        A mesh peer may name any number of sources. Beyond the bound a packet is still delivered,
        but its destination gets no PeerGone for its source.
        """
        sources = destination.received_from
        if sources is not None and source in sources:
            return
        if (
            self.pairs >= MAX_REMOTE_PAIRS
            or (sources is not None and len(sources) >= MAX_FORWARDED_SOURCES)
            or (
                source not in self.sent_to
                and len(self.sent_to) >= MAX_REMOTE_SOURCES + len(self.active)
            )
        ):
            self.counters.sources_not_noted += 1
            return
        self.remember(source, destination)

    def left_region(self, source: bytes) -> list[Connection]:
        """Forget a source that left the region: neither this relay nor its mesh has it.

        Both directions are forgotten, so that a second departure sends PeerGone again.

        Returns:
            the connections that it wrote to and that have not ended.
        """
        destinations = self.sent_to.pop(source, None)
        if destinations is None:
            return []
        self.pairs -= len(destinations)
        for destination in destinations:
            if destination.received_from is not None:
                destination.received_from.discard(source)
        return [each for each in destinations if not each.has_left]

    def _forget(self, source: bytes, destination: Connection) -> None:
        destinations = self.sent_to.get(source)
        if destinations is not None and destination in destinations:
            destinations.remove(destination)
            self.pairs -= 1
            # The source's connection may hold the set (`sent_to`) and add to it: an empty one
            # stays until the source leaves.
            if not destinations and source not in self.active:
                del self.sent_to[source]


class Forwarder(Protocol):
    """Another relay that has a key."""

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        """Queue a packet for the other relay; return why it is dropped, or `None`. Never blocks."""


class ForwarderTable:
    """Keys on other relays, and the relays that announced each key; packets go to the first."""

    __slots__ = ("_counters", "_table")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._table: dict[bytes, list[Forwarder]] = {}

    def get(self, key: bytes) -> Forwarder | None:
        """Return the relay that packets for a key go to, if any."""
        forwarders = self._table.get(key)
        return forwarders[0] if forwarders else None

    def add(self, key: bytes, forwarder: Forwarder) -> None:
        """Note that a relay has a key; a repetition changes nothing."""
        forwarders = self._table.setdefault(key, [])
        if any(known is forwarder for known in forwarders):
            return
        forwarders.append(forwarder)
        if len(forwarders) == 2:
            self._counters.multiforwarder_created += 1

    def remove(self, key: bytes, forwarder: Forwarder, *, is_local: bool) -> bool:
        """Note that a relay no longer has a key. Returns whether it was the last that had it.

        Args:
            is_local: a connection of this relay has the key.
        """
        forwarders = self._table.get(key)
        if forwarders is None:
            if is_local:
                self._counters.forwarder_delete_other_value += 1
            return False
        for i, known in enumerate(forwarders):
            if known is forwarder:
                del forwarders[i]
                break
        else:
            if len(forwarders) == 1:
                self._counters.forwarder_delete_other_value += 1
            return False
        if len(forwarders) == 1:
            self._counters.multiforwarder_deleted += 1
        elif not forwarders:
            del self._table[key]
            return True
        return False

    def __contains__(self, key: bytes) -> bool:
        return key in self._table

    def __len__(self) -> int:
        return len(self._table)
