"""WebSocketLink: the DERP stream inside of a websocket, over any link."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

import pyderp
from pyderp.errors import BadUpgrade, RemoteProtocolError
from pyderp.keys import NodePrivate
from pyderp.net.link import Link, Receiver, link_over_socket
from pyderp.net.websocket import WebSocketLink, open_websocket
from pyderp.wire.client import ClientSession
from pyderp.wire.messages import Message, ReceivedPacket, ServerInfo
from pyderp.wire.websocket_client import WebSocketClient


@dataclass
class FakeLink(Link):
    """The link below: it keeps what is written and delivers what the test feeds."""

    incoming: asyncio.Queue[bytes | Exception] = field(default_factory=asyncio.Queue)
    written: bytearray = field(default_factory=bytearray)
    wrote: asyncio.Event = field(default_factory=asyncio.Event)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    receiver: Receiver | None = None
    aborted: int = 0
    closed: int = 0
    waiting: int = 0
    reading: bool = True

    async def read(self) -> bytes:
        if self.incoming.empty():
            self.reads.set()
        chunk = await self.incoming.get()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def start(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> None:
        self.written += data
        self.wrote.set()

    @property
    def pending(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted += 1

    def close(self) -> None:
        self.closed += 1

    @property
    def local_address(self) -> tuple[str, int] | None:
        return "127.0.0.1", 1

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return "127.0.0.1", 2

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data


@dataclass
class RecordingReceiver:
    """A receiver that records its calls."""

    events: list[bytes | Exception | str | None] = field(default_factory=list)

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append(error)

    def writable(self) -> None:
        self.events.append("writable")


@dataclass
class Relay:
    """The other side of a websocket over a `FakeLink`, by `websockets`."""

    link: FakeLink
    protocol: ServerProtocol

    @classmethod
    def new(cls) -> Relay:
        return cls(FakeLink(), ServerProtocol(subprotocols=[Subprotocol("derp")], max_size=None))

    def answer(self) -> bytes:
        self.protocol.receive_data(self.link.take())
        [request] = self.protocol.events_received()
        assert isinstance(request, Request)
        self.protocol.send_response(self.protocol.accept(request))
        return self.sent()

    def sent(self) -> bytes:
        return b"".join(self.protocol.data_to_send())

    def message(self, data: bytes) -> bytes:
        self.protocol.send_binary(data)
        return self.sent()

    def close(self, code: int, reason: str = "") -> bytes:
        self.protocol.send_close(code, reason)
        return self.sent()

    def sent_frames(self) -> list[Frame]:
        self.protocol.receive_data(self.link.take())
        return [event for event in self.protocol.events_received() if isinstance(event, Frame)]

    async def opened(self, *behind: bytes) -> WebSocketLink:
        """Open the websocket; `behind` comes in one piece with the answer."""
        opening = asyncio.ensure_future(
            open_websocket(self.link, WebSocketClient("h", "/derp", user_agent="x"))
        )
        await self.link.wrote.wait()
        answer = self.answer()
        for data in behind:
            answer += self.message(data)
        self.link.incoming.put_nowait(answer)
        return await opening

    async def started(self) -> tuple[WebSocketLink, RecordingReceiver, Receiver]:
        link, receiver = await self.opened(), RecordingReceiver()
        link.start(receiver)
        assert self.link.receiver is not None
        return link, receiver, self.link.receiver


# With a relay


async def login(link: Link, private: NodePrivate) -> ClientSession:
    session = ClientSession(private, random=os.urandom)
    while session.server_key is None:
        assert session.receive_data(await link.read()) == []
    link.write(b"".join(session.data_to_send()))
    return session


class Collector:
    """Reads messages out of the delivered bytes, until there are as many as wanted."""

    def __init__(self, session: ClientSession, count: int) -> None:
        self.session = session
        self.messages: list[Message] = []
        self.count = count
        self.done = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.messages += self.session.receive_data(data)
        if len(self.messages) == self.count:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    def writable(self) -> None:
        pass


async def dial(relay: pyderp.Relay) -> Link:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", relay.address[1]))
    return await link_over_socket(sock)


async def test_packets_through_a_relay() -> None:
    """As large as allowed, to the client itself."""
    private = NodePrivate.generate()
    packets = [b"x", b"", bytes(range(256)) * 256, b"last"]
    async with pyderp.Relay(pyderp.RelayConfig(address="127.0.0.1:0")) as relay:
        link = await open_websocket(
            await dial(relay), WebSocketClient("relay.test", "/derp", user_agent="x")
        )
        assert link.remote_address == ("127.0.0.1", relay.address[1])
        assert link.local_address is not None
        session = await login(link, private)
        collector = Collector(session, 1 + len(packets))
        link.start(collector)
        for packet in packets:
            session.send_packet(private.public, packet)
        link.write(b"".join(session.data_to_send()))
        await collector.done
        first, *others = collector.messages
        assert isinstance(first, ServerInfo)
        assert others == [ReceivedPacket(private.public, packet) for packet in packets]
        link.abort()
        assert await collector.lost is None


async def test_a_relay_that_closes_ends_the_stream() -> None:
    async with pyderp.Relay(pyderp.RelayConfig(address="127.0.0.1:0")) as relay:
        link = await open_websocket(
            await dial(relay), WebSocketClient("relay.test", "/derp", user_agent="x")
        )
        assert (await link.read())[:1] == b"\x01"
        link.write(b"\x02\xff\xff\xff\xff")  # a ClientInfo that no relay accepts
        assert await link.read() == b""
        link.abort()


async def test_a_path_without_a_relay_is_refused() -> None:
    async with pyderp.Relay(pyderp.RelayConfig(address="127.0.0.1:0")) as relay:
        link = await dial(relay)
        with pytest.raises(BadUpgrade, match="404"):
            await open_websocket(link, WebSocketClient("h", "/other", user_agent="x"))
        # Aborted: nothing is delivered any more.
        assert await link.read() == b""


# Failures of the handshake


async def test_failed_handshake_aborts_the_link() -> None:
    for said, error in (
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", BadUpgrade),
        (b"", BadUpgrade),
        (ConnectionResetError(), ConnectionResetError),
    ):
        link = FakeLink()
        link.incoming.put_nowait(said)
        with pytest.raises(error):
            await open_websocket(link, WebSocketClient("h", "/", user_agent="x"))
        assert link.aborted == 1


async def test_cancelled_handshake_aborts_the_link() -> None:
    link = FakeLink()
    opening = asyncio.ensure_future(open_websocket(link, WebSocketClient("h", "/", user_agent="x")))
    await link.wrote.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert link.aborted == 1


# While one task reads


async def test_a_ping_after_the_answer_is_answered() -> None:
    relay = Relay.new()
    opening = asyncio.ensure_future(
        open_websocket(relay.link, WebSocketClient("h", "/derp", user_agent="x"))
    )
    await relay.link.wrote.wait()
    answer = relay.answer()
    relay.protocol.send_ping(b"?")
    relay.link.incoming.put_nowait(answer + relay.sent())
    await opening
    assert relay.sent_frames() == [Frame(Opcode.PONG, b"?")]


async def test_bytes_that_came_with_the_answer_are_read_first() -> None:
    relay = Relay.new()
    link = await relay.opened(b"ab", b"cd")
    assert await link.read() == b"abcd"
    relay.protocol.send_ping(b"?")
    relay.link.incoming.put_nowait(relay.sent())
    relay.link.incoming.put_nowait(relay.message(b""))
    relay.link.incoming.put_nowait(relay.message(b"e") + relay.close(1001))
    assert await link.read() == b"e"
    assert [frame.opcode for frame in relay.sent_frames()] == [Opcode.PONG, Opcode.CLOSE]
    assert await link.read() == b""
    assert await link.read() == b""


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (lambda relay: relay.close(1011, "oh"), RemoteProtocolError),
        (lambda _: b"\x83\x00", RemoteProtocolError),
        (lambda _: b"", RemoteProtocolError),
        (lambda _: ConnectionResetError(), ConnectionResetError),
    ],
)
async def test_broken_stream_fails_a_read(
    last: Callable[[Relay], bytes | Exception], error: type[Exception]
) -> None:
    relay = Relay.new()
    link = await relay.opened()
    relay.link.incoming.put_nowait(last(relay))
    with pytest.raises(error):
        await link.read()


async def test_cancelled_read_loses_nothing() -> None:
    relay = Relay.new()
    link = await relay.opened()
    message = relay.message(b"hello")
    relay.link.incoming.put_nowait(message[:3])
    reading = asyncio.ensure_future(link.read())
    relay.link.reads.clear()
    await relay.link.reads.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    relay.link.incoming.put_nowait(message[3:])
    assert await link.read() == b"hello"


# Delivered


async def test_payloads_of_one_call_are_delivered_at_once() -> None:
    relay = Relay.new()
    link, receiver, below = await relay.started()
    below.data_received(relay.message(b"ab") + relay.message(b"") + relay.message(b"cd"))
    below.data_received(relay.message(b""))
    assert receiver.events == [b"abcd"]
    link.write(b"to the relay")
    assert relay.sent_frames() == [Frame(Opcode.BINARY, b"to the relay")]


async def test_unread_bytes_are_delivered_first() -> None:
    relay = Relay.new()
    link = await relay.opened(b"early")
    receiver = RecordingReceiver()
    link.start(receiver)
    assert receiver.events == [b"early"]
    assert relay.link.receiver is link


async def test_end_that_came_before_the_start_is_delivered() -> None:
    relay = Relay.new()
    link = await relay.opened(b"early")
    await link.read()
    relay.link.incoming.put_nowait(relay.message(b"x") + relay.close(1008))
    await link.read()
    receiver = RecordingReceiver()
    link.start(receiver)
    [error] = receiver.events
    assert isinstance(error, RemoteProtocolError)


async def test_clean_close_is_delivered_once_after_the_last_bytes() -> None:
    relay = Relay.new()
    link, receiver, below = await relay.started()
    below.data_received(relay.message(b"bye") + relay.close(1000))
    assert receiver.events == [b"bye", None]
    assert relay.link.aborted == 1
    [echo] = relay.sent_frames()
    assert Close.parse(echo.data).code == 1000
    below.data_received(b"\x82\x01x")
    below.writable()
    below.connection_lost(None)
    link.write(b"too late")
    assert receiver.events == [b"bye", None]
    assert relay.link.written == b""


async def test_text_message_is_an_error_for_the_receiver() -> None:
    relay = Relay.new()
    _, receiver, below = await relay.started()
    relay.protocol.send_text(b"hello")
    below.data_received(relay.sent())
    [error] = receiver.events
    assert isinstance(error, RemoteProtocolError)
    [close] = relay.sent_frames()
    assert Close.parse(close.data).code == 1003


async def test_connection_that_ends_without_a_close_is_an_error() -> None:
    for cause in (None, ConnectionResetError("gone")):
        relay = Relay.new()
        _, receiver, below = await relay.started()
        below.connection_lost(cause)
        [error] = receiver.events
        if cause is None:
            assert isinstance(error, RemoteProtocolError)
        else:
            assert error is cause


async def test_an_abort_of_the_client_is_no_error() -> None:
    relay = Relay.new()
    link, receiver, below = await relay.started()
    link.abort()
    assert relay.link.aborted == 1
    assert receiver.events == []
    below.connection_lost(None)
    assert receiver.events == [None]


async def test_close_sends_a_close_frame_after_all_bytes() -> None:
    relay = Relay.new()
    link, receiver, below = await relay.started()
    link.write(b"last words")
    link.close()
    link.write(b"too late")
    words, close = relay.sent_frames()
    assert words.data == b"last words"
    assert Close.parse(close.data).code == 1000
    below.data_received(Frame(Opcode.BINARY, b"crossed").serialize(mask=False))
    assert (relay.link.closed, relay.link.aborted) == (1, 0)
    below.connection_lost(None)
    assert receiver.events == [None]


async def test_close_after_the_end_sends_nothing() -> None:
    relay = Relay.new()
    link, _, below = await relay.started()
    below.data_received(relay.close(1000))
    relay.link.take()
    link.close()
    assert relay.link.take() == b""
    assert relay.link.closed == 1


async def test_flow_control_is_that_of_the_link_below() -> None:
    relay = Relay.new()
    link, receiver, below = await relay.started()
    link.pause_reading()
    assert not relay.link.reading
    link.resume_reading()
    assert relay.link.reading
    relay.link.waiting = 77
    assert link.pending == 77
    below.writable()
    assert receiver.events == ["writable"]
    assert (link.local_address, link.remote_address) == (("127.0.0.1", 1), ("127.0.0.1", 2))


async def test_pongs_do_not_pile_up() -> None:
    """A relay that pings and does not read costs no memory."""
    relay = Relay.new()
    _, receiver, below = await relay.started()
    relay.link.waiting = 256 * 1024
    for answered in (False, True):
        relay.protocol.send_ping(b"?")
        below.data_received(relay.sent())
        assert bool(relay.sent_frames()) is answered
        relay.link.waiting = 0
    assert receiver.events == []
