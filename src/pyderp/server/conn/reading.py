"""Reading: bytes in a buffer that all connections share, given to a connection's stage.

What a connection keeps is an incomplete frame, if any.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Final, TypeAlias

from pyderp.errors import RemoteProtocolError
from pyderp.server.conn.context import SMALL_READ, Core
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER

__all__ = ["HOLD_HTTP", "HOLD_LIMIT", "HOLD_LOGIN", "Stage", "StagedReader", "closed_stage"]

_LARGE: Final = 4096
"""An incomplete frame of more bytes is collected apart, instead of being copied to and fro."""

_FAIR_SHARE: Final = 64 * 1024
"""Who sends so much in one read waits a turn of the loop."""

# Why a connection is not read from; several may hold at once.
_HOLD_FAIR: Final = 1
HOLD_LOGIN: Final = 2
HOLD_HTTP: Final = 4
HOLD_LIMIT: Final = 8

Stage: TypeAlias = Callable[[bytearray, memoryview, int], int]
"""Takes bytes in a buffer, how many there are; gives how many it used up."""


class StagedReader(asyncio.BufferedProtocol):
    """The reading half of a connection.

    Args:
        core: what it shares with the relay's other connections.

    Attributes:
        stage: what the next bytes go to.
        room: where they are read to.
        fair_share: how many of them are enough for one turn of the loop.
        held: why nothing is read at the moment, as bits; 0: reading goes on.
    """

    __slots__ = ("_need", "_tail", "core", "fair_share", "held", "room", "stage", "transport")

    def __init__(self, core: Core) -> None:
        self.core = core
        self.transport: asyncio.Transport | None = None
        self.stage: Stage = closed_stage
        # The start of an incomplete frame; in a bytearray once it is large, and then
        # _need says how long it must get.
        self._tail: bytes | bytearray | None = None
        self._need = 0
        self.held = 0
        self.room = core.small_view
        self.fair_share = SMALL_READ

    @abstractmethod
    def on_protocol_error(self, error: Exception) -> None:
        """End the connection: a stage cannot use what came."""

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind the incomplete frame that is here already (asyncio)."""
        tail = self._tail
        if tail is None or self._need:
            return self.room
        size = len(tail)
        self.core.buffer[:size] = tail
        return self.core.view[size : size + len(self.room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived in the shared buffer (asyncio)."""
        core = self.core
        tail = self._tail
        if tail is None:
            stage = self.stage
            try:
                used = stage(core.buffer, core.view, nbytes)
            except RemoteProtocolError as e:
                self.on_protocol_error(e)
            else:
                if used != nbytes:
                    self._rest(stage, core.view[used:nbytes])
        elif self._need:
            self._collect(tail, nbytes)
        else:
            self._feed(core.buffer, core.view, len(tail) + nbytes)
        if core.router.touched and not core.flush_scheduled:
            core.schedule_flush()
        if nbytes >= self.fair_share:
            self.let_others()

    def let_others(self) -> None:
        """Read on only after the other sockets that are ready.

        libuv goes on reading a socket that fills the buffer, up to 32 times in a row.
        """
        if not self.held:
            self.hold(_HOLD_FAIR)
            self.core.loop.call_soon(self.release, _HOLD_FAIR)

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

    def feed_tail(self) -> None:
        """Give the current stage what the one before did not use."""
        if self._tail is not None:
            rest, self._need = self._tail, 0
            self.feed(rest)

    def feed(self, rest: bytes | bytearray | memoryview) -> None:
        """Give bytes to the current stage that were read before it was."""
        data = bytearray(rest)
        with memoryview(data) as view:
            self._feed(data, view, len(data))

    def _collect(self, tail: bytes | bytearray, nbytes: int) -> None:
        assert isinstance(tail, bytearray)
        tail += self.core.view[:nbytes]
        if len(tail) >= self._need:
            self._need = 0
            with memoryview(tail) as view:
                self._feed(tail, view, len(tail))

    def _feed(self, data: bytearray, view: memoryview, end: int) -> None:
        self._tail = None
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
                self._tail = bytearray(rest)
                self._need = need
                return
        self._tail = bytes(rest)

    def read_in_large(self) -> None:
        """From now on read as much as there is: frames are taken from the buffer in place."""
        self.room = self.core.view
        self.fair_share = _FAIR_SHARE

    def drop_rest(self) -> None:
        """Forget what was left unused, and discard what still comes."""
        self.stage = closed_stage
        self._tail = None
        self._need = 0
        self.room = self.core.small_view
        self.fair_share = SMALL_READ


def closed_stage(_: bytearray, __: memoryview, end: int) -> int:
    """The stage of a connection that is being closed."""
    return end
