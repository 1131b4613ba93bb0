"""The Go program in ``go/``: one end of a stream, on upstream's own ``net/wsconn``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from pyderp.wsconn import WebSocketConnection
from tests.interop.peers import REPOSITORY, need

Role: TypeAlias = Literal["client", "server"]
"""Which side pyderp is; Go is the other."""
Seen: TypeAlias = dict[str, Any]
"""The result of one step of Go's."""

_OPTIONS: dict[str, Any] = {"compression": None, "max_size": None}


def program() -> Path:
    """The program; it is built if it is missing and Go is installed."""
    target = REPOSITORY / ".peers" / "bin" / "gowsconn"
    if not target.exists() and shutil.which("go"):
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).parent / "go"
        # If the build fails, Go prints why, and `need` what that means.
        subprocess.run(["go", "build", "-o", str(target), "."], cwd=source, check=False)
    return need("gowsconn")


class GoEnd:
    """A run of the program."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def port(self) -> int:
        """The port on which it listens."""
        assert self._process.stdout is not None
        return int(await self._process.stdout.readline())

    async def saw(self) -> list[Seen]:
        """Wait for its end; returns the results of its steps."""
        output, errors = await self._process.communicate()
        assert self._process.returncode == 0, errors.decode()
        seen: list[Seen] = json.loads(output)
        return seen

    async def last(self) -> Seen:
        """Wait for its end; returns the result of the last step."""
        return (await self.saw())[-1]


@contextlib.asynccontextmanager
async def started(*args: str) -> AsyncIterator[GoEnd]:
    process = await asyncio.create_subprocess_exec(program(), *args, stdout=PIPE, stderr=PIPE)
    try:
        yield GoEnd(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def connected(
    role: Role, kind: str, *steps: str
) -> AsyncIterator[tuple[WebSocketConnection, GoEnd]]:
    """pyderp's end of a connection, and Go's, which runs its steps.

    Args:
        kind: type of Go's messages, "binary" or "text".
    """
    ended = asyncio.Event()
    opened = _to_go if role == "client" else _from_go
    async with opened(f"-type={kind}", *steps, ended=ended) as (websocket, go):
        try:
            yield websocket, go
        finally:
            websocket.transport.abort()
            await websocket.wait_closed()
            ended.set()


@contextlib.asynccontextmanager
async def _to_go(
    *args: str, ended: asyncio.Event
) -> AsyncIterator[tuple[WebSocketConnection, GoEnd]]:
    async with started(*args) as go:
        url = f"ws://127.0.0.1:{await go.port()}/"
        yield await connect(url, proxy=None, **_OPTIONS), go


@contextlib.asynccontextmanager
async def _from_go(
    *args: str, ended: asyncio.Event
) -> AsyncIterator[tuple[WebSocketConnection, GoEnd]]:
    accepted: asyncio.Future[WebSocketConnection] = asyncio.get_running_loop().create_future()

    async def handle(websocket: ServerConnection) -> None:
        accepted.set_result(websocket)
        await ended.wait()

    async with serve(handle, "127.0.0.1", 0, **_OPTIONS) as server:
        host, port = server.sockets[0].getsockname()
        async with started(f"-dial=ws://{host}:{port}/", *args) as go:
            yield await accepted, go
            ended.set()
