"""A websocket as a byte stream of anyio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from pyderp.errors import ConnectionClosed
from pyderp.wsconn.for_anyio import AnyioByteStream

from .peers import Peer, Role, stream


@contextlib.asynccontextmanager
async def anyio_stream(
    role: Role = "client", **options: Any
) -> AsyncIterator[tuple[anyio.abc.ByteStream, Peer]]:
    async with stream(role, **options) as (made, peer):
        yield AnyioByteStream(made), peer


async def test_bytes_pass_both_ways(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        peer.binary(b"abc")
        peer.binary(b"")
        peer.binary(b"d")
        assert await made.receive(2) == b"ab"
        assert await made.receive() == b"c"
        assert await made.receive() == b"d"
        await made.send(b"xyz")
        assert (await peer.message())[1] == b"xyz"


async def test_iterating_ends_with_the_stream(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        peer.binary(b"a")
        peer.binary(b"b")
        peer.close(1000)
        peer.hang_up()
        assert [part async for part in made] == [b"a", b"b"]
        with pytest.raises(anyio.EndOfStream):
            await made.receive()


async def test_anyios_own_tools_work_on_it(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        peer.binary(b"a line\nand ")
        peer.binary(b"more")
        buffered = BufferedByteReceiveStream(made)
        assert await buffered.receive_until(b"\n", 100) == b"a line"
        assert await buffered.receive_exactly(8) == b"and more"


async def test_a_cancelled_receive_loses_nothing(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        with anyio.move_on_after(0.01) as scope:
            await made.receive()
        assert scope.cancelled_caught
        peer.binary(b"abc")
        assert await made.receive() == b"abc"


async def test_a_cancelled_scope_stops_receive_before_it_takes_anything() -> None:
    async with anyio_stream() as (made, peer):
        peer.binary(b"abc")
        assert await made.receive(1) == b"a"
        with anyio.CancelScope() as scope:
            scope.cancel()
            await made.receive(1)
        assert await made.receive() == b"bc"


async def test_a_broken_stream_is_a_broken_resource(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        peer.close(1011, "oh")
        peer.hang_up()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await made.receive()
        assert isinstance(caught.value.__cause__, ConnectionClosed)
        with pytest.raises(anyio.BrokenResourceError):
            await made.send(b"x")


async def test_a_wrong_type_is_a_broken_resource() -> None:
    async with anyio_stream() as (made, peer):
        peer.text(b"text")
        answering = asyncio.create_task(peer.answer_close())
        with pytest.raises(anyio.BrokenResourceError):
            await made.receive()
        await answering


async def test_a_closed_stream_is_a_closed_resource(role: Role) -> None:
    async with anyio_stream(role) as (made, peer):
        answering = asyncio.create_task(peer.answer_close())
        async with made:
            pass
        await answering
        with pytest.raises(anyio.ClosedResourceError):
            await made.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await made.send(b"x")
        await made.aclose()


@pytest.mark.usefixtures("impatient")
async def test_closing_never_fails() -> None:
    async with anyio_stream() as (made, peer):
        await made.aclose()
        assert (await peer.closing()).code == 1000


async def test_concurrent_sends_are_busy() -> None:
    async with anyio_stream() as (made, peer):
        first = asyncio.create_task(made.send(bytes(16 << 20)))
        while not made._stream._write_deadline.busy:  # type: ignore[attr-defined] # noqa: ASYNC110
            await asyncio.sleep(0)
        with pytest.raises(anyio.BusyResourceError):
            await made.send(b"second")
        assert len((await peer.message())[1]) == 16 << 20
        await first


async def test_wrong_arguments_are_refused() -> None:
    async with anyio_stream() as (made, _):
        with pytest.raises(ValueError, match="max_bytes"):
            await made.receive(0)
        with pytest.raises(NotImplementedError, match="one direction"):
            await made.send_eof()
