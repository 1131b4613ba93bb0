"""What the guide's bridge does with bytes and ends, in a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from pyderp.wsconn import WebSocketStream, net_conn

from .bridge import bridged

pytestmark = pytest.mark.both_loops
BOUND = 30.0
MEGABYTE = bytes(range(256)) * 4096

Handler = Callable[[WebSocketStream], Awaitable[None]]


@contextlib.asynccontextmanager
async def upstream(handle: Handler) -> AsyncIterator[str]:
    """The server that the bridge connects to; the handler has the stream's other end."""

    async def accept(websocket: ServerConnection) -> None:
        async with net_conn(websocket) as stream:
            await handle(stream)

    async with serve(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"ws://{host}:{port}/"


async def echo(stream: WebSocketStream) -> None:
    while data := await stream.read(65536):
        await stream.write(data)


async def test_bytes_go_both_ways(tmp_path: Path) -> None:
    """A megabyte each way, at the same time, in pieces of any size."""
    async with asyncio.timeout(BOUND), upstream(echo) as url, bridged(tmp_path, url) as there:

        async def write() -> None:
            for start in range(0, len(MEGABYTE), 50_000):
                await there.send(MEGABYTE[start : start + 50_000])

        writing = asyncio.create_task(write())
        found = bytearray()
        while len(found) < len(MEGABYTE):
            data = await there.recv()
            assert isinstance(data, bytes)
            found += data
        assert found == MEGABYTE
        await writing


async def test_the_peer_s_close_is_the_end_of_the_stream(tmp_path: Path) -> None:
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def to_the_end(stream: WebSocketStream) -> None:
        ended.set_result(await stream.read())

    async with (
        asyncio.timeout(BOUND),
        upstream(to_the_end) as url,
        bridged(tmp_path, url) as there,
    ):
        await there.send(b"all of it")
        await there.close()
        assert await ended == b"all of it"


async def test_the_end_of_the_stream_closes_the_websocket(tmp_path: Path) -> None:
    async def answer(stream: WebSocketStream) -> None:
        await stream.write(await stream.readexactly(4))

    async with (
        asyncio.timeout(BOUND),
        upstream(answer) as url,
        bridged(tmp_path, url) as there,
    ):
        await there.send(b"ping")
        assert await there.recv() == b"ping"
        with pytest.raises(ConnectionClosed) as caught:
            await there.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1000


async def test_a_stream_that_breaks_off_is_an_error_for_the_peer(tmp_path: Path) -> None:
    async def break_off(stream: WebSocketStream) -> None:
        await stream.readexactly(1)
        stream._websocket.transport.abort()

    async with (
        asyncio.timeout(BOUND),
        upstream(break_off) as url,
        bridged(tmp_path, url) as there,
    ):
        await there.send(b"x")
        with pytest.raises(ConnectionClosed) as caught:
            await there.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011


async def close_code(websocket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        await websocket.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


async def test_a_text_message_is_refused_with_its_close_code(tmp_path: Path) -> None:
    """And the program prints no traceback, which `bridged` looks for."""
    async with (
        asyncio.timeout(BOUND),
        upstream(echo) as url,
        bridged(tmp_path, url) as there,
    ):
        await there.send("text")
        assert await close_code(there) == 1003


async def test_a_missing_upstream_closes_with_1013(tmp_path: Path) -> None:
    async with upstream(echo) as url:
        pass  # closed then
    async with asyncio.timeout(BOUND), bridged(tmp_path, url) as there:
        assert await close_code(there) == 1013
