"""`/debug/clients/`: connections by filter and in pages, with `derper`'s URLs and JSON.

For people, pyderp adds a form for the filters, and a table that can be sorted by its columns.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from operator import itemgetter
from typing import Any, Final
from urllib.parse import urlencode

from pyderp.addresses import format_address
from pyderp.relay.connection import Connection
from pyderp.server.site.clientquery import COUNTERS, UNKNOWN_ADDRESS, ClientsQuery, address_key
from pyderp.server.site.gotext import duration_text
from pyderp.server.site.view import RelayView, slices
from pyderp.text import printable

__all__ = [
    "ClientsPage",
    "RelayTime",
    "clients_as_html",
    "clients_as_json",
    "index_as_html",
    "index_json",
    "remote",
]

Row = dict[str, Any]

_SECOND: Final = 10**9
_LARGEST_CLOCK_ERROR: Final = _SECOND
# Go's JSON encoder escapes these characters, so that its output is safe inside HTML.
_HTML_ESCAPES: Final = str.maketrans(
    {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
)

# The title of a column, and the order that it links to. The counters are the last columns.
_COLUMNS: Final = (
    ("conn#", "conn"),
    ("node key", "key"),
    ("remote", "ip"),
    ("connected", "connected"),
    ("flags", ""),
    ("ver", ""),
    ("app", ""),
    ("rx pkts", "rxpkts"),
    ("rx bytes", "rx"),
    ("tx pkts", "txpkts"),
    ("tx bytes", "tx"),
    ("senders", ""),
)
_NUMBERS: Final = ("rxPkts", "rxBytes", "txPkts", "txBytes", "senders")
_FLAGS: Final = (
    ("home", "home"),
    ("meshPeer", "mesh"),
    ("prober", "prober"),
    ("notIdeal", "notideal"),
)
_HEAD: Final = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
    "<style>table{{border-collapse:collapse;font:14px monospace}}"
    "th,td{{border:1px solid #999;padding:2px 6px;text-align:left}}"
    "td.n{{text-align:right}}</style></head>\n<body><h1>{title}</h1>\n"
)
_FILTERS: Final = (
    ("ip", "IP address", "192.0.2.7"),
    ("cidr", "network", "192.0.2.0/24"),
    ("key", "node key", "nodekey:…"),
    ("app", "program", "name"),
)
_NOTES: Final = (
    "<p>More for the address line: app=NAME with any of these, also several times; "
    "sort=key, ip, conn, connected, rx, tx, rxpkts or txpkts, with - in front for the other "
    "direction; limit=N; after=VALUE of what it is sorted by, for connected a duration such as "
    "30m or Unix nanoseconds; format=json.</p>\n"
)


class RelayTime:
    """Converts times of the router's clock to nanoseconds since 1970.

    The time of a login must be the same on each page, because it is used as a cursor. The
    difference between the two clocks varies a little. So it is measured again only after the
    machine's clock has been set.
    """

    __slots__ = ("_offset", "_view")

    def __init__(self, view: RelayView) -> None:
        self._view = view
        self._offset = self._difference()

    def _difference(self) -> int:
        return _nanoseconds(self._view.wall()) - _nanoseconds(self._view.router.clock())

    def now(self) -> int:
        """Return the time now, and measure the clocks again if the machine's clock was set."""
        offset = self._difference()
        if abs(offset - self._offset) > _LARGEST_CLOCK_ERROR:
            self._offset = offset
        return self.of(self._view.router.clock())

    def of(self, seconds: float) -> int:
        """Return a time of the router's clock as nanoseconds since 1970."""
        return self._offset + _nanoseconds(seconds)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _SECOND)


@dataclass(slots=True)
class ClientsPage:
    """One page of connections."""

    query: ClientsQuery
    view: RelayView
    time: RelayTime
    conns: int = 0
    """Connections that pass the filter, on all pages together."""
    keys: int = 0
    """Different keys of these connections."""
    remaining: int = 0
    """Connections after this page."""
    entries: list[tuple[tuple[Any, int], Connection]] = field(default_factory=list)
    """The connections of this page. With each, the value of the sort field when `fill` read it,
    and the connection's number."""

    async def fill(self) -> None:
        """Find the connections of the page; the relay serves its clients meanwhile."""
        query = self.query
        registry = self.view.router.registry
        # The zero key is an ordinary key here, which no client has. derper takes it for "no
        # filter" and lists all connections.
        among = (
            registry.connections() if query.key is None else registry.connections_of(query.key.raw)
        )
        last_key, past = None, 0
        for some in slices(among):
            for connection in some:
                if not query.matches(connection):
                    continue
                self.conns += 1
                # The registry yields the connections of one key one after the other.
                self.keys += connection.key != last_key
                last_key = connection.key
                place = (self._value(connection), connection.number)
                if query.is_past_cursor(*place):
                    past += 1
                    self.entries.append((place, connection))
            if len(self.entries) > 4 * query.limit:
                self._cut()
            await asyncio.sleep(0)
        self._cut()
        self.remaining = past - len(self.entries)

    def _cut(self) -> None:
        self.entries.sort(key=itemgetter(0), reverse=self.query.descending)
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
        """A link to the next page; empty if this is the last."""
        if not self.remaining:
            return ""
        (value, number), connection = self.entries[-1]
        query = self.query
        if query.sort == "conn":
            return query.link(after=str(number))
        after = {"key": str(connection.public), "ip": remote(connection) or UNKNOWN_ADDRESS}
        return query.link("", after.get(query.sort, str(value)), str(number))

    def rows(self) -> Iterator[list[Row]]:
        """Yield the connections as objects for JSON, a few in each list."""
        for some in slices(self.entries):
            yield [self._row(connection) for _, connection in some]

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
    """Return a connection's address and port as text; empty if unknown."""
    return format_address(*connection.peer) if connection.peer[0] else ""


