"""A TCP relay in front of a relay: records bytes, holds them back, or cuts the connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST."""


@dataclass
class Passage:
    """One connection through the recorder."""

    client: socket.socket
    server: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    """From the client."""
    received: bytearray = field(default_factory=bytearray)
    """From the server."""
    held: bool = False
    """Bytes of the server are held back until the client is released."""


class Recorder:
    """A listener that connects each client to another port.

    Args:
        target: host and port.
        hold: keep back all that the server sends after the client has sent twice. In TLS 1.3
            that is all that follows the server's part of the handshake.
    """

    def __init__(self, target: tuple[str, int], *, hold: bool = False, host: str) -> None:
        self._target = target
        self._hold = hold
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.passages: list[Passage] = []
        self._start(self._accept())

    def release(self) -> None:
        """Let the bytes pass that were held back."""
        self._released.set()

    def cut(self, *, reset: bool = False) -> None:
        """End all connections, by FIN or by RST."""
        for passage in self.passages:
            for sock in (passage.client, passage.server):
                if reset and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            self._start(self._serve(sock))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        with client, socket.socket(family) as server:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                await loop.sock_connect(server, self._target)
                passage = Passage(client, server)
                self.passages.append(passage)
                await asyncio.gather(self._to_server(passage), self._to_client(passage))

    async def _to_server(self, passage: Passage) -> None:
        loop = asyncio.get_running_loop()
        while data := await _receive(passage.client):
            passage.sent += data
            passage.held = self._hold and bool(passage.received)
            await loop.sock_sendall(passage.server, data)
        with contextlib.suppress(OSError):
            passage.server.shutdown(socket.SHUT_WR)

    async def _to_client(self, passage: Passage) -> None:
        loop = asyncio.get_running_loop()
        while data := await _receive(passage.server):
            if passage.held:
                await self._released.wait()
            passage.received += data
            await loop.sock_sendall(passage.client, data)
        with contextlib.suppress(OSError):
            passage.client.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()


async def _receive(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, _CHUNK)
    except OSError:
        return b""


@asynccontextmanager
async def recording(
    port: int, *, address: str = "127.0.0.1", host: str = "127.0.0.1", hold: bool = False
) -> AsyncIterator[Recorder]:
    """Run a recorder on ``host`` in front of a port of ``address`` until the block ends."""
    recorder = Recorder((address, port), hold=hold, host=host)
    try:
        yield recorder
    finally:
        await recorder.aclose()
