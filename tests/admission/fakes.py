"""Servers with scripted answers, on a Unix socket or on loopback, that record their requests."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pyderp import NodePublic
from pyderp.admission.verdict import ClientIdentity

STALL: Final = "stall"
"""Send nothing more until the end."""
CLOSE: Final = "close"
WAIT: Final = "wait"
"""Continue when `released` is set."""

Reply: TypeAlias = "Sequence[bytes | Literal['stall', 'close', 'wait']]"


class _Jumping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "the loop would wait for ever"
        ready = super().select(0)
        if not ready:
            self.now += max(timeout, 0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop for timers only: where it would wait, its clock jumps to the next one."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def key(n: int) -> NodePublic:
    return NodePublic(n.to_bytes(32, "big"))


def identity(n: int = 1, address: str = "192.0.2.7") -> ClientIdentity:
    return ClientIdentity(key(n), address)


def response(body: bytes = b"", status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Request:
    """A request, byte by byte as received."""

    raw: bytes

    @property
    def line(self) -> bytes:
        return self.raw.partition(b"\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name: value.strip() for name, _, value in (x.partition(":") for x in lines)}


@dataclass
class FakeServer:
    """A running server."""

    reply: Callable[[Request], Reply]
    before_reply: Callable[[], Awaitable[None]] | None = None
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Once set, waiting replies continue, and stalled connections end."""
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for_requests(self, n: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= n)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raw = await reader.readuntil(b"\r\n\r\n")
        size = int(Request(raw).headers.get("Content-Length", "0"))
        request = Request(raw + await reader.readexactly(size))
        async with self.arrived:
            self.requests.append(request)
            self.arrived.notify_all()
        if self.before_reply is not None:
            await self.before_reply()
        for part in self.reply(request):
            if part == CLOSE:
                return False
            if part == STALL:
                await self.released.wait()
                return False
            if part == WAIT:
                await self.released.wait()
                continue
            assert isinstance(part, bytes)
            writer.write(part)
            await writer.drain()
        return True


@contextlib.asynccontextmanager
async def serving(
    reply: Reply | Callable[[Request], Reply], *, path: Path | None = None
) -> AsyncIterator[FakeServer]:
    """Run a server that answers every request with `reply`, on `path` or on a free port."""
    fake = FakeServer(reply if callable(reply) else lambda _: reply)
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.add(asyncio.get_running_loop().create_task(fake.serve(reader, writer)))

    if path is not None:
        server = await asyncio.start_unix_server(connected, path)
    else:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/admit?x=1"
    try:
        yield fake
    finally:
        server.close()
        fake.released.set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
