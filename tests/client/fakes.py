"""A relay that does exactly what a test says, and a link without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from typing import TypeVar

from pyderp import Client, ClientConfig, ConnectionClosed, Message, NetworkSettings, ServerInfo
from pyderp.client.config import ClientStats
from pyderp.client.connection import ClientConnection
from pyderp.client.login import Established
from pyderp.keys import NodePrivate, NodePublic, seal
from pyderp.net.link import Link, Receiver
from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import (
    FrameType,
    pack_received_packet,
    pack_server_info,
    pack_server_key,
)
from pyderp.wire.login import ClientInfo, open_client_info_untrusted, server_info_json
from pyderp.wire.upgrade import switching_protocols

BOUND = 10.0
"""Seconds that anything between two ends on one machine may take."""
DIRECT = NetworkSettings()
"""No proxy, with any environment of the tests."""
RELAY = NodePrivate.generate()
"""The key of all fake relays."""
PEER = NodePrivate.generate().public
"""Another client."""

M = TypeVar("M")


def packet_frame(data: bytes, source: NodePublic = PEER) -> bytes:
    """A packet as it comes from a relay."""
    return pack_received_packet(source, data)


def server_info_frame(client: NodePublic, info: ServerInfo) -> bytes:
    """A ServerInfo frame for a client of the fake relay."""
    shared = RELAY.shared_key(client)
    return pack_server_info(seal(shared, server_info_json(info), nonce=os.urandom(24)))


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """The frames in `data`, which holds whole frames only."""
    buffer = FrameBuffer(1 << 20)
    frames = list(buffer.receive_data(data))
    assert not len(buffer)
    return frames


class Peer:
    """One connection as the fake relay sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, _ClosesWithTheClient)
        self.protocol = protocol
        self.request = b""
        self.info = ClientInfo()
        self.key: NodePublic | None = None

    async def head(self) -> bytes:
        """Read the request."""
        async with asyncio.timeout(BOUND):
            self.request = await self.reader.readuntil(b"\r\n\r\n")
        return self.request

    def say(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame."""
        async with asyncio.timeout(BOUND):
            kind, length = struct.unpack(">BI", await self.reader.readexactly(5))
            return kind, await self.reader.readexactly(length)

    async def expect(self, kind: FrameType) -> bytes:
        """Read the next frame, which must be of this type; returns its payload."""
        found, payload = await self.frame()
        assert found == kind
        return payload

    async def client_info(self) -> ClientInfo:
        payload = await self.expect(FrameType.CLIENT_INFO)
        self.key, _, self.info = open_client_info_untrusted(RELAY, payload)
        return self.info

    async def login(self, info: ServerInfo | None = None) -> None:
        """Do a relay's part of the login, from the greeting to ServerInfo."""
        self.say(pack_server_key(RELAY.public))
        await self.client_info()
        assert self.key is not None
        self.say(server_info_frame(self.key, info or ServerInfo(version=2)))

    async def serve(self, info: ServerInfo | None = None) -> Peer:
        """Answer the upgrade, then the login."""
        await self.head()
        self.say(switching_protocols(RELAY.public))
        await self.login(info)
        return self

    def hang_up(self) -> None:
        """Close the connection in order."""
        self.writer.close()

    def cut(self) -> None:
        """Close the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> bytes:
        """Wait until the client has closed the connection; returns what it sent before."""
        data = bytearray()
        async with asyncio.timeout(BOUND):
            with contextlib.suppress(OSError):
                while chunk := await self.reader.read(1 << 16):
                    data += chunk
        return bytes(data)


class _ClosesWithTheClient(asyncio.StreamReaderProtocol):
    """Closes its half as soon as the client closes the other half, as a relay does."""

    lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        super().eof_received()
        return False


class FakeRelay:
    """A listener; `accept` returns connections in the order in which they come."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Peer] = asyncio.Queue()
        self.seen: list[Peer] = []
        self.scheme = "http"
        self.port = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/derp"

    async def accept(self) -> Peer:
        """The next connection."""
        async with asyncio.timeout(BOUND):
            return await self.connections.get()

    async def serve(self, info: ServerInfo | None = None) -> Peer:
        """The next connection, logged in."""
        return await (await self.accept()).serve(info)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.seen.append(peer)
        self.connections.put_nowait(peer)


@contextlib.asynccontextmanager
async def fake_relay(context: ssl.SSLContext | None = None) -> AsyncIterator[FakeRelay]:
    """A fake relay on a free port, with TLS if there is a context for it."""
    relay = FakeRelay()
    relay.scheme = "http" if context is None else "https"
    server = await asyncio.get_running_loop().create_server(
        lambda: _ClosesWithTheClient(asyncio.StreamReader(), relay._take),
        "127.0.0.1",
        0,
        ssl=context,
    )
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        for peer in relay.seen:
            if not peer.protocol.lost:  # without this, asyncio's transports fail after a slow close
                peer.writer.transport.abort()
            with contextlib.suppress(OSError, ssl.SSLError):
                await peer.writer.wait_closed()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def connected(
    relay: FakeRelay, config: ClientConfig | None = None, *, info: ServerInfo | None = None
) -> AsyncIterator[tuple[Client, Peer]]:
    """A connected client of a fake relay; ServerInfo has not been received yet."""
    config = config or ClientConfig(network=DIRECT)
    async with Client.for_url(relay.url, config=config) as client, bounded():
        peer = await connects(client, relay, info=info)
        yield client, peer


async def connects(client: Client, relay: FakeRelay, *, info: ServerInfo | None = None) -> Peer:
    """Connect the client, and play the relay's part."""
    connecting = asyncio.create_task(client.connect())
    peer = await relay.serve(info)
    await connecting
    return peer


def bounded() -> asyncio.Timeout:
    return asyncio.timeout(BOUND)


async def wait_for(client: Client, kind: type[M]) -> M:
    """The next message of a type; messages before it are dropped."""
    async with bounded():
        while not isinstance(message := await client.recv(), kind):
            pass
    return message


async def until_closed(client: Client) -> tuple[list[Message], ConnectionClosed]:
    """All messages up to the end of the connection, and the error."""
    messages: list[Message] = []
    async with bounded():
        while True:
            try:
                messages.append(await client.recv())
            except ConnectionClosed as e:
                return messages, e


class FakeLink(Link):
    """A link in memory that keeps what is written and delivers what it is fed."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.receiver: Receiver | None = None
        self.pending_bytes = 0
        self.aborted = 0
        self.closed = False
        self.reading = True
        self.admits = True
        """The relay behind it admits the client; ServerInfo is left out, as no test reads it."""

    async def read(self) -> bytes:
        raise AssertionError("it is logged in already")

    def start(self, receiver: Receiver) -> None:
        self.receiver = receiver
        if self.admits and isinstance(receiver, ClientConnection):
            receiver.admitted = True

    def write(self, data: bytes) -> None:
        self.written.append(data)

    @property
    def pending(self) -> int:
        return self.pending_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted += 1

    def close(self) -> None:
        self.closed = True

    @property
    def local_address(self) -> tuple[str, int] | None:
        return ("192.0.2.1", 1)

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return ("192.0.2.2", 2)

    # The relay's side

    def feed(self, *frames: bytes) -> None:
        assert self.receiver is not None
        self.receiver.data_received(b"".join(frames))

    def lose(self, error: Exception | None = None) -> None:
        assert self.receiver is not None
        self.receiver.connection_lost(error)

    def took_all(self) -> None:
        """The kernel took all bytes."""
        assert self.receiver is not None
        self.pending_bytes = 0
        self.receiver.writable()


def over(
    link: FakeLink, *, receive_timeout: float = 60.0, stats: ClientStats | None = None
) -> ClientConnection:
    """A connection over a fake link, logged in."""
    private = NodePrivate.generate()
    session = ClientSession(private, random=os.urandom, server_key=RELAY.public)
    session.data_to_send()
    login = Established(link, session, [])
    return ClientConnection(login, receive_timeout=receive_timeout, stats=stats)


class Log(logging.Handler):
    """Log lines of one logger, as text."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._logger = logging.getLogger(name)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Log:
        self._before = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)


