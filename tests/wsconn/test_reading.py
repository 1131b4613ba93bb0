"""Messages become bytes."""

from __future__ import annotations

import asyncio

import pytest
from websockets.frames import Opcode

from pyderp.errors import ConnectionClosed, RemoteProtocolError
from pyderp.wsconn import WebSocketStream

from .peers import Peer, Role, stream


async def until_it_waits(task: asyncio.Task[bytes]) -> None:
    """Let a task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


async def takes(reading: WebSocketStream, n: int, expected: list[bytes]) -> None:
    """Check that reads of `n` bytes return what is expected."""
    for data in expected:
        assert await reading.read(n) == data


async def test_a_large_message_is_continued_and_never_joined_to_the_next(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"abcde")
        peer.binary(b"fg")
        peer.binary(b"h")
        await takes(reading, 2, [b"ab", b"cd", b"e", b"fg", b"h"])


async def test_empty_messages_are_skipped(role: Role) -> None:
    async with stream(role) as (reading, peer):
        for _ in range(200):
            peer.binary(b"")
        peer.binary(b"", fin=False)
        peer.more(b"", fin=False)
        peer.more(b"x")
        peer.binary(b"")
        peer.close(1000)
        peer.hang_up()
        await takes(reading, 10, [b"x", b""])


async def test_a_fragment_is_read_before_the_next_one_comes(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"ab", fin=False)
        assert await reading.read(10) == b"ab"
        peer.writer.write(peer.pack(Opcode.PING, b"now"))
        assert await peer.message() == (Opcode.PONG, b"now")
        peer.more(b"cd")
        peer.binary(b"ef")
        await takes(reading, 10, [b"cd", b"ef"])


async def test_text_is_read_as_its_bytes(role: Role) -> None:
    async with stream(role, binary=False) as (reading, peer):
        whole = "aé𝄞".encode()
        peer.text(whole)
        assert await reading.readexactly(len(whole)) == whole
        # A fragment may end inside a character.
        peer.text(whole[:2], fin=False)
        peer.more(whole[2:4], fin=False)
        peer.more(whole[4:])
        assert await reading.readexactly(len(whole)) == whole


async def test_read_without_a_size_reads_to_the_end(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"ab")
        peer.binary(b"cd")
        peer.close(1000)
        peer.hang_up()
        assert not reading.at_eof()
        assert await reading.read() == b"abcd"
        assert reading.at_eof()
        assert await reading.read() == b""


async def test_at_eof_waits_for_unread_bytes(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"abc")
        peer.close(1000)
        peer.hang_up()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reading.readexactly(4)
        assert (caught.value.partial, caught.value.expected) == (b"abc", 4)
        assert reading.at_eof()
        with pytest.raises(asyncio.IncompleteReadError):
            await reading.readexactly(1)


async def test_a_read_of_0_bytes_does_not_wait() -> None:
    async with stream() as (reading, peer):
        assert await reading.read(0) == b""
        assert await reading.readexactly(0) == b""
        peer.binary(b"a")
        assert await reading.read(1) == b"a"
        with pytest.raises(ValueError, match="negative"):
            await reading.readexactly(-1)


async def test_readexactly_joins_messages_and_leaves_the_rest(role: Role) -> None:
    async with stream(role) as (reading, peer):
        for part in (b"ab", b"c", b"defg", b"hi"):
            peer.binary(part)
        assert await reading.readexactly(5) == b"abcde"
        await takes(reading, 10, [b"fg", b"hi"])


async def test_a_cancelled_readexactly_keeps_its_bytes() -> None:
    async with stream() as (reading, peer):
        peer.binary(b"ab")
        assert await reading.read(1) == b"a"
        task = asyncio.create_task(reading.readexactly(4))
        await until_it_waits(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        peer.binary(b"cd")
        await takes(reading, 10, [b"b", b"cd"])


async def test_reads_queue_in_order() -> None:
    async with stream() as (reading, peer):
        tasks = [asyncio.create_task(reading.read(2)) for _ in range(3)]
        await until_it_waits(tasks[0])
        tasks[1].cancel()
        peer.binary(b"abcd")
        assert await tasks[0] == b"ab"
        assert await tasks[2] == b"cd"


async def test_a_queued_read_takes_nothing_from_the_one_before_it() -> None:
    async with stream() as (reading, peer):
        first = asyncio.create_task(reading.readexactly(4))
        second = asyncio.create_task(reading.read(1))
        await until_it_waits(second)
        peer.binary(b"abc")
        peer.writer.write(peer.pack(Opcode.PING))
        assert (await peer.message())[0] is Opcode.PONG
        await until_it_waits(second)
        peer.binary(b"defg")
        assert await first == b"abcd"
        assert await second == b"e"


async def test_receive_returns_what_read_returns() -> None:
    async with stream() as (reading, peer):
        peer.binary(b"abc")
        peer.close(1001)
        peer.hang_up()
        assert await reading.receive(2) == b"ab"
        assert await reading.receive() == b"c"
        assert await reading.receive() == b""


# Wrong types


async def refuses(reading: WebSocketStream, peer: Peer, reason: str) -> None:
    """The next read closes with 1003 and raises, and all later reads fail."""
    answered = asyncio.create_task(peer.answer_close())
    with pytest.raises(RemoteProtocolError) as caught:
        await reading.read(10)
    assert str(caught.value) == reason
    close = await answered
    assert (close.code, close.reason) == (1003, reason)
    with pytest.raises(ConnectionClosed, match="unexpected frame type"):
        await reading.read(10)
    with pytest.raises(ConnectionClosed, match="unexpected frame type"):
        await reading.write(b"x")


TEXT_CAME = "unexpected frame type read (expected MessageBinary): MessageText"
BINARY_CAME = "unexpected frame type read (expected MessageText): MessageBinary"


@pytest.mark.parametrize("data", [b"text", b""])
async def test_text_on_a_binary_stream_closes_with_1003(role: Role, data: bytes) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"fine")
        peer.text(data)
        peer.binary(b"too late")
        assert await reading.read(10) == b"fine"
        await refuses(reading, peer, TEXT_CAME)


@pytest.mark.parametrize("data", [b"binary", b""])
async def test_binary_on_a_text_stream_closes_with_1003(role: Role, data: bytes) -> None:
    async with stream(role, binary=False) as (reading, peer):
        peer.binary(data)
        await refuses(reading, peer, BINARY_CAME)


@pytest.mark.usefixtures("impatient")
async def test_a_silent_peer_cannot_hold_up_the_refusal(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.text(b"text")
        with pytest.raises(RemoteProtocolError, match="unexpected frame type"):
            await reading.read(10)
        assert (await peer.closing()).code == 1003
        assert await peer.left() == b""


async def test_cancelling_the_refusal_drops_the_connection(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.text(b"text")
        task = asyncio.create_task(reading.read(10))
        assert (await peer.closing()).code == 1003
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.left() == b""
        with pytest.raises(ConnectionClosed, match="unexpected frame type"):
            await reading.read(10)


async def test_a_wrong_type_that_came_during_a_cancelled_read_is_refused_by_the_next() -> None:
    async with stream() as (reading, peer):
        task = asyncio.create_task(reading.read(10))
        await until_it_waits(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        peer.text(b"text")
        await refuses(reading, peer, TEXT_CAME)
