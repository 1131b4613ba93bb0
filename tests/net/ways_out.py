"""What tests of dials share: scripted names, servers, and a watch on every socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, TypeAlias

from pyderp.addresses import IPAddress
from pyderp.net.dns import Resolver
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from tests.waiting import until

BOUND = 10.0
Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer: TypeAlias = "Sequence[str] | Exception | None"


@dataclass
class Names:
    """A resolver with fixed answers, and the names it was asked for."""

    answers: Mapping[str, Answer | Mapping[int, Answer]]
    """Addresses, an error, or `None`: never answers; or these by family."""
    asked: list[tuple[str, socket.AddressFamily]] = field(default_factory=list)
    cancelled: int = 0

    async def __call__(self, host: str, family: socket.AddressFamily) -> list[IPAddress]:
        self.asked.append((host, family))
        answer = self.answers[host]
        if isinstance(answer, Mapping):
            answer = answer[family]
        if answer is None:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return [ip_address(text) for text in answer or ()]


@dataclass
class Sockets:
    """Records each socket before it connects."""

    all: list[socket.socket] = field(default_factory=list)

    def watch(self, settings: NetworkSettings | None = None) -> NetworkSettings:
        return replace(settings or NetworkSettings(), before_connect=self.all.append)

    async def closed(self) -> None:
        """Wait until all are closed; transports need a turn or two of the loop."""
        await until(lambda: not any(sock.fileno() != -1 for sock in self.all))


@contextlib.asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[int]:
    """A server; yields its port. Its connections end with the block at the latest."""
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, EOFError):
                await handler(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[asyncio.create_task(handle(reader, writer))] = writer

    server = await asyncio.start_server(accept, host, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task, writer in connections.items():
            task.cancel()
            writer.transport.abort()
        done = await asyncio.gather(*connections, return_exceptions=True)
        for writer in connections.values():
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def closed_port(host: str = "127.0.0.1") -> int:
    """A port that refuses connections: it was bound a moment ago, and no longer is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


async def read_exactly(link: Link, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(BOUND):
        while len(data) < size:
            chunk = await link.read()
            assert chunk, f"the end after {data!r}"
            data += chunk
    return data


async def carries(link: Link) -> None:
    """Check that a server that sends everything back is at the other end."""
    link.write(b"there and back")
    assert await read_exactly(link, 14) == b"there and back"


async def cancelled_everywhere(
    dial: Callable[[], Coroutine[Any, Any, Link]], sockets: Sockets
) -> int:
    """Cancel `dial` after 0, 1, 2, … turns of the loop, until it is faster than that.

    Each time no task of pyderp and no socket may be left. Returns how many turns it took.
    """
    for turns in itertools.count():
        task = asyncio.create_task(dial())
        for _ in range(turns):
            await asyncio.sleep(0)
        finished = task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await task).abort()
        left = [other for other in asyncio.all_tasks() if other.get_name().startswith("pyderp")]
        assert not left
        await sockets.closed()
        if finished:
            return turns
    raise AssertionError


def fixed(*addresses: str) -> Resolver:
    """A resolver with the same addresses for every name, of the family asked for."""

    async def resolve(host: str, family: socket.AddressFamily) -> list[IPAddress]:
        version = {socket.AF_INET: 4, socket.AF_INET6: 6}.get(family)
        found = [ip_address(text) for text in addresses]
        return [ip for ip in found if version in (None, ip.version)]

    return resolve
