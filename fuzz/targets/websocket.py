"""DERP inside a websocket: handshake decisions and `pyderp.wire.websocket.WebSocketServer`.

Modes: 0 the payload is what the client sends; 1 the same, and the relay answers each chunk;
2 the same, and the relay closes after the first; 3 it is the header lines of a handshake.
"""

from __future__ import annotations

from typing import Final

from fuzz.targets._input import cut, split_input
from pyderp.errors import RemoteProtocolError
from pyderp.wire.http import Request, Upgrade
from pyderp.wire.websocket import (
    MAX_RECEIVED_MESSAGE,
    WebSocketServer,
    refuse_handshake,
    websocket_accept,
)

__all__ = ["TOKENS", "one_input"]

_MAX_HEADER: Final = 14
_ANSWER: Final = bytes(100)
_UNASKED: Final = 160
"""Bytes that the relay may send by itself: a close frame with its reason."""

TOKENS: Final = (
    b"\x82\x80\0\0\0\0",
    b"\x82\xad\0\0\0\0",
    b"\x02\x81\0\0\0\0",
    b"\x80\x81\0\0\0\0",
    b"\x81\x81\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x89\x84\0\0\0\0ping",
    b"\x8a\x80\0\0\0\0",
    b"\x82\xfe\xff\xff\0\0\0\0",
    b"\x82\xff\0\0\0\0\0\4\0\0\0\0\0\0",
    b"\x82\xff\0\0\0\0\0\4\0\1\0\0\0\0",
    b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"connection: upgrade\n",
    b"connection: keep-alive, Upgrade\n",
    b"upgrade: websocket\n",
    b"sec-websocket-protocol: derp\n",
    b"sec-websocket-protocol: xderpx, DERP\n",
    b"sec-websocket-version: 13\n",
    b"sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\n",
    b"sec-websocket-extensions: permessage-deflate\n",
)


def _handshake(payload: bytes) -> None:
    method, _, lines = payload.partition(b"\n")
    pairs = [line.partition(b":") for line in lines.split(b"\n")]
    request = Request(
        method.decode("latin-1"),
        "/derp",
        "1.1",
        [(name.lower(), value.strip()) for name, _, value in pairs],
    )
    upgrade = request.upgrade
    refusal = refuse_handshake(request)
    if refusal is not None:
        assert refusal.status in (400, 405, 426)
        return
    head, agreed = websocket_accept(request)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert head.count(b"\r\n\r\n") == 1
    assert head.endswith(b"\r\n\r\n")
    assert b"Sec-WebSocket-Extensions" not in head
    assert agreed == (b"Sec-WebSocket-Protocol: derp\r\n" in head)
    if agreed and request.header(b"upgrade").lower() == "websocket":
        # Go's looser test runs first, so it must accept every request that is accepted later.
        offered = ",".join(request.header_values(b"sec-websocket-protocol"))
        assert upgrade is Upgrade.WEBSOCKET or "derp" not in offered


def _receive(payload: bytes, sizes: bytes, mode: int) -> tuple[bytes, bool]:
    """Returns the stream in the websocket, and whether that ended before its connection."""
    websocket = WebSocketServer()
    stream: list[bytes] = []
    said: list[bytes] = []
    answers = 0
    for chunk in cut(payload, sizes):
        stream += websocket.receive_data(chunk)
        if mode == 1:
            answers += 1
            websocket.send((_ANSWER, _ANSWER))
        elif mode == 2:
            websocket.close(1001, "going away")
        out = websocket.data_to_send()
        said += out
        held = len(websocket._protocol.reader.buffer)
        assert held <= MAX_RECEIVED_MESSAGE + _MAX_HEADER, f"{held} bytes are held"
        if b"" in out:
            break  # half-closed: nothing is read any more
    is_over = b"" in said
    if not is_over:
        websocket.receive_eof()
        said += websocket.data_to_send()
    received, sent = b"".join(stream), b"".join(said)
    assert len(received) <= len(payload)
    bound = len(payload) + answers * (2 * len(_ANSWER) + _MAX_HEADER) + _UNASKED
    assert len(sent) <= bound, f"{len(sent)} bytes out for {len(payload)} bytes in"
    return received, is_over


def one_input(data: bytes) -> None:
    """Decide on a handshake, or read a stream in chunks and at once."""
    mode, sizes, payload = split_input(data)
    mode &= 3
    if mode == 3:
        _handshake(payload)
        return
    try:
        chunked = _receive(payload, sizes, mode)
        whole = _receive(payload, b"", mode)
    except RemoteProtocolError:
        return
    if mode == 0:
        # Not in the other modes: a text message is refused only after its whole chunk was parsed,
        # so what the relay sends depends on the chunks.
        assert chunked == whole, "chunks make a difference"