class LoginLink(FakeLink):
    """A fake link whose relay sends its greeting, or stays silent."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__()
        self._silent = silent

    async def read(self) -> bytes:
        if self._silent:
            await asyncio.get_running_loop().create_future()
        return pack_server_key(RELAY.public)

    def words(self) -> list[tuple[int, bytes]]:
        """The frames written since the last call."""
        data = b"".join(self.written)
        self.written.clear()
        return frames_of(data)


class Links:
    """Opens a `LoginLink` for each connect, without a turn of the loop."""

    def __init__(self) -> None:
        self.all: list[LoginLink] = []
        self.error: Exception | None = None
        self.silent = False
        """The relay behind each new link stays silent."""
        self.admits = True

    async def open(self) -> LoginLink:
        if self.error is not None:
            raise self.error
        self.all.append(LoginLink(silent=self.silent))
        self.last.admits = self.admits
        return self.all[-1]

    def client(self, config: ClientConfig | None = None) -> Client:
        return Client.over_stream(self.open, config=config)

    @property
    def last(self) -> LoginLink:
        return self.all[-1]

    def finish(self) -> None:
        """Let all links confirm that they are closed, so that no task waits for them."""
        for link in self.all:
            if link.receiver is not None:
                link.lose()


@contextlib.asynccontextmanager
async def linked(config: ClientConfig | None = None) -> AsyncIterator[tuple[Client, Links]]:
    """A connected client over links in memory."""
    links = Links()
    client = links.client(config)
    async with bounded():
        await client.connect()
        links.last.words()
        yield client, links
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        links.finish()
        await closing
