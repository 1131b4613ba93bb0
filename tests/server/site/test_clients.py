"""`/debug/clients/`: which connections it lists, in which order, on which page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import pytest

from pyderp.config import DebugAccess
from pyderp.keys import NodePrivate
from pyderp.relay.connection import Connection
from pyderp.server.site.clientquery import SORTS
from pyderp.server.site.view import Access, RelayView
from pyderp.wire.http import Response, StreamedResponse

from .world import NOON, OUTSIDER, ask, bare, client, settle, site

ROW = re.compile(r"<tr>\s*<td>(\d+)</td>")
NEXT = re.compile(r'<a href="([^"]*)">Next page</a>')


@dataclass
class Relay:
    """A relay and its connections, by number."""

    view: RelayView = field(default_factory=bare)
    clients: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.site = site(self.view)

    def add(self, peer: tuple[str, int] = ("", 0), **more: Any) -> Connection:
        connection = client(len(self.clients) + 1, peer=peer, **more)
        self.clients.append(connection)
        self.view.router.login(connection)
        return connection

    def get(self, query: str, **more: Any) -> Response:
        return settle(self.site.answer(ask("/debug/clients/" + query, **more)))

    def json(self, query: str) -> dict[str, Any]:
        response = self.get(f"{query}&format=json")
        assert response.status == 200, response.body
        page: dict[str, Any] = json.loads(response.body)
        return page

    def numbers(self, query: str) -> list[int]:
        """The connections of a page."""
        return [row["connNum"] for row in self.json(query)["clients"]]

    def pages_as_json(self, query: str) -> Iterator[list[int]]:
        query += "&format=json"
        while query:
            page = json.loads(self.get(query).body)
            yield [row["connNum"] for row in page["clients"]]
            query = page.get("next", "")

    def pages_as_html(self, query: str) -> Iterator[list[int]]:
        while query:
            text = self.get(query).body.decode()
            yield list(map(int, ROW.findall(text)))
            links = NEXT.findall(text)
            query = unescape(links[0]) if links else ""


def joined(pages: Iterable[list[int]]) -> list[int]:
    return [number for page in pages for number in page]


PEERS = [
    ("10.0.0.1", 1),
    ("10.0.0.2", 2),
    ("10.0.0.2", 3),
    ("9.0.0.1", 65535),
    ("2001:db8::2", 5),
    ("2001:db8::1", 6),
    ("fe80::1%eth0", 7),
    ("", 0),
    ("", 0),
]


def crowd() -> Relay:
    """Return a relay with nine connections of five keys; for each sort order some are equal."""
    relay = Relay()
    keys = [NodePrivate.generate().public for _ in range(5)]
    for i, peer in enumerate(PEERS):
        connection = relay.add(peer, key=keys[i % 5], connected_at=1000.0 - i // 2 * 600.5)
        connection.bytes_received = i * 7 % 5
        connection.bytes_sent = 10**12 - i * 10**11
        connection.packets_received = i // 2
        connection.packets_sent = i % 3
    return relay


def expected(relay: Relay, order: str) -> list[int]:
    values: dict[str, Any] = {
        "key": lambda c: c.key,
        "ip": _by_ip,
        "conn": lambda c: 0,
        "connected": lambda c: c.connected_at,
        "rx": lambda c: c.bytes_received,
        "tx": lambda c: c.bytes_sent,
        "rxpkts": lambda c: c.packets_received,
        "txpkts": lambda c: c.packets_sent,
    }
    value = values[order.removeprefix("-")]
    found = sorted(relay.clients, key=lambda c: (value(c), c.number), reverse=order[0] == "-")
    return [c.number for c in found]


def _by_ip(connection: Connection) -> int:
    """Order unknown addresses, then IPv4, then IPv6; each by value, then by port."""
    order = ["", "9.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "fe80::1%eth0"]
    return order.index(connection.peer[0]) * 10**5 + connection.peer[1]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 8, 9, 10, 100])
@pytest.mark.parametrize("order", [sign + sort for sort in SORTS for sign in ("", "-")])
def test_next_links_reach_every_connection_once_and_in_order(order: str, limit: int) -> None:
    relay = crowd()
    query = f"?all&sort={order}&limit={limit}"
    for pages in (list(relay.pages_as_json(query)), list(relay.pages_as_html(query))):
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert joined(pages) == expected(relay, order)
        assert len(pages) == -(-len(PEERS) // limit)


def test_the_default_is_a_hundred_per_page_in_order_of_keys() -> None:
    relay = Relay()
    for _ in range(230):
        relay.add()
    assert list(map(len, relay.pages_as_json("?all"))) == [100, 100, 30]
    assert joined(relay.pages_as_json("?all")) == expected(relay, "key")


def test_a_page_has_a_thousand_connections_at_most() -> None:
    relay = Relay()
    for _ in range(1001):
        relay.add()
    assert list(map(len, relay.pages_as_json("?all&limit=5000"))) == [1000, 1]


def test_paging_by_time_is_complete_while_the_clocks_drift_apart() -> None:
    """Wall clock and monotonic clock are never read at the same instant."""
    drift = iter(range(1000))
    view = bare(wall=lambda: NOON.timestamp() + 1e-4 * (next(drift) * 7919 % 13))
    relay = Relay(view)
    for i in range(12):
        relay.add(connected_at=900.0 + i * 1e-6)
    for query in ("?all&sort=connected&limit=1", "?all&sort=-connected&limit=1"):
        assert sorted(joined(relay.pages_as_json(query))) == list(range(1, 13))


def test_times_follow_a_change_of_the_wall_clock() -> None:
    now = [NOON.timestamp()]
    relay = Relay(bare(wall=lambda: now[0]))
    relay.add(connected_at=940.0)
    site_time = relay.json("?all")["clients"][0]["connectedAt"]
    assert site_time == "2030-01-01T11:59:00Z"
    now[0] += 3600
    assert relay.json("?all")["clients"][0]["connectedAt"] == "2030-01-01T12:59:00Z"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?ip=10.0.0.2", [2, 3]),
        ("?ip=::ffff:10.0.0.2", [2, 3]),
        ("?ip=2001:db8:0::1", [6]),
        ("?ip=fe80::1", []),
        ("?ip=fe80::1%25eth0", [7]),
        ("?cidr=10.0.0.0/31", [1]),
        ("?cidr=10.0.0.3/8", [1, 2, 3]),
        ("?cidr=8.0.0.0/5", [1, 2, 3, 4]),
        ("?cidr=0.0.0.0/0", [1, 2, 3, 4]),
        ("?cidr=::/0", [5, 6]),
        ("?cidr=::ffff:10.0.0.0/104", []),
        ("?cidr=2001:db8::2/128", [5]),
        ("?all=", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("?all&ip=&cidr=&key=", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_connections_are_filtered_by_address(query: str, found: list[int]) -> None:
    page = crowd().json(query + "&sort=conn")
    assert [row["connNum"] for row in page["clients"]] == found
    assert (page["conns"], page["remaining"]) == (len(found), 0)


def test_connections_are_filtered_by_key_and_the_zero_key_has_none() -> None:
    relay = crowd()
    key = relay.clients[0].public
    page = relay.json(f"?key={key}&sort=conn")
    assert [row["connNum"] for row in page["clients"]] == [1, 6]
    assert (page["query"], page["conns"], page["keys"]) == (f"connections for {key}", 2, 1)
    assert [row["active"] for row in page["clients"]] == [False, True]
    page = relay.json("?key=nodekey:" + 64 * "0")
    assert page == {
        "query": "connections for nodekey:" + 64 * "0",
        "conns": 0,
        "keys": 0,
        "remaining": 0,
        "clients": [],
    }


def test_connections_are_filtered_by_app_name() -> None:
    relay = Relay()
    for app in ("one", "two", "", "one"):
        relay.add(("10.0.0.1" if len(relay.clients) < 2 else "10.0.0.2", 1), app_name=app)
    assert relay.numbers("?app=one&sort=conn") == [1, 4]
    assert relay.numbers("?app=two&app=&app=none&sort=conn") == [2, 3]
    assert relay.numbers("?ip=10.0.0.2&app=one&sort=conn") == [4]
    assert relay.json("?app=two&app=")["query"] == "all clients with app two or (none)"
    page = relay.json("?app=one&app=&sort=conn&limit=2")
    assert page["next"] == "?after=3&all=1&app=one&app=&format=json&limit=2&sort=conn"
    assert (page["conns"], page["keys"], page["remaining"]) == (3, 3, 1)


@pytest.mark.parametrize(
    ("cursor", "found"),
    [
        ("sort=ip&after=10.0.0.2", [6, 5, 7]),
        ("sort=-ip&after=10.0.0.2", [1, 4, 9, 8]),
        ("sort=ip&after=10.0.0.2:2", [3, 6, 5, 7]),
        ("sort=ip&after=10.0.0.2:2&afterconn=1", [2, 3, 6, 5, 7]),
        ("sort=-ip&after=10.0.0.2:3&afterconn=3", [2, 1, 4, 9, 8]),
        ("sort=ip&after=unknown", [4, 1, 2, 3, 6, 5, 7]),
        ("sort=ip&after=unknown&afterconn=8", [9, 4, 1, 2, 3, 6, 5, 7]),
        ("sort=connected&after=15m", [3, 4, 1, 2]),
        ("sort=-connected&after=15m", [6, 5, 8, 7, 9]),
        ("sort=rxpkts&after=2", [7, 8, 9]),
        ("sort=-rxpkts&after=2", [4, 3, 2, 1]),
        ("sort=conn&after=7&afterconn=nothing", [8, 9]),
        ("afterconn=nothing&sort=conn", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_cursors_may_be_written_by_hand(cursor: str, found: list[int]) -> None:
    relay = crowd()
    page = relay.json("?all&" + cursor)
    assert [row["connNum"] for row in page["clients"]] == found
    assert (page["conns"], page["keys"]) == (9, 5)  # of the filter, not of the page


def test_a_key_as_cursor_skips_all_its_connections() -> None:
    relay = crowd()
    key = sorted(c.key for c in relay.clients)[4]
    after = next(c.public for c in relay.clients if c.key == key)
    behind = sorted((c.key, c.number) for c in relay.clients if c.key > key)
    assert behind
    assert relay.numbers(f"?all&after={after}") == [number for _, number in behind]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("?all&format=xml", 'bad format "xml"; want json or html'),
        ("?all&ip=1.2.3.4", "only one of all, ip, cidr, or key may be given"),
        ("?ip=x", 'bad ip "x": ParseAddr("x"): unable to parse IP'),
        ("?ip=1.2.3", 'bad ip "1.2.3": ParseAddr("1.2.3"): IPv4 address too short'),
        ("?ip=:x", 'bad ip ":x": ParseAddr(":x"): not an IPv6 address'),
        ("?cidr=1.2.3.4", 'bad cidr "1.2.3.4": netip.ParsePrefix("1.2.3.4"): no \'/\''),
        (
            "?cidr=::/129",
            'bad cidr "::/129": netip.ParsePrefix("::/129"): prefix length out of range',
        ),
        (
            "?key=zz",
            'bad key "zz": key hex string doesn\'t have expected type prefix nodekey:',
        ),
        ("?key=nodekey:ab", 'bad key "nodekey:ab": key hex has the wrong size, got 2 want 64'),
        ("?all&limit=0", 'bad limit "0"'),
        ("?all&limit=" + "9" * 5000, f'bad limit "{"9" * 5000}"'),
        (
            "?all&sort=age",
            'bad sort "age"; want key, ip, conn, connected, rx, tx, rxpkts, or txpkts, '
            "optionally with a leading -",
        ),
        (
            "?all&after=1",
            'bad after "1" for sort by key: key hex string doesn\'t have expected type prefix '
            "nodekey:",
        ),
        ("?all&sort=ip&after=x", 'bad after "x" for sort by ip: not an ip:port'),
        (
            "?all&sort=conn&after=x",
            'bad after "x" for sort by conn: strconv.ParseInt: parsing "x": invalid syntax',
        ),
        (
            "?all&sort=connected&after=soon",
            'bad after "soon" for sort by connected; want Unix nanoseconds or a duration',
        ),
        (
            "?all&sort=tx&after=-1",
            'bad after "-1" for sort by tx: strconv.ParseUint: parsing "-1": invalid syntax',
        ),
        (
            "?all&sort=tx&after=1&afterconn=x",
            'bad afterconn "x": strconv.ParseInt: parsing "x": invalid syntax',
        ),
        (
            "?ip=%0a%ff%e2%80%ae",
            r'bad ip "\n\xff\u202e": ParseAddr("\n\xff\u202e"): unable to parse IP',
        ),
    ],
)
def test_an_invalid_query_is_refused(query: str, text: str) -> None:
    response = crowd().get(query)
    assert response.status == 400
    assert response.body.decode() == text + "\n"
    assert dict(response.headers)["Content-Type"] == "text/plain; charset=utf-8"


def test_a_connection_is_listed_with_all_its_fields() -> None:
    relay = Relay()
    key = NodePrivate.generate().public
    first = relay.add(
        ("2001:db8::1", 4711),
        key=key,
        connected_at=1000.0 - 36_000.25,
        can_mesh=True,
        is_prober=True,
        not_ideal=True,
        app_name="<a> & é\u2028",
        version=2,
    )
    first.preferred = True
    first.packets_received, first.bytes_received = 1, 11
    first.packets_sent, first.bytes_sent = 2, 22
    first.received_from = {b"a", b"b", b"c"}
    body = relay.get("?all&format=json").body.decode()
    assert body == (
        '{\n\t"query": "all clients",\n\t"conns": 1,\n\t"keys": 1,\n\t"remaining": 0,\n'
        '\t"clients": [\n\t\t{\n'
        f'\t\t\t"connNum": 1,\n\t\t\t"key": "{key}",\n'
        '\t\t\t"remote": "[2001:db8::1]:4711",\n'
        '\t\t\t"connectedAt": "2030-01-01T01:59:59.75Z",\n'
        '\t\t\t"connected": 36000000000000,\n'
        '\t\t\t"active": true,\n\t\t\t"dup": false,\n\t\t\t"disabled": false,\n'
        '\t\t\t"home": true,\n\t\t\t"meshPeer": true,\n\t\t\t"notIdeal": true,\n'
        '\t\t\t"prober": true,\n\t\t\t"version": 2,\n'
        '\t\t\t"appName": "\\u003ca\\u003e \\u0026 é\\u2028",\n'
        '\t\t\t"rxPkts": 1,\n\t\t\t"rxBytes": 11,\n\t\t\t"txPkts": 2,\n\t\t\t"txBytes": 22,\n'
        '\t\t\t"senders": 3\n\t\t}\n\t]\n}\n'
    )
    html = relay.get("?all").body.decode()
    for text in (
        "<td>10h0m0s</td>",
        "<td>home mesh prober notideal</td>",
        f'<a href="?key=nodekey%3A{key.raw.hex()}">{key}</a>',
        '<a href="?ip=2001%3Adb8%3A%3A1">[2001:db8::1]:4711</a>',
        '">&lt;a&gt; &amp; é\\u2028</a>',
        '<td class="n">22</td>',
        "<th>senders</th>",
        '<a href="?all=1&amp;sort=-key">node key</a> ▲',
        '<a href="?all=1&amp;sort=-rx">rx bytes</a>',
    ):
        assert text in html, text
    assert "<a> &" not in html


def test_connections_of_one_key_are_marked() -> None:
    relay = Relay()
    key = NodePrivate.generate().public
    relay.add(key=key)
    relay.add(key=key)
    html = relay.get("?all&sort=-conn").body.decode()
    assert re.findall("<td>(dup[a-z-]*)</td>", html) == ["dup-active", "dup"]
    assert "Showing 2 of 2 matching connections (1 node keys)." in html
    assert '<a href="?all=1&amp;sort=conn">conn#</a> ▼' in html


def test_a_requester_with_the_key_has_it_in_all_links() -> None:
    relay = Relay(bare(access=Access(DebugAccess(key='a"&b'))))
    for _ in range(3):
        relay.add(("10.0.0.1", 1), app_name="x")
    secret = "debugkey=a%22%26b"
    index = relay.get(f"?{secret}", remote=OUTSIDER).body.decode()
    assert index.count('name="debugkey" value="a&quot;&amp;b"') == 5
    html = relay.get(f"?all&limit=1&{secret}", remote=OUTSIDER).body.decode()
    links = re.findall('href="(.*?)"', html)
    assert len(links) > 10
    assert all(secret in link for link in links)
    page = json.loads(relay.get(f"?all&limit=1&format=json&{secret}", remote=OUTSIDER).body)
    assert f"&{secret}&" in page["next"]
    assert relay.get("?all", remote=OUTSIDER).status == 403


def test_the_loop_runs_other_tasks_while_many_connections_are_listed() -> None:
    relay = Relay()
    for _ in range(5000):
        relay.add(("10.0.0.1", 1))

    async def main() -> int:
        turns, done = 0, asyncio.Event()

        async def others() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        answer = relay.site.answer(ask("/debug/clients/?all&sort=-ip&limit=1000"))
        assert isinstance(answer, StreamedResponse)
        body = b"".join([chunk async for chunk in answer.chunks])
        done.set()
        await task
        assert len(ROW.findall(body.decode())) == 1000
        return turns

    # 100 slices of the connections that are filtered, 20 of those that are shown
    assert asyncio.run(main()) >= 120


def test_a_connection_may_end_while_it_is_listed() -> None:
    relay = Relay()
    for _ in range(120):
        relay.add()

    async def main() -> bytes:
        answer = relay.site.answer(ask("/debug/clients/?all&format=json&sort=conn"))
        assert isinstance(answer, StreamedResponse)
        body = b""
        async for chunk in answer.chunks:
            if not body:
                for connection in relay.clients[:60]:
                    relay.view.router.leave(connection)
            body += chunk
        return body

    page = json.loads(asyncio.run(main()))
    assert [row["connNum"] for row in page["clients"]] == list(range(1, 101))
    # Connections that ended are no longer active for their key.
    assert [row["active"] for row in page["clients"]] == [False] * 60 + [True] * 40
