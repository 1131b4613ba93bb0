from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

import pytest

import pyderp
from pyderp import RelayConfig
from pyderp.server.site.connections import traffic
from pyderp.wire.messages import ReceivedPacket
from tests.server import dial
from tests.waiting import until

from .world import FakeServed, bare, client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO")

Line = dict[str, Any]


def lines(data: bytes) -> list[Line]:
    return [json.loads(line) for line in data.splitlines() if line]


class Rounds:
    """Reads the rounds of a relay's `/debug/traffic`: a line of JSON for each key."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> dict[str, Line]:
        found: dict[str, Line] = {}
        while True:
            size = int(await self._reader.readline(), 16)
            chunk = (await self._reader.readexactly(size + 2))[:-2]
            if chunk == b"\n":
                return found
            found.update((line["Key"], line) for line in lines(chunk))


@pytest.mark.parametrize("via", ["plain", "websocket"])
async def test_busy_clients_are_listed_until_the_reader_leaves(
    via: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyderp.server.site.connections._PERIOD", 0.05)

    way = dial.Via(websocket=via == "websocket")
    async with pyderp.Relay() as relay, dial.clients(relay, 3, via=way) as (a, b, c):
        for sender in (a, c):
            sender.send(b, bytes(1000))
            assert isinstance(await b.wait_for(ReceivedPacket), ReceivedPacket)
        reader, writer = await asyncio.open_connection(*relay.address)
        writer.write(b"GET /debug/traffic HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        rounds = Rounds(reader)
        first = await rounds.next()
        assert set(first) == {str(each.key) for each in (a, b, c)}
        assert first[str(b.key)]["UniqueSenders"] == 2
        assert "UniqueSenders" not in first[str(a.key)]
        assert first[str(b.key)]["Sent"] > 2000
        assert first[str(a.key)]["Recv"] > 1000
        a.send(b, bytes(500))
        await b.wait_for(ReceivedPacket)
        second: dict[str, Line] = {}
        while len(second) < 2:
            second |= await rounds.next()
        assert set(second) == {str(a.key), str(b.key)}
        growth = second[str(a.key)]["Recv"] - first[str(a.key)]["Recv"]
        assert 500 < growth < 600
        await dial.hang_up(writer)
        await until(lambda: not relay._running()._tasks)


async def test_a_relay_that_stops_ends_the_stream() -> None:
    async with pyderp.Relay() as relay:
        reader, writer = await asyncio.open_connection(*relay.address)
        writer.write(b"GET /debug/traffic HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert not (await dial.drained(reader)).endswith(b"0\r\n\r\n")  # cut, not ended
    await dial.hang_up(writer)


async def test_a_client_without_a_tcp_connection_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyderp.server.site.connections._PERIOD", 0)

    view = bare(FakeServed(client()), FakeServed())
    async with aclosing(traffic(view)) as chunks:
        assert [await anext(chunks) for _ in range(3)] == [b"\n"] * 3


async def test_the_stream_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyderp.server.site.connections._PERIOD", 3600)

    async def read() -> None:
        async with aclosing(traffic(bare())) as chunks:
            async for _ in chunks:
                waiting.set()

    waiting = asyncio.Event()
    task = asyncio.get_running_loop().create_task(read())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("senders", [0, 1, 5, 100])
async def test_unique_senders_are_exact(senders: int) -> None:
    async with pyderp.Relay() as relay, dial.clients(relay, 1) as (receiver,):
        core = relay._running()
        (connection,) = core.router.registry.connections()
        for number in range(senders):
            for _ in range(2):
                core.router.registry.remember(number.to_bytes(32, "big"), connection)
        view = bare(router=core.router, protocols=core.protocols)
        async with aclosing(traffic(view)) as chunks:
            (line,) = lines(await anext(chunks))
        assert line.get("UniqueSenders", 0) == senders
        view.config = RelayConfig(sender_cardinality=False)
        async with aclosing(traffic(view)) as chunks:
            (line,) = lines(await anext(chunks))
        assert "UniqueSenders" not in line
        assert line["Key"] == str(receiver.key)
