"""`/debug/connections`: the logged-in connections, as a table or as JSON; and `/debug/traffic`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from html import escape
from operator import itemgetter
from typing import Final

from pyderp.relay.connection import Connection
from pyderp.server.conn.context import Served
from pyderp.server.conn.kernel import tcp_info
from pyderp.server.conn.labels import label_of
from pyderp.server.site.clients import remote
from pyderp.server.site.view import RelayView, slices
from pyderp.text import printable

__all__ = ["connections_as_html", "connections_as_json", "traffic"]

Row = dict[str, object]

_COLUMNS: Final = (
    ("number", "Number"),
    ("short", "In the log"),
    ("key", "Key"),
    ("label", "Label"),
    ("address", "Address"),
    ("since", "Since"),
    ("app", "Program"),
    ("flags", "Flags"),
    ("over", "Over"),
    ("received", "Bytes from it"),
    ("sent", "Bytes to it"),
    ("rtt_ms", "Round trip, ms"),
    ("queued", "Packets waiting"),
    ("limit", "Limit, bytes/s"),
)
_HEAD: Final = (
    "<!doctype html>\n"
    '<html lang="en"><head><meta charset="utf-8"><title>Connections</title>\n'
    "<style>table{{border-collapse:collapse;font:14px monospace}}"
    "th,td{{border:1px solid #999;padding:2px 6px;text-align:left}}</style></head>\n"
    '<body><h1>Connections</h1>\n<p><a href="{link}">As JSON</a></p>\n'
    "<table><thead><tr>"
    + "".join(f'<th scope="col">{title}</th>' for _, title in _COLUMNS)
    + "</tr></thead><tbody>\n"
)
_TAIL: Final = "</tbody></table>\n<p>{count} connections are logged in.</p></body></html>\n"
_PERIOD: Final = 2.0
"""Seconds between two rounds of `traffic`."""


async def connections_as_html(view: RelayView, json_link: str) -> AsyncGenerator[bytes, None]:
    """Yield an HTML page with a row for each logged-in connection, oldest first.

    Args:
        json_link: the URL of the same list as JSON.
    """
    count = 0
    yield _HEAD.format(link=escape(json_link)).encode()
    for rows in _rows(view):
        count += len(rows)
        yield "".join(map(_html, rows)).encode()
        await asyncio.sleep(0)
    yield _TAIL.format(count=count).encode()


async def connections_as_json(view: RelayView) -> AsyncGenerator[bytes, None]:
    """Yield a JSON array with an object for each logged-in connection, oldest first."""
    before = "[\n"
    for rows in _rows(view):
        if rows:
            yield (before + ",\n".join(map(json.dumps, rows))).encode()
            before = ",\n"
        await asyncio.sleep(0)
    yield b"[]\n" if before == "[\n" else b"\n]\n"


def _rows(view: RelayView) -> Iterator[list[Row]]:
    logged_in = [
        (connection.number, protocol)
        for protocol in view.protocols
        if (connection := protocol.connection) is not None
    ]
    logged_in.sort(key=itemgetter(0))
    # The router's clock is monotonic, with an unknown start; pages show the time of day.
    epoch = view.wall() - view.router.clock()
    for some in slices(logged_in):
        yield [
            _row(view, protocol, connection, epoch)
            for _, protocol in some
            if (connection := protocol.connection) is not None  # it may have ended meanwhile
        ]


def _row(view: RelayView, protocol: Served, connection: Connection, epoch: float) -> Row:
    info = tcp_info(protocol.transport)
    backlog = connection.backlog
    since = datetime.fromtimestamp(epoch + connection.connected_at, UTC)
    return {
        "number": connection.number,
        "key": str(connection.public),
        "short": connection.public.short(),
        "label": label_of(connection.public, view.admission, view.limits),
        "address": remote(connection),
        "since": since.isoformat(timespec="seconds"),
        "app": printable(connection.app_name),
        "flags": list(_flags(connection)),
        "over": _over(protocol),
        "received": None if info is None else info.received,
        "sent": None if info is None else info.sent,
        "rtt_ms": None if info is None else round(info.rtt * 1000, 3),
        "queued": 0 if backlog is None else len(backlog.data) + len(backlog.disco),
        "limit": _limit(view, connection),
    }


def _flags(connection: Connection) -> Iterator[str]:
    for is_set, name in (
        (connection.can_mesh, "mesh"),
        (connection.is_prober, "prober"),
        (connection.preferred, "home"),
        (connection.not_ideal, "not-ideal"),
        (connection.is_dup, "duplicate"),
    ):
        if is_set:
            yield name


def _over(protocol: Served) -> str:
    version = protocol.tls_version
    below = f"TLS {version}" if version else "plain"
    return f"websocket, {below}" if protocol.is_websocket else below


def _limit(view: RelayView, connection: Connection) -> int | None:
    if view.limits is None or connection.can_mesh:
        return None
    limit = view.limits.config.limit_for(connection.key)
    return None if limit is None else limit.bytes_per_second


def _html(row: Row) -> str:
    return f"<tr>{''.join(f'<td>{_text(row[name])}</td>' for name, _ in _COLUMNS)}</tr>\n"


def _text(value: object) -> str:
    if value is None:
        return "–"
    return escape(", ".join(value) if isinstance(value, list) else str(value))


async def traffic(view: RelayView) -> AsyncGenerator[bytes, None]:
    """Yield, in each round, a line of JSON for each client with new bytes, then an empty line.

    `Sent` and `Recv` are the bytes of the client's TCP connection so far, seen from the relay,
    with TLS, HTTP and frame headers. `UniqueSenders` is the number of other keys that have sent
    to the client; it is missing if `sender_cardinality` is off. Connections on Unix sockets are
    left out.
    """
    before: dict[Served, tuple[int, int]] = {}
    while True:
        now: dict[Served, tuple[int, int]] = {}
        for some in slices(view.protocols):
            lines = []
            for protocol in some:
                connection = protocol.connection
                info = None if connection is None else tcp_info(protocol.transport)
                if connection is None or info is None:
                    continue
                now[protocol] = bytes_now = (info.sent, info.received)
                if bytes_now != before.get(protocol):
                    lines.append(_line(view, connection, *bytes_now))
            if lines:
                yield b"".join(lines)
            await asyncio.sleep(0)
        before = now
        yield b"\n"
        await asyncio.sleep(_PERIOD)


def _line(view: RelayView, connection: Connection, sent: int, received: int) -> bytes:
    line: dict[str, object] = {"Sent": sent, "Recv": received, "Key": str(connection.public)}
    if senders := view.senders(connection):
        line["UniqueSenders"] = senders
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
