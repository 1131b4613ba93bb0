"""Cancelled reads lose no byte, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from pyderp.wsconn import WebSocketStream
from tests.conftest import Run

from .peers import Peer, Role, stream

fragments = st.integers(0, 3) | st.integers(0, 300)
messages = st.lists(st.lists(fragments, min_size=1, max_size=4), max_size=12)
turns = st.integers(0, 6)


def pack(peer: Peer, sizes: Sequence[Sequence[int]]) -> tuple[bytes, bytes]:
    """Messages of fragments of these sizes: their content, and the bytes on the wire."""
    count = sum(map(sum, sizes))
    content = bytes(i % 251 for i in range(count))
    wire = bytearray()
    start = 0
    for message in sizes:
        for i, size in enumerate(message):
            opcode = Opcode.CONT if i else Opcode.BINARY
            last = i == len(message) - 1
            wire += peer.pack(opcode, content[start : start + size], fin=last)
            start += size
    return content, bytes(wire)


async def feed(peer: Peer, wire: bytes, chunks: Sequence[tuple[int, int]]) -> None:
    """Write in chunks, with some turns of the loop after each; close at the end."""
    start = 0
    for size, pause in chunks:
        peer.writer.write(wire[start : start + size])
        start += size
        for _ in range(pause):
            await asyncio.sleep(0)
    peer.writer.write(wire[start:])
    peer.close(1000)
    peer.hang_up()


async def cancelled_after(reading: WebSocketStream, n: int, exact: bool, patience: int) -> bytes:
    """Read, but cancel that after so many turns; returns the bytes read, or none."""
    task = asyncio.create_task(reading.readexactly(n) if exact else reading.read(n))
    for _ in range(patience):
        if not task.done():
            await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return b""
    except asyncio.IncompleteReadError as e:
        return e.partial


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=messages,
    chunks=st.lists(st.tuples(st.integers(1, 40), turns), max_size=40),
    reads=st.lists(st.tuples(st.integers(1, 100), st.booleans(), turns), max_size=60),
)
def test_no_byte_is_lost(
    on_loop: Run,
    role: Role,
    sizes: list[list[int]],
    chunks: list[tuple[int, int]],
    reads: list[tuple[int, bool, int]],
) -> None:
    async def main() -> None:
        async with stream(role) as (reading, peer):
            content, wire = pack(peer, sizes)
            feeding = asyncio.create_task(feed(peer, wire, chunks))
            got = [await cancelled_after(reading, *each) for each in reads]
            got.append(await reading.read())
            assert b"".join(got) == content
            assert reading.at_eof()
            await feeding

    on_loop(main())


async def test_cancelling_while_fragments_arrive_one_byte_at_a_time(role: Role) -> None:
    """The worst case: a cancelled read in each turn of the loop."""
    async with stream(role) as (reading, peer):
        content, wire = pack(peer, [[1, 0, 2, 3]] * 20)
        feeding = asyncio.create_task(feed(peer, wire, [(1, 1)] * len(wire)))
        got = bytearray()
        while not feeding.done():
            got += await cancelled_after(reading, 10, False, 1)
        got += await reading.read()
        assert bytes(got) == content


async def test_a_timeout_of_asyncio_leaves_the_stream_usable(role: Role) -> None:
    async with stream(role) as (reading, peer):
        peer.binary(b"a", fin=False)
        assert await reading.read(1) == b"a"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await reading.read(1)
        peer.more(b"b")
        assert await reading.read(1) == b"b"
        await reading.write(b"fine")
        assert (await peer.message())[1] == b"fine"
