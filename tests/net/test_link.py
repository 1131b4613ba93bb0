"""A TCP socket as a link: first read by one task, then by callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator

import pytest

from pyderp.net.link import TcpLink, link_over_socket

from .tlspeer import Sink

BOUND = 10.0
MIB = 1 << 20


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[TcpLink, socket.socket]]:
    """A link and the blocking socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    link = await link_over_socket(sock)
    try:
        async with asyncio.timeout(BOUND):
            yield link, other
    finally:
        other.close()
        link.abort()
        await until_closed(sock)


async def until_closed(sock: socket.socket) -> None:
    async with asyncio.timeout(BOUND):
        while sock.fileno() >= 0:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)


async def until_ended(sink: Sink) -> None:
    async with asyncio.timeout(BOUND):
        while not sink.ends:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)


async def until_has(sink: Sink, size: int) -> None:
    async with asyncio.timeout(BOUND):
        while sum(map(len, sink.chunks)) < size:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)


def in_kernel(link: TcpLink) -> int:
    """Bytes that came to a link's socket and were not read from it."""
    assert link._transport is not None
    answer = fcntl.ioctl(link._transport.get_extra_info("socket"), termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_read_then_callbacks() -> None:
    """What was not read goes to the receiver first, then all that follows."""
    async with pair() as (link, other):
        other.sendall(b"one")
        assert await link.read() == b"one"
        other.sendall(b"two")
        while not link._unread:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        sink = Sink()
        link.start(sink)
        assert sink.chunks == [b"two"]
        other.sendall(b"three")
        await until_has(sink, 8)
        assert b"".join(sink.chunks) == b"twothree"


async def test_end_while_reading() -> None:
    """The end of the stream is empty bytes, after all that came, and again."""
    async with pair() as (link, other):
        other.sendall(b"last")
        other.close()
        assert await link.read() == b"last"
        assert await link.read() == b""
        assert await link.read() == b""
        sink = Sink()
        link.start(sink)
        assert sink.ends == [None]


async def test_break_while_reading() -> None:
    """A reset is an OSError for the reader, and for the receiver that comes later."""
    async with pair() as (link, other):
        reading = asyncio.create_task(link.read())
        await asyncio.sleep(0)
        reset(other)
        with pytest.raises(ConnectionResetError):
            await reading
        sink = Sink()
        link.start(sink)
        assert isinstance(sink.ends[0], ConnectionResetError)


async def test_end_after_start() -> None:
    """The receiver hears once of a clean end."""
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        other.sendall(b"x")
        other.close()
        await until_ended(sink)
        assert sink.chunks == [b"x"]
        assert sink.ends == [None]
        link.write(b"into nowhere")
        link.pause_reading()
        link.resume_reading()
        assert link.pending == 0


async def test_unread_bytes_are_bounded() -> None:
    """A link that nobody reads yet leaves the rest to the kernel, and loses nothing."""
    async with pair() as (link, other):
        sending = asyncio.to_thread(other.sendall, bytes(8 * MIB))
        task = asyncio.create_task(sending)
        while not link._paused:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        assert len(link._unread) < MIB
        size = 0
        while size < 8 * MIB:
            size += len(await link.read())
        await task


async def test_paused_link_is_started() -> None:
    """`start` goes on with a link that had too much unread."""
    async with pair() as (link, other):
        task = asyncio.create_task(asyncio.to_thread(other.sendall, bytes(4 * MIB)))
        while not link._paused:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        sink = Sink()
        link.start(sink)
        await until_has(sink, 4 * MIB)
        await task


async def test_receiver_that_pauses_at_once() -> None:
    """A receiver that has enough of what came before stays paused."""
    async with pair() as (link, other):

        class Full(Sink):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                link.pause_reading()

        other.sendall(b"one")
        while not link._unread:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        sink = Full()
        link.start(sink)
        other.sendall(b"two")
        while in_kernel(link) < 3:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        # A link that reads would have been told by now.
        for _ in range(5):
            await asyncio.sleep(0)
        assert in_kernel(link) == 3
        assert sink.chunks == [b"one"]
        link.resume_reading()
        await until_has(sink, 6)


async def test_slow_other_side() -> None:
    """`pending` grows when the kernel is full, and the receiver hears when it is low again."""
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        link.write(bytes(16 * MIB))
        assert link.pending > MIB
        size = 0
        while size < 16 * MIB:
            size += len(await asyncio.to_thread(other.recv, MIB))
        while not sink.times_writable:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        assert link.pending == 0


async def test_close_sends_the_rest() -> None:
    """`close` lets the other side have all that was written, whatever it is saying itself."""
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        link.pause_reading()
        other.sendall(bytes(1000))
        link.write(bytes(8 * MIB))
        link.close()
        link.close()
        link.write(b"too late")
        assert not sink.ends
        size = 0
        while data := await asyncio.to_thread(other.recv, MIB):
            size += len(data)
        assert size == 8 * MIB
        assert not sink.ends
        other.close()
        await until_ended(sink)
        assert sink.ends == [None]


async def test_abort_does_not() -> None:
    """`abort` throws away what was written; it may be called again."""
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        link.write(bytes(16 * MIB))
        link.abort()
        link.abort()
        link.resume_reading()
        link.pause_reading()
        link.resume_reading()
        await until_ended(sink)
        assert sink.ends == [None]
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.to_thread(other.recv, MIB):
                size += len(data)
        assert size < 16 * MIB


async def test_addresses() -> None:
    """Both ends of the socket, as IP address and port."""
    async with pair() as (link, other):
        assert link.local_address == other.getpeername()
        assert link.remote_address == other.getsockname()


async def test_cancelled_read() -> None:
    """A read that is cancelled loses no byte."""
    async with pair() as (link, other):
        reading = asyncio.create_task(link.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        other.sendall(b"x")
        assert await link.read() == b"x"


async def test_socket_options() -> None:
    """Nagle's algorithm is off."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
    link = await link_over_socket(sock)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    link.abort()
    await until_closed(sock)


async def test_socket_that_is_no_stream() -> None:
    """A socket that cannot become a link is closed."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(ValueError, match=r"(?i)stream"):
        await link_over_socket(sock)
    assert sock.fileno() < 0
