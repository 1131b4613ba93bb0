"""DERP inside a websocket, the client's side: binary messages carry the byte stream.

Built on the sans-IO core of `websockets`. Message boundaries have no meaning here either.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import h11
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from pyderp.errors import BadUpgrade, RemoteProtocolError, UpgradeRejected, without_frames
from pyderp.silence import SILENT
from pyderp.text import h11_words, printable
from pyderp.wire.upgrade import UpgradeReply
from pyderp.wire.websocket import (
    MAX_RECEIVED_MESSAGE,
    MAX_SENT_MESSAGE,
    SUBPROTOCOL,
    release_protocol,
)

__all__ = ["WebSocketClient"]

_MAX_HEAD: Final = 64 * 1024
_CLEAN: Final = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)


class WebSocketClient:
    """Turns bytes from a relay into bytes of the DERP stream, and back, after the handshake.

    After each call write what `data_to_send` returns; the first time, that is the request.

    Args:
        host: the `Host` header: host and, unless it is the default, port.
        target: path and query, sent as they are; empty: `/`.
        user_agent: the `User-Agent` header.
        user_info: user and password, for `Authorization: Basic`.
        headers: more headers of the request, such as `Ideal-Node`.

    Raises:
        BadUpgrade: a value that an HTTP request cannot have.
    """

    def __init__(
        self,
        host: str,
        target: str,
        *,
        user_agent: str,
        user_info: tuple[str, str] | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        # The address is only there for the request that `websockets` would make itself.
        self._protocol = ClientProtocol(
            WebSocketURI(False, "", 0, "", ""),
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            max_size=MAX_RECEIVED_MESSAGE,
            logger=SILENT,  # it would log the start of each message
        )
        self._request = _request(
            target,
            [
                ("Host", host),
                ("User-Agent", user_agent),
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Key", self._protocol.key),
                ("Sec-WebSocket-Protocol", SUBPROTOCOL),
                ("Sec-WebSocket-Version", "13"),
                *headers,
            ],
            user_info,
        )
        self._reply: UpgradeReply | None = UpgradeReply()
        self._head = bytearray()
        self._text: RemoteProtocolError | None = None

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Break reference cycles; also done when this object is freed.

        The websocket is closed afterwards, but `data_to_send` still returns what was queued.
        """
        release_protocol(self._protocol)

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes from the relay; return those of the stream in one piece, perhaps empty.

        Once the websocket is open this raises nothing: check `ended` and `error` after each call.
        `data_to_send` then has the answers to pings and closes. A text message closes
        with 1003, a message of more than 256 KiB with 1009, a malformed frame with 1002.

        Raises:
            UpgradeRejected: the answer to the handshake has another status than 101.
            BadUpgrade: the answer is not HTTP, not from a websocket server, or does not
                agree on the subprotocol `derp`.
        """
        if self._reply is None:
            self._protocol.receive_data(data)
        elif not self._opens(self._reply, data):
            return b""
        parts = []
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                parts.append(event.data)
            elif event.opcode is Opcode.TEXT:
                self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "DERP uses binary messages")
                self._text = RemoteProtocolError("text message; DERP uses binary ones")
                break
        return b"".join(parts)

    def receive_eof(self) -> None:
        """Note that the relay closed its half of the connection.

        Raises:
            UpgradeRejected, BadUpgrade: in the middle of the handshake.
        """
        if self._reply is not None:
            self._reply.receive_data(b"")
        self._protocol.receive_eof()

    def send(self, data: bytes) -> None:
        """Put bytes of the stream into messages of at most 32 KiB; do nothing after the end."""
        if not self.ended:
            for at in range(0, len(data), MAX_SENT_MESSAGE):
                self._protocol.send_binary(data[at : at + MAX_SENT_MESSAGE])

    def close(self) -> None:
        """Send a close with code 1000; nothing can be sent after it."""
        if not self.ended:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)

    def data_to_send(self) -> bytes:
        """Return what to write now."""
        request, self._request = self._request, b""
        return request + b"".join(self._protocol.data_to_send())

    @property
    def refused(self) -> bool:
        """Whether the answer is a refusal; its body may be incomplete."""
        return self._reply is not None and self._reply.refused

    def refusal(self) -> UpgradeRejected:
        """Return the error for an answer that is `refused`, with the body so far."""
        assert self._reply is not None, "the websocket is open"
        return self._reply.refusal()

    @property
    def opened(self) -> bool:
        """Whether the handshake is complete."""
        return self._reply is None

    @property
    def ended(self) -> bool:
        """Whether the stream is over: no more bytes arrive and none can be sent."""
        return self._protocol.state in (State.CLOSING, State.CLOSED)

    @property
    def error(self) -> RemoteProtocolError | None:
        """Why the stream ended; `None` while it is open or if it was closed with 1000 or 1001."""
        if self._text is not None:
            return self._text
        if (cause := self._protocol.parser_exc) is not None:
            what = "not closed" if isinstance(cause, EOFError) else "malformed"
            error = RemoteProtocolError(f"websocket {what}: {printable(str(cause))}")
            error.__cause__ = without_frames(cause)
            return error
        close = self._protocol.close_rcvd
        if close is None or close.code in _CLEAN:
            return None
        code = "no code" if close.code == CloseCode.NO_STATUS_RCVD else int(close.code)
        return RemoteProtocolError(f"the relay closed the websocket: {code}, {close.reason!r}")

    def _opens(self, reply: UpgradeReply, data: bytes) -> bool:
        """Read the handshake; return whether it is complete. Bytes after it are read as well."""
        self._head += data
        if reply.receive_data(data) is None:
            if len(self._head) > _MAX_HEAD:
                raise BadUpgrade("the relay's answer is too long")
            return False
        # `UpgradeReply` explains refusals better; the rules of a websocket are checked here.
        protocol = self._protocol
        protocol.receive_data(bytes(self._head))
        cause = protocol.handshake_exc
        if cause is not None:
            raise BadUpgrade(f"no websocket: {printable(str(cause))}") from without_frames(cause)
        if protocol.subprotocol != SUBPROTOCOL:
            raise BadUpgrade("no websocket: the relay did not agree on the subprotocol derp")
        self._reply = None
        self._head.clear()
        return True


def _request(
    target: str, headers: list[tuple[str, str]], user_info: tuple[str, str] | None
) -> bytes:
    try:
        if user_info is not None:
            basic = base64.b64encode(":".join(user_info).encode()).decode("ascii")
            headers.append(("Authorization", f"Basic {basic}"))
        request = h11.Request(method="GET", target=target or "/", headers=headers)
        return h11.Connection(h11.CLIENT).send(request) or b""
    except h11.LocalProtocolError as e:
        raise BadUpgrade(f"cannot ask for a websocket: {h11_words(e)}") from e
    except UnicodeEncodeError:
        # Its text has the value, which may be a password.
        raise BadUpgrade("cannot ask for a websocket: a value is not ASCII") from None
