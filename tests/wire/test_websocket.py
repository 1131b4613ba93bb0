"""DERP in a websocket: the handshake, and a byte stream in messages of any cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

from pyderp.wire.frames import pack_send_packet
from pyderp.wire.http import HttpConnection, Request
from pyderp.wire.websocket import (
    WebSocketServer,
    close_frame,
    refuse_handshake,
    unsent_payload,
    websocket_accept,
)
from tests import vectors as v

from .chunks import byte_by_byte, chunkings

# The handshake

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3

Changes = dict[str, str | list[str] | None]


def handshake(changes: Changes | None = None, *, line: str = "GET /derp HTTP/1.1") -> Request:
    """Return a browser's handshake, with some headers changed, removed or repeated."""
    headers: Changes = {
        "Host": "h",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Protocol": "derp",
        **(changes or {}),
    }
    head = f"{line}\r\n"
    for name, value in headers.items():
        for one in [value] if isinstance(value, str) else value or []:
            head += f"{name}: {one}\r\n"
    http = HttpConnection()
    http.receive_data(f"{head}\r\n".encode("latin-1"))
    request = http.next_request()
    assert request is not None
    return request


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": ["keep-alive", "uPGRADE"]},
        {"Upgrade": "WebSocket"},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
        {"Ideal-Node": "1f", "Derp-Fast-Start": "1"},
    ],
)
def test_a_handshake_is_accepted_without_extensions(changes: Changes) -> None:
    request = handshake(changes)
    assert refuse_handshake(request) is None
    assert websocket_accept(request) == (
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
        ).encode(),
        True,
    )


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ("derp", True),
        ("DERP", True),
        ("chat, derp", True),
        (["chat", "derp"], True),
        (["a b", "derp"], True),  # a malformed line spoils no other
        ("derpx", False),
        ("xderp", False),
        ("derp derp", False),
        ("", False),
        (None, False),
    ],
)
def test_the_subprotocol_must_be_exactly_derp(
    offered: str | list[str] | None, agreed: bool
) -> None:
    head, agreed_on = websocket_accept(handshake({"Sec-WebSocket-Protocol": offered}))
    assert agreed_on is agreed
    assert (b"Sec-WebSocket-Protocol: derp\r\n" in head) is agreed
    assert head.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("changes", "line", "status"),
    [
        ({}, "GET /derp HTTP/1.0", 426),
        ({"Connection": None}, "GET /derp HTTP/1.1", 426),
        ({"Connection": "keep-alive"}, "GET /derp HTTP/1.1", 426),
        ({"Connection": "Upgraded"}, "GET /derp HTTP/1.1", 426),
        ({"Connection": "Upgrade;"}, "GET /derp HTTP/1.1", 426),
        ({}, "POST /derp HTTP/1.1", 405),
        ({"Sec-WebSocket-Version": None}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Version": "12"}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Version": "8, 13"}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": None}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": [KEY, KEY]}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": ""}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": KEY[:-4]}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": "AAAA" + KEY}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": "!" * 24}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": f"{KEY[:4]}!{KEY[4:]}"}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": "\xe9" * 24}, "GET /derp HTTP/1.1", 400),
        ({"Sec-WebSocket-Key": KEY[:5]}, "GET /derp HTTP/1.1", 400),
    ],
)
def test_an_invalid_handshake_is_refused(changes: Changes, line: str, status: int) -> None:
    refusal = refuse_handshake(handshake(changes, line=line))
    assert refusal is not None
    assert refusal.status == status
    assert refusal.body.endswith(b"\n")
    headers = dict(refusal.headers)
    assert (headers.get("Upgrade"), headers.get("Connection")) == (
        ("websocket", "Upgrade") if status == 426 else (None, None)
    )
    bad_version = "Sec-WebSocket-Version" in changes
    assert headers.get("Sec-WebSocket-Version") == ("13" if bad_version else None)


# The stream. The peer is the client of the library `websockets`, with masks.


def connect() -> tuple[ClientProtocol, WebSocketServer]:
    """Return a client and a server after their handshake."""
    client = ClientProtocol(
        parse_uri("ws://h/derp"),
        origin=Origin("null"),
        subprotocols=[Subprotocol("derp")],
        extensions=[ClientPerMessageDeflateFactory()],
        max_size=None,
    )
    client.send_request(client.connect())
    http = HttpConnection()
    http.receive_data(b"".join(client.data_to_send()))
    request = http.next_request()
    assert request is not None
    assert refuse_handshake(request) is None
    head, agreed = websocket_accept(request)
    assert agreed
    assert http.take_over() == b""
    client.receive_data(head)
    client.events_received()
    assert client.handshake_exc is None
    assert client.state is State.OPEN
    assert client.subprotocol == "derp"
    assert list(client.extensions) == []
    return client, WebSocketServer()


