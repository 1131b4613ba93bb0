"""`/debug/clients/` beside that of a real `derper` v1.104: same answers to the same requests."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from html import unescape
from typing import Any, Final

import pytest

from pyderp.keys import MeshKey, NodePrivate
from tests.interop.relays import MESH_KEY, NEWER, Kind, Relay, running
from tests.server import dial

from .support import Answer, ask, request

PAIR: Final[tuple[Kind, Kind]] = (NEWER, "pyderp")
KEYS: Final = [NodePrivate(bytes([number]) * 32) for number in range(1, 6)]
PUBLIC: Final = [str(private.public) for private in KEYS]
ZERO: Final = "nodekey:" + 64 * "0"
ZERO_QUERY: Final = f"?key={ZERO}&format=json"
SORTS: Final = ("key", "ip", "conn", "connected", "rx", "tx", "rxpkts", "txpkts")


@dataclass
class Pair:
    """Both relays with the same clients, and their answers."""

    answers: dict[Kind, dict[str, Answer]]
    """By relay and target."""

    def both(self, query: str) -> tuple[Answer, Answer]:
        theirs, ours = (self.answers[kind][query] for kind in PAIR)
        return theirs, ours


ERRORS: Final = (
    "?all&format=xml",
    "?format=XML",
    "?all&ip=127.0.0.1",
    "?ip=127.0.0.1&key=" + PUBLIC[0],
    "?all=&all=2&cidr=127.0.0.0/8",
    *(f"?ip={text}" for text in ("x", "1.2.3", "1.2.3.4.5", "1.2.3.", ".1.2.3", "1.2.3.400")),
    *(
        f"?ip={text}"
        for text in ("1.2.3.04", "1.2.x.4", "%25eth0", "1..2", "x%22%0a%ff", "%e2%80%a8.")
    ),
    *(f"?cidr={text}" for text in ("10.0.0.0", "x/8", "10.0.0.0/33", "::/129", "::/08", "::/+8")),
    *(f"?cidr={text}" for text in ("fe80::1%25eth0/64", "10.0.0.0/", "/", "10.0.0.0/8/9")),
    *(f"?key={text}" for text in ("zz", "nodekey:", "nodekey:00", PUBLIC[0][:-1] + "g")),
    "?key=privkey:" + 64 * "0",
    *(f"?all&limit={text}" for text in ("0", "-1", "x", "1.5", "9" * 30, "0x10", "1_0")),
    *(f"?all&sort={text}" for text in ("age", "-", "--key", "KEY", "-age", "+key")),
    "?all&after=zz",
    *(f"?all&sort=ip&after={text}" for text in ("x", "1.2.3.4:x", "1.2.3.4:70000", "[1.2.3.4]:1")),
    *(f"?all&sort=ip&after={text}" for text in ("[::1:1", ":1", "1.2.3.4:", "::1:1:", "1.2.3:1")),
    *(f"?all&sort=conn&after={text}" for text in ("x", "1.5", "9" * 30, "-9223372036854775809")),
    *(
        f"?all&sort=connected&after={text}"
        for text in ("soon", "1", "5x", "1.h.", "h", "-", "9" * 30)
    ),
    *(f"?all&sort={sort}&after=-1" for sort in SORTS[4:]),
    "?all&sort=rx&after=18446744073709551616",
    "?all&after=" + PUBLIC[0] + "&afterconn=x",
    "?all&after=" + PUBLIC[0] + "&afterconn=9223372036854775808",
)
"""Most of these are wrong; two are valid in spite of their looks."""

LISTS: Final = (
    "?all",
    "?all=0",
    *(f"?all&sort={sign}{sort}" for sort in SORTS for sign in ("", "-")),
    "?ip=127.0.0.1&sort=conn",
    "?ip=::ffff:127.0.0.1",
    "?ip=127.0.0.9",
    "?ip=::1",
    "?cidr=127.0.0.1/8",
    "?cidr=::ffff:127.0.0.0/104",
    "?cidr=2001:db8:0:1:ffff::/70",
    "?cidr=0.0.0.0/0",
    "?ip=&cidr=&key=&all",
    "?key=" + PUBLIC[1] + "&sort=conn",
    "?key=" + PUBLIC[1].upper().replace("NODEKEY", "nodekey"),
    "?key=nodekey:" + 64 * "a",
    "?app=",
    "?app=my+app",
    "?app=my%20app&app=&sort=conn",
    "?app=nothing&app=%3Cb%3E%26%22",
    "?cidr=127.0.0.0/8&app=my+app",
    "?all&sort=conn&limit=2",
    "?all&sort=-conn&limit=%2B2",
    "?all&sort=key&limit=1&app=my+app&app=",
    "?all&limit=5000",
    "?all&sort=ip&after=127.0.0.1",
    "?all&sort=-ip&after=127.0.0.1",
    "?all&sort=-ip&after=127.0.0.2",
    "?all&sort=ip&after=::1",
    "?all&sort=connected&after=0",
    "?all&sort=-connected&after=0",
    "?all&sort=connected&after=1h30m",
    "?all&sort=-connected&after=1.5h",
    "?all&sort=rx&after=0",
    "?all&sort=rxpkts&after=1",
    "?all&sort=tx&after=100&afterconn=0",
    "?all&sort=key&after=" + PUBLIC[2],
    "?all&sort=key&after=" + PUBLIC[2] + "&afterconn=0",
    "?all&sort=-key&after=" + PUBLIC[2] + "&afterconn=99999",
    "?all&sort=conn&after=0&afterconn=x",
    "?all&afterconn=x",
    "?all;x&app=my+app",
    "?all&app=%zz",
)
"""Answered with a list."""

INDEX: Final = ("", "?", "?format=html", "?sort=nonsense&limit=0", "?ip=", "?other", "?al%6g")


def json_of(query: str) -> str:
    return query + ("&" if "?" in query else "?") + "format=json"


def targets() -> list[str]:
    lists = [*LISTS, *map(json_of, LISTS), *INDEX, json_of("")]
    return [*ERRORS, *lists, "below/it?all", ZERO_QUERY]


async def log_in(relay: Relay, stack: AsyncExitStack) -> None:
    """Five keys, of which one has two connections, and a little traffic."""
    address = relay.address, relay.port
    more: list[dict[str, Any]] = [
        {"app_name": "my app"},
        {},
        {"is_prober": True},
        {"mesh_key": MeshKey(bytes.fromhex(MESH_KEY))},
        {"app_name": '<b>&"'},
    ]
    clients = []
    for number in (0, 1, 2, 3, 4, 1):
        client = await dial.connect(address, private=KEYS[number], **more[number])
        stack.push_async_callback(client.aclose)
        clients.append(client)
    a, _, prober, mesh, c, b = clients
    for size in (1, 20, 300):
        a.send(b, bytes(size))
        assert len(await b.packet()) == size
    prober.send(a, b"12345")
    assert await a.packet() == b"12345"
    mesh.session.forward_packet(prober.key, c.key, bytes(77))
    mesh.write()
    assert len(await c.packet()) == 77
    a.session.note_preferred(True)
    for client in (a, mesh):
        client.write()
        await client.ping()


async def answers_of(relay: Relay) -> dict[str, Answer]:
    async with AsyncExitStack() as stack:
        await log_in(relay, stack)
        address = relay.address, relay.port

        def fetch() -> dict[str, Answer]:
            wanted = [f"/debug/clients/{query}" for query in targets()]
            found = {t.removeprefix("/debug/clients/"): ask(address, request(t)) for t in wanted}
            for target, headers in (
                ("/debug/clients", ()),
                ("/debug/clients?all", ()),
                ("/debug/clients/?all", ("X-Forwarded-For: 127.0.0.1",)),
            ):
                found[f"{target}{headers}"] = ask(address, request(target, *headers))
            found["POST"] = ask(address, request("/debug/clients/?app=", method="POST"))
            found["index"] = ask(address, request("/debug/"))
            return found

        return await asyncio.to_thread(fetch)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    answers: dict[Kind, dict[str, Answer]] = {}
    with ExitStack() as stack:
        for kind in PAIR:
            directory = tmp_path_factory.mktemp(f"clients-{kind}")
            relay = stack.enter_context(running(kind, "plain", directory))
            answers[kind] = asyncio.run(answers_of(relay))
    return Pair(answers)


def headers(answer: Answer) -> dict[str, str]:
    # pyderp forbids to store any debug page, since its address may contain the key.
    unlike = {"date", "content-length", "connection", "transfer-encoding", "cache-control"}
    return {name: text for name, text in answer.headers.items() if name not in unlike}


@pytest.mark.parametrize("query", ERRORS)
def test_both_refuse_a_bad_request_with_the_same_text(pair: Pair, query: str) -> None:
    theirs, ours = pair.both(query)
    assert ours.status == theirs.status
    assert headers(ours) == headers(theirs)
    if theirs.status == 400:
        assert ours.body == theirs.body


def test_most_of_these_requests_are_wrong(pair: Pair) -> None:
    fine = {query for query in ERRORS if pair.both(query)[0].status == 200}
    assert fine == {"?all&sort=connected&after=1"}


NUMBERS: Final = re.compile(r'"connNum": (\d+)')


def normal(body: bytes) -> str:
    """JSON with the numbers of connections in order, without times and ports."""
    text = body.decode()
    order = {text: i for i, text in enumerate(sorted(set(NUMBERS.findall(text)), key=int))}
    text = NUMBERS.sub(lambda match: f'"connNum": #{order[match[1]]}', text)
    text = re.sub(
        r'"connectedAt": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z"',
        '"connectedAt": T',
        text,
    )
    text = re.sub(r'"connected": \d+000000000,|"connected": 0,', '"connected": N,', text)
    text = re.sub(r"(127\.0\.0\.1(?::|%3A))\d+", r"\1PORT", text)
    text = re.sub(r"after=\d{19}\\", r"after=TIME\\", text)
    text = re.sub(r"(afterconn=)\d+", r"\1N", text)
    text = re.sub(r"after=\d+(\\u0026(?:all|app)=[^\"]*sort=-?conn\b)", r"after=N\1", text)
    # derper counts senders only on demand, and then approximately.
    return re.sub(r'"senders": \d+', '"senders": 0', text)


@pytest.mark.parametrize("query", LISTS)
def test_json_is_the_same_byte_by_byte(pair: Pair, query: str) -> None:
    theirs, ours = pair.both(json_of(query))
    assert ours.status == theirs.status == 200
    assert headers(ours) == headers(theirs)
    assert normal(ours.body) == normal(theirs.body)


ROW: Final = re.compile(r"<tr>\s*<td>(\d+)</td>(.*?)</tr>", re.DOTALL)
LINK: Final = re.compile(r'<a href="([^"]*)">Next page</a> \((\d+) more\)')


def seen(body: bytes) -> dict[str, Any]:
    """The text of a table that a browser shows."""
    text = body.decode()
    rows = ROW.findall(text)
    order = {number: i for i, number in enumerate(sorted((n for n, _ in rows), key=int))}
    summary = re.search(r"Showing \d+ of \d+ matching connections \(\d+ node keys\)\.", text)
    assert summary, text
    cells = [
        [order[number], *(unescape(re.sub("<[^>]*>", "", cell)) for cell in row.split("</td>"))]
        for number, row in rows
    ]
    columns = re.findall(r"<th>(.*?)</th>", text)
    return {
        "summary": summary[0],
        "columns": [re.sub("<[^>]*>", "", column) for column in columns],
        "sorts": sorted(
            unescape(link) for column in columns for link in re.findall('"(.*?)"', column)
        ),
        "more": [more for _, more in LINK.findall(text)],
        # Without times, addresses and senders.
        "rows": [
            [str(cell).strip() for i, cell in enumerate(row) if i not in (2, 3, 11)]
            for row in cells
        ],
    }


@pytest.mark.parametrize("query", LISTS)
def test_the_page_shows_the_same(pair: Pair, query: str) -> None:
    theirs, ours = pair.both(query)
    assert ours.status == theirs.status == 200
    assert headers(ours) == headers(theirs)
    assert seen(ours.body) == seen(theirs.body)


@pytest.mark.parametrize("query", INDEX)
def test_without_a_filter_there_is_a_form(pair: Pair, query: str) -> None:
    theirs, ours = pair.both(query)
    assert ours.status == theirs.status == 200
    assert headers(ours) == headers(theirs)
    for answer in (theirs, ours):
        text = answer.body.decode()
        assert "6 connections for 5 node keys." in text
        assert set(re.findall('name="([a-z]+)"', text)) == {"all", "ip", "cidr", "key", "app"}


def test_without_a_filter_json_has_two_numbers(pair: Pair) -> None:
    theirs, ours = pair.both(json_of(""))
    assert ours.body == theirs.body == b'{"conns":6,"keys":5}\n'
    assert headers(ours) == headers(theirs)


def test_paths_below_it_are_the_same_page(pair: Pair) -> None:
    theirs, ours = pair.both("below/it?all")
    assert seen(ours.body) == seen(theirs.body)


def test_the_page_is_linked_and_refused_from_other_addresses(pair: Pair) -> None:
    for target in ("/debug/clients()", "/debug/clients?all()"):
        theirs, ours = pair.both(target)
        assert (ours.status, ours.headers["location"]) == (
            theirs.status,
            theirs.headers["location"],
        )
        assert ours.status == 307
    theirs, ours = pair.both("/debug/clients/?all('X-Forwarded-For: 127.0.0.1',)")
    assert ours.status == theirs.status == 403
    theirs, ours = pair.both("POST")
    assert seen(ours.body) == seen(theirs.body)
    theirs, ours = pair.both("index")
    for answer in (theirs, ours):
        assert re.search(r'href="/debug/clients/">.*\(Connected clients\)', answer.body.decode())


def test_the_zero_key_has_no_connections(pair: Pair) -> None:
    """derper lists all connections under that key."""
    theirs, ours = (json.loads(answer.body) for answer in pair.both(ZERO_QUERY))
    assert ours["query"] == theirs["query"] == f"connections for {ZERO}"
    assert (theirs["conns"], len(theirs["clients"])) == (6, 6)
    assert ours == {**theirs, "conns": 0, "keys": 0, "clients": []}
