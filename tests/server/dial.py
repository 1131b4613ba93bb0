"""A small DERP client for tests: asyncio streams below, the package's own `wire` inside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response as WebSocketResponse
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

import pyderp
from pyderp.errors import without_frames
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import PROTOCOL_VERSION
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import Message, ReceivedPacket, ServerInfo
from pyderp.wire.upgrade import UpgradeReply, upgrade_request
from pyderp.wire.websocket import release_protocol
from tests.waiting import until

M = TypeVar("M")

BOUND = 10.0
"""Seconds that one step with a relay on the same machine may take."""


@dataclass(kw_only=True)
class Via:
    """How to reach a relay."""

    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    websocket: bool = False
    fast_start: NodePublic | None = None
    """The relay's key, if known already: request and ClientInfo then leave in one write."""
    ideal_node: str = ""
    receive_buffer: int = 0
    """Bytes of the kernel's receive buffer; 0: the system's."""
    source: str = ""
    """IP address to connect from; empty: the system's choice."""
    before: bytes = b""
    """Bytes sent first, before TLS: a load balancer's PROXY header."""


@dataclass
class Client:
    """A client that is logged in."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    private: NodePrivate
    session: ClientSession
    websocket: ClientProtocol | None = None
    messages: deque[Message] = field(default_factory=deque)

    def __del__(self) -> None:
        # The library's parser and protocol are a reference cycle: break it, or only the
        # cyclic collector frees them.
        if self.websocket is not None:
            release_protocol(self.websocket)

    @property
    def key(self) -> NodePublic:
        return self.private.public

    def write(self) -> None:
        """Write the session's pending bytes to the transport."""
        self.write_stream(b"".join(self.session.data_to_send()))

    def write_stream(self, data: bytes) -> None:
        """Write bytes of the DERP stream to the transport."""
        if self.websocket is not None:
            self.websocket.send_binary(data)
            data = b"".join(self.websocket.data_to_send())
        self.writer.write(data)

    def send(self, dst: Client | NodePublic, packet: bytes) -> None:
        self.session.send_packet(dst.key if isinstance(dst, Client) else dst, packet)
        self.write()

    def take(self, data: bytes) -> None:
        """Process bytes from the relay."""
        if self.websocket is None:
            self.messages += self.session.receive_data(data)
            return
        self.websocket.receive_data(data)
        for event in self.websocket.events_received():
            if isinstance(event, Frame):
                self.messages += self.session.receive_data(bytes(event.data))

    async def receive(self) -> Message:
        """Return the next message."""
        async with asyncio.timeout(BOUND):
            while not self.messages:
                data = await self.reader.read(1 << 16)
                if not data:
                    raise EOFError("the relay closed the connection")
                self.take(data)
        return self.messages.popleft()

    async def wait_for(self, kind: type[M]) -> M:
        """Return the next message of a type; others before it are dropped."""
        while not isinstance(message := await self.receive(), kind):
            pass
        return message

    async def packet(self) -> bytes:
        return (await self.wait_for(ReceivedPacket)).data

    async def ping(self) -> None:
        """Wait until the relay has acted on all that was sent before."""
        data = os.urandom(8)
        self.session.send_ping(data)
        self.write()
        while getattr(await self.receive(), "data", None) != data:
            pass

    async def closed(self) -> None:
        """Wait until the relay closed the connection."""
        await drained(self.reader)

    async def aclose(self) -> None:
        await hang_up(self.writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection and wait for it to be gone."""
    writer.transport.abort()
    try:
        await writer.wait_closed()
    except (OSError, ssl.SSLError) as e:
        without_frames(e)  # the stream keeps it


async def drained(reader: asyncio.StreamReader) -> bytes:
    """Return all bytes until the other side closes the connection, in whatever way."""
    data = bytearray()
    async with asyncio.timeout(BOUND):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while chunk := await reader.read(1 << 16):
                data += chunk
    return bytes(data)


async def open_stream(
    address: tuple[str, int], via: Via | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; over TLS if `via` says so."""
    via = via or Via()
    host = "127.0.0.1" if address[0] in ("", "0.0.0.0", "::") else address[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is given.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    try:
        if via.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, via.receive_buffer)
        if via.source:
            sock.bind((via.source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (host, address[1]))
        if via.before:
            await asyncio.get_running_loop().sock_sendall(sock, via.before)
        return await asyncio.open_connection(
            sock=sock,
            ssl=via.tls,
            server_hostname=(via.server_name or "") if via.tls is not None else None,
            limit=max(via.receive_buffer, 1 << 16),
        )
    except BaseException:
        sock.close()
        raise


async def connect(
    address: tuple[str, int],
    *,
    private: NodePrivate | None = None,
    mesh_key: MeshKey | None = None,
    via: Via | None = None,
    is_prober: bool = False,
    app_name: str = "",
) -> Client:
    """Connect and log in."""
    info = ClientInfo(
        mesh_key=mesh_key,
        version=PROTOCOL_VERSION,
        is_prober=is_prober,
        app_name=app_name,
        takes_health=True,
    )
    client = await start_login(address, private=private, info=info, via=via)
    try:
        await client.wait_for(ServerInfo)
    except BaseException:
        await client.aclose()
        raise
    return client


async def start_login(
    address: tuple[str, int],
    *,
    private: NodePrivate | None = None,
    info: ClientInfo | None = None,
    via: Via | None = None,
    silent: bool = False,
) -> Client:
    """Connect and send ClientInfo; the relay has yet to answer.

    Args:
        silent: only read the relay's key; `Client.write` sends the rest.
    """
    via = via or Via()
    private = private or NodePrivate.generate()
    async with asyncio.timeout(BOUND):
        reader, writer = await open_stream(address, via)
        info = info or ClientInfo(version=PROTOCOL_VERSION)
        session = ClientSession(private, random=os.urandom, info=info, server_key=via.fast_start)
        client = Client(reader, writer, private, session)
        try:
            if via.websocket:
                await _open_websocket(client)
            else:
                await _upgrade(client, via)
            if not silent and (via.websocket or via.fast_start is None):
                client.write()
        except BaseException:
            await hang_up(writer)
            raise
    return client


async def _upgrade(client: Client, via: Via) -> None:
    request = upgrade_request(
        "relay.test",
        "/derp",
        user_agent="pyderp-tests",
        ideal_node=via.ideal_node,
        fast_start=via.fast_start is not None,
    )
    client.writer.write(request + b"".join(client.session.data_to_send()))
    if via.fast_start is not None:
        # The relay sends its key all the same, but this ClientSession does not expect it.
        await client.reader.readexactly(5 + 40)
        return
    reply = UpgradeReply()
    rest = None
    while rest is None:
        rest = reply.receive_data(await client.reader.read(1 << 16))
    await _greeting(client, rest)


async def _open_websocket(client: Client) -> None:
    protocol = ClientProtocol(
        parse_uri("ws://relay.test/derp"), subprotocols=[Subprotocol("derp")], max_size=None
    )
    client.websocket = protocol
    protocol.send_request(protocol.connect())
    client.writer.write(b"".join(protocol.data_to_send()))
    opened = False
    while not opened:
        protocol.receive_data(await client.reader.read(1 << 16))
        for event in protocol.events_received():
            if isinstance(event, WebSocketResponse):
                opened = True
            elif isinstance(event, Frame):
                client.messages += client.session.receive_data(bytes(event.data))
    if protocol.handshake_exc is not None:
        raise protocol.handshake_exc
    await _greeting(client, b"")


async def _greeting(client: Client, start: bytes) -> None:
    data = start
    while True:
        if data:
            client.take(data)
        if client.session.server_key is not None:
            break
        data = await client.reader.read(1 << 16)
        if not data:
            raise EOFError("the relay closed the connection during login")


@contextlib.asynccontextmanager
async def clients(
    relay: pyderp.Relay, count: int = 2, *, via: Via | None = None, mesh_key: MeshKey | None = None
) -> AsyncIterator[list[Client]]:
    """Clients that are logged in and hang up at the end."""
    opened: list[Client] = []
    try:
        while len(opened) < count:
            opened += [await connect(relay.address, via=via, mesh_key=mesh_key)]
        yield opened
    finally:
        for client in opened:
            await client.aclose()


async def until_gone(relay: pyderp.Relay) -> None:
    """Wait until a relay has no connections left."""
    core = relay._running()
    await until(lambda: not core.protocols)


async def passes(sender: Client, receiver: Client) -> None:
    """Send a packet from one client to the other, and wait until it arrives."""
    mark = os.urandom(16)
    sender.send(receiver, mark)
    while await receiver.packet() != mark:
        pass
