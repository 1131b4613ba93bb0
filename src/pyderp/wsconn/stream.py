"""The stream of a websocket: `net_conn` makes it, and `WebSocketStream` is its class.

It behaves as in Go's `net/wsconn`; `docs/howto/websocket-as-stream.md` lists the differences.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NoReturn
from weakref import WeakMethod

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from pyderp.errors import ConnectionClosed, LocalProtocolError, RemoteProtocolError, raisable
from pyderp.tasks import run_together
from pyderp.wsconn.bounds import Deadline, Scope, WebSocketConnection, drop
from pyderp.wsconn.messages import LONGEST_CHARACTER, Inbox, closed_error, split

__all__ = ["CLOSE_TIMEOUT", "GO_READ_LIMIT", "WebSocketStream", "net_conn"]

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a closing handshake may take (the limit of github.com/coder/websocket)."""
GO_READ_LIMIT: Final = 32768
"""Bytes of the largest message that a peer in Go accepts by default."""

_UNKNOWN_ADDRESS: Final = "websocket/unknown-addr"
_GO_NAMES: Final = {True: "MessageBinary", False: "MessageText"}


class WebSocketStream:
    """The bytes of a websocket's messages, in both directions; made by `net_conn`.

    One task may read while another writes. Reads queue up, concurrent writes are an error.
    Belongs to the event loop of its websocket.
    """

    network: Final = "websocket"
    """The result of Go's `net.Addr.Network` for both addresses."""
    local_address: Final = _UNKNOWN_ADDRESS
    """As in Go: no IP address and port."""

    def __init__(
        self,
        websocket: WebSocketConnection,
        *,
        binary: bool,
        remote_address: str,
        scope: Scope | None,
        max_message: int | None,
    ) -> None:
        self._websocket = websocket
        self._binary = binary
        self.remote_address = remote_address or _UNKNOWN_ADDRESS
        """The argument of `net_conn`, or `websocket/unknown-addr`."""
        self.closed = False
        """Whether `aclose` was called."""
        self._scope = scope
        self._max_message = max_message
        self._inbox = Inbox(websocket, binary=binary)
        self._reads = asyncio.Lock()
        # Weak, as this object holds its deadlines. It cannot be gone while a deadline has a timer,
        # because then an operation of it is running.
        cut = WeakMethod(self._drop)
        self._read_deadline = Deadline("read", cut)
        self._write_deadline = Deadline("write", cut)
        self._over = ""
        """Why this side has ended the stream; empty if it has not."""
        self._end_was_read = False
        if scope is not None:
            scope.add(websocket)

    # Reading

    async def read(self, n: int = -1) -> bytes:
        """Returns bytes of one message; `b""` only at the end of the stream, or for `n` 0.

        The stream ends when the peer closes with 1000 or 1001. Cancelling is safe: no byte is
        lost, and the stream stays usable.

        Args:
            n: the most bytes to return; negative: all until the end of the stream.

        Raises:
            TimeoutError: the read deadline has passed. If it passed while this call waited, the
                connection was dropped.
            RemoteProtocolError: the peer sent a message of the wrong type or of too many bytes,
                or broke the protocol; the websocket is closed.
            ConnectionClosed: the connection broke, the peer closed with another code (which the
                cause has), or this side ended the stream.
        """
        before_close = not self.closed
        async with self._reads:
            with self._read_deadline.operation():
                self._check_readable(before_close)
                if n < 0:
                    while await self._more():
                        pass
                    return self._inbox.take_all()
                while n and not self._inbox.size and await self._more():
                    pass
                return self._inbox.take(n)

    async def readexactly(self, n: int) -> bytes:
        """Returns exactly `n` bytes, of several messages if need be. Cancelling is safe.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; has the bytes that came.
            ValueError: `n` is negative.
            TimeoutError, RemoteProtocolError, ConnectionClosed: as for `read`.
        """
        if n < 0:
            raise ValueError("n must not be negative")
        before_close = not self.closed
        async with self._reads:
            with self._read_deadline.operation():
                self._check_readable(before_close)
                while self._inbox.size < n:
                    if not await self._more():
                        raise asyncio.IncompleteReadError(self._inbox.take_all(), n)
                return self._inbox.take_exactly(n)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """As `read`, by the name of anyio's streams; returns `b""` at the end."""
        return await self.read(max_bytes)

    def at_eof(self) -> bool:
        """Whether the stream has ended and all its bytes were read."""
        return self._inbox.eof and not self._inbox.size

    # Writing

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` as one message, or as several if `max_message` says so.

        Waits while more bytes wait for the kernel than the websocket's `write_limit`. If it
        returns, all of `data` was taken. If it is cancelled, an unsplit message is sent all the
        same; of split data perhaps only the first message.

        Raises:
            TimeoutError: the write deadline has passed. If it passed while this call waited, the
                connection was dropped.
            LocalProtocolError: another write is running.
            UnicodeDecodeError: this is a text stream, and `data` is not whole characters.
            ConnectionClosed, RemoteProtocolError: the stream has ended.
        """
        if self._write_deadline.busy:
            raise LocalProtocolError("concurrent writes are not allowed")
        with self._write_deadline.operation():
            self._check_open()
            for message in split(data, binary=self._binary, size=self._max_message):
                await self._send(message)

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """As `write`, by the name of anyio's streams."""
        await self.write(item)

    # Deadlines

    def set_deadline(self, when: float | None) -> None:
        """Set both deadlines, as `net.Conn.SetDeadline` does.

        Args:
            when: a time of the event loop's clock (`loop.time()`), in seconds; one in the past
                has passed already; `None`: no deadline.
        """
        self.set_write_deadline(when)
        self.set_read_deadline(when)

    def set_read_deadline(self, when: float | None) -> None:
        """Set the time at which reads must be over.

        If the deadline passes between reads, reads fail until another one is set. If it passes
        during a read, the whole connection is dropped, without a close frame.
        """
        self._read_deadline.set(when)

    def set_write_deadline(self, when: float | None) -> None:
        """Set the time at which writes must be over, as `set_read_deadline`."""
        self._write_deadline.set(when)

    # Ending

    async def aclose(self) -> None:
        """Close with 1000 and wait for the peer's answer; data that still comes is dropped.

        Takes at most `CLOSE_TIMEOUT` seconds. Cancelling drops the connection at once. May be
        called again, and after the peer has closed.

        Raises:
            TimeoutError: the peer did not answer; the connection was dropped.
        """
        self.closed = True
        self._over = self._over or "the stream was closed"
        unanswered = False
        try:
            await self._shake_hands(CloseCode.NORMAL_CLOSURE)
        except TimeoutError:
            await self._websocket.wait_closed()
            # The peer may have answered, and wait for this side to close TCP.
            unanswered = self._websocket.close_code == CloseCode.ABNORMAL_CLOSURE
        if unanswered:
            # Not in the handler, where it would be chained to the TimeoutError of asyncio.timeout,
            # whose frames hold the task.
            raise TimeoutError("the peer did not answer the close frame")

    async def __aenter__(self) -> WebSocketStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Inside: reading

    def _check_readable(self, before_close: bool) -> None:
        # After a read has returned the end, later ones do, too, even if this side has closed
        # meanwhile. A read that waited for the lock when this side closed returns the end as well.
        if not (self._end_was_read or (before_close and self._inbox.eof)):
            self._check_open()

    async def _more(self) -> bool:
        """Wait for more bytes; return False at the end of the stream."""
        inbox = self._inbox
        if not (inbox.eof or inbox.failure or inbox.wrong_type):
            await inbox.receive()
        if inbox.wrong_type:
            await self._refuse()
        if inbox.failure is not None:
            self._check_open()  # raises the reason of this side, if it has ended the stream
            raise raisable(inbox.failure)
        # Not if it is the answer to this side's close: then reads raise that this side closed.
        self._end_was_read = inbox.eof and not self.closed
        return not inbox.eof

    async def _refuse(self) -> NoReturn:
        expected, actual = _GO_NAMES[self._binary], _GO_NAMES[not self._binary]
        reason = f"unexpected frame type read (expected {expected}): {actual}"
        self._over = f"the stream was closed: {reason}"
        with contextlib.suppress(TimeoutError):  # the error below is the cause of the close
            await self._shake_hands(CloseCode.UNSUPPORTED_DATA, reason)
        raise RemoteProtocolError(reason)

    # Inside: writing

    async def _send(self, message: memoryview) -> None:
        try:
            if self._websocket.state is State.OPEN:
                await self._websocket.send(message, text=not self._binary)
            else:
                await self._wait_for_end()
        except WebSocketClosed as e:
            self._check_open()
            raise closed_error(e) from e
        # If the connection is lost while the library waits for the kernel, its `send` returns as
        # if the kernel had taken everything.
        if self._websocket.state is State.CLOSED:
            self._check_open()
            raise closed_error(self._websocket.protocol.close_exc)

    # Inside: ending

    def _check_open(self) -> None:
        if self._scope is not None and self._scope.ended:
            raise ConnectionClosed("the scope of the stream has ended")
        if self._over:
            raise ConnectionClosed(self._over)

    def _drop(self, why: str) -> None:
        self._over = self._over or f"the connection was dropped: {why} has passed"
        drop(self._websocket)

    async def _shake_hands(self, code: CloseCode, reason: str = "") -> None:
        """Make the closing handshake; close TCP in any case."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                # Read meanwhile, as the peer's answer may follow more data than the library
                # queues.
                await run_together(
                    asyncio.create_task(self._inbox.discard(), name="pyderp-wsconn-discard"),
                    asyncio.create_task(self._close(code, reason), name="pyderp-wsconn-close"),
                )
        finally:
            drop(self._websocket)

    async def _close(self, code: CloseCode, reason: str) -> None:
        if self._websocket.state is State.OPEN:
            await self._websocket.close(code, reason)
        else:
            await self._websocket.wait_closed()

    async def _wait_for_end(self) -> None:
        """Wait until a closing connection is closed, at most `CLOSE_TIMEOUT` seconds."""
        # Not by the library's own methods, which then abort a transport that has ended (`drop`).
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._websocket.wait_closed()
        except TimeoutError:
            drop(self._websocket)
            await self._websocket.wait_closed()


def net_conn(
    websocket: WebSocketConnection,
    *,
    binary: bool = True,
    remote_address: str = "",
    scope: Scope | None = None,
    max_message: int | None = None,
) -> WebSocketStream:
    """Make a byte stream of an open websocket, which then belongs to it (`wsconn.NetConn`).

    Nothing else may read from, write to or close the websocket. A server's handler must not
    return before the stream has ended: the library closes the websocket then.

    Args:
        websocket: a connection of the websockets library. A message larger than its `max_size`
            closes it with 1009.
        binary: whether bytes are sent in binary messages, or in text, which must be UTF-8.
        remote_address: for the stream's attribute; on clients the URL, on servers the peer's IP
            address and port.
        scope: ends the stream when it ends.
        max_message: writes of more bytes are sent as several messages; at least 4.
            `GO_READ_LIMIT` is for peers in Go.

    Raises:
        TypeError: no connection of `websockets.asyncio`.
        ValueError: `max_message` is too small for one character.
    """
    if not isinstance(websocket, Connection):
        kind = f"{type(websocket).__module__}.{type(websocket).__qualname__}"
        raise TypeError(
            f"websocket is a {kind}; want a connection of websockets.asyncio. A web framework's "
            "websocket can pass bytes on to one: From Starlette or FastAPI, in "
            "docs/howto/websocket-as-stream.md"
        )
    if max_message is not None and max_message < LONGEST_CHARACTER:
        raise ValueError(f"max_message must be at least {LONGEST_CHARACTER}")
    return WebSocketStream(
        websocket,
        binary=binary,
        remote_address=remote_address,
        scope=scope,
        max_message=max_message,
    )
