"""Streams between pyderp and Go's `net/wsconn`, in both roles."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from websockets.exceptions import ConnectionClosed as WebSocketClosed

from pyderp.errors import ConnectionClosed, RemoteProtocolError
from pyderp.wsconn import GO_READ_LIMIT, Scope, WebSocketConnection, net_conn

from .gowsconn import Role, connected

MEGABYTE = 1 << 20
KINDS = ["binary", "text"]


@pytest.fixture(params=["client", "server"])
def role(request: pytest.FixtureRequest) -> Role:
    """Which side pyderp is."""
    return "client" if request.param == "client" else "server"


def letters(size: int) -> bytes:
    """Bytes that are text, in which a misplaced one shows."""
    return bytes(97 + i * 104729 // 7 % 26 for i in range(size))


def close_frame_of(error: BaseException) -> tuple[int, str] | None:
    """Code and reason of the peer's close."""
    cause = error.__cause__
    assert isinstance(cause, WebSocketClosed)
    return None if cause.rcvd is None else (cause.rcvd.code, cause.rcvd.reason)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_megabyte_passes_each_way_at_the_same_time(role: Role, kind: str) -> None:
    data = letters(MEGABYTE)
    steps = (f"pump:{MEGABYTE}", f"read:{MEGABYTE}", "pumped", "readall")
    async with connected(role, kind, *steps) as (websocket, go):
        stream = net_conn(websocket, binary=kind == "binary", max_message=GO_READ_LIMIT)

        async def write() -> None:
            start, size = 0, 1
            while start < len(data):
                await stream.write(data[start : start + size])
                start += size
                size = size * 3 % 100_003

        writing = asyncio.create_task(write())
        got = hashlib.sha256()
        left, size = MEGABYTE, 1
        while left:
            part = await stream.read(min(size, left))
            assert part
            got.update(part)
            left -= len(part)
            size = size * 5 % 10_007
        await writing
        await stream.aclose()
        _, read, pumped, end = await go.saw()
        assert read["sha256"] == hashlib.sha256(data).hexdigest()
        assert pumped["sha256"] == got.hexdigest()
        assert end["eof"]


@pytest.mark.parametrize("kind", KINDS)
async def test_empty_messages_are_read_by_go(role: Role, kind: str) -> None:
    async with connected(role, kind, "write:0,3,0,0,2,0", "readall") as (websocket, go):
        stream = net_conn(websocket, binary=kind == "binary")
        for data in (b"", b"abc", b"", b"de"):
            await stream.write(data)
        assert [len(await stream.read(10)) for _ in range(2)] == [3, 2]
        await stream.aclose()
        seen = await go.last()
        # Go reports the end of each message, and of an empty one only that.
        assert seen["reads"] == [0, 3, 0, 0, 2, 0, 0]
        assert seen["eof"]


async def test_fragments_are_read_as_they_come(role: Role) -> None:
    steps = ("fragments:3,0,2", "write:4", "readall")
    async with connected(role, "binary", *steps) as (websocket, go):
        stream = net_conn(websocket)
        assert [len(await stream.read(10)) for _ in range(3)] == [3, 2, 4]
        await stream.aclose()
        assert (await go.last())["eof"]


# Types


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_type_from_go_is_refused(role: Role, kind: str) -> None:
    other = "text" if kind == "binary" else "binary"
    steps = ("write:3", f"message:{other}:wrong", "readall")
    async with connected(role, kind, *steps) as (websocket, go):
        stream = net_conn(websocket, binary=kind == "binary")
        assert len(await stream.read(10)) == 3
        with pytest.raises(RemoteProtocolError, match="unexpected frame type") as caught:
            await stream.read(10)
        seen = await go.last()
        assert seen["status"] == 1003
        assert str(caught.value) in seen["error"]


@pytest.mark.parametrize("kind", KINDS)
async def test_go_refuses_the_wrong_type_with_the_same_text(role: Role, kind: str) -> None:
    async with connected(role, kind, "readall") as (websocket, go):
        stream = net_conn(websocket, binary=kind != "binary")
        await stream.write(b"wrong")
        with pytest.raises(ConnectionClosed) as caught:
            await stream.read(10)
        names = {"binary": "MessageBinary", "text": "MessageText"}
        other = "text" if kind == "binary" else "binary"
        words = f"unexpected frame type read (expected {names[kind]}): {names[other]}"
        assert close_frame_of(caught.value) == (1003, words)
        assert (await go.last())["error"] == words


