"""Reading: bytes in a buffer that all connections share, given to a connection's stage.

The kernel's bytes go through the connection's layers, if it has any, and then to its stage.
What a connection keeps is an incomplete frame, if any.
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
"""An incomplete frame of more bytes is collected apart, instead of being copied to and fro."""

_FAIR_SHARE: Final = 64 * 1024
"""A client that sends so much in one read waits a turn of the loop."""

# Why a connection is not read from; several may hold at once.
_HOLD_FAIR: Final = 1
HOLD_LOGIN: Final = 2
HOLD_HTTP: Final = 4
HOLD_LIMIT: Final = 8


class Layer(ABC):
    """One layer of a connection.

    Attributes:
        inner: the next layer on the way to the stage.
        outer: the next layer on the way to the socket.
    """

    __slots__ = ("inner", "outer")

    reads_large: ClassVar[bool] = True
    """Whether one read may bring as much as there is."""
    tells_errors: ClassVar[bool] = False
    """Whether a client that broke the protocol learns of it before the connection ends."""

    def __init__(self) -> None:
        self.inner: Layer | None = None
        self.outer: Layer | None = None

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Take bytes, from the socket or from the layer outside; they are copied."""

    @abstractmethod
    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the stream inside. Returns False if nothing more can be written."""

    @abstractmethod
    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream inside that the other side cannot read.

        Args:
            outer: bytes that do not reach it, at the end of what `send` wrote last.
        """

    @abstractmethod
    def close(self) -> None:
        """Say that nothing more will come."""

    def discard(self) -> None:
        """Drop what it refers to; it is not used again."""
        self.inner = self.outer = None


class StagedReader(asyncio.BufferedProtocol):
    """The reading half of a connection.

    Args:
        context: what it shares with the relay's other connections.

    Attributes:
        stage: what the next bytes of the stream go to.
        outmost: the layer at the socket; `None`: the socket brings the stream itself.
        inmost: the layer at the stage.
        room: where bytes are read to, unless an incomplete frame stands before them.
        fair_share: how many bytes are enough for one turn of the loop.
        tail: the start of an incomplete frame; `None`: there is none.
        held: why nothing is read at the moment, as bits; 0: reading goes on.
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
        # The start of an incomplete frame; in a bytearray once it is large, and then
        # _need says how long it must get.
        self.tail: bytes | bytearray | None = None
        self._need = 0
        self.held = 0
        self.room = context.small_view
        self.fair_share = SMALL_READ

    @abstractmethod
    def on_protocol_error(self, error: Exception) -> None:
        """End the connection: a stage cannot use what came."""

    # From the kernel

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind the incomplete frame that is here already (asyncio)."""
        tail = self.tail
        if tail is None or self._need or self.outmost is not None:
            return self.room
        size = len(tail)
        self.context.buffer[:size] = tail
        return self.context.view[size : size + len(self.room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived (asyncio)."""
        context = self.context
        layer = self.outmost
        if layer is not None:
            layer.receive(self.room[:nbytes])
        else:
            self.arrived(nbytes)
        if context.router.dirty and not context.flush_scheduled:
            # As `schedule_flush`; a call less for each packet that comes alone.
            context.flush_scheduled = True
            context.loop.call_soon(context.flush_turn)
        if nbytes >= self.fair_share and not self.held:
            # Read on only after the other sockets that are ready: libuv goes on reading a
            # socket that fills the buffer, up to 32 times in a row.
            self.hold(_HOLD_FAIR)
            context.loop.call_soon(self.release, _HOLD_FAIR)

    def hold(self, reason: int) -> None:
        """Read nothing from the client until `release` with the same reason."""
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self.held |= reason

    def release(self, reason: int) -> None:
        """Read on, unless there is another reason not to."""
        self.held &= ~reason
        transport = self.transport
        if not self.held and transport is not None and not transport.is_closing():
            transport.resume_reading()

    # Layers

    def add_layer(self, layer: Layer, behind: bytes = b"") -> None:
        """Put a layer between the stage and those that are there already.

        Args:
            behind: bytes for it that were read before it was there.
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
        """Where a layer is to put bytes of the stream, before it calls `arrived`.

        It is the whole shared buffer while there is no `tail`.
        """
        tail = self.tail
        if tail is None or self._need:
            return self.context.view
        size = len(tail)
        self.context.buffer[:size] = tail
        return self.context.view[size:]

    # To the stage

    def arrived(self, nbytes: int) -> None:
        """Bytes of the stream are in the shared buffer, behind the incomplete frame."""
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
        """Take bytes of the stream that a layer holds, behind the incomplete frame."""
        tail = self.tail
        if tail is None:
            self.feed(data)
        elif self._need:
            self._collect(tail, data)
        else:
            self.feed(tail + data)

    def feed_rest(self) -> None:
        """Give the current stage what the one before did not use."""
        if self.tail is not None:
            rest, self._need = self.tail, 0
            self.feed(rest)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have what the router holds written, if it holds anything."""
        if self.context.router.wants_flush:
            self.context.schedule_flush()

    def feed(self, rest: bytes | bytearray | memoryview) -> None:
        """Give bytes to the current stage that were read before it was."""
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
        """Keep the incomplete frame that a stage left, or give it to the stage after that."""
        if self.stage is not stage:
            self.feed(rest)
            return
        if len(rest) >= FRAME_HEADER_LEN:
            need = FRAME_HEADER_LEN + HEADER.unpack_from(rest)[1]
            if need > _LARGE:
                self.tail = bytearray(rest)
                self._need = need
                return
        self.tail = bytes(rest)

    def read_in_large(self) -> None:
        """From now on read as much as there is: frames are taken from the buffer in place."""
        layer, context = self.inmost, self.context
        if layer is None or layer.reads_large:
            self.room = context.large_view if layer is None else context.raw
            self.fair_share = _FAIR_SHARE

    def read_in_small(self) -> None:
        """From now on read a little at a time."""
        context = self.context
        self.room = context.small_view if self.outmost is None else context.small_raw
        self.fair_share = SMALL_READ

    def drop_rest(self) -> None:
        """Forget what was left unused, and discard what still comes."""
        self.stage = closed_stage
        self.tail = None
        self._need = 0
        self.read_in_small()


def closed_stage(_: bytearray, __: memoryview, end: int) -> int:
    """The stage of a connection that is being closed."""
    return end
