"""The end of a scope ends its streams."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from pyderp.errors import ConnectionClosed
from pyderp.wsconn import Scope, WebSocketStream

from .peers import Role, stream
from .test_reading import until_it_waits


async def is_over(made: WebSocketStream) -> None:
    """Check that each operation fails."""
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="scope"):
            await made.read(1)
        with pytest.raises(ConnectionClosed, match="scope"):
            await made.readexactly(1)
        with pytest.raises(ConnectionClosed, match="scope"):
            await made.write(b"x")
        made.set_deadline(None)


async def test_the_end_of_a_scope_drops_an_idle_stream(role: Role) -> None:
    with Scope() as scope:
        async with stream(role, scope=scope) as (made, peer):
            peer.binary(b"ab")
            assert await made.read(1) == b"a"
            assert not scope.ended
            scope.end()
            assert scope.ended
            await is_over(made)
            assert await peer.left() == b""
            await made.aclose()
            scope.end()


async def test_the_end_of_a_scope_ends_reads_and_writes(role: Role) -> None:
    scope = Scope()
    async with stream(role, scope=scope) as (made, peer):
        read = asyncio.create_task(made.read(1))
        queued = asyncio.create_task(made.read(1))
        write = asyncio.create_task(made.write(bytes(16 << 20)))
        await until_it_waits(read)
        assert not write.done()
        scope.end()
        for task in (read, queued, write):
            with pytest.raises(ConnectionClosed, match="scope"):
                await task
        await is_over(made)
        assert len(await peer.left()) < 16 << 20


async def test_the_end_of_a_scope_ends_closing(role: Role) -> None:
    scope = Scope()
    async with stream(role, scope=scope) as (made, peer):
        closing = asyncio.create_task(made.aclose())
        await peer.closing()
        scope.end()
        await closing


async def test_a_block_ends_the_streams_of_its_scope() -> None:
    async with stream() as (other, other_peer):
        with Scope() as scope:
            async with stream(scope=scope) as (one, _), stream(scope=scope) as (two, _):
                scope.__exit__(None, None, None)
                await is_over(one)
                await is_over(two)
        other_peer.binary(b"a")
        assert await other.read(1) == b"a"


async def test_a_scope_that_has_ended_takes_no_new_stream(role: Role) -> None:
    scope = Scope()
    scope.end()
    async with stream(role, scope=scope) as (made, peer):
        await is_over(made)
        assert await peer.left() == b""


async def test_after_a_read_end_the_end_of_the_scope_changes_nothing() -> None:
    scope = Scope()
    async with stream(scope=scope) as (made, peer):
        peer.close(1000)
        peer.hang_up()
        assert await made.read(1) == b""
        scope.end()
        assert await made.read(1) == b""


async def test_a_scope_does_not_keep_streams_that_ended() -> None:
    scope = Scope()
    async with stream(scope=scope) as (made, peer):
        gone = weakref.ref(made._websocket)
        peer.drop()
    del made
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
