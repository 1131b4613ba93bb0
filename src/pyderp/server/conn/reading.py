"""The reading half of a connection: passes bytes from a shared buffer to the connection's stage.

The kernel's bytes go through the connection's layers, if it has any, and then to its stage. Between
two reads a connection keeps an incomplete frame at most.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from pyderp.errors import RemoteProtocolError
from pyderp.server.conn.context import SMALL_READ, ConnectionContext, Stage
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER

__all__ = ["HOLD_HTTP", "HOLD_LIMIT", "HOLD_LOGIN", "StagedReader", "closed_stage"]

_LARGE: Final = 4096
"""Bytes. A larger incomplete frame is collected in a buffer of its own. A smaller one is copied
into the shared buffer at each read."""

_FAIR_SHARE: Final = 64 * 1024
"""Bytes. A client from which one read brings as many is not read again in this turn of the loop."""

# Reasons to stop reading a connection, as bits: several may apply at once.
_HOLD_FAIR: Final = 1
HOLD_LOGIN: Final = 2
HOLD_HTTP: Final = 4
HOLD_LIMIT: Final = 8


class Layer(ABC):
    """One layer of a connection, such as TLS or a websocket.

    Attributes:
        inner: the next layer on the way to the stage.
        outer: the next layer on the way to the socket.
    """

    __slots__ = ("inner", "outer")

    reads_large: ClassVar[bool] = True
    """Whether one read may fill the whole shared buffer."""
    reports_errors: ClassVar[bool] = False
    """Whether `close` reports an error to a client that broke the protocol."""

    def __init__(self) -> None:
        self.inner: Layer | None = None
        self.outer: Layer | None = None

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Take bytes from the socket or from the outer layer, and copy what is needed later."""

    @abstractmethod
    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the inner stream. Returns False if nothing more can be written."""

    @abstractmethod
    def unsent_size(self, outer: int) -> int:
        """Return how many bytes of the inner stream the client cannot read.

        Args:
            outer: bytes of the outer stream that do not reach the client, at the end of what the
                last `send` wrote.
        """

    @abstractmethod
    def close(self) -> None:
        """Write that nothing more will be sent, such as a close_notify or a close frame."""

    def discard(self) -> None:
        """Drop all references; the layer is not used again."""
        self.inner = self.outer = None


class StagedReader(asyncio.BufferedProtocol):
    """The reading half of a connection.

    Args:
        context: what the relay's connections share.

    Attributes:
        stage: takes the next bytes of the stream.
        outmost: the layer at the socket; `None` if there are no layers.
        inmost: the layer at the stage.
        room: the buffer for the next read, if there is no incomplete frame.
        fair_share: bytes of one read, after which the other sockets are read first.
        tail: the start of an incomplete frame; `None` if there is none.
        held: the reasons not to read, as bits; 0 while the client is read.
    """

    __slots__ = (
        "_need",
        "context",
        "fair_share",
        "held",
        "inmost",
        "outmost",
        "room",
        "stage",
        "tail",
        "transport",
    )

    def __init__(self, context: ConnectionContext) -> None:
        self.context = context
        self.transport: asyncio.Transport | None = None
        self.stage: Stage = closed_stage
        self.outmost: Layer | None = None
        self.inmost: Layer | None = None
        # A large incomplete frame is a bytearray, and `_need` is its full length. A small one is
        # bytes, and `_need` is 0.
        self.tail: bytes | bytearray | None = None
        self._need = 0
        self.held = 0
        self.room = context.small_view
        self.fair_share = SMALL_READ

    @abstractmethod
    def on_protocol_error(self, error: Exception) -> None:
        """End the connection, as the client broke the protocol."""

    # From the kernel

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the next bytes: after the incomplete frame, if any (asyncio)."""
        # A large incomplete frame and the layers have buffers of their own.
        tail = self.tail
        if tail is None or self._need or self.outmost is not None:
            return self.room
        # The frame is copied in front of the read, so that the stage gets it in one piece.
        size = len(tail)
        self.context.buffer[:size] = tail
        return self.context.view[size : size + len(self.room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Pass the bytes that were read to the outmost layer or to the stage (asyncio)."""
        context = self.context
        layer = self.outmost
        if layer is not None:
            layer.receive(self.room[:nbytes])
        else:
            self.arrived(nbytes)
        if context.router.dirty and not context.flush_scheduled:
            # The same as `schedule_flush`, without a call: this runs for each packet that comes
            # alone.
            context.flush_scheduled = True
            context.loop.call_soon(context.flush_turn)
        if nbytes >= self.fair_share and not self.held:
            # Let the other sockets be read first: libuv reads a socket that fills the buffer up to
            # 32 times in a row.
            self.hold(_HOLD_FAIR)
            context.loop.call_soon(self.release, _HOLD_FAIR)

    def hold(self, reason: int) -> None:
        """Stop reading the client, until `release` with the same reason."""
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self.held |= reason

    def release(self, reason: int) -> None:
        """Read again, unless another reason holds."""
        self.held &= ~reason
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.resume_reading()

    # Layers

    def add_layer(self, layer: Layer, behind: bytes = b"") -> None:
        """Add a layer between the stage and the existing layers.

        Args:
            behind: bytes for the layer that were read before it was added.
        """
        assert self.tail is None, "the stage before it leaves nothing"
        layer.outer = self.inmost
        if self.inmost is None:
            self.outmost = layer
        else:
            self.inmost.inner = layer
        self.inmost = layer
        self.read_in_small()
        if behind:
            layer.receive(memoryview(behind))

    def plain_room(self) -> memoryview:
        """Return the buffer where a layer puts bytes of the stream, before it calls `arrived`.

        It is the whole shared buffer if there is no `tail`.
        """
        tail = self.tail
        if tail is None or self._need:
            return self.context.view
        size = len(tail)
        self.context.buffer[:size] = tail
        return self.context.view[size:]

    # To the stage

    def arrived(self, nbytes: int) -> None:
        """Pass the bytes to the stage that were put in the shared buffer, after `tail` if any."""
        context = self.context
        tail = self.tail
        if tail is None:
            stage = self.stage
            try:
                used = stage(context.buffer, context.view, nbytes)
            except RemoteProtocolError as e:
                self.on_protocol_error(e)
            else:
                if used != nbytes:
                    self._rest(stage, context.view[used:nbytes])
        elif self._need:
            self._collect(tail, context.view[:nbytes])
        else:
            self._feed(context.buffer, context.view, len(tail) + nbytes)

    def take(self, data: bytes) -> None:
        """Pass bytes of the stream to the stage that are in a layer's own buffer, after `tail`."""
        tail = self.tail
        if tail is None:
            self.feed(data)
        elif self._need:
            self._collect(tail, data)
        else:
            self.feed(tail + data)

    def feed_rest(self) -> None:
        """Pass the bytes to the current stage that it, or the stage before, left unused."""
        if self.tail is not None:
            rest, self._need = self.tail, 0
            self.feed(rest)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Schedule a flush of the router, if it holds anything to write."""
        if self.context.router.wants_flush:
            self.context.schedule_flush()

    def feed(self, rest: bytes | bytearray | memoryview) -> None:
        """Pass bytes to the current stage that are not in the shared buffer."""
        # A copy that may be written to: the lane overwrites frames in place.
        data = bytearray(rest)
        with memoryview(data) as view:
            self._feed(data, view, len(data))

    def _collect(self, tail: bytes | bytearray, data: bytes | memoryview) -> None:
        assert isinstance(tail, bytearray)
        tail += data
        if len(tail) >= self._need:
            self._need = 0
            with memoryview(tail) as view:
                self._feed(tail, view, len(tail))

    def _feed(self, data: bytearray, view: memoryview, end: int) -> None:
        self.tail = None
        stage = self.stage
        try:
            used = stage(data, view, end)
        except RemoteProtocolError as e:
            self.on_protocol_error(e)
            return
        if used != end:
            self._rest(stage, view[used:end])

    def _rest(self, stage: Stage, rest: memoryview) -> None:
        """Keep the incomplete frame that a stage left, or pass the bytes to the next stage."""
        if self.stage is not stage:
            self.feed(rest)
            return
        # The header says how long the frame is. A large one is passed on only when it is complete,
        # as each call of the stage for a part of it would do nothing.
        if len(rest) >= FRAME_HEADER_LEN:
            need = FRAME_HEADER_LEN + HEADER.unpack_from(rest)[1]
            if need > _LARGE:
                self.tail = bytearray(rest)
                self._need = need
                return
        self.tail = bytes(rest)

    def read_in_large(self) -> None:
        """Read as much as the shared buffer holds from now on: the lane works in the buffer."""
        layer, context = self.inmost, self.context
        if layer is None or layer.reads_large:
            self.room = context.large_view if layer is None else context.raw
            self.fair_share = _FAIR_SHARE

    def read_in_small(self) -> None:
        """Read little at a time from now on."""
        context = self.context
        self.room = context.small_view if self.outmost is None else context.small_raw
        self.fair_share = SMALL_READ

    def drop_rest(self) -> None:
        """Drop the unused bytes, and discard all that come from now on."""
        self.stage = closed_stage
        self.tail = None
        self._need = 0
        self.read_in_small()


def closed_stage(_: bytearray, __: memoryview, end: int) -> int:
    """Discard bytes: the stage of a connection that is being closed."""
    return end
