"""The TLS layer: moves bytes between the socket, the record layer and the stream."""

from __future__ import annotations

from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.engines import HANDSHAKE_RECORD, Engine
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import Layer
from pyderp.server.conn.records import NO_CERTIFICATE, PLAIN_HTTP, RecordLayer
from pyderp.wire.foreign import foreign_protocol_untrusted, is_tls, server_name_untrusted

__all__ = ["TLSLayer"]

_PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS; the request was plain HTTP.\n"
)
_RECORD_HEADER: Final = 5
_ILLEGAL_PARAMETER: Final = bytes((21, 3, 3, 0, 2, 2, 47))
"""The fatal alert `illegal_parameter` (RFC 8446 §6.2) before encryption."""


class TLSLayer(Layer):
    """TLS between the socket and a connection's stream.

    Args:
        protocol: the connection.
        engine: makes the record layer when the ClientHello is complete.
    """

    __slots__ = ("_engine", "_hello", "_last", "_protocol", "_records")

    def __init__(self, protocol: RelayProtocol, engine: Engine) -> None:
        super().__init__()
        self._protocol = protocol
        self._engine = engine
        self._hello = b""
        """The ClientHello so far, until there is a record layer."""
        self._records: RecordLayer | None = None
        # Bytes of the last write that filled the socket, before and after encryption.
        self._last = (0, 0)

    def receive(self, data: memoryview) -> None:
        """Take encrypted bytes (`Layer`)."""
        protocol = self._protocol
        if protocol.ended:
            return
        records = self._records
        if records is None:
            self._on_hello(self._hello + data)
            return
        # Decrypted right to where the stage reads, after its incomplete frame: no second copy.
        room = protocol.context.view if protocol.tail is None else protocol.plain_room()
        filled = records.feed(data, room)
        # The end of the handshake sets `news`, and the version is known from then on.
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
        """Have the engine make the record layer when the ClientHello is complete."""
        self._hello = data
        if len(data) < _RECORD_HEADER or (
            data[0] == HANDSHAKE_RECORD and len(data) < _RECORD_HEADER + _record_length(data)
        ):
            return  # nearly always the ClientHello is one record
        protocol = self._protocol
        try:
            self._records = self._engine.records(protocol.local, data)
        except RemoteProtocolError as e:
            protocol.write(_ILLEGAL_PARAMETER)
            protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, str(e))
            return
        if self._records is not None:
            self.receive(memoryview(data))
            self._hello = b""  # kept until now, to explain a failure

    # Records

    def _on_news(self) -> None:
        """Act on `RecordLayer.news`: write TLS's own bytes, end the connection if TLS ended."""
        protocol, records = self._protocol, self._records
        assert records is not None
        if records.failure:
            self._fail(records)
            return
        protocol.write(records.output())
        if records.is_closed:
            protocol.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)

    def _fail(self, records: RecordLayer) -> None:
        protocol = self._protocol
        if protocol.ended:
            return
        alert = records.output()
        # A client that sent plain HTTP cannot read an alert; a browser shows this answer.
        protocol.write(_PLAIN_HTTP_ANSWER if records.failure == PLAIN_HTTP else alert)
        protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, f"TLS: {self._why(records.failure)}")

    def _why(self, failure: str) -> str:
        """Explain a failure, by the client's first bytes if the handshake did not begin."""
        first = self._hello
        if failure == NO_CERTIFICATE and first:
            return f"{failure}: {server_name_untrusted(first)}"
        if first and not is_tls(first):
            return foreign_protocol_untrusted(first) or failure
        return failure

    def send(self, chunks: list[bytes]) -> bool:
        """Encrypt and write; a failure ends the connection (`Layer`)."""
        protocol, records = self._protocol, self._records
        transport = protocol.transport
        if transport is None or records is None:
            return False
        encrypted = records.seal(chunks)
        if records.failure:
            self._fail(records)
            return False
        if protocol.full is not None or not encrypted:
            return protocol.write(encrypted)  # it counts bytes that follow those in a full socket
        transport.write(encrypted)  # the same without a call, for each packet that comes alone
        if protocol.full is not None:  # the kernel did not take all of it
            self._last = (sum(map(len, chunks)), len(encrypted))
        return True

    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream that the client cannot decrypt (`Layer`)."""
        records = self._records
        return 0 if records is None else records.unsent_size(outer, *self._last)

    def close(self) -> None:
        """Send the close alert (`Layer`)."""
        records = self._records
        if records is not None and not records.failure:
            self._protocol.write(records.close())


def _record_length(record: bytes) -> int:
    return int.from_bytes(record[3:_RECORD_HEADER], "big")
