"""DERP inside a websocket, the relay's side: binary messages carry the byte stream.

Built on the sans-IO core of `websockets`. Message boundaries have no meaning: a frame may span
messages and a message may hold many frames (`net/wsconn`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator, Iterable
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeaderFormat
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.headers import parse_connection, parse_subprotocol
from websockets.protocol import SERVER, Protocol, State
from websockets.utils import accept_key

from pyderp.errors import RemoteProtocolError, without_frames
from pyderp.silence import SILENT
from pyderp.wire.http import Request, Response, text_response

__all__ = [
    "WebSocketServer",
    "close_frame",
    "refuse_handshake",
    "release_protocol",
    "unsent_payload",
    "websocket_accept",
]

MAX_SENT_MESSAGE: Final = 32 * 1024
"""Largest message that Go's client accepts, in bytes."""
MAX_RECEIVED_MESSAGE: Final = 256 * 1024
"""Largest message accepted, in bytes: a packet of 64 KiB and what a client may batch with it."""
SUBPROTOCOL: Final = "derp"
# Headers of messages that a server sends (RFC 6455 §5.2).
_SHORT_HEADER: Final = 2
_MEDIUM_HEADER: Final = 4
_MEDIUM: Final = 126
"""Messages of at least this many bytes have a header of four bytes."""


def refuse_handshake(request: Request) -> Response | None:
    """Return the refusal of an invalid handshake (RFC 6455 §4.2.1); `None`: it is valid."""
    connection = ",".join(request.header_values(b"connection"))
    try:
        tokens = [str(token).lower() for token in parse_connection(connection)]
    except InvalidHeaderFormat:
        tokens = []
    if request.http_version != "1.1" or "upgrade" not in tokens:
        response = text_response(426, "websocket handshake needs HTTP/1.1 and Connection: Upgrade")
        response.headers += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        return response
    if request.method != "GET":
        return text_response(405, "websocket handshake must use GET")
    if request.header(b"sec-websocket-version") != "13":
        response = text_response(400, "websocket version must be 13")
        response.headers.append(("Sec-WebSocket-Version", "13"))
        return response
    keys = request.header_values(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return text_response(400, "Sec-WebSocket-Key must be given once, 16 bytes in base64")
    return None


def _is_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value.strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def websocket_accept(request: Request) -> tuple[bytes, bool]:
    """Return the 101 answer to a valid handshake, and whether it agrees on subprotocol `derp`.

    It never agrees on extensions: packets are encrypted, so compression would not help.
    """
    headers = Headers()
    headers["Upgrade"] = "websocket"
    headers["Connection"] = "Upgrade"
    headers["Sec-WebSocket-Accept"] = accept_key(request.header(b"sec-websocket-key").strip())
    agreed = _offers_derp(request)
    if agreed:
        headers["Sec-WebSocket-Protocol"] = SUBPROTOCOL
    return b"HTTP/1.1 101 Switching Protocols\r\n" + headers.serialize(), agreed


def _offers_derp(request: Request) -> bool:
    for value in request.header_values(b"sec-websocket-protocol"):
        try:
            offered = parse_subprotocol(value)
        except InvalidHeaderFormat:
            continue
        if any(name.lower() == SUBPROTOCOL for name in offered):
            return True
    return False


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame, for a websocket that is closed as soon as it is open."""
    return Frame(Opcode.CLOSE, Close(CloseCode(code), reason).serialize()).serialize(mask=False)


def unsent_payload(unsent: int, payload: int) -> int:
    """Return how many bytes of the stream are in the last `unsent` bytes of sent messages.

    Args:
        unsent: bytes, with message headers, that the peer does not get.
        payload: bytes of the stream that were passed to `WebSocketServer.send`.
    """
    missing = 0
    while payload and unsent > 0:
        size = payload % MAX_SENT_MESSAGE or MAX_SENT_MESSAGE
        missing += min(size, unsent)
        unsent -= size + (_SHORT_HEADER if size < _MEDIUM else _MEDIUM_HEADER)
        payload -= size
    return missing


def release_protocol(protocol: Protocol) -> None:
    """Break the reference cycles of the websocket library's `Protocol`, which cannot be used again.

    Its parser is a generator that runs a method of the `Protocol` and so refers to it; an error in
    the parser refers to the parser's frames. Otherwise only the cyclic collector would free the
    websocket and the data it has buffered.
    """
    protocol.parser.close()
    protocol.parser = _ignore_all()
    for error in (protocol.parser_exc, protocol.handshake_exc):
        if error is not None:
            without_frames(error)
    protocol.state = State.CLOSED


def _ignore_all() -> Generator[None, None, None]:
    """Replace the parser: ignore all bytes."""
    while True:
        yield


class WebSocketServer:
    """Turns bytes of an open websocket into bytes of the DERP stream, and back.

    After each call write what `data_to_send` returns; an empty chunk in it means half-close.
    """

    __slots__ = ("_protocol", "_text")

    def __init__(self) -> None:
        # The library would log the start of each message at level DEBUG.
        self._protocol = Protocol(
            SERVER, state=State.OPEN, max_size=MAX_RECEIVED_MESSAGE, logger=SILENT
        )
        self._text: Exception | None = None

    def __del__(self) -> None:
        # Here, so that code which ends a connection cannot forget it.
        self.release()

    def release(self) -> None:
        """Break reference cycles; also done when this object is freed.

        The websocket is closed afterwards, but `data_to_send` still returns what was queued.
        """
        release_protocol(self._protocol)

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take bytes from the peer; return the stream's bytes in order.

        `data_to_send` then has the answers to pings and closes. A text message closes
        with 1003, a message of more than 256 KiB with 1009, a malformed frame with 1002.
        """
        protocol = self._protocol
        protocol.receive_data(data)
        stream: list[bytes] = []
        for event in protocol.events_received():
            assert isinstance(event, Frame)  # the handshake was read elsewhere
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                stream.append(bytes(event.data))
            elif event.opcode is Opcode.TEXT:
                protocol.fail(CloseCode.UNSUPPORTED_DATA, "DERP uses binary messages")
                self._text = RemoteProtocolError("text message; DERP uses binary ones")
                break
        return stream

    def receive_eof(self) -> None:
        """Note that the peer closed its half of the connection."""
        self._protocol.receive_eof()

    def send(self, chunks: Iterable[bytes]) -> None:
        """Put bytes of the stream into messages of at most 32 KiB."""
        data = b"".join(chunks)
        if not self.is_open:
            return
        for at in range(0, len(data), MAX_SENT_MESSAGE):
            self._protocol.send_binary(data[at : at + MAX_SENT_MESSAGE])

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin the closing handshake."""
        if self.is_open:
            self._protocol.send_close(code, reason)

    @property
    def is_open(self) -> bool:
        """Whether neither side has begun to close."""
        return self._protocol.state is State.OPEN

    @property
    def error(self) -> Exception | None:
        """How the peer broke the protocol, if it did."""
        return self._text or self._protocol.parser_exc

    def data_to_send(self) -> list[bytes]:
        """Return what to write, in order."""
        return self._protocol.data_to_send()
