"""`/debug/clients/` for people: a form to choose with, and a table whose columns sort it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from html import escape
from typing import Final
from urllib.parse import urlencode

from pyderp.server.site.clientquery import COUNTERS, ClientsQuery
from pyderp.server.site.clients import ClientsPage, Row
from pyderp.server.site.gotext import duration_text
from pyderp.server.site.view import RelayView
from pyderp.text import printable

__all__ = ["clients_as_html", "index_as_html"]

# title, and what it sorts by; counters are on the right
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


def index_as_html(view: RelayView, debug_key: str) -> bytes:
    """The page without a filter.

    Args:
        debug_key: the secret that let the request in; empty: none.
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
    """The page as a table."""
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
        # A second click turns the order round; of the counters the largest come first.
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
