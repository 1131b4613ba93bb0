"""How a stream ends when this side closes it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyderp.errors import ConnectionClosed
from pyderp.wsconn import net_conn

from .peers import Role, connected, stream
from .test_reading import until_it_waits


async def test_closing_sends_1000_without_a_reason_and_waits_for_the_answer(role: Role) -> None:
    async with stream(role) as (closing, peer):
        assert not closing.closed
        task = asyncio.create_task(closing.aclose())
        close = await peer.closing()
        assert (close.code, close.reason) == (1000, "")
        assert not task.done()
        assert closing.closed
        peer.close(1000)
        peer.hang_up()
        await task
        assert await peer.left() == b""


async def test_an_async_with_block_closes(role: Role) -> None:
    async with stream(role) as (closing, peer):
        answered = asyncio.create_task(peer.answer_close())
        async with closing as entered:
            assert entered is closing
            await closing.write(b"abc")
        assert (await answered).code == 1000


@pytest.mark.usefixtures("impatient")
async def test_a_silent_peer_is_an_error_and_tcp_is_closed(role: Role) -> None:
    async with stream(role) as (closing, peer):
        with pytest.raises(TimeoutError, match="did not answer"):
            await closing.aclose()
        assert (await peer.closing()).code == 1000
        assert await peer.left() == b""
        await closing.aclose()


@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_answers_but_does_not_close_tcp_is_no_error() -> None:
    async with stream("client") as (closing, peer):
        task = asyncio.create_task(closing.aclose())
        assert (await peer.closing()).code == 1000
        peer.close(1000)
        await task
        assert await peer.left() == b""


@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_reads_nothing_cannot_hold_up_closing(role: Role) -> None:
    async with stream(role) as (closing, peer):
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a full transport
        write = asyncio.create_task(closing.write(bytes(32 << 20)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await closing.aclose()
        with pytest.raises(ConnectionClosed):
            await write


async def test_data_before_the_answer_is_discarded(role: Role) -> None:
    async with stream(role, max_queue=1) as (closing, peer):
        for _ in range(500):
            peer.binary(b"x" * 2000)
        task = asyncio.create_task(closing.aclose())
        await peer.answer_close()
        await task
        with pytest.raises(ConnectionClosed, match="was closed"):
            await closing.read(10)


async def test_a_wrong_type_before_the_answer_is_discarded(role: Role) -> None:
    async with stream(role) as (closing, peer):
        peer.text(b"text")
        task = asyncio.create_task(closing.aclose())
        assert (await peer.answer_close()).code == 1000
        await task


async def test_unread_data_is_gone_after_closing() -> None:
    async with stream() as (closing, peer):
        peer.binary(b"abc")
        assert await closing.read(1) == b"a"
        answered = asyncio.create_task(peer.answer_close())
        await closing.aclose()
        await answered
        with pytest.raises(ConnectionClosed, match="was closed"):
            await closing.read(1)
        with pytest.raises(ConnectionClosed, match="was closed"):
            await closing.readexactly(1)
        with pytest.raises(ConnectionClosed, match="was closed"):
            await closing.write(b"x")


async def test_closing_again_is_harmless(role: Role) -> None:
    async with stream(role) as (closing, peer):
        tasks = [asyncio.create_task(closing.aclose()) for _ in range(3)]
        await peer.answer_close()
        await asyncio.gather(*tasks)
        await closing.aclose()
        assert await peer.left() == b""


@pytest.mark.parametrize("code", [1000, 1011])
async def test_closing_after_the_peer_did_is_harmless(role: Role, code: int) -> None:
    async with stream(role) as (closing, peer):
        peer.close(code)
        peer.hang_up()
        await closing.aclose()
        await closing.aclose()


async def test_closing_after_tcp_broke_is_harmless(role: Role) -> None:
    async with stream(role) as (closing, peer):
        peer.drop()
        await closing.aclose()


async def test_a_blocked_read_ends_when_the_peer_answers(role: Role) -> None:
    async with stream(role) as (closing, peer):
        reads = [asyncio.create_task(closing.read(10)) for _ in range(2)]
        await until_it_waits(reads[0])
        task = asyncio.create_task(closing.aclose())
        await peer.closing()
        peer.binary(b"too late")
        peer.close(1000)
        peer.hang_up()
        await task
        # The second had not run when the stream was closed.
        assert await asyncio.gather(*reads) == [b"", b""]


async def test_a_blocked_readexactly_returns_what_it_had() -> None:
    async with stream() as (closing, peer):
        peer.binary(b"abc")
        assert await closing.read(1) == b"a"
        read = asyncio.create_task(closing.readexactly(10))
        await until_it_waits(read)
        task = asyncio.create_task(closing.aclose())
        await peer.answer_close()
        await task
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await read
        assert caught.value.partial == b"bc"


@pytest.mark.usefixtures("impatient")
async def test_a_blocked_read_fails_when_the_peer_does_not_answer(role: Role) -> None:
    async with stream(role) as (closing, _):
        read = asyncio.create_task(closing.read(10))
        await until_it_waits(read)
        with pytest.raises(TimeoutError):
            await closing.aclose()
        with pytest.raises(ConnectionClosed, match="was closed"):
            await read


async def test_cancelling_drops_the_connection(role: Role) -> None:
    async with stream(role) as (closing, peer):
        task = asyncio.create_task(closing.aclose())
        await peer.closing()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.left() == b""
        await closing.aclose()
        names = {each.get_name() for each in asyncio.all_tasks()}
        assert not [name for name in names if name.startswith("pyderp")]


async def test_no_reader_hangs_when_the_loop_is_shut_down() -> None:
    async with stream() as (reading, peer):
        read = asyncio.create_task(reading.read(10))
        await until_it_waits(read)
        for task in asyncio.all_tasks():
            if task.get_name() == "pyderp-wsconn-receive":
                task.cancel()
        with pytest.raises(ConnectionClosed, match="shutting down"):
            await read
        assert await peer.left() == b""


async def test_a_websocket_with_another_reader_is_noticed() -> None:
    from websockets.exceptions import ConcurrencyError

    from pyderp.wsconn import net_conn

    async with connected("client") as (websocket, _):
        theirs = asyncio.create_task(websocket.recv(decode=False))
        await asyncio.sleep(0)
        with pytest.raises(ConcurrencyError):
            await net_conn(websocket).read(10)
        theirs.cancel()


@pytest.mark.parametrize("waiting", [False, True], ids=["no read waits", "a read waits"])
async def test_reads_after_a_close_fail_whether_or_not_a_read_waited(
    role: Role, waiting: bool
) -> None:
    """A read that waits for the close gets the end, all later ones an error."""
    async with stream(role) as (closing, peer):
        read = None
        if waiting:
            read = asyncio.create_task(closing.read(10))
            await until_it_waits(read)
        answered = asyncio.create_task(peer.answer_close())
        await closing.aclose()
        await answered
        if read is not None:
            assert await read == b""
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="the stream was closed"):
                await closing.read(10)


@pytest.mark.parametrize("other", [object(), "ws://relay.test", None], ids=["object", "text", "no"])
def test_an_object_that_is_no_websocket_is_refused_by_name(other: Any) -> None:
    with pytest.raises(TypeError, match=r"want a connection of websockets\.asyncio"):
        net_conn(other)
