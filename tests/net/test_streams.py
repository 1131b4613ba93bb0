"""Streams of others as links."""

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
    """Named as anyio's."""


class BrokenResourceError(Exception):
    """Named as anyio's."""


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
        raise BrokenResourceError("nobody minds")


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
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 (nothing signals the end of a task)
            await asyncio.sleep(0.001)
    assert pipe.closed == 1
    assert not pipe.receiving


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_read_and_write() -> None:
    """Before `start` one task reads; what is written in one turn leaves in one send."""
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
async def test_end(end: bytes | Exception) -> None:
    """Streams end in several ways, all of them clean."""
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
async def test_errors_of_ours(error: Exception) -> None:
    """Errors that programs know stay what they are."""
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


async def test_errors_of_others() -> None:
    """What a library calls a broken stream is an OSError, with that as its cause."""
    async with streams() as (link, pipe):
        error = BrokenResourceError()
        pipe.incoming.put_nowait(error)
        with pytest.raises(ConnectionError, match="BrokenResourceError") as caught:
            await link.read()
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("started", [True, False])
async def test_write_error(started: bool) -> None:
    """A failed write ends the link for the receiver, or the reader, with the error."""
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


async def test_slow_stream() -> None:
    """The receiver hears when no more than 64 KiB wait."""
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


async def test_pause() -> None:
    """A paused link takes at most what it was waiting for already."""
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


async def test_abort() -> None:
    """`abort` ends both tasks, closes the stream once, and tells the receiver."""
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


async def test_close_sends_the_rest() -> None:
    """`close` waits for what was written, then ends as `abort` does."""
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


async def test_close_with_nothing_to_send() -> None:
    """`close` of an idle link is at once."""
    async with streams() as (link, _):
        sink = Sink()
        link.start(sink)
        link.close()
        await until_ended(sink)
        assert sink.ends == [None]


async def test_receiver_that_aborts() -> None:
    """A receiver may abort from within its callback."""
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
async def test_socket(kind: str) -> None:
    """A socket becomes a TCP link, one of a socketpair as well."""
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


async def test_asyncio_streams() -> None:
    """A reader and a writer become a link, and are closed with it."""
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


async def test_link_stays() -> None:
    """A link is what it is."""
    link: Link = StreamLink(Pipe())
    assert await as_link(link) is link


async def test_no_stream() -> None:
    """Anything else is wrong use; the text says what is wanted."""
    with pytest.raises(LocalProtocolError, match="a str is no stream; want a socket"):
        await as_link("x")  # type: ignore[arg-type]  # what is tested