def receive(server: WebSocketServer, chunks: Sequence[bytes]) -> bytes:
    """Return the stream inside the messages that arrived in chunks."""
    return b"".join(part for chunk in chunks for part in server.receive_data(chunk))


def deliver(client: ClientProtocol, server: WebSocketServer) -> list[Frame]:
    """Pass the server's pending bytes to the client; return the frames that it reads."""
    for chunk in server.data_to_send():
        if chunk:
            client.receive_data(chunk)
        else:
            client.receive_eof()
    return [event for event in client.events_received() if isinstance(event, Frame)]


def test_the_first_message_is_that_of_go() -> None:
    client, server = connect()
    server.send([v.SERVER_KEY_FRAME])
    assert server.data_to_send() == [v.WEBSOCKET_SERVER_KEY]
    client.receive_data(v.WEBSOCKET_SERVER_KEY)
    assert client.events_received() == [Frame(Opcode.BINARY, v.SERVER_KEY_FRAME)]


def test_messages_of_a_client_are_read_however_the_bytes_are_cut() -> None:
    """Two messages and one of three fragments, with an empty one between."""
    client, _ = connect()
    client.send_binary(b"ab")
    client.send_binary(b"")
    client.send_binary(b"c", fin=False)
    client.send_continuation(b"", fin=False)
    client.send_continuation(b"de", fin=True)
    client.send_binary(b"f" * 200)
    data = b"".join(client.data_to_send())
    assert b"f" * 8 not in data  # masked
    for chunks in chunkings(data):
        server = WebSocketServer()
        assert receive(server, chunks) == b"abcde" + b"f" * 200
        assert server.data_to_send() == []
        assert server.is_open


def test_fragments_are_returned_as_they_arrive() -> None:
    client, server = connect()
    client.send_binary(b"first", fin=False)
    assert server.receive_data(b"".join(client.data_to_send())) == [b"first"]
    client.send_continuation(b"last", fin=True)
    assert server.receive_data(b"".join(client.data_to_send())) == [b"last"]


def test_a_ping_is_answered_between_fragments() -> None:
    client, server = connect()
    client.send_binary(b"a", fin=False)
    client.send_ping(b"12345")
    client.send_continuation(b"b", fin=True)
    client.send_pong(b"unasked")
    assert receive(server, client.data_to_send()) == b"ab"
    assert deliver(client, server) == [Frame(Opcode.PONG, b"12345")]
    assert server.is_open


@pytest.mark.parametrize("size", [65573, 256 * 1024])
def test_large_messages_are_accepted(size: int) -> None:
    """Also a full packet in one message, which Go's server refuses."""
    client, server = connect()
    data = pack_send_packet(v.K1, bytes(65536)) if size == 65573 else b"x" * size
    client.send_binary(data)
    assert receive(server, client.data_to_send()) == data
    assert server.is_open


def closed_with(client: ClientProtocol, server: WebSocketServer) -> int:
    """Return the close code of the server, after all of its bytes."""
    *_, close = [f for f in deliver(client, server) if f.opcode is Opcode.CLOSE]
    assert not server.is_open
    return Close.parse(close.data).code


@pytest.mark.parametrize("fragments", [[256 * 1024 + 1], [200_000, 100_000]])
def test_a_larger_message_closes_with_1009(fragments: list[int]) -> None:
    client, server = connect()
    first, *others = fragments
    client.send_binary(bytes(first), fin=not others)
    for size in others:
        client.send_continuation(bytes(size), fin=True)
    receive(server, client.data_to_send())
    assert closed_with(client, server) == 1009
    assert server.error is not None


def test_text_closes_with_1003_and_bytes_behind_it_are_ignored() -> None:
    client, server = connect()
    client.send_binary(b"before")
    client.send_text(b"hello")
    client.send_binary(b"behind")
    assert receive(server, [b"".join(client.data_to_send())]) == b"before"
    client.send_binary(b"later")
    assert receive(server, client.data_to_send()) == b""
    assert closed_with(client, server) == 1003


def test_text_in_fragments_closes_with_1003() -> None:
    client, server = connect()
    client.send_text(b"he", fin=False)
    client.send_continuation(b"llo", fin=True)
    assert receive(server, byte_by_byte(b"".join(client.data_to_send()))) == b""
    assert closed_with(client, server) == 1003


@pytest.mark.parametrize(
    "data",
    [
        Frame(Opcode.BINARY, b"x").serialize(mask=False),  # a client must mask
        Frame(Opcode.CONT, b"x").serialize(mask=True),  # nothing to continue
        b"\xc2\x80\0\0\0\0",  # a reserved bit, as with compression
        b"\x83\x80\0\0\0\0",  # a reserved opcode
        b"\x09\x80\0\0\0\0",  # a ping in fragments
    ],
    ids=["unmasked", "continuation of nothing", "reserved bit", "reserved opcode", "ping in parts"],
)
def test_a_malformed_frame_closes_with_1002(data: bytes) -> None:
    client, server = connect()
    assert receive(server, [data]) == b""
    assert isinstance(server.error, ProtocolError)
    assert closed_with(client, server) == 1002


