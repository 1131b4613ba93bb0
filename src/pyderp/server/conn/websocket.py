"""A websocket around the stages of DERP: takes it off what arrives, puts it on what leaves."""

from __future__ import annotations

from pyderp.relay.ending import EndReason, How
from pyderp.server.conn.login import LoginStage
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import Stage, closed_stage
from pyderp.wire.websocket import WebSocketServer, unsent_payload

__all__ = ["WebSocketStage"]


class WebSocketStage:
    """The stage of a connection that speaks DERP inside a websocket, from login to end.

    Args:
        protocol: the connection.
    """

    __slots__ = ("_protocol", "_stream", "_websocket", "_written", "inner")

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol
        self._websocket = WebSocketServer()
        # An incomplete frame; message borders mean nothing to DERP.
        self._stream = bytearray()
        # Bytes of the last write, if the kernel did not take all of it.
        self._written = 0
        self.inner: Stage = LoginStage(protocol)

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        """Take bytes of the websocket; they are always used up (`Stage`)."""
        for payload in self._websocket.receive_data(bytes(view[:end])):
            self._stream += payload
            self.feed()
        if self._protocol.stalled and self._websocket.is_open:
            # Pongs would pile up without bound while the client does not read.
            self._websocket.data_to_send()
        else:
            self._write()
        return end

    def feed(self) -> None:
        """Give the stage inside what there is of the stream."""
        stream = self._stream
        while stream and self._protocol.stage is self:
            inner = self.inner
            with memoryview(stream) as view:
                used = inner(stream, view, len(stream))
            del stream[:used]
            if not used or self.inner is inner:
                return

    def open(self, head: bytes, greeting: bytes) -> None:
        """Write the HTTP answer and the first bytes of the stream at once."""
        self._websocket.send((greeting,))
        self._protocol.write(head + b"".join(self._websocket.data_to_send()))

    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the stream, in messages of at most 32 KiB.

        Once either side has begun to close nothing more goes out, and this returns False. The
        connection itself ends in `__call__`, never here, where the router may be in the middle
        of a run.
        """
        if not self._websocket.is_open:
            return False
        protocol = self._protocol
        was_stalled = protocol.stalled
        self._websocket.send(chunks)
        written = protocol.write(b"".join(self._websocket.data_to_send()))
        if protocol.stalled and not was_stalled:
            self._written = sum(map(len, chunks))
        return written

    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream among the last `outer` bytes that `send` wrote."""
        return unsent_payload(outer, self._written)

    def close(self, code: int = 1000, reason: str = "", *, head: bytes = b"") -> None:
        """Send a close frame, behind an HTTP answer; its own answer is not waited for."""
        self._websocket.close(code, reason)
        self._protocol.write(head + b"".join(self._websocket.data_to_send()))

    def _write(self) -> None:
        chunks = self._websocket.data_to_send()
        self._protocol.write(b"".join(chunks))
        if b"" in chunks:
            # The closing handshake is complete, or failed.
            error = self._websocket.error
            if error is None:
                self._protocol.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
            else:
                self._protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, str(error))

    def discard(self) -> None:
        """Drop what it refers to: the connection refers to it, and each to itself otherwise."""
        self._websocket.release()
        self.inner = closed_stage
