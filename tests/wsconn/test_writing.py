"""Bytes become messages; attributes of a stream."""

from __future__ import annotations

import asyncio

import pytest
from websockets.frames import Opcode

from pyderp.errors import ConnectionClosed, LocalProtocolError
from pyderp.wsconn import GO_READ_LIMIT, net_conn

from .peers import Role, connected, stream


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
async def test_a_write_is_one_message(role: Role, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    async with stream(role) as (writing, peer):
        await writing.write(data)
        await writing.send(b"next")
        assert await peer.message() == (Opcode.BINARY, data)
        assert await peer.message() == (Opcode.BINARY, b"next")


async def test_a_write_of_text_is_a_text_message(role: Role) -> None:
    async with stream(role, binary=False) as (writing, peer):
        await writing.write("aé𝄞".encode())
        await writing.write(b"")
        assert await peer.message() == (Opcode.TEXT, "aé𝄞".encode())
        assert await peer.message() == (Opcode.TEXT, b"")


async def test_an_object_that_is_no_text_is_refused_and_nothing_is_sent(role: Role) -> None:
    async with stream(role, binary=False, max_message=4) as (writing, peer):
        with pytest.raises(UnicodeDecodeError):
            await writing.write("aaaaaaaé".encode()[:-1])
        await writing.write(b"ok")
        assert await peer.message() == (Opcode.TEXT, b"ok")


async def test_all_kinds_of_buffers_are_written(role: Role) -> None:
    async with stream(role) as (writing, peer):
        buffer = bytearray(b"abcd")
        await writing.write(buffer)
        buffer[:] = b"----"  # what was sent is a copy
        await writing.write(memoryview(b"xabcdx")[1:-1])
        await writing.write(memoryview(b"abcd").cast("H"))
        for _ in range(3):
            assert await peer.message() == (Opcode.BINARY, b"abcd")


@pytest.mark.parametrize(
    ("size", "sizes"), [(0, [0]), (5, [5]), (6, [5, 1]), (10, [5, 5]), (11, [5, 5, 1])]
)
async def test_max_message_splits(size: int, sizes: list[int]) -> None:
    async with stream(max_message=5) as (writing, peer):
        data = bytes(range(size))
        await writing.write(data)
        await writing.write(b"end")
        got = [(await peer.message())[1] for _ in sizes]
        assert [len(part) for part in got] == sizes
        assert b"".join(got) == data
        assert (await peer.message())[1] == b"end"


async def test_max_message_splits_text_between_characters() -> None:
    async with stream(binary=False, max_message=4) as (writing, peer):
        await writing.write("aaé𝄞éaaéa𝄞".encode())
        got = [(await peer.message())[1].decode() for _ in range(5)]
        assert got == ["aaé", "𝄞", "éaa", "éa", "𝄞"]


async def test_max_message_has_room_for_a_character() -> None:
    async with connected("client") as (websocket, _):
        with pytest.raises(ValueError, match="at least 4"):
            net_conn(websocket, max_message=3)
        net_conn(websocket, max_message=4)
        assert GO_READ_LIMIT == 32768


async def test_reads_and_writes_go_on_at_the_same_time(role: Role) -> None:
    async with stream(role) as (both, peer):
        read = asyncio.create_task(both.read(10))
        await both.write(b"ping")
        assert await peer.message() == (Opcode.BINARY, b"ping")
        peer.binary(b"pong")
        assert await read == b"pong"


async def test_concurrent_writes_are_an_error(role: Role) -> None:
    async with stream(role) as (writing, peer):
        size = 16 << 20
        first = asyncio.create_task(writing.write(bytes(size)))
        await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="concurrent"):
            await writing.write(b"second")
        assert len((await peer.message())[1]) == size
        await first
        await writing.write(b"third")
        assert (await peer.message())[1] == b"third"


async def test_a_cancelled_write_is_still_sent(role: Role) -> None:
    async with stream(role) as (writing, peer):
        size = 16 << 20
        task = asyncio.create_task(writing.write(bytes(size)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        following = asyncio.create_task(writing.write(b"next"))
        assert len((await peer.message())[1]) == size
        assert (await peer.message())[1] == b"next"
        await following


async def test_a_write_that_was_blocked_when_tcp_broke_fails(role: Role) -> None:
    async with stream(role) as (writing, peer):
        task = asyncio.create_task(writing.write(bytes(16 << 20)))
        await asyncio.sleep(0)
        peer.drop()
        with pytest.raises(ConnectionClosed):
            await task


async def test_the_network_and_addresses_of_a_stream(role: Role) -> None:
    async with stream(role) as (unknown, _):
        assert unknown.network == "websocket"
        assert unknown.remote_address == "websocket/unknown-addr"
        assert unknown.local_address == "websocket/unknown-addr"
    async with stream(role, remote_address="wss://relay.test/derp") as (known, _):
        assert known.remote_address == "wss://relay.test/derp"
        assert known.local_address == "websocket/unknown-addr"