@pytest.mark.parametrize("code", [1000, 1001, 4000])
def test_a_close_is_echoed_and_the_connection_half_closed(code: int) -> None:
    client, server = connect()
    client.send_binary(b"last words")
    client.send_close(code, "bye")
    assert receive(server, client.data_to_send()) == b"last words"
    assert not server.is_open
    assert server.error is None
    sent = server.data_to_send()
    assert sent[-1] == b""
    client.receive_data(b"".join(sent))
    [echo] = client.events_received()
    assert isinstance(echo, Frame)
    assert Close.parse(echo.data) == Close(code, "bye")


def test_the_server_closes_with_1000() -> None:
    client, server = connect()
    server.close()
    assert not server.is_open
    [close] = deliver(client, server)
    assert Close.parse(close.data) == Close(1000, "")
    server.close(1008, "again")
    assert server.data_to_send() == []
    assert receive(server, client.data_to_send()) == b""  # the echo
    assert server.data_to_send() == [b""]


def test_the_server_closes_with_a_reason() -> None:
    client, server = connect()
    server.close(1008, "client must speak the derp subprotocol")
    [close] = deliver(client, server)
    assert Close.parse(close.data) == Close(1008, "client must speak the derp subprotocol")


def test_an_end_without_a_close_is_an_error() -> None:
    _, server = connect()
    server.receive_eof()
    assert not server.is_open
    assert isinstance(server.error, EOFError)
    assert server.data_to_send() == [b""]


def test_an_end_after_a_close_is_no_error() -> None:
    client, server = connect()
    client.send_close(1000)
    receive(server, client.data_to_send())
    server.receive_eof()
    assert server.error is None


def test_nothing_is_sent_after_a_close() -> None:
    _, server = connect()
    server.close()
    server.data_to_send()
    server.send([b"too late"])
    assert server.data_to_send() == []


# Go's client accepts no message of more than 32 KiB


@pytest.mark.parametrize(
    ("size", "messages"),
    [
        (0, []),
        (1, [1]),
        (32768, [32768]),
        (32769, [32768, 1]),
        (65573, [32768, 32768, 37]),
    ],
)
def test_a_long_stream_is_sent_in_messages_of_32_kib(size: int, messages: list[int]) -> None:
    client, server = connect()
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    server.send([data])
    seen = deliver(client, server)
    assert [len(frame.data) for frame in seen] == messages
    assert all(frame.opcode is Opcode.BINARY and frame.fin for frame in seen)
    assert b"".join(bytes(frame.data) for frame in seen) == data


def test_chunks_of_one_send_share_a_message() -> None:
    client, server = connect()
    server.send([b"a", b"", b"bc"])
    assert deliver(client, server) == [Frame(Opcode.BINARY, b"abc")]


def test_a_refused_websocket_gets_a_close_frame() -> None:
    assert close_frame(1008, "no") == b"\x88\x04\x03\xf0no"


@pytest.mark.parametrize("payload", [0, 1, 125, 126, 32767, 32768, 32769, 32893, 65573])
def test_unsent_payload_excludes_the_headers_of_messages(payload: int) -> None:
    """Compared with the messages themselves."""
    client, server = connect()
    server.send([bytes(payload)])
    is_payload: list[bool] = []
    for frame in deliver(client, server):
        header = len(frame.serialize(mask=False)) - len(frame.data)
        is_payload += [False] * header + [True] * len(frame.data)
    sent = len(is_payload)
    near = {at + step for at in (0, 126, 130, payload, 32768, 32772, sent) for step in range(-5, 6)}
    for unsent in sorted(at for at in near if 0 <= at <= sent):
        assert unsent_payload(unsent, payload) == sum(is_payload[sent - unsent :])


def test_a_released_websocket_ignores_bytes_and_keeps_queued_ones() -> None:
    client, server = connect()
    server.send([b"queued"])
    server.release()
    assert not server.is_open
    client.send_binary(b"late")
    for data in (b"".join(client.data_to_send()), b"\xff"):
        assert server.receive_data(data) == []
    assert server.error is None
    assert deliver(client, server) == [Frame(Opcode.BINARY, b"queued")]


def test_a_released_websocket_keeps_its_error_without_traceback_frames() -> None:
    _, server = connect()
    server.receive_data(b"\xff" * 8)
    server.release()
    assert isinstance(server.error, ProtocolError)
    assert server.error.__traceback__ is None
