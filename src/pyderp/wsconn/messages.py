"""Conversion between bytes and messages: received fragments, and the messages of a write."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Final

from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.frames import CloseCode

from pyderp.errors import ConnectionClosed, DerpError, RemoteProtocolError, without_frames
from pyderp.wsconn.bounds import WebSocketConnection, drop

__all__ = ["LONGEST_CHARACTER", "Inbox", "closed_error", "split"]

LONGEST_CHARACTER: Final = 4
"""The most bytes of one character in UTF-8."""
_END: Final = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)
_VIOLATIONS: Final = (
    CloseCode.PROTOCOL_ERROR,
    CloseCode.INVALID_DATA,
    CloseCode.MESSAGE_TOO_BIG,
)
"""The codes that the library closes with if the peer breaks the protocol."""


class Inbox:
    """The fragments of messages that came and were not read, and how the websocket ended.

    Args:
        binary: whether messages must be binary; otherwise they must be text.
    """

    def __init__(self, websocket: WebSocketConnection, *, binary: bool) -> None:
        self.size = 0
        """Bytes that can be taken."""
        self.eof = False
        """The peer closed with 1000 or 1001."""
        self.failure: DerpError | None = None
        """The error of any other end of the websocket."""
        self.wrong_type = False
        """A message of the wrong type came."""
        self.discarding = False
        """Further fragments are not kept."""
        self._websocket = websocket
        self._binary = binary
        self._parts: deque[bytes] = deque()
        self._fragments: AsyncIterator[str | bytes] | None = None
        self._receiving: asyncio.Task[None] | None = None

    def take(self, n: int) -> bytes:
        """Take and return at most `n` bytes, of one message."""
        if not self._parts or not n:
            return b""
        part = self._parts.popleft()
        if len(part) > n:
            self._parts.appendleft(part[n:])
            part = part[:n]
        self.size -= len(part)
        return part

    def take_exactly(self, n: int) -> bytes:
        """Take and return `n` bytes; there must be so many."""
        pieces = []
        while n:
            pieces.append(self.take(n))
            n -= len(pieces[-1])
        return b"".join(pieces)

    def take_all(self) -> bytes:
        """Take and return all bytes that came."""
        return self.take_exactly(self.size)

    async def discard(self) -> None:
        """Receive and drop further fragments, until the websocket has ended."""
        self.discarding = True
        while not self.eof and self.failure is None:
            await self.receive()

    async def receive(self) -> None:
        """Wait for a fragment or the end. Cancelling only stops the waiting.

        The library loses the rest of a message if its `recv` is cancelled. So a task of its own
        receives, and goes on if the caller is cancelled; the next call waits for the same task.
        """
        if self._receiving is None or self._receiving.done():
            self._receiving = asyncio.create_task(self._receive(), name="pyderp-wsconn-receive")
        task = self._receiving
        await asyncio.wait([task])
        try:
            task.result()
        finally:
            del task  # it holds its error, which holds this frame

    async def _receive(self) -> None:
        try:
            fragment = await self._next_fragment()
        except WebSocketClosed as e:
            # Both codes count: if the library closed because the peer broke the protocol, the
            # peer's own code does not make it a clean end. The library takes a close frame
            # without a code for a clean end, too; Go does not.
            sent_in_order = e.sent is not None and e.sent.code in _END
            self.eof = sent_in_order and e.rcvd is not None and e.rcvd.code in _END
            if not self.eof:
                self.failure = without_frames(closed_error(e))
        except asyncio.CancelledError:
            # Only a loop that shuts down cancels this task. Readers must not wait for ever.
            self.failure = ConnectionClosed("the event loop is shutting down")
            drop(self._websocket)
        else:
            if self.discarding:
                return
            if isinstance(fragment, str) is self._binary:
                self.wrong_type = True
                return
            part = fragment.encode() if isinstance(fragment, str) else bytes(fragment)
            self._parts.append(part)
            self.size += len(part)

    async def _next_fragment(self) -> str | bytes:
        while True:
            if self._fragments is None:
                self._fragments = self._websocket.recv_streaming()
            async for fragment in self._fragments:
                # An empty text is still a text.
                if fragment or isinstance(fragment, str) is self._binary:
                    return fragment
            self._fragments = None


def closed_error(e: WebSocketClosed) -> DerpError:
    """Returns the library's error as one of pyderp."""
    # The library answers the peer's close frame with the same code. If it sent another code, it
    # closed because the peer broke the protocol.
    answered = e.rcvd is not None and e.sent is not None and e.rcvd.code == e.sent.code
    violated = e.sent is not None and e.sent.code in _VIOLATIONS and not answered
    kind = RemoteProtocolError if violated else ConnectionClosed
    error = kind(f"the websocket ended: {e}")
    error.__cause__ = e
    return error


def split(
    data: bytes | bytearray | memoryview, *, binary: bool, size: int | None
) -> Iterator[memoryview]:
    """Split bytes into the messages to send.

    Args:
        binary: whether the messages are binary; otherwise they are text.
        size: the most bytes of a message, at least `LONGEST_CHARACTER`; `None`: no limit.

    Raises:
        UnicodeDecodeError: text that is not whole characters of UTF-8 (RFC 6455, section 5.6).
    """
    view = memoryview(data).cast("B")
    if not binary:
        bytes(view).decode()
    if size is None or len(view) <= size:
        yield view
        return
    while view:
        end = min(size, len(view))
        # Text is not cut within a character: bytes after its first one begin with the bits 10.
        while not binary and end < len(view) and view[end] & 0xC0 == 0x80:
            end -= 1
        yield view[:end]
        view = view[end:]
