"""How a stream ends when the peer, or the network, ends it."""

from __future__ import annotations

import asyncio
import struct

import pytest
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.frames import Opcode

from pyderp.errors import ConnectionClosed, DerpError, RemoteProtocolError
from pyderp.wsconn import WebSocketStream

from .peers import Role, stream


async def fails(
    reading: WebSocketStream, kind: type[DerpError], text: str | None = None
) -> DerpError:
    """Each read raises `kind`, and writes fail as well."""
    with pytest.raises(kind, match=text) as caught:
        await reading.read(10)
    assert type(caught.value) is kind
    with pytest.raises(kind):
        await reading.read()
    with pytest.raises(DerpError):
        await reading.write(b"x")
    assert not reading.at_eof()
    return caught.value


@pytest.mark.parametrize("code", [1000, 1001])
async def test_1000_and_1001_are_the_end(role: Role, code: int) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"abc")
        peer.close(code, "bye")
        peer.binary(b"after the end")
        peer.hang_up()
        assert await reading.read(10) == b"abc"
        for _ in range(3):
            assert await reading.read(10) == b""
        with pytest.raises(ConnectionClosed, match=str(code)):
            await reading.write(b"x")
        await reading.aclose()
        assert await reading.read(10) == b""


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1011, 3000, 4999])
async def test_other_codes_are_errors_with_code_and_reason(role: Role, code: int) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"abc")
        peer.close(code, "out of luck")
        peer.hang_up()
        assert await reading.read(10) == b"abc"
        error = await fails(reading, ConnectionClosed, f"{code}.*out of luck")
        cause = error.__cause__
        assert isinstance(cause, WebSocketClosed)
        assert cause.rcvd is not None
        assert (cause.rcvd.code, cause.rcvd.reason) == (code, "out of luck")


async def test_a_close_without_a_code_is_an_error(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.close(None)
        peer.hang_up()
        await fails(reading, ConnectionClosed, "1005")


async def test_1000_inside_of_a_fragmented_message_is_an_error(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"ab", fin=False)
        peer.close(1000)
        peer.hang_up()
        assert await reading.read(10) == b"ab"
        await fails(reading, RemoteProtocolError, "incomplete fragmented message")


# TCP ends without a close frame


async def test_tcp_ends_between_messages(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"abc")
        peer.hang_up()
        assert await reading.read(10) == b"abc"
        await fails(reading, ConnectionClosed)


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
async def test_tcp_ends_in_the_middle_of_a_frame(role: Role, kept: int) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"before")
        frame = peer.pack(Opcode.BINARY, b"0123456789")
        peer.writer.write(frame[:kept])
        peer.hang_up()
        assert await reading.read(10) == b"before"
        await fails(reading, ConnectionClosed)


async def test_tcp_ends_between_fragments(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"ab", fin=False)
        peer.hang_up()
        assert await reading.read(10) == b"ab"
        await fails(reading, ConnectionClosed)


async def test_tcp_is_reset_during_a_read(role: Role) -> None:
    async with stream(role) as (reading, peer):
        linger = struct.pack("ii", 1, 0)
        peer.writer.get_extra_info("socket").setsockopt(1, 13, linger)
        peer.drop()
        await fails(reading, ConnectionClosed)


async def test_read_to_the_end_keeps_what_came_before_an_error() -> None:
    async with stream() as (reading, peer):
        peer.binary(b"ab")
        peer.binary(b"cd")
        peer.close(1011)
        peer.hang_up()
        with pytest.raises(ConnectionClosed, match="1011"):
            await reading.read()
        assert await reading.read(10) == b"ab"
        assert await reading.readexactly(2) == b"cd"
        await fails(reading, ConnectionClosed, "1011")


# Protocol errors


async def test_a_message_above_max_size_closes_with_1009(role: Role) -> None:
    async with stream(role, max_size=1000) as (reading, peer):
        peer.binary(b"a" * 1000)
        peer.binary(b"b" * 1001)
        assert await reading.readexactly(1000) == b"a" * 1000
        assert (await peer.closing()).code == 1009
        peer.hang_up()
        await fails(reading, RemoteProtocolError, "1009")


async def test_a_frame_of_an_unknown_type_closes_with_1002(role: Role) -> None:
    async with stream(role) as (reading, peer):
        frame = bytearray(peer.pack(Opcode.BINARY, b"abc"))
        frame[0] = 0x83
        peer.writer.write(frame)
        assert (await peer.closing()).code == 1002
        peer.hang_up()
        await fails(reading, RemoteProtocolError, "1002")


async def test_text_that_is_not_utf_8_closes_with_1007(role: Role) -> None:
    async with stream(role, binary=False) as (reading, peer):
        peer.text(b"fine")
        peer.text(b"\xff\xfe")
        assert await reading.read(10) == b"fine"
        failing = asyncio.create_task(fails(reading, RemoteProtocolError, "1007"))
        assert (await peer.closing()).code == 1007
        peer.hang_up()
        await failing


async def test_a_large_write_that_the_peer_refuses_is_an_error(role: Role) -> None:
    """The error has the peer's code; closing the ended stream does nothing."""
    async with stream(role) as (writing, peer):
        write = asyncio.create_task(writing.write(bytes(20 << 20)))
        await peer.some()
        peer.close(1009, "too big")
        peer.writer.write_eof()
        await peer.left()
        with pytest.raises(ConnectionClosed) as caught:
            await write
        cause = caught.value.__cause__
        assert isinstance(cause, WebSocketClosed)
        assert cause.rcvd is not None
        assert (cause.rcvd.code, cause.rcvd.reason) == (1009, "too big")
        with pytest.raises(ConnectionClosed, match="too big"):
            await writing.write(b"more")
        await writing.aclose()
        await writing.aclose()


@pytest.mark.usefixtures("impatient")
async def test_a_write_after_the_peer_closed_does_not_wait_for_the_end_of_tcp() -> None:
    async with stream() as (writing, peer):
        peer.close(1011, "busy")
        assert (await peer.closing()).code == 1011
        with pytest.raises(ConnectionClosed, match=r"1011.*busy"):
            await writing.write(b"x")
        assert await peer.left() == b""
