"""`/debug/clients/`: connections by filter and by pages, with `derper`'s URLs and JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pyderp.addresses import format_address
from pyderp.relay.connection import Connection
from pyderp.server.site.clientquery import COUNTERS, UNKNOWN_ADDRESS, ClientsQuery, address_key
from pyderp.server.site.view import RelayView, slices

__all__ = ["ClientsPage", "RelayTime", "Row", "clients_as_json", "go_json", "index_json"]

Row = dict[str, Any]

_SECOND: Final = 10**9
_LARGEST_CLOCK_ERROR: Final = _SECOND
# Go's encoder makes its output safe inside HTML.
_HTML_ESCAPES: Final = str.maketrans(
    {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
)


class RelayTime:
    """The router's clock as nanoseconds since 1970.

    A login keeps its time from one page to the next: the difference of two clocks wanders, so
    it is taken anew only once the machine's clock was set.
    """

    __slots__ = ("_offset", "_view")

    def __init__(self, view: RelayView) -> None:
        self._view = view
        self._offset = self._difference()

    def _difference(self) -> int:
        return _nanoseconds(self._view.wall()) - _nanoseconds(self._view.router.clock())

    def now(self) -> int:
        """The time, after a look at the machine's clock."""
        offset = self._difference()
        if abs(offset - self._offset) > _LARGEST_CLOCK_ERROR:
            self._offset = offset
        return self.of(self._view.router.clock())

    def of(self, seconds: float) -> int:
        """A time of the router's clock."""
        return self._offset + _nanoseconds(seconds)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _SECOND)


@dataclass(slots=True)
class _Entry:
    """A connection that is on the page so far."""

    place: tuple[Any, int]
    """The value that it is sorted by when it was looked at, and its number."""
    connection: Connection


@dataclass(slots=True)
class ClientsPage:
    """One page of connections.

    Args:
        query: what to show.
        view: the relay.
        time: its clock.
    """

    query: ClientsQuery
    view: RelayView
    time: RelayTime
    conns: int = 0
    """Connections that the filter lets through, on all pages."""
    keys: int = 0
    """Their keys."""
    remaining: int = 0
    """Those behind this page."""
    entries: list[_Entry] = field(default_factory=list)

    async def fill(self) -> None:
        """Look at all connections; others are served meanwhile."""
        query = self.query
        registry = self.view.router.registry
        # The zero key is a key like others here, and no client has it. derper takes it for
        # "no filter" and lists all connections.
        among = (
            registry.connections() if query.key is None else registry.connections_of(query.key.raw)
        )
        last_key, past = None, 0
        for some in slices(among):
            for connection in some:
                if not query.matches(connection):
                    continue
                self.conns += 1
                # The registry has those of one key together.
                self.keys += connection.key != last_key
                last_key = connection.key
                entry = _Entry((self._value(connection), connection.number), connection)
                if query.is_past_cursor(*entry.place):
                    past += 1
                    self.entries.append(entry)
            if len(self.entries) > 4 * query.limit:
                self._cut()
            await asyncio.sleep(0)
        self._cut()
        self.remaining = past - len(self.entries)

    def _cut(self) -> None:
        self.entries.sort(key=lambda entry: entry.place, reverse=self.query.descending)
        del self.entries[self.query.limit :]

    def _value(self, connection: Connection) -> Any:
        sort = self.query.sort
        if sort == "key":
            return connection.key
        if sort == "ip":
            return address_key(connection.peer[0]), connection.peer[1]
        if sort == "conn":
            return connection.number
        if sort == "connected":
            return self.time.of(connection.connected_at)
        return getattr(connection, COUNTERS[sort])

    @property
    def next(self) -> str:
        """A link to the next page; empty: this is the last."""
        if not self.remaining:
            return ""
        (value, number), connection = self.entries[-1].place, self.entries[-1].connection
        query = self.query
        if query.sort == "conn":
            return query.link(query.order, str(number))
        after = {"key": str(connection.public), "ip": remote(connection) or UNKNOWN_ADDRESS}
        return query.link(query.order, after.get(query.sort, str(value)), str(number))

    def rows(self) -> Iterator[list[Row]]:
        """The connections as what JSON says of them, some at a time."""
        for some in slices(self.entries):
            yield [self._row(entry.connection) for entry in some]

    def _row(self, connection: Connection) -> Row:
        router = self.view.router
        up = _nanoseconds(router.clock() - connection.connected_at)
        return {
            "connNum": connection.number,
            "key": str(connection.public),
            "remote": remote(connection),
            "connectedAt": _go_time(self.time.of(connection.connected_at)),
            "connected": (up + _SECOND // 2) // _SECOND * _SECOND,
            "active": router.registry.active.get(connection.key) is connection,
            "dup": connection.is_dup,
            "disabled": False,
            "home": connection.preferred,
            "meshPeer": connection.can_mesh,
            "notIdeal": connection.not_ideal,
            "prober": connection.is_prober,
            "version": connection.version,
            "appName": connection.app_name,
            "rxPkts": connection.packets_received,
            "rxBytes": connection.bytes_received,
            "txPkts": connection.packets_sent,
            "txBytes": connection.bytes_sent,
            "senders": self.view.senders(connection),
        }


def remote(connection: Connection) -> str:
    """Address and port; empty: unknown."""
    return format_address(*connection.peer) if connection.peer[0] else ""


def _go_time(nanoseconds: int) -> str:
    """A time as Go writes it: as many digits of the second as it takes."""
    seconds, fraction = divmod(nanoseconds, _SECOND)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + f".{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def index_json(view: RelayView) -> bytes:
    """How many connections and keys there are."""
    registry = view.router.registry
    counts = {"conns": registry.size, "keys": len(registry.active)}
    return json.dumps(counts, separators=(",", ":")).encode() + b"\n"


async def clients_as_json(page: ClientsPage) -> AsyncGenerator[bytes, None]:
    """The page as one object."""
    await page.fill()
    head = {
        "query": str(page.query),
        "conns": page.conns,
        "keys": page.keys,
        "remaining": page.remaining,
        **({"next": page.next} if page.remaining else {}),
    }
    yield (go_json(head).removesuffix("\n}") + ',\n\t"clients": [').encode()
    before = "\n"
    for rows in page.rows():
        yield (before + ",\n".join(_indented(row) for row in rows)).encode()
        before = ",\n"
        await asyncio.sleep(0)
    yield b"\n\t]\n}\n" if page.entries else b"]\n}\n"


def _indented(row: Row) -> str:
    return "\t\t" + go_json(row).replace("\n", "\n\t\t")


def go_json(value: Row) -> str:
    """JSON as Go's encoder writes it, indented with tabs."""
    text = json.dumps(value, indent="\t", ensure_ascii=False).translate(_HTML_ESCAPES)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
