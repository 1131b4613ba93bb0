"""The client's side of DERP in a websocket: the handshake, and the stream inside."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from pyderp.errors import BadUpgrade, RemoteProtocolError, UpgradeRejected
from pyderp.wire.frames import pack_received_packet
from pyderp.wire.websocket_client import WebSocketClient
from tests import vectors as v

from .chunks import chunkings


def new(target: str = "/derp") -> WebSocketClient:
    return WebSocketClient("relay.test:8443", target, user_agent="pyderp-tests")


def head_of(client: WebSocketClient) -> list[str]:
    """Return the lines of the client's request, without the random key."""
    lines = client.data_to_send().decode("ascii").split("\r\n")
    assert client.data_to_send() == b""
    [key] = [line for line in lines if line.lower().startswith("sec-websocket-key: ")]
    assert len(base64.b64decode(key.split(": ")[1])) == 16
    lines.remove(key)
    return lines


def accept(client: WebSocketClient) -> tuple[bytes, ServerProtocol]:
    """Return the answer of an independent server, and that server."""
    server = ServerProtocol(subprotocols=[Subprotocol("derp")], max_size=None)
    server.receive_data(client.data_to_send())
    [request] = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    return b"".join(server.data_to_send()), server


def connect() -> tuple[WebSocketClient, ServerProtocol]:
    """Return both sides, after the handshake."""
    client = new()
    answer, server = accept(client)
    assert not client.opened
    assert client.receive_data(answer) == b""
    assert client.opened
    assert not client.ended
    return client, server


def seen_by(server: Protocol, client: WebSocketClient) -> list[Frame]:
    server.receive_data(client.data_to_send())
    return [event for event in server.events_received() if isinstance(event, Frame)]


def sent_by(server: Protocol) -> bytes:
    return b"".join(server.data_to_send())


def problem(client: WebSocketClient) -> str:
    """Return the text of the client's error."""
    assert client.ended
    assert isinstance(client.error, RemoteProtocolError)
    return str(client.error)


# The handshake


def test_the_request_has_the_websocket_headers() -> None:
    client = WebSocketClient(
        "relay.test",
        "/a%20b/derp?x=1&y=%2F",
        user_agent="pyderp-tests",
        user_info=("me", "pass:word"),
        headers=[("Ideal-Node", "1a")],
    )
    first, *others, empty, end = head_of(client)
    assert first == "GET /a%20b/derp?x=1&y=%2F HTTP/1.1"
    assert sorted(others) == sorted(
        [
            "Host: relay.test",
            "User-Agent: pyderp-tests",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Protocol: derp",
            "Sec-WebSocket-Version: 13",
            "Authorization: Basic bWU6cGFzczp3b3Jk",
            "Ideal-Node: 1a",
        ]
    )
    assert (empty, end) == ("", "")


def test_an_empty_target_is_the_root_and_without_a_user_there_is_no_authorization() -> None:
    lines = head_of(new(""))
    assert lines[0] == "GET / HTTP/1.1"
    assert not [line for line in lines if line.lower().startswith("authorization")]


@pytest.mark.parametrize(
    ("target", "user", "header"),
    [
        ("/derp\r\nX: y", "me", "1a"),
        ("/a b", "me", "1a"),
        ("/\xe9", "me", "1a"),
        ("/derp", "\ud800", "1a"),
        ("/derp", "me", "1a\r\nX: y"),
        ("/derp", "me", "\xe9"),
    ],
)
def test_an_invalid_value_for_the_request_is_refused(target: str, user: str, header: str) -> None:
    with pytest.raises(BadUpgrade, match="cannot ask for a websocket") as caught:
        WebSocketClient(
            "h",
            target,
            user_agent="x",
            user_info=(user, "secret"),
            headers=[("Ideal-Node", header)],
        )
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__)


def test_the_answer_and_the_stream_behind_it_are_read_however_they_are_cut() -> None:
    whole = new()
    answer, server = accept(whole)
    server.send_binary(v.SERVER_KEY_FRAME)
    data = answer + sent_by(server)
    for chunks in chunkings(data):
        client = new()
        client._protocol.key = whole._protocol.key
        assert b"".join(client.receive_data(chunk) for chunk in chunks) == v.SERVER_KEY_FRAME
        assert client.opened
        assert client.error is None


