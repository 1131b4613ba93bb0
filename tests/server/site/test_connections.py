from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from pyderp.keys import NodePrivate
from pyderp.relay.backlog import Backlog
from pyderp.relay.limits import RateConfig, RateLimit
from pyderp.server.site.connections import connections_as_html, connections_as_json
from pyderp.server.site.view import RelayView

from .world import FakeAdmission, FakeLimits, FakeServed, bare, client


async def joined(view: RelayView) -> tuple[str, str]:
    html = [chunk async for chunk in connections_as_html(view, "?format=json")]
    data = [chunk async for chunk in connections_as_json(view)]
    return b"".join(html).decode(), b"".join(data).decode()


def show(view: RelayView) -> tuple[str, list[dict[str, Any]]]:
    """Return the table, and the rows of the JSON."""
    html, data = asyncio.run(joined(view))
    return html, json.loads(data)


def test_without_clients_the_table_is_empty() -> None:
    html, rows = show(bare(FakeServed()))
    assert rows == []
    assert "0 connections are logged in" in html
    assert '<a href="?format=json">' in html


def test_a_connection_is_listed_with_all_its_fields() -> None:
    key = NodePrivate.generate().public
    connection = client(
        7, key=key, peer=("2001:db8::1", 4711), connected_at=940.0, app_name="tailscaled"
    )
    connection.backlog = Backlog()
    for _ in range(3):
        connection.backlog.put(b"x" * 100, disco=False)
    connection.backlog.put(b"x" * 100, disco=True)
    view = bare(
        FakeServed(connection, is_websocket=True, tls_version="1.3"),
        admission=FakeAdmission(labels={key: "laptop"}),
        limits=FakeLimits(),
    )
    html, (row,) = show(view)
    assert row == {
        "number": 7,
        "short": key.short(),
        "key": str(key),
        "label": "laptop",
        "address": "[2001:db8::1]:4711",
        # the router's clock is 1000 at noon, and the login was a minute before
        "since": "2030-01-01T11:59:00+00:00",
        "app": "tailscaled",
        "flags": [],
        "over": "websocket, TLS 1.3",
        "received": None,
        "sent": None,
        "rtt_ms": None,
        "queued": 4,
        "limit": 1000,
    }
    for cell in (str(key), "laptop", "[2001:db8::1]:4711", "websocket, TLS 1.3", "–"):
        assert f"<td>{cell}</td>" in html


def test_flags_are_shown() -> None:
    connection = client(can_mesh=True, is_prober=True, not_ideal=True)
    connection.preferred = connection.is_dup = True
    html, (row,) = show(bare(FakeServed(connection)))
    assert row["flags"] == ["mesh", "prober", "home", "not-ideal", "duplicate"]
    assert "<td>mesh, prober, home, not-ideal, duplicate</td>" in html


def test_a_client_without_a_limit_is_shown_so() -> None:
    free, mesh, other = client(1), client(2, can_mesh=True), client(3)
    limits = FakeLimits(RateConfig(RateLimit(500, 70_000), {free.key: None}))
    served = [FakeServed(each) for each in (free, mesh, other)]
    _, rows = show(bare(*served, limits=limits))
    assert [row["limit"] for row in rows] == [None, None, 500]


def test_an_unknown_address_is_empty() -> None:
    _, (row,) = show(bare(FakeServed(client())))
    assert row["address"] == ""
    assert row["over"] == "plain"


def test_an_app_name_is_escaped() -> None:
    connection = client(app_name="<script>\n\x1b[31m\u202e")
    html, (row,) = show(bare(FakeServed(connection)))
    assert "<script>" not in html
    assert "<td>&lt;script&gt;\\n\\x1b[31m\\u202e</td>" in html
    assert row["app"] == "<script>\\n\\x1b[31m\\u202e"


def test_a_label_of_the_rate_limits_is_shown_unless_the_key_file_has_one() -> None:
    one, other = client(1), client(2)
    config = RateConfig(labels={one.key: "fast", other.key: "the office"})
    view = bare(
        FakeServed(one),
        FakeServed(other),
        limits=FakeLimits(config),
        admission=FakeAdmission(labels={one.public: "laptop"}),
    )
    html, rows = show(view)
    assert [row["label"] for row in rows] == ["laptop", "the office"]
    assert "<td>the office</td>" in html


def test_labels_are_escaped() -> None:
    connection = client()
    admission = FakeAdmission(labels={connection.public: "<i>&"})
    html, _ = show(bare(FakeServed(connection), admission=admission))
    assert "<td>&lt;i&gt;&amp;</td>" in html


def test_the_oldest_connection_comes_first() -> None:
    served = [FakeServed(client(number)) for number in (30, 10, 20)]
    html, rows = show(bare(*served, FakeServed()))
    assert [row["number"] for row in rows] == [10, 20, 30]
    assert "3 connections are logged in" in html


def test_the_loop_runs_other_tasks_while_ten_thousand_are_listed() -> None:
    served = [FakeServed(client(number)) for number in range(10_000)]
    view = bare(*served)

    async def main() -> tuple[int, int]:
        turns = 0
        done = False

        async def others() -> None:
            nonlocal turns
            while not done:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.get_running_loop().create_task(others())
        rows = 0
        async for chunk in connections_as_html(view, ""):
            rows += chunk.count(b"<tr><td>")
        done = True
        await task
        return rows, turns

    rows, turns = asyncio.run(main())
    assert rows == 10_000
    assert turns >= 100


async def test_a_reader_may_stop_in_the_middle() -> None:
    served = [FakeServed(client(number)) for number in range(300)]

    for stream in (connections_as_html(bare(*served), ""), connections_as_json(bare(*served))):
        async with aclosing(stream) as chunks:
            assert await anext(chunks)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


def test_a_connection_may_end_while_it_is_listed() -> None:
    served = [FakeServed(client(number)) for number in range(150)]

    async def main() -> bytes:
        out = b""
        async for chunk in connections_as_json(bare(*served)):
            out += chunk
            for each in served[120:]:
                each.connection = None
        return out

    assert len(json.loads(asyncio.run(main()))) == 120