def _go_time(nanoseconds: int) -> str:
    """Return a time in Go's format: RFC 3339 without trailing zeros in the fraction."""
    seconds, fraction = divmod(nanoseconds, _SECOND)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + f".{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def index_json(view: RelayView) -> bytes:
    """Return the JSON of the page without a filter: the numbers of connections and keys."""
    registry = view.router.registry
    counts = {"conns": registry.size, "keys": len(registry.active)}
    return json.dumps(counts, separators=(",", ":")).encode() + b"\n"


async def clients_as_json(page: ClientsPage) -> AsyncGenerator[bytes, None]:
    """Yield the page as a JSON object, in pieces."""
    await page.fill()
    head = {
        "query": str(page.query),
        "conns": page.conns,
        "keys": page.keys,
        "remaining": page.remaining,
        **({"next": page.next} if page.remaining else {}),
    }
    yield (_go_json(head).removesuffix("\n}") + ',\n\t"clients": [').encode()
    before = "\n"
    for rows in page.rows():
        texts = (_go_json(row).replace("\n", "\n\t\t") for row in rows)
        yield (before + ",\n".join(f"\t\t{text}" for text in texts)).encode()
        before = ",\n"
        await asyncio.sleep(0)
    yield b"\n\t]\n}\n" if page.entries else b"]\n}\n"


def _go_json(value: Row) -> str:
    """Return JSON as Go's encoder writes it, indented with tabs."""
    text = json.dumps(value, indent="\t", ensure_ascii=False).translate(_HTML_ESCAPES)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def index_as_html(view: RelayView, debug_key: str) -> bytes:
    """Return the HTML of the page without a filter.

    Args:
        debug_key: the `debugkey` of the request; empty if it has none.
    """
    registry = view.router.registry
    secret = f'<input type="hidden" name="debugkey" value="{escape(debug_key)}">'
    hidden = secret if debug_key else ""
    forms = "".join(
        f'<li><form>{hidden}By {label}: <input name="{name}" size="40" placeholder="{example}"> '
        "<button>Show</button></form></li>\n"
        for name, label, example in _FILTERS
    )
    return (
        _HEAD.format(title="DERP clients")
        + f"<p>{registry.size} connections for {len(registry.active)} node keys.</p>\n<ul>\n"
        f'<li><form>{hidden}<button name="all" value="1">Show all</button></form></li>\n'
        f"{forms}</ul>\n{_NOTES}</body></html>\n"
    ).encode()


async def clients_as_html(page: ClientsPage) -> AsyncGenerator[bytes, None]:
    """Yield the page as an HTML table, in pieces."""
    await page.fill()
    query = page.query
    secret = {"debugkey": query.debug_key} if query.debug_key else {}
    more = ""
    if page.remaining:
        more = f'<a href="{escape(page.next)}">Next page</a> ({page.remaining} more)'
    home = "./?" + urlencode(secret) if secret else "./"
    yield _utf8(
        _HEAD.format(title=escape(printable(f"DERP clients: {query}")))
        + f'<p><a href="{escape(home)}">index</a></p>\n'
        f"<p>Showing {len(page.entries)} of {page.conns} matching connections "
        f"({page.keys} node keys).\n{more}</p>\n<table>\n<tr>{_titles(query)}</tr>\n"
    )
    for rows in page.rows():
        yield _utf8("".join(_line(row, secret) for row in rows))
        await asyncio.sleep(0)
    yield f"</table>\n<p>{more}</p></body></html>\n".encode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _titles(query: ClientsQuery) -> str:
    cells = []
    for title, sort in _COLUMNS:
        if not sort:
            cells.append(f"<th>{title}</th>")
            continue
        arrow = (" ▼" if query.descending else " ▲") if sort == query.sort else ""
        # A second click reverses the order. A counter is first sorted with the largest on top.
        turned = not query.descending if sort == query.sort else sort in COUNTERS
        link = escape(query.link(f"-{sort}" if turned else sort))
        cells.append(f'<th><a href="{link}">{title}</a>{arrow}</th>')
    return "".join(cells)


def _line(row: Row, secret: dict[str, str]) -> str:
    host = row["remote"].rpartition(":")[0].strip("[]")
    cells = [
        str(row["connNum"]),
        _link("key", row["key"], row["key"], secret),
        _link("ip", host, row["remote"], secret),
        duration_text(row["connected"] // 10**9),
        _flags(row),
        str(row["version"]),
        _link("app", row["appName"], row["appName"], secret),
    ]
    numbers = "".join(f'<td class="n">{row[name]}</td>' for name in _NUMBERS)
    return "<tr>\n" + "".join(f"<td>{cell}</td>\n" for cell in cells) + numbers + "\n</tr>\n"


def _link(name: str, value: str, text: str, secret: dict[str, str]) -> str:
    if not value:
        return ""
    query = urlencode({name: value, **secret}, errors="replace")
    return f'<a href="?{escape(query)}">{escape(printable(text))}</a>'


def _flags(row: Row) -> str:
    flags = [text for name, text in _FLAGS if row[name]]
    if row["dup"]:
        flags.append("dup" + "-active" * row["active"] + "-disabled" * row["disabled"])
    return " ".join(flags)
