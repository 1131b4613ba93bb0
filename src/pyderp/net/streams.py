"""Links over streams that the program has opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from pyderp.errors import DerpError, LocalProtocolError, raisable, without_frames
from pyderp.net.link import NO_RECEIVER, Link, Receiver, link_over_socket
from pyderp.text import system_words

__all__ = ["ByteStream", "Stream", "StreamLink", "as_link", "describe"]

_READ: Final = 128 * 1024
_HIGH: Final = 64 * 1024


@runtime_checkable
class ByteStream(Protocol):
    """A byte stream with anyio's method names; `pyderp.wsconn` and many others have them."""

    async def receive(self, max_bytes: int = 65536, /) -> bytes:
        """Returns at least one byte; at the end returns `b""` or raises `EndOfStream`."""

    async def send(self, item: bytes, /) -> None:
        """Send all of it."""

    async def aclose(self) -> None:
        """Close."""


Stream: TypeAlias = (
    Link | socket.socket | tuple[asyncio.StreamReader, asyncio.StreamWriter] | ByteStream
)
"""A connected byte stream: a socket, a pair of asyncio streams, or anyio's `ByteStream`."""


async def as_link(stream: Stream) -> Link:
    """Returns a link over a stream, which then belongs to the link.

    Raises:
        LocalProtocolError: the object is no `Stream`.
    """
    if isinstance(stream, Link):
        return stream
    if isinstance(stream, socket.socket):
        return await link_over_socket(stream)
    if isinstance(stream, tuple):
        return StreamLink(_Pair(*stream))
    if isinstance(stream, ByteStream):
        return StreamLink(stream)
    raise LocalProtocolError(
        f"a {type(stream).__name__} is not a stream; want a socket, (StreamReader, StreamWriter), "
        "or an object with receive, send and aclose"
    )


class _Pair:
    """A reader and a writer of asyncio as one `ByteStream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # So `drain` waits until the kernel has taken everything, and closing loses nothing.
        writer.transport.set_write_buffer_limits(high=0)

    async def receive(self, max_bytes: int = _READ) -> bytes:
        return await self._reader.read(max_bytes)

    async def send(self, item: bytes) -> None:
        self._writer.write(item)
        await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.transport.abort()


class StreamLink(Link):
    """A link over a stream with async methods: one task reads and one writes, until `abort`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._ended = False
        self._closing = False
        self._error: Exception | None = None
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._out: list[bytes] = []
        self._pending = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        # The writer may have failed before; then nothing comes.
        if self._error is not None:
            raise raisable(self._error)
        if self._ended:
            return b""
        return await self._receive()

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive(_READ)
        except (OSError, DerpError):
            raise
        except Exception as e:
            # By its name, as pyderp does not depend on anyio, whose class this is.
            if isinstance(e, EOFError) or type(e).__name__ == "EndOfStream":
                return b""
            raise ConnectionError(f"reading failed: {describe(e)}") from e

    def start(self, receiver: Receiver) -> None:
        if self._ended:
            self._receiver = NO_RECEIVER
            self._loop.call_soon(receiver.connection_lost, self._error)
        else:
            self._receiver = receiver
            self._spawn(self._read_on(receiver), "reads")

    async def _read_on(self, receiver: Receiver) -> None:
        error: Exception | None = None
        try:
            while not self._ended:
                await self._may_read.wait()
                data = await self._receive()
                if not data:
                    break
                receiver.data_received(data)
        except Exception as e:
            error = e
        self._lose(error)

    def write(self, data: bytes) -> None:
        if self._ended or not data:
            return
        self._out.append(data)
        self._pending += len(data)
        if self._writer is None:
            self._writer = self._spawn(self._write_on(), "writes")

    async def _write_on(self) -> None:
        try:
            while self._out:
                data = b"".join(self._out)
                self._out.clear()
                await self._stream.send(data)
                high = self._pending > _HIGH
                self._pending -= len(data)
                if high and self._pending <= _HIGH and self._receiver is not None:
                    self._receiver.writable()
        except Exception as e:
            error = BrokenPipeError(f"writing failed: {describe(e)}")
            error.__cause__ = e
            self._lose(error)
        finally:
            self._writer = None
            if self._closing:
                self._lose(None)

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=f"pyderp stream {what}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # For a task that was cancelled before it began, which runs none of its own code.
        if self._writer is task:
            self._writer = None

    def _lose(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = None if error is None else without_frames(error)
        current = asyncio.current_task() if self._loop.is_running() else None
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._spawn(self._close(), "closes")
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, NO_RECEIVER
            self._loop.call_soon(receiver.connection_lost, self._error)

    @property
    def pending(self) -> int:
        return 0 if self._ended else self._pending

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def abort(self) -> None:
        self._lose(None)

    def close(self) -> None:
        self._closing = True
        if self._writer is None:
            self._lose(None)

    async def _close(self) -> None:
        # The link has ended already, and no call is left that could raise this error.
        with contextlib.suppress(Exception):
            await self._stream.aclose()


def describe(error: Exception) -> str:
    """Returns the text of an error, or its type if it has no text."""
    if isinstance(error, OSError) and not isinstance(error, DerpError):
        return system_words(error)
    return str(error) or type(error).__name__
