"""The websocket layer: unwraps what arrives and wraps what leaves."""

from __future__ import annotations

from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import Layer
from pyderp.wire.websocket import WebSocketServer, unsent_payload

__all__ = ["WebSocketLayer"]


class WebSocketLayer(Layer):
    """The layer of a connection with DERP inside a websocket, from the upgrade on.

    Message boundaries have no meaning: the payloads form a stream.

    Args:
        protocol: the connection.
    """

    __slots__ = ("_protocol", "_websocket", "_written")

    reads_large = False
    reports_errors = True

    def __init__(self, protocol: RelayProtocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._websocket = WebSocketServer()
        # Bytes of the last write that filled the socket.
        self._written = 0

    def open(self, head: bytes, greeting: bytes) -> None:
        """Write the HTTP answer and the first bytes of the stream in one write."""
        self._websocket.send((greeting,))
        self._pass_out(head + b"".join(self._websocket.data_to_send()))

    def receive(self, data: memoryview) -> None:
        """Take bytes of the websocket (`Layer`)."""
        protocol = self._protocol
        if protocol.ended:
            return
        for payload in self._websocket.receive_data(bytes(data)):
            protocol.take(payload)
            if protocol.ended:
                return
        if protocol.full is not None and self._websocket.is_open:
            # Pongs are discarded while the client does not read: their number has no bound.
            self._websocket.data_to_send()
        else:
            self._write_own()

    def _write_own(self) -> None:
        """Write pongs and close frames, and end the connection after the closing handshake."""
        chunks = self._websocket.data_to_send()
        self._pass_out(b"".join(chunks))
        if b"" in chunks:
            # An empty chunk: the closing handshake is complete, or it failed.
            error = self._websocket.error
            if error is None:
                self._protocol.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
            else:
                self._protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, str(error))

    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the stream, in messages of at most 32 KiB (`Layer`).

        After either side has begun to close it writes nothing and returns False. It never ends
        the connection, because the router may be in the middle of a run: `receive` does.
        """
        if not self._websocket.is_open:
            return False
        protocol = self._protocol
        had_room = protocol.full is None
        self._websocket.send(chunks)
        written = self._pass_out(b"".join(self._websocket.data_to_send()))
        if had_room and protocol.full is not None:
            self._written = sum(map(len, chunks))
        return written

    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream among the last `outer` bytes that `send` wrote (`Layer`)."""
        return unsent_payload(outer, self._written)

    def close(self) -> None:
        """Send a close frame, without waiting for the client's (`Layer`)."""
        self._websocket.close()
        self._pass_out(b"".join(self._websocket.data_to_send()))

    def _pass_out(self, data: bytes) -> bool:
        return self._protocol.write(data) if self.outer is None else self.outer.send([data])

    def discard(self) -> None:
        """Break the reference cycles of the websockets library's object (`Layer`)."""
        super().discard()
        self._websocket.release()
