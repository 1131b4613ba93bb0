"""However a websocket ends, it leaves no reference cycle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from websockets.frames import Frame, Opcode

from pyderp.errors import RemoteProtocolError
from pyderp.keys import NodePublic
from pyderp.wire.frames import pack_send_packet
from pyderp.wire.websocket import WebSocketServer, release_protocol
from tests.leftovers import none_left_now

from .test_websocket_client import accept, connect, new

PACKET = pack_send_packet(NodePublic(bytes(32)), b"x" * 100)

ENDS: dict[str, list[tuple[Opcode, bytes, bool]] | bytes | None] = {
    "nothing": None,
    "EOF": [],
    "half a frame, then EOF": b"\x82",
    "garbage": b"\xff" * 64,
    "a packet, then EOF": [(Opcode.BINARY, PACKET, True)],
    "text": [(Opcode.TEXT, b"hello", True)],
    "ping": [(Opcode.PING, b"hello", True)],
    "half a message": [(Opcode.BINARY, PACKET, False)],
    "half a message, then a close": [
        (Opcode.BINARY, PACKET, False),
        (Opcode.CLOSE, b"\x03\xe8", True),
    ],
    "two messages at once": [(Opcode.BINARY, PACKET, False), (Opcode.BINARY, PACKET, True)],
    "too much": [(Opcode.BINARY, bytes(256 * 1024 + 1), True)],
    "a close": [(Opcode.CLOSE, b"\x03\xe8", True)],
    "a close without a code": [(Opcode.CLOSE, b"", True)],
    "a close with a bad code": [(Opcode.CLOSE, b"\x00\x01", True)],
    "a close with bad text": [(Opcode.CLOSE, b"\x03\xe8\xff", True)],
    "data after a close": [
        (Opcode.CLOSE, b"\x03\xe8", True),
        (Opcode.BINARY, PACKET, True),
    ],
}
"""Frames or bytes before the end."""


def chunks(end: str, *, mask: bool) -> Iterator[bytes]:
    what = ENDS[end]
    if isinstance(what, bytes):
        yield what
    for opcode, data, fin in what if isinstance(what, list) else ():
        yield Frame(opcode, data, fin).serialize(mask=mask)


def end_server(end: str) -> None:
    server = WebSocketServer()
    server.send((PACKET,))
    for chunk in chunks(end, mask=True):
        server.receive_data(chunk)
    if ENDS[end] is not None:
        server.receive_eof()
    assert server.error is None or isinstance(server.error, Exception)
    server.close()


def end_client(end: str) -> None:
    client, server = connect()
    release_protocol(server)  # that of the test
    client.send(PACKET)
    for chunk in chunks(end, mask=False):
        client.receive_data(chunk)
    if ENDS[end] is not None:
        client.receive_eof()
    assert client.error is None or isinstance(client.error, RemoteProtocolError)
    client.close()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("side", [end_server, end_client], ids=["server", "client"])
def test_a_websocket_leaves_no_reference_cycle(side: Callable[[str], None], end: str) -> None:
    with none_left_now():
        side(end)


ANSWERS: dict[str, Callable[[bytes], bytes | None]] = {
    "none": lambda _: None,
    "EOF": lambda _: b"",
    "half": lambda good: good[:40],
    "garbage": lambda _: b"SSH-2.0-OpenSSH\r\n\r\n",
    "refusal": lambda _: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
    "half a refusal": lambda _: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n",
    "wrong hash": lambda good: good.replace(b"-Accept: ", b"-Accept: x"),
    "no subprotocol": lambda good: good.replace(b"Sec-WebSocket-Protocol: derp\r\n", b""),
    "lines end badly": lambda good: good.replace(b"\r\n", b"\n"),
}


def end_handshake(kind: str) -> None:
    client = new()
    good, server = accept(client)
    release_protocol(server)
    answer = ANSWERS[kind](good)
    with contextlib.suppress(RemoteProtocolError):
        if answer:
            client.receive_data(answer)
        if answer is not None:
            client.receive_eof()


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_handshake_leaves_no_reference_cycle(kind: str) -> None:
    with none_left_now():
        end_handshake(kind)


def test_a_released_server_ignores_and_sends_nothing() -> None:
    server = WebSocketServer()
    server.send((PACKET,))
    server.release()
    assert len(server.data_to_send()) == 1
    assert not server.is_open
    assert server.receive_data(Frame(Opcode.BINARY, PACKET).serialize(mask=True)) == []
    server.receive_eof()
    server.send((PACKET,))
    server.close()
    server.release()
    assert server.data_to_send() == []


def test_a_released_client_ignores_and_sends_nothing() -> None:
    client, _ = connect()
    client.send(PACKET)
    client.release()
    assert client.data_to_send()
    assert client.ended
    assert client.error is None
    assert client.receive_data(Frame(Opcode.BINARY, PACKET).serialize(mask=False)) == b""
    client.receive_eof()
    client.send(PACKET)
    client.close()
    assert client.data_to_send() == b""