# Closing


@pytest.mark.parametrize("step", ["close", "close:1000:bye", "close:1001:away"])
async def test_the_end_of_go_is_the_end_of_the_stream(role: Role, step: str) -> None:
    async with connected(role, "binary", "write:3", step) as (websocket, go):
        stream = net_conn(websocket)
        assert len(await stream.read()) == 3
        for _ in range(2):
            assert await stream.read(1) == b""
        assert "error" not in await go.last()
        await stream.aclose()


@pytest.mark.parametrize("code", [1008, 1011, 3000])
async def test_another_close_code_of_go_is_an_error(role: Role, code: int) -> None:
    async with connected(role, "binary", f"close:{code}:why") as (websocket, go):
        with pytest.raises(ConnectionClosed, match=f"{code}.*why") as caught:
            await net_conn(websocket).read(1)
        assert close_frame_of(caught.value) == (code, "why")
        assert "error" not in await go.last()


async def test_a_close_is_the_end_for_go(role: Role) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        await net_conn(websocket).aclose()
        assert (await go.last())["eof"]


@pytest.mark.parametrize(("code", "eof"), [(1001, True), (1011, False)])
async def test_another_close_code_is_an_error_for_go(role: Role, code: int, eof: bool) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        await websocket.close(code, "why")
        seen = await go.last()
        assert seen.get("eof", False) is eof
        assert eof or seen["status"] == code


async def test_both_may_close_at_once(role: Role) -> None:
    async with connected(role, "binary", "close") as (websocket, go):
        await net_conn(websocket).aclose()
        await go.last()


# Dropping


BARE_END = "failed to get reader: failed to read frame header: EOF"


async def test_a_deadline_of_pyderp_in_a_read_drops_the_connection(role: Role) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        stream = net_conn(websocket)
        stream.set_read_deadline(asyncio.get_running_loop().time() + 0.03)
        with pytest.raises(TimeoutError):
            await stream.read(1)
        seen = await go.last()
        assert (seen["error"], seen["status"]) == (BARE_END, -1)


async def test_a_deadline_of_go_in_a_read_drops_the_connection(role: Role) -> None:
    steps = ("write:3", "deadline:30", "readall", "readall")
    async with connected(role, "binary", *steps) as (websocket, go):
        stream = net_conn(websocket)
        assert len(await stream.read(10)) == 3
        with pytest.raises(ConnectionClosed) as caught:
            await stream.read(10)
        assert close_frame_of(caught.value) is None
        assert "i/o timeout" in (await go.last())["error"]


async def test_the_end_of_the_scope_drops_the_connection(role: Role) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        with Scope() as scope:
            net_conn(websocket, scope=scope)
        assert (await go.last())["error"] == BARE_END


async def test_cancelled_reads_lose_no_byte_of_go(role: Role) -> None:
    steps = (f"pump:{MEGABYTE}", "pumped", "close")
    async with connected(role, "binary", *steps) as (websocket, go):
        stream = net_conn(websocket)
        got = bytearray()
        ended = False
        while not ended:
            reading = asyncio.create_task(stream.read(5000))
            await asyncio.sleep(0)
            reading.cancel()
            try:
                part = await reading
            except asyncio.CancelledError:
                continue
            got += part
            ended = not part
        seen = (await go.saw())[1]
        assert (seen["bytes"], seen["sha256"]) == (
            MEGABYTE,
            hashlib.sha256(got).hexdigest(),
        )


# Sizes


async def sends(websocket: WebSocketConnection, size: int) -> None:
    """Send one message of this many bytes."""
    await net_conn(websocket).write(bytes(size))


async def test_go_takes_32769_bytes_and_not_one_more(role: Role) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        await sends(websocket, 32769)
        await sends(websocket, 32770)
        with pytest.raises(ConnectionClosed) as caught:
            await net_conn(websocket).read(1)
        assert close_frame_of(caught.value) == (1009, "read limited at 32769 bytes")
        assert "read limited at 32769 bytes" in (await go.last())["error"]


async def test_split_writes_pass_gos_limit(role: Role) -> None:
    async with connected(role, "binary", "readall") as (websocket, go):
        data = letters(200_000)
        stream = net_conn(websocket, max_message=GO_READ_LIMIT)
        await stream.write(data)
        await stream.aclose()
        seen = await go.last()
        assert seen["eof"]
        assert seen["sha256"] == hashlib.sha256(data).hexdigest()
