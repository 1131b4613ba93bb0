"""Bytes of a socket to messages of DERP and back, for each way to a relay. No I/O."""

from __future__ import annotations

import contextlib
import os
import ssl
from abc import ABC, abstractmethod
from typing import Final

from websockets.frames import Opcode

from pyderp.keys import MeshKey, NodePrivate
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.frames import PROTOCOL_VERSION
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import Message
from pyderp.wire.upgrade import UpgradeReply, upgrade_request
from pyderp.wire.websocket_client import WebSocketClient
from tests.server.certificates import trusting_nobody
from tests.server.ways import NAME

__all__ = ["KINDS", "Stack"]

KINDS: Final = ("plain", "tls", "websocket", "websocket over tls")
_CONTEXT: Final = trusting_nobody()


class _Layer(ABC):
    """One layer: bytes from below go up, bytes from above go down."""

    ended = False
    """The peer has closed this layer in order."""

    def begin(self) -> bytes:
        """The bytes to write first."""
        return b""

    @abstractmethod
    def up(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes from below; returns those for above, and those to write below."""

    @abstractmethod
    def down(self, data: bytes) -> bytes:
        """Take bytes from above; returns those to write below."""

    def close(self) -> bytes:
        """Close in order; returns the bytes to write."""
        return b""


class _Tls(_Layer):
    def __init__(self) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = _CONTEXT.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)
        self._established = False
        self._waiting = bytearray()

    def begin(self) -> bytes:
        self._handshake()
        return self._outgoing.read()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._established = True
        if self._waiting:
            self._tls.write(bytes(self._waiting))
            self._waiting.clear()

    def up(self, data: bytes) -> tuple[bytes, bytes]:
        self._incoming.write(data)
        if not self._established:
            self._handshake()
        parts = []
        if self._established:
            try:
                while part := self._tls.read(1 << 18):
                    parts.append(part)
                self.ended = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                self.ended = True
        return b"".join(parts), self._outgoing.read()

    def down(self, data: bytes) -> bytes:
        if not self._established:
            self._waiting += data
        elif data:
            self._tls.write(data)
        return self._outgoing.read()

    def close(self) -> bytes:
        if self._established:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # the relay's own alert is still to come
        return self._outgoing.read()


class _Upgrade(_Layer):
    def __init__(self) -> None:
        self._reply: UpgradeReply | None = UpgradeReply()

    def begin(self) -> bytes:
        return upgrade_request(NAME, "/derp", user_agent="pyderp-sums")

    def up(self, data: bytes) -> tuple[bytes, bytes]:
        if self._reply is not None:
            rest = self._reply.receive_data(data)
            if rest is None:
                return b"", b""
            self._reply = None
            data = rest
        return data, b""

    def down(self, data: bytes) -> bytes:
        return data


class _Payloads:
    """The payloads of a relay's messages, each byte as soon as it comes.

    Clients differ in whether they use a message that was cut off. This one does, so that what
    was delivered does not depend on where messages end.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._is_data = False

    def take(self, data: bytes) -> bytes:
        parts = []
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                if self._is_data:
                    parts.append(part)
            else:
                self._head.append(data[at])
                at += 1
                self._read_head()
        return b"".join(parts)

    def _read_head(self) -> None:
        head = self._head
        if len(head) < 2:
            return
        length = head[1]  # a relay masks no frame
        size = {126: 4, 127: 10}.get(length, 2)
        if len(head) == size:
            self._left = length if size == 2 else int.from_bytes(head[2:], "big")
            self._is_data = head[0] & 0x0F in (Opcode.CONT, Opcode.BINARY)
            head.clear()


class _WebSocket(_Layer):
    def __init__(self) -> None:
        self._websocket = WebSocketClient(NAME, "/derp", user_agent="pyderp-sums")
        self._head = b""
        self._payloads = _Payloads()

    def begin(self) -> bytes:
        return self._websocket.data_to_send()

    def up(self, data: bytes) -> tuple[bytes, bytes]:
        opened = self._websocket.opened
        self._websocket.receive_data(data)
        if not opened:
            self._head += data
            data = self._head.partition(b"\r\n\r\n")[2] if self._websocket.opened else b""
        if self._websocket.opened and self._websocket.ended:
            self.ended = True
        return self._payloads.take(data), self._websocket.data_to_send()

    def down(self, data: bytes) -> bytes:
        self._websocket.send(data)
        return self._websocket.data_to_send()

    def close(self) -> bytes:
        if self._websocket.opened:
            self._websocket.close()
        return self._websocket.data_to_send()


class Stack:
    """A client's side of one connection.

    Args:
        kind: one of `KINDS`.
        private: the client's key.
        mesh_key: the relay's mesh key, for a client that is to be a mesh peer.
    """

    def __init__(self, kind: str, private: NodePrivate, mesh_key: MeshKey | None = None) -> None:
        over_tls = [_Tls()] if kind in ("tls", "websocket over tls") else []
        inner = _WebSocket() if kind.startswith("websocket") else _Upgrade()
        self._layers: list[_Layer] = [*over_tls, inner]
        info = ClientInfo(mesh_key=mesh_key, version=PROTOCOL_VERSION, can_ack_pings=True)
        self.session = ClientSession(private, random=os.urandom, info=info)

    def begin(self) -> bytes:
        """The bytes to write first."""
        data = b""
        for layer in reversed(self._layers):
            data = layer.begin() + layer.down(data)
        return data

    def receive(self, data: bytes) -> tuple[list[Message], bytes]:
        """Take bytes of the socket; returns the messages in them, and bytes to write."""
        answers = b""
        for index, layer in enumerate(self._layers):
            data, answer = layer.up(data)
            for below in reversed(self._layers[:index]):
                answer = below.down(answer) if answer else b""
            answers += answer
            if not data:
                break  # a layer above would take it for the end
        messages = self.session.receive_data(data) if data else []
        return messages, answers + self.take()

    def take(self) -> bytes:
        """The bytes that the session wants to send, ready for the socket."""
        data = b"".join(self.session.data_to_send())
        return self.wrap(data) if data else b""

    def wrap(self, data: bytes) -> bytes:
        """Bytes of the DERP stream, ready for the socket."""
        for layer in reversed(self._layers):
            data = layer.down(data)
        return data

    def wrap_below(self, data: bytes) -> bytes:
        """Bytes in place of a websocket frame or the HTTP upgrade, ready for the socket."""
        for layer in reversed(self._layers[:-1]):
            data = layer.down(data)
        return data

    @property
    def ready(self) -> bool:
        """Whether packets may be sent."""
        return self.session.state is ClientState.READY

    @property
    def ended(self) -> bool:
        """Whether the relay closed in order."""
        return any(layer.ended for layer in self._layers)

    def close(self) -> bytes:
        """Close in order in every layer that can; returns the bytes to write."""
        data = b""
        for layer in reversed(self._layers):
            data = (layer.down(data) if data else b"") + layer.close()
        return data