@pytest.mark.parametrize(
    ("old", "new_", "text"),
    [
        (b"Sec-WebSocket-Protocol: derp\r\n", b"", "subprotocol"),
        (b"Protocol: derp\r\n", b"Protocol: chat\r\n", "chat"),
        (b"Protocol: derp\r\n", b"Protocol: derp, derp\r\n", "multiple"),
        (b"Protocol: derp\r\n", b"Protocol: \r\n", "Protocol"),
        (b"Connection: Upgrade\r\n", b"", "Connection"),
        (b"Upgrade: websocket\r\n", b"Upgrade: DERP\r\n", "Upgrade"),
        (b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x", "Accept"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "extension"),
        (b"HTTP/1.1 101", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101", "no websocket"),
        (b"\r\n", b"\n", "no websocket"),
    ],
)
def test_an_invalid_answer_is_refused(old: bytes, new_: bytes, text: str) -> None:
    client = new()
    answer, _ = accept(client)
    assert old in answer
    with pytest.raises(BadUpgrade, match=text):
        client.receive_data(answer.replace(old, new_))
    assert not client.opened


def test_another_status_is_a_rejection() -> None:
    client = new()
    data = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\ngo away"
    with pytest.raises(UpgradeRejected) as caught:
        client.receive_data(data)
    assert (caught.value.status, caught.value.body) == (403, "go away")


def test_a_refusal_is_known_before_its_body_has_arrived() -> None:
    client = new()
    assert not client.refused
    client.receive_data(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\ngo away")
    assert client.refused
    assert (client.refusal().status, client.refusal().body) == (403, "go away")
    opened, _ = connect()
    assert not opened.refused


def test_control_characters_of_the_answer_are_escaped() -> None:
    client = new()
    answer, _ = accept(client)
    with pytest.raises(BadUpgrade, match="no websocket") as caught:
        client.receive_data(answer.replace(b"Upgrade: websocket\r\n", b"Upgrade: \x9b31m\t!\r\n"))
    assert str(caught.value).isprintable()


def test_control_characters_of_a_close_reason_are_escaped() -> None:
    client, server = connect()
    server.send_close(4000, "x\nCRITICAL \x1b[31m")
    client.receive_data(sent_by(server))
    assert problem(client).isprintable()


def test_an_answer_that_is_not_http_is_refused() -> None:
    with pytest.raises(BadUpgrade, match="not HTTP"):
        new().receive_data(b"SSH-2.0-OpenSSH\r\n\r\n")


def test_an_end_instead_of_an_answer_is_reported_as_such() -> None:
    client = new()
    client.receive_data(b"HTTP/1.1 101 Sw")
    with pytest.raises(BadUpgrade, match=r'not whole: it begins with "HTTP/1\.1 101 Sw"'):
        client.receive_eof()
    with pytest.raises(BadUpgrade, match="closed the connection without an answer"):
        new().receive_eof()


def test_an_endless_answer_is_refused() -> None:
    client = new()
    for _ in range(2):
        client.receive_data(b"HTTP/1.1 100 Continue\r\n\r\n" * 1200)
    with pytest.raises(BadUpgrade, match="too long"):
        client.receive_data(b"HTTP/1.1 100 Continue\r\n\r\n" * 1200)


@given(st.binary(max_size=200))
def test_any_answer_is_a_websocket_or_bad_upgrade(tail: bytes) -> None:
    client = new()
    try:
        client.receive_data(b"HTTP/1.1 101 x\r\n" + tail + b"\r\n\r\n")
    except BadUpgrade:
        pass
    else:
        # A head without the hash of the key opens no websocket.
        assert not client.opened


# The stream


def test_messages_are_read_however_they_are_cut() -> None:
    """Borders of messages do not matter; complete messages are returned in one piece."""
    _, server = connect()
    server.send_binary(b"ab")
    server.send_binary(b"")
    server.send_ping(b"?")
    server.send_binary(b"c", fin=False)
    server.send_continuation(b"", fin=False)
    server.send_continuation(b"de", fin=True)
    data = sent_by(server)
    for chunks in chunkings(data):
        client, peer = connect()
        parts = [client.receive_data(chunk) for chunk in chunks]
        assert b"".join(parts) == b"abcde"
        if len(chunks) == 1:
            assert parts == [b"abcde"]
        assert seen_by(peer, client) == [Frame(Opcode.PONG, b"?")]
        assert not client.ended


@pytest.mark.parametrize("size", [1, 65536, 200_000])
def test_large_messages_are_accepted(size: int) -> None:
    client, server = connect()
    data = pack_received_packet(v.K1, bytes(min(size, 65536))) + bytes(max(size - 65536, 0))
    server.send_binary(data)
    assert client.receive_data(sent_by(server)) == data


@pytest.mark.parametrize("fragments", [[256 * 1024 + 1], [200_000, 100_000]])
def test_a_larger_message_closes_with_1009(fragments: list[int]) -> None:
    client, server = connect()
    server.send_binary(bytes(fragments[0]), fin=len(fragments) == 1)
    for size in fragments[1:]:
        server.send_continuation(bytes(size), fin=True)
    client.receive_data(sent_by(server))
    assert "malformed" in problem(client)
    [close] = seen_by(server, client)
    assert Close.parse(close.data).code == 1009


def test_text_closes_with_1003_and_bytes_before_it_count() -> None:
    client, server = connect()
    server.send_binary(b"before")
    server.send_text(b"hello")
    server.send_binary(b"behind")
    assert client.receive_data(sent_by(server)) == b"before"
    assert problem(client) == "text message; DERP uses binary ones"
    server.send_binary(b"later")
    assert client.receive_data(sent_by(server)) == b""
    client.send(b"no more")
    [close] = seen_by(server, client)
    assert Close.parse(close.data).code == 1003


@pytest.mark.parametrize(
    "data",
    [
        Frame(Opcode.BINARY, b"x").serialize(mask=True),  # a server must not mask
        Frame(Opcode.CONT, b"x").serialize(mask=False),  # nothing to continue
        b"\xc2\x00",  # a reserved bit, as with compression
        b"\x83\x00",  # a reserved opcode
        b"\x88\x02\x00\x00",  # a close with a code that may not be sent
    ],
    ids=["masked", "continuation of nothing", "reserved bit", "reserved opcode", "close code"],
)
def test_a_malformed_frame_closes_with_1002(data: bytes) -> None:
    client, server = connect()
    assert client.receive_data(data) == b""
    assert "malformed" in problem(client)
    [close] = seen_by(server, client)
    assert Close.parse(close.data).code == 1002


@pytest.mark.parametrize("code", [1000, 1001])
def test_a_clean_close_is_echoed_and_is_no_error(code: int) -> None:
    client, server = connect()
    server.send_binary(b"last words")
    server.send_close(code, "bye")
    assert client.receive_data(sent_by(server)) == b"last words"
    assert client.ended
    assert client.error is None
    [close] = seen_by(server, client)
    assert Close.parse(close.data) == Close(code, "bye")
    client.receive_eof()
    assert client.error is None
    assert client.ended


def test_the_clients_close_is_sent_once_and_is_no_error() -> None:
    client, server = connect()
    client.close()
    client.close()
    client.send(b"no more")
    assert client.ended
    [close] = seen_by(server, client)
    assert Close.parse(close.data) == Close(1000, "")
    client.receive_data(sent_by(server))
    client.receive_eof()
    assert client.error is None


def test_another_close_is_an_error_with_code_and_reason() -> None:
    client, server = connect()
    server.send_close(1008, "not\nwelcome")
    client.receive_data(sent_by(server))
    assert problem(client) == r"the relay closed the websocket: 1008, 'not\nwelcome'"


def test_a_close_without_a_code_is_an_error() -> None:
    client, server = connect()
    server.send_close()
    client.receive_data(sent_by(server))
    assert problem(client) == "the relay closed the websocket: no code, ''"


def test_a_close_in_the_middle_of_a_message_is_an_error() -> None:
    client, server = connect()
    server.send_binary(b"half", fin=False)
    server.send_close(1000)
    assert client.receive_data(sent_by(server)) == b"half"
    assert "incomplete" in problem(client)


@pytest.mark.parametrize("rest", [b"", b"\x82", b"\x82\x05abc"])
def test_an_end_without_a_close_is_an_error(rest: bytes) -> None:
    client, _ = connect()
    client.receive_data(rest)
    assert client.error is None
    client.receive_eof()
    assert problem(client).startswith("websocket not closed: ")
    assert isinstance(client.error, RemoteProtocolError)
    assert isinstance(client.error.__cause__, EOFError)


@pytest.mark.parametrize(
    ("size", "messages"),
    [(0, []), (1, [1]), (32768, [32768]), (32769, [32768, 1]), (65573, [32768, 32768, 37])],
)
def test_a_long_stream_is_sent_in_messages_of_32_kib(size: int, messages: list[int]) -> None:
    client, server = connect()
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client.send(data)
    seen = seen_by(server, client)
    assert [len(frame.data) for frame in seen] == messages
    assert all(frame.opcode is Opcode.BINARY and frame.fin for frame in seen)
    assert b"".join(bytes(frame.data) for frame in seen) == data


@given(st.binary(max_size=100), st.integers(min_value=1, max_value=30))
def test_any_bytes_end_in_an_error_or_the_same_stream(data: bytes, step: int) -> None:
    """Hostile bytes raise no exception, and how they are cut does not matter."""
    results = []
    for size in (step, len(data) + 1):
        client = WebSocketClient("h", "/", user_agent="x")
        answer, _ = accept(client)
        client.receive_data(answer)
        cut = [data[at : at + size] for at in range(0, len(data), size)]
        stream = b"".join(client.receive_data(chunk) for chunk in cut)
        client.receive_eof()
        assert client.ended
        results.append((stream, str(client.error)))
    assert results[0] == results[1]


def test_a_message_of_derper_is_read() -> None:
    client, _ = connect()
    assert client.receive_data(v.WEBSOCKET_SERVER_KEY) == v.SERVER_KEY_FRAME
