"""DERP inside a websocket, on a fake transport."""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import replace

import pytest

from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.context import ConnectionContext
from pyderp.wire import frames
from pyderp.wire.messages import Message, Pong, ReceivedPacket, ServerInfo
from tests.server.fakes import FakeLoop, Wire, make_context

MESH = MeshKey.parse("ab" * 32)
BINARY, TEXT, CONTINUED, CLOSE, PING = 2, 1, 0, 8, 9


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, mesh_key=MESH)


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def ask(protocol: str = "derp", **changed: str) -> bytes:
    headers = {
        "Host": "h",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": protocol,
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    return ("GET /derp HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def message(data: bytes, opcode: int = BINARY, *, final: bool = True, mask: bytes = b"") -> bytes:
    """Return a client's websocket frame (RFC 6455 §5.2)."""
    mask = mask or os.urandom(4)
    size = len(data)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack(">H", size)
    else:
        length = b"\xff" + struct.pack(">Q", size)
    repeated = (mask * (size // 4 + 1))[:size]
    masked = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
    return bytes((final << 7 | opcode,)) + length + mask + masked


def unwrap(data: bytes) -> list[tuple[int, bytes]]:
    """Return opcode and data of a server's websocket frames, none fragmented."""
    found = []
    while data:
        opcode, size, start = data[0] & 15, data[1], 2
        assert data[0] & 0x80
        assert size < 0x80, "servers do not mask"
        if size == 126:
            size, start = struct.unpack_from(">H", data, 2)[0], 4
        elif size == 127:
            size, start = struct.unpack_from(">Q", data, 2)[0], 10
        found.append((opcode, data[start : start + size]))
        data = data[start + size :]
    return found


class WebSocketWire(Wire):
    """A connection whose client opens a websocket."""

    def open(self) -> None:
        self.feed(ask())
        head, _, rest = self.answer().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        ((opcode, greeting),) = unwrap(rest)
        assert opcode == BINARY
        assert greeting == self.core.login.greeting
        self.session.receive_data(greeting)

    def login(self) -> None:
        self.open()
        self.feed(message(b"".join(self.session.data_to_send())))
        assert [type(each) for each in self.messages()] == [ServerInfo]

    def outgoing(self) -> bytes:
        return b"".join(self.session.data_to_send())

    def messages(self) -> list[Message]:
        found: list[Message] = []
        for opcode, data in unwrap(self.answer()):
            assert opcode == BINARY
            found += self.session.receive_data(data)
        return found

    def close_code(self) -> int:
        opcode, data = unwrap(self.answer())[-1]
        assert opcode == CLOSE
        return int.from_bytes(data[:2], "big")


def test_the_handshake_selects_the_derp_subprotocol_and_is_counted(core: ConnectionContext) -> None:
    wire = WebSocketWire(core)
    wire.feed(ask())
    head = wire.answer().partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert head[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"Sec-WebSocket-Protocol: derp" in head
    assert len(wire.transport.writes) == 1
    assert core.router.counters.websocket_accepts == 1


def test_packets_pass_both_ways(core: ConnectionContext) -> None:
    web, plain = WebSocketWire(core), Wire(core)
    web.login()
    plain.login()
    web.session.send_packet(plain.private.public, b"to plain")
    web.feed(message(web.outgoing()))
    plain.session.send_packet(web.private.public, b"to web")
    plain.say()
    assert plain.messages() == [ReceivedPacket(web.private.public, b"to plain")]
    assert web.messages() == [ReceivedPacket(plain.private.public, b"to web")]


def test_the_login_may_be_in_one_read_with_the_request(core: ConnectionContext) -> None:
    wire = WebSocketWire(core)
    wire.session.receive_data(core.login.greeting)
    wire.feed(ask() + message(wire.outgoing()))
    assert core.router.registry.size == 1


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_frames_may_span_and_share_messages(core: ConnectionContext, size: int) -> None:
    web, plain = WebSocketWire(core), Wire(core)
    plain.login()
    web.open()
    for i in range(3):
        web.session.send_packet(plain.private.public, bytes((i,)) * 300)
    data = web.outgoing()
    for start in range(0, len(data), size):
        web.feed(message(data[start : start + size]))
    assert plain.messages() == [
        ReceivedPacket(web.private.public, bytes((i,)) * 300) for i in range(3)
    ]


def test_messages_may_be_fragmented_with_pings_between(core: ConnectionContext) -> None:
    web = WebSocketWire(core)
    web.open()
    data = web.outgoing()
    web.feed(message(data[:20], final=False) + message(b"hello", PING))
    web.feed(message(data[20:], CONTINUED))
    (pong, info) = unwrap(web.answer())
    assert pong == (10, b"hello")
    assert info[0] == BINARY
    assert core.router.registry.size == 1


def test_a_full_packet_may_be_one_message_and_is_sent_in_small_ones(
    core: ConnectionContext,
) -> None:
    web, plain = WebSocketWire(core), Wire(core)
    web.login()
    plain.login()
    packet = os.urandom(65536)
    web.session.send_packet(plain.private.public, packet)
    web.feed(message(web.outgoing()))
    plain.session.send_packet(web.private.public, packet)
    plain.say()
    assert plain.messages() == [ReceivedPacket(web.private.public, packet)]
    parts = unwrap(web.answer())
    assert max(len(data) for _, data in parts) <= 32768
    received = [each for _, data in parts for each in web.session.receive_data(data)]
    assert received == [ReceivedPacket(plain.private.public, packet)]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (ask(Connection="close"), b"426"),
        (ask().replace(b"GET", b"POST"), b"405"),
        (ask(Sec_WebSocket_Version="8"), b"400"),
        (ask(Sec_WebSocket_Key="short"), b"400"),
    ],
)
def test_bad_handshakes_are_refused_over_http(
    core: ConnectionContext, request_: bytes, status: bytes
) -> None:
    wire = Wire(core)
    wire.feed(request_)
    assert wire.answer().startswith(b"HTTP/1.1 " + status)
    assert core.router.counters.websocket_accepts == 0
    wire.loop.advance(11)
    assert wire.gone
    wire.hang_up()
    assert not core.protocols


def test_a_subprotocol_that_is_not_derp_is_closed_with_1008(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(ask("derpx"))
    head, _, rest = wire.answer().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Protocol" not in head
    ((opcode, data),) = unwrap(rest)
    assert opcode == CLOSE
    assert data == (1008).to_bytes(2, "big") + b"client must speak the derp subprotocol"
    assert wire.gone
    wire.hang_up()
    assert not core.protocols
    assert not core.timers


def test_a_websocket_request_without_a_subprotocol_is_answered_with_plain_derp(
    core: ConnectionContext,
) -> None:
    wire = Wire(core)
    wire.feed(ask(""))
    assert b"Upgrade: DERP" in wire.answer()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (message(b"hello", TEXT), 1003),
        (b"\x82\x05hello", 1002),  # not masked
        (b"\xf2\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x82\xff" + struct.pack(">Q", 262145) + bytes(4), 1009),
        (message(b"x", CONTINUED), 1002),
        (message((1000).to_bytes(2, "big"), CLOSE), 1000),
        (message((1001).to_bytes(2, "big") + b"bye", CLOSE), 1001),
    ],
    ids=["text", "unmasked", "reserved bits", "too large", "continued", "close", "close with text"],
)
@pytest.mark.parametrize("logged_in", [False, True])
def test_the_relay_ends_a_websocket_with_the_right_code(
    core: ConnectionContext, data: bytes, code: int, logged_in: bool
) -> None:
    wire = WebSocketWire(core)
    if logged_in:
        wire.login()
    else:
        wire.open()
    wire.feed(data)
    assert wire.close_code() == code
    assert wire.gone
    assert not wire.transport.aborted
    wire.hang_up()
    assert not core.protocols
    assert not core.timers
    assert core.router.registry.size == 0


@pytest.mark.parametrize("data", [b"\x82\x05hello", b"\x82\xff" + struct.pack(">Q", 1 << 40)])
def test_a_broken_websocket_is_logged_and_counted_once(
    core: ConnectionContext, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire = WebSocketWire(core)
    wire.login()
    wire.feed(data)
    assert core.router.counters.protocol_errors == 1
    assert len(problems(caplog)) == 1
    assert "192.0.2.1:4711" in problems(caplog)[0]


def test_a_bad_frame_inside_a_websocket_ends_it(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = WebSocketWire(core)
    wire.login()
    wire.feed(message(frames.pack_frame(frames.FrameType.PING, b"short")))
    assert wire.gone
    assert core.router.counters.protocol_errors == 1
    assert problems(caplog)[0].endswith("closed: short ping: 5")


def test_a_client_may_close_itself_between_two_messages_of_one_read(
    core: ConnectionContext,
) -> None:
    wire = WebSocketWire(core, mesh_key=MESH)
    wire.login()
    wire.session.close_peer(wire.private.public)
    first = message(wire.outgoing())
    wire.feed(first + message(frames.pack_ping(b"12345678")))
    assert wire.gone
    assert core.router.registry.size == 0


def test_a_close_behind_many_packets_is_harmless(core: ConnectionContext) -> None:
    """The websocket closes while the frames that came before the close are still relayed."""
    wire, other = WebSocketWire(core), Wire(core)
    wire.login()
    other.login()
    for packets in (3, 1):
        for _ in range(packets):
            wire.session.send_packet(wire.private.public, bytes(60000))
        wire.session.send_packet(other.private.public, b"x")
    big = message(wire.outgoing())
    wire.session.send_packet(other.private.public, b"y")
    small = message(wire.outgoing())
    wire.feed(big[:-10])
    wire.feed(big[-10:] + small + message((1000).to_bytes(2, "big"), CLOSE))
    assert wire.gone
    assert not other.gone
    assert core.router.registry.size == 1
    assert [each.data for each in other.messages() if isinstance(each, ReceivedPacket)][:2] == [
        b"x",
        b"x",
    ]


def test_pings_of_a_client_that_does_not_read_use_bounded_memory(core: ConnectionContext) -> None:
    wire, other = WebSocketWire(core), Wire(core)
    wire.login()
    other.login()
    wire.transport.room = 0
    for _ in range(100):
        wire.feed(message(b"p" * 125, PING) * 500)
    assert len(wire.transport.held) < 128 * 1024
    wire.loop.advance(2.5)
    assert wire.gone


@pytest.mark.parametrize("name", ["x" * 33, "a\\n", "bad"])
def test_a_refused_app_name_closes_the_websocket_with_1000(
    core: ConnectionContext, name: str
) -> None:
    """The client gets the close frame and nothing else, as from Go's relay."""
    wire = WebSocketWire(core)
    core.rules = replace(core.rules, disallowed_app_names=frozenset({"bad"}))
    wire.feed(ask())
    wire.answer()
    private = NodePrivate.generate()
    text = f'{{"AppName":"{name}"}}'.encode()
    sealed = private.seal_to(core.login._private.public, text, nonce=bytes(24))
    wire.feed(message(frames.pack_client_info(private.public, sealed)))
    wire.loop.turn()
    assert unwrap(wire.answer()) == [(CLOSE, (1000).to_bytes(2, "big"))]
    assert wire.gone


def test_a_graceful_close_closes_the_websocket_with_1000(core: ConnectionContext) -> None:
    wire = WebSocketWire(core)
    wire.login()
    wire.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    wire.loop.turn()
    assert wire.close_code() == 1000
    assert wire.gone
    assert not wire.transport.aborted


def test_the_login_timeout_covers_a_websocket(core: ConnectionContext) -> None:
    wire = WebSocketWire(core)
    wire.open()
    wire.loop.advance(9.5)
    assert not wire.gone
    wire.loop.advance(1)
    assert wire.gone


def test_frames_for_a_closed_websocket_are_discarded(core: ConnectionContext) -> None:
    wire, other = WebSocketWire(core), Wire(core)
    wire.login()
    other.login()
    other.session.send_packet(wire.private.public, b"late")
    other.feed_only(b"".join(other.session.data_to_send()))
    wire.feed(message((1000).to_bytes(2, "big"), CLOSE))
    assert wire.gone
    assert wire.close_code() == 1000


def test_login_and_frames_may_share_a_message(core: ConnectionContext) -> None:
    wire = WebSocketWire(core)
    wire.open()
    wire.feed(message(wire.outgoing() + frames.pack_ping(b"12345678")))
    assert wire.messages()[1:] == [Pong(b"12345678")]
