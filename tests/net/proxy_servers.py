"""Proxies that answer as a test says, and real ones as processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.peers import need

from .ways_out import BOUND, closed_port, echo


@dataclass
class FakeConnectProxy:
    """Answers every CONNECT in the same way, then sends back all bytes."""

    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    heads: list[bytes] = field(default_factory=list)
    hang_up: bool = False
    in_pieces: bool = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        size = 1 if self.in_pieces else len(self.answer) or 1
        for start in range(0, len(self.answer), size):
            writer.write(self.answer[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        if not self.hang_up:
            await echo(reader, writer)


@dataclass
class FakeSocksProxy:
    """SOCKS5 by script: the bytes each read must have, and the answer to them."""

    script: Sequence[tuple[bytes, bytes]]
    hang_up: bool = False
    received: list[bytes] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for expected, answer in self.script:
            self.received.append(await reader.readexactly(len(expected)))
            writer.write(answer)
        if not self.hang_up:
            await echo(reader, writer)


@contextlib.asynccontextmanager
async def running(program: str, *args: str, port: int) -> AsyncIterator[None]:
    """Run a proxy that listens on a loopback port, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        str(need(program)),
        *args,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(BOUND):
            while not await _listens(port):
                assert process.returncode is None, f"{program} ended"
                await asyncio.sleep(0.01)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    sock = socket.socket()
    sock.setblocking(False)
    with sock:
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except ConnectionRefusedError:
            return False
    return True


@contextlib.asynccontextmanager
async def tinyproxy(directory: Path, *, user: str, password: str) -> AsyncIterator[int]:
    """A tinyproxy with Basic authorization; yields its port."""
    port = closed_port()
    config = directory / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\n"
        f"BasicAuth {user} {password}\n"
    )
    async with running("tinyproxy", "-d", "-c", str(config), port=port):
        yield port


@contextlib.asynccontextmanager
async def microsocks(*, user: str, password: str) -> AsyncIterator[int]:
    """A microsocks with user and password; yields its port."""
    port = closed_port()
    args = ["-i", "127.0.0.1", "-p", str(port), "-u", user, "-P", password]
    async with running("microsocks", *args, port=port):
        yield port
