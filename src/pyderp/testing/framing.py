"""A connection to a relay as a bystander sees it: an HTTP head, then frames. Sans-IO."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final

from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER, MAX_CLIENT_FRAME
from pyderp.wire.http import HttpConnection
from pyderp.wire.upgrade import Upgrade, classify_upgrade, wants_fast_start

__all__ = ["Cutter", "Mode", "read_request"]

_HEAD_END: Final = b"\r\n\r\n"


class Mode(Enum):
    """What the next bytes of a stream are."""

    HEAD = auto()
    """The head of an HTTP request or answer."""
    FRAMES = auto()
    OPAQUE = auto()
    """Something else, such as a websocket; passed on as it comes, for good."""


class Cutter:
    """Cuts one way of a connection into its head and its frames.

    Whatever is read, the pieces joined together are what was put in.

    Args:
        on_head: takes the whole head and says what follows it.
    """

    __slots__ = ("_buffer", "_on_head", "mode")

    def __init__(self, on_head: Callable[[bytes], Mode]) -> None:
        self.mode = Mode.HEAD
        self._on_head = on_head
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> Iterator[tuple[int | None, bytes]]:
        """Add bytes; gives whole frames as (type byte, frame with its header).

        Heads and opaque bytes have `None` for a type. Use the iterator up before the next call.
        """
        self._buffer += data
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> tuple[int | None, bytes] | None:
        if self.mode is Mode.HEAD:
            return self._head()
        if self.mode is Mode.FRAMES:
            return self._frame()
        return self._take(len(self._buffer)) if self._buffer else None

    def _head(self) -> tuple[int | None, bytes] | None:
        end = self._buffer.find(_HEAD_END)
        if end >= 0:
            head = bytes(self._buffer[: end + len(_HEAD_END)])
            self.mode = self._on_head(head)
            return self._take(len(head))
        if len(self._buffer) > MAX_HTTP_HEAD or (self._buffer and not self._buffer[:1].isalpha()):
            self.mode = Mode.OPAQUE
            return self._take(len(self._buffer))
        return None

    def _frame(self) -> tuple[int | None, bytes] | None:
        if len(self._buffer) < FRAME_HEADER_LEN:
            return None
        kind, length = HEADER.unpack_from(self._buffer)
        if length > MAX_CLIENT_FRAME:
            # Waiting for all of it would keep the fault from who is to find it.
            self.mode = Mode.OPAQUE
            return self._take(len(self._buffer))
        if len(self._buffer) < FRAME_HEADER_LEN + length:
            return None
        return kind, self._take(FRAME_HEADER_LEN + length)[1]

    def _take(self, size: int) -> tuple[None, bytes]:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return None, taken

    def rest(self) -> bytes:
        """What is held of a piece that will not be whole any more."""
        return self._take(len(self._buffer))[1]


def read_request(head: bytes) -> tuple[Upgrade, bool]:
    """What a request head asks for, and whether it wants no answer (fast start)."""
    http = HttpConnection()
    http.receive_data(head)
    with contextlib.suppress(BadUpgrade):
        request = http.next_request()
        if request is not None:
            return classify_upgrade(request), wants_fast_start(request)
    return Upgrade.NONE, False
