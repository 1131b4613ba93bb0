"""Streams of other libraries as links."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyderp import LocalProtocolError, RemoteProtocolError
from pyderp.net.link import Link, TcpLink
from pyderp.net.streams import StreamLink, as_link

from .test_link import until_closed, until_ended, until_has
from .tlspeer import Sink

BOUND = 10.0


class EndOfStream(Exception):
    """Has the name of anyio's class."""


class BrokenResourceError(Exception):
    """Has the name of anyio's class."""


class Pipe:
    """A `ByteStream` in memory."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.send_error: Exception | None = None
        self.closed = 0
        self.receiving = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        self.receiving += 1
        try:
            item = await self.incoming.get()
        finally:
            self.receiving -= 1
        if isinstance(item, Exception):
            raise item
        return item

    async def send(self, item: bytes) -> None:
        await self.may_send.wait()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(item)

    async def aclose(self) -> None:
        self.closed += 1
        raise BrokenResourceError("ignored")


@asynccontextmanager
async def streams() -> AsyncIterator[tuple[StreamLink, Pipe]]:
    """Yield a link over a pipe; at the end no task is left."""
    before = asyncio.all_tasks()
    pipe = Pipe()
    link = await as_link(pipe)
    assert isinstance(link, StreamLink)
    async with asyncio.timeout(BOUND):
        yield link, pipe
        link.abort()
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 (no event for the end of a task)
            await asyncio.sleep(0.001)
    assert pipe.closed == 1
    assert not pipe.receiving


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_reads_before_start_and_one_send_a_turn() -> None:
    """All that is written in one turn leaves in one send."""
    async with streams() as (link, pipe):
        pipe.incoming.put_nowait(b"in")
        assert await link.read() == b"in"
        link.write(b"a")
        link.write(b"")
        link.write(b"b")
        assert link.pending == 2
        await turns()
        assert pipe.sent == [b"ab"]
        assert link.pending == 0
        assert link.local_address is None
        assert link.remote_address is None


@pytest.mark.parametrize("end", [b"", EndOfStream(), EOFError()])
async def test_each_end_of_a_stream_is_clean(end: bytes | Exception) -> None:
    """Streams end in several ways."""
    async with streams() as (link, pipe):
        pipe.incoming.put_nowait(end)
        assert await link.read() == b""
        pipe.incoming.put_nowait(b"x")
        pipe.incoming.put_nowait(end)
        sink = Sink()
        link.start(sink)
        await until_ended(sink)
        assert sink.chunks == [b"x"]
        assert sink.ends == [None]


@pytest.mark.parametrize(
    "error", [ConnectionResetError("x"), RemoteProtocolError("x"), TimeoutError("x")]
)
async def test_errors_of_pyderp_are_raised_unchanged(error: Exception) -> None:
    async with streams() as (link, pipe):
        pipe.incoming.put_nowait(error)
        with pytest.raises(type(error)) as caught:
            await link.read()
        assert caught.value is error
        pipe.incoming.put_nowait(error)
        sink = Sink()
        link.start(sink)
        await until_ended(sink)
        assert sink.ends == [error]


async def test_a_broken_stream_of_a_library_is_an_oserror() -> None:
    """The library's error is its cause."""
    async with streams() as (link, pipe):
        error = BrokenResourceError()
        pipe.incoming.put_nowait(error)
        with pytest.raises(ConnectionError, match="BrokenResourceError") as caught:
            await link.read()
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("started", [True, False])
async def test_a_failed_write_ends_the_link(started: bool) -> None:
    """The receiver, or the reader, gets its error."""
    async with streams() as (link, pipe):
        sink = Sink()
        pipe.send_error = error = BrokenResourceError("no")
        if started:
            link.start(sink)
        link.write(b"x")
        await turns()
        if not started:
            with pytest.raises(BrokenPipeError, match="writing failed: no"):
                await link.read()
            link.start(sink)
        await until_ended(sink)
        assert isinstance(sink.ends[0], BrokenPipeError)
        assert sink.ends[0].__cause__ is error
        assert len(sink.ends) == 1
        link.write(b"y")
        assert link.pending == 0


