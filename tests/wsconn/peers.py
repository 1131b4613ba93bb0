"""The other side of a stream: a websocket that sends and answers only as a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeAlias

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from pyderp.wsconn import Scope, WebSocketConnection, WebSocketStream, net_conn
from pyderp.wsconn.bounds import drop
from tests.server.dial import drained

Role: TypeAlias = Literal["client", "server"]
"""Which side the stream under test is."""

OPTIONS: dict[str, Any] = {"ping_interval": None, "compression": None}
"""Only the test's own frames are on the wire."""

_URI = "ws://relay.test/derp"


class Peer:
    """The other side, after the opening handshake."""

    def __init__(
        self, protocol: Protocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.writer = writer
        self._protocol = protocol
        self._reader = reader
        self._frames: deque[Frame] = deque()

    def pack(self, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
        """A frame's bytes."""
        return Frame(opcode, data, fin).serialize(mask=self._protocol.side is Side.CLIENT)

    def binary(self, data: bytes, *, fin: bool = True) -> None:
        self.writer.write(self.pack(Opcode.BINARY, data, fin=fin))

    def text(self, data: bytes, *, fin: bool = True) -> None:
        self.writer.write(self.pack(Opcode.TEXT, data, fin=fin))

    def more(self, data: bytes, *, fin: bool = True) -> None:
        self.writer.write(self.pack(Opcode.CONT, data, fin=fin))

    def close(self, code: int | None, reason: str = "") -> None:
        data = b"" if code is None else Close(code, reason).serialize()
        self.writer.write(self.pack(Opcode.CLOSE, data))

    def hang_up(self) -> None:
        """Close TCP in order."""
        self.writer.close()

    def drop(self) -> None:
        self.writer.transport.abort()

    async def frame(self) -> Frame:
        """The next frame; `EOFError` if TCP ended instead."""
        while not self._frames:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                self._frames.append(event)
        return self._frames.popleft()

    async def message(self) -> tuple[Opcode, bytes]:
        """The next message, which must be unfragmented."""
        frame = await self.frame()
        assert frame.fin
        return frame.opcode, bytes(frame.data)

    async def closing(self) -> Close:
        """The next frame, which must be a close frame."""
        opcode, data = await self.message()
        assert opcode is Opcode.CLOSE
        return Close.parse(data)

    async def some(self) -> None:
        """Wait until bytes come, and discard them."""
        await self._reader.read(1 << 16)

    async def left(self) -> bytes:
        """All bytes until TCP ends, without frames that were parsed already."""
        return await drained(self._reader)

    async def answer_close(self) -> Close:
        """Skip to the close frame, answer it with the same, and close TCP."""
        while (frame := await self.frame()).opcode is not Opcode.CLOSE:
            pass
        close = Close.parse(frame.data)
        self.close(close.code, close.reason)
        self.hang_up()
        return close


@contextlib.asynccontextmanager
async def connected(role: Role, **options: Any) -> AsyncIterator[tuple[WebSocketConnection, Peer]]:
    """A connection of the library, and its peer; both are dropped at the end."""
    opened = (_to_raw_server if role == "client" else _from_raw_client)(**{**OPTIONS, **options})
    async with opened as (websocket, peer):
        try:
            yield websocket, peer
        finally:
            drop(websocket)
            peer.drop()
            await websocket.wait_closed()


@contextlib.asynccontextmanager
async def stream(
    role: Role = "client",
    *,
    binary: bool = True,
    remote_address: str = "",
    scope: Scope | None = None,
    max_message: int | None = None,
    **options: Any,
) -> AsyncIterator[tuple[WebSocketStream, Peer]]:
    """A stream and its peer."""
    async with connected(role, **options) as (websocket, peer):
        made = net_conn(
            websocket,
            binary=binary,
            remote_address=remote_address,
            scope=scope,
            max_message=max_message,
        )
        yield made, peer


@contextlib.asynccontextmanager
async def _to_raw_server(**options: Any) -> AsyncIterator[tuple[WebSocketConnection, Peer]]:
    accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol(max_size=None)
        while not (events := protocol.events_received()):
            protocol.receive_data(await reader.read(1 << 16))
        assert isinstance(events[0], Request)
        protocol.send_response(protocol.accept(events[0]))
        writer.write(b"".join(protocol.data_to_send()))
        accepted.set_result(Peer(protocol, reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        websocket = await connect(f"ws://{host}:{port}/", proxy=None, **options)
        yield websocket, await accepted


@contextlib.asynccontextmanager
async def _from_raw_client(**options: Any) -> AsyncIterator[tuple[WebSocketConnection, Peer]]:
    accepted: asyncio.Future[WebSocketConnection] = asyncio.get_running_loop().create_future()

    async def handle(websocket: ServerConnection) -> None:
        accepted.set_result(websocket)
        await websocket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, **options) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        protocol = ClientProtocol(parse_uri(_URI), max_size=None)
        protocol.send_request(protocol.connect())
        writer.write(b"".join(protocol.data_to_send()))
        while not (events := protocol.events_received()):
            protocol.receive_data(await reader.read(1 << 16))
        assert isinstance(events[0], Response)
        yield await accepted, Peer(protocol, reader, writer)
