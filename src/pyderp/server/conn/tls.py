"""The layer of TLS: chooses the certificate, and moves records between socket and stream."""

from __future__ import annotations

from typing import Final

from pyderp.certs.context import ServerContexts
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import Layer
from pyderp.server.conn.records import PLAIN_HTTP, RecordLayer, SSLRecords
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["TLSLayer"]

_PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS; the request was plain HTTP.\n"
)
_HANDSHAKE_RECORD: Final = 22
_RECORD_HEADER: Final = 5
_ILLEGAL_PARAMETER: Final = bytes((21, 3, 3, 0, 2, 2, 47))
"""A fatal alert (RFC 8446 §6.2), before anything is encrypted."""


class TLSLayer(Layer):
    """TLS between the socket and a connection's stream.

    Args:
        protocol: the connection.
        contexts: have the server-side context for a new connection.
        server_name: what clients ask for; a ClientHello with it needs no second look.
    """

    __slots__ = ("_contexts", "_hello", "_last", "_protocol", "_records", "_server_name")

    def __init__(
        self, protocol: RelayProtocol, contexts: ServerContexts, server_name: bytes
    ) -> None:
        super().__init__()
        self._protocol = protocol
        self._contexts = contexts
        self._server_name = server_name
        self._records: RecordLayer = SSLRecords(contexts.context(protocol.local))
        # What came of the ClientHello; None once it was looked at.
        self._hello: bytes | None = b""
        # Of the last write, if the kernel did not take all: bytes before and after encryption.
        self._last = (0, 0)

    def receive(self, data: memoryview) -> None:
        """Take encrypted bytes (`Layer`)."""
        protocol = self._protocol
        if protocol.ended:
            return
        if self._hello is not None:
            self._on_hello(self._hello + data)
            return
        records = self._records
        room = protocol.plain_room()
        filled = records.feed(data, room)
        if records.news and not protocol.tls_version:
            protocol.tls_version = records.version
        if filled:
            inner = self.inner
            if inner is None:
                protocol.arrived(filled)
            else:
                inner.receive(room[:filled])
        if records.news:
            self._on_news()

    # The ClientHello

    def _on_hello(self, data: bytes) -> None:
        """Look at the ClientHello before OpenSSL does, once it is whole.

        An authority that checks this relay needs a certificate of its own. And the ssl module
        prints a traceback for a name that is not ASCII, which anybody may send at will.
        """
        if len(data) < _RECORD_HEADER or (
            data[0] == _HANDSHAKE_RECORD and len(data) < _RECORD_HEADER + _record_length(data)
        ):
            self._hello = data  # nearly always it is one record
            return
        contexts = self._contexts
        # Nearly all ask for the right name, or there is none.
        if contexts.challenge_pending or self._server_name not in data:
            try:
                hello = parse_client_hello_untrusted(data)
            except RemoteProtocolError as e:
                if data[0] == _HANDSHAKE_RECORD:
                    self._protocol.write(_ILLEGAL_PARAMETER)
                    self._protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, str(e))
                    return
                # No TLS at all: OpenSSL knows what it is.
            else:
                if hello is None:
                    self._hello = data
                    return
                if contexts.challenge_pending:
                    challenge = contexts.challenge_context(memoryview(data))
                    if challenge is not None:
                        self._records = SSLRecords(challenge)
        self._hello = None
        self.receive(memoryview(data))

    # Records

    def _on_news(self) -> None:
        """The handshake is over, or TLS has something to write, failed, or was closed."""
        protocol, records = self._protocol, self._records
        if records.failure:
            self._fail()
            return
        protocol.write(records.output())
        if records.is_closed:
            protocol.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)

    def _fail(self) -> None:
        protocol, records = self._protocol, self._records
        if protocol.ended:
            return
        alert = records.output()
        protocol.write(_PLAIN_HTTP_ANSWER if records.failure == PLAIN_HTTP else alert)
        protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, f"TLS: {records.failure}")

    def send(self, chunks: list[bytes]) -> bool:
        """Encrypt and write; a failure ends the connection (`Layer`)."""
        protocol, records = self._protocol, self._records
        if protocol.transport is None:
            return False
        encrypted = records.seal(chunks)
        if records.failure:
            self._fail()
            return False
        had_room = protocol.full is None
        protocol.write(encrypted)
        if had_room and protocol.full is not None:
            self._last = (sum(map(len, chunks)), len(encrypted))
        return True

    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream that the client cannot decrypt (`Layer`)."""
        return self._records.unsent_size(outer, *self._last)

    def close(self) -> None:
        """Send the close alert (`Layer`)."""
        if not self._records.failure:
            self._protocol.write(self._records.close())


def _record_length(record: bytes) -> int:
    return int.from_bytes(record[3:_RECORD_HEADER], "big")