async def test_writable_is_called_when_64_kib_or_less_wait() -> None:
    async with streams() as (link, pipe):
        sink = Sink()
        link.start(sink)
        pipe.may_send.clear()
        link.write(bytes(60_000))
        await turns()
        link.write(bytes(60_000))
        assert link.pending == 120_000
        times = [sink.times_writable]
        pipe.may_send.set()
        await turns()
        assert [*times, sink.times_writable] == [0, 1]
        assert not link.pending


async def test_a_paused_link_takes_one_more_chunk_at_most() -> None:
    """The one it was waiting for already."""
    async with streams() as (link, pipe):
        sink = Sink()
        link.start(sink)
        link.pause_reading()
        for byte in b"abc":
            pipe.incoming.put_nowait(bytes((byte,)))
        await turns(20)
        assert len(sink.chunks) <= 1
        link.resume_reading()
        await until_has(sink, 3)
        assert sink.chunks == [b"a", b"b", b"c"]


async def test_abort_ends_all() -> None:
    """Both tasks end, the stream is closed once, and the receiver gets the end."""
    async with streams() as (link, pipe):
        sink = Sink()
        link.start(sink)
        pipe.may_send.clear()
        link.write(b"lost")
        await turns()
        link.abort()
        link.abort()
        await until_ended(sink)
        await turns()
        assert sink.ends == [None]
        assert pipe.sent == []
        assert await link.read() == b""


async def test_close_sends_all_then_ends() -> None:
    """It ends as `abort` does."""
    async with streams() as (link, pipe):
        sink = Sink()
        link.start(sink)
        pipe.may_send.clear()
        link.write(b"a")
        await turns()
        link.write(b"b")
        link.close()
        await turns()
        assert not sink.ends
        pipe.may_send.set()
        await until_ended(sink)
        assert pipe.sent == [b"a", b"b"]
        assert sink.ends == [None]


async def test_close_of_an_idle_link_is_at_once() -> None:
    async with streams() as (link, _):
        sink = Sink()
        link.start(sink)
        link.close()
        await until_ended(sink)
        assert sink.ends == [None]


async def test_a_receiver_may_abort_in_its_callback() -> None:
    async with streams() as (link, pipe):

        class Aborts(Sink):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                link.abort()

        sink = Aborts()
        link.start(sink)
        pipe.incoming.put_nowait(b"a")
        pipe.incoming.put_nowait(b"b")
        await until_ended(sink)
        assert sink.chunks == [b"a"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_socket_becomes_a_tcp_link(kind: str) -> None:
    """Also one of a socketpair."""
    if kind == "unix":
        ours, other = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            other, _ = server.accept()
    with other:
        link = await as_link(ours)
        assert isinstance(link, TcpLink)
        assert (link.local_address is None) is (kind == "unix")
        other.sendall(b"in")
        assert await link.read() == b"in"
        link.write(b"out")
        assert await asyncio.to_thread(other.recv, 10) == b"out"
        link.abort()
        await until_closed(ours)


async def test_reader_and_writer_become_a_link() -> None:
    """They are closed with it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader, writer = await asyncio.open_connection(*server.getsockname())
        other, _ = server.accept()
    with other:
        link = await as_link((reader, writer))
        other.sendall(b"in")
        assert await link.read() == b"in"
        sink = Sink()
        link.start(sink)
        link.write(b"out")
        assert await asyncio.to_thread(other.recv, 10) == b"out"
        other.sendall(b"more")
        await until_has(sink, 4)
        link.abort()
        assert await asyncio.to_thread(other.recv, 10) == b""
        await until_ended(sink)
        await writer.wait_closed()


async def test_a_link_is_used_as_it_is() -> None:
    link: Link = StreamLink(Pipe())
    assert await as_link(link) is link


async def test_any_other_object_is_refused() -> None:
    """The error says which kinds are accepted."""
    with pytest.raises(LocalProtocolError, match="a str is not a stream; want a socket"):
        await as_link("x")  # type: ignore[arg-type]  # the wrong type is the test
