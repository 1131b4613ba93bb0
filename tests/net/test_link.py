"""A TCP socket as a link: first read by one task, then by callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from pyderp.net import link as link_module
from pyderp.net.link import TcpLink, link_over_socket
from tests.waiting import until

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
    await until(lambda: sock.fileno() < 0)


async def until_ended(sink: Sink) -> None:
    await until(lambda: sink.ends)


async def until_has(sink: Sink, size: int) -> None:
    await until(lambda: sum(map(len, sink.chunks)) >= size)


def in_kernel(link: TcpLink) -> int:
    """Bytes that came to a link's socket and are unread."""
    assert link._transport is not None
    answer = fcntl.ioctl(link._transport.get_extra_info("socket"), termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_unread_bytes_are_delivered_first() -> None:
    async with pair() as (link, other):
        other.sendall(b"one")
        assert await link.read() == b"one"
        other.sendall(b"two")
        while not link._unread:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        sink = Sink()
        link.start(sink)
        assert sink.chunks == [b"two"]
        other.sendall(b"three")
        await until_has(sink, 8)
        assert b"".join(sink.chunks) == b"twothree"


async def test_after_the_end_each_read_is_empty() -> None:
    """All bytes before it are read first."""
    async with pair() as (link, other):
        other.sendall(b"last")
        other.close()
        assert await link.read() == b"last"
        assert await link.read() == b""
        assert await link.read() == b""
        sink = Sink()
        link.start(sink)
        assert sink.ends == [None]


async def test_a_reset_is_an_oserror_for_reads_and_for_a_later_receiver() -> None:
    async with pair() as (link, other):
        reading = asyncio.create_task(link.read())
        await asyncio.sleep(0)
        reset(other)
        with pytest.raises(ConnectionResetError):
            await reading
        sink = Sink()
        link.start(sink)
        assert isinstance(sink.ends[0], ConnectionResetError)


async def test_a_clean_end_is_delivered_once() -> None:
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
    """A link that is not read leaves the rest to the kernel, and loses nothing."""
    async with pair() as (link, other):
        sending = asyncio.to_thread(other.sendall, bytes(8 * MIB))
        task = asyncio.create_task(sending)
        while not link._paused:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        assert len(link._unread) < MIB
        size = 0
        while size < 8 * MIB:
            size += len(await link.read())
        await task


async def test_start_resumes_a_paused_link() -> None:
    """The link was paused because too much was unread."""
    async with pair() as (link, other):
        task = asyncio.create_task(asyncio.to_thread(other.sendall, bytes(4 * MIB)))
        while not link._paused:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        sink = Sink()
        link.start(sink)
        await until_has(sink, 4 * MIB)
        await task


async def test_a_receiver_that_pauses_at_once_stays_paused() -> None:
    """It pauses during the bytes that came before."""
    async with pair() as (link, other):

        class Full(Sink):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                link.pause_reading()

        other.sendall(b"one")
        while not link._unread:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        sink = Full()
        link.start(sink)
        other.sendall(b"two")
        while in_kernel(link) < 3:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        # A link that reads would have delivered it by now.
        for _ in range(5):
            await asyncio.sleep(0)
        assert in_kernel(link) == 3
        assert sink.chunks == [b"one"]
        link.resume_reading()
        await until_has(sink, 6)


async def test_pending_counts_bytes_and_writable_follows() -> None:
    """`pending` grows when the kernel is full; `writable` is called when it is low again."""
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        link.write(bytes(16 * MIB))
        assert link.pending > MIB
        size = 0
        while size < 16 * MIB:
            size += len(await asyncio.to_thread(other.recv, MIB))
        while not sink.times_writable:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        assert link.pending == 0


async def test_close_sends_all_that_was_written() -> None:
    """Even while the other side sends as well."""
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


async def test_abort_discards_what_was_written() -> None:
    """It may be called again."""
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


async def test_addresses_are_those_of_both_ends() -> None:
    """As IP address and port."""
    async with pair() as (link, other):
        assert link.local_address == other.getpeername()
        assert link.remote_address == other.getsockname()


async def test_a_cancelled_read_loses_no_byte() -> None:
    async with pair() as (link, other):
        reading = asyncio.create_task(link.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        other.sendall(b"x")
        assert await link.read() == b"x"


async def test_nagles_algorithm_is_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
    link = await link_over_socket(sock)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    link.abort()
    await until_closed(sock)


async def test_a_socket_that_is_no_stream_is_closed() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(ValueError, match=r"(?i)stream"):
        await link_over_socket(sock)
    assert sock.fileno() < 0


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_link_can_be_paused_again_after_each_resume(times: int) -> None:
    async with pair() as (link, other):
        sink = Sink()
        link.start(sink)
        for _ in range(times):
            link.pause_reading()
            link.resume_reading()
        link.pause_reading()
        other.sendall(b"x")
        await until(lambda: in_kernel(link) == 1)
        # A link that reads would have delivered it by now.
        for _ in range(5):
            await asyncio.sleep(0)
        assert in_kernel(link) == 1
        assert not sink.chunks
        link.resume_reading()
        await until_has(sink, 1)


@pytest.mark.parametrize("paused", [False, True])
async def test_calls_after_drop_do_nothing(paused: bool) -> None:
    """The loop may go on making the connection of a link that was cancelled meanwhile."""
    async with pair() as (link, _):
        if paused:
            link.pause_reading()
        link.drop()
        link.pause_reading()
        link.resume_reading()
        link.write(b"into nowhere")
        link.close()
        link.abort()
        assert link.pending == 0
        assert link.local_address is link.remote_address is None


@pytest.mark.parametrize("error", [ConnectionResetError(), asyncio.CancelledError()], ids=repr)
async def test_a_connect_that_fails_late_closes_its_transport(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A task may be cancelled when the loop has made the transport and not yet returned it."""
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []

    async def fail_late(factory: Callable[[], TcpLink], sock: socket.socket) -> None:
        transport, _ = await loop.create_connection(factory, sock=sock)
        transports.append(transport)
        raise error

    failing = SimpleNamespace(create_connection=fail_late)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
    fake = SimpleNamespace(get_running_loop=lambda: failing)
    with monkeypatch.context() as patched:
        patched.setattr(link_module, "asyncio", fake)
        with pytest.raises(type(error)):
            await link_over_socket(sock)
    assert [transport.is_closing() for transport in transports] == [True]
    await until_closed(sock)
