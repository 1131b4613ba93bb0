"""A byte stream to a relay: TCP, a layer on top of another link, or a stream of the program.

A link has two phases. While a connection is being made, one task awaits `read`. Then `start`
hands over to a `Receiver`, whose callbacks need no task and no await.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from typing import Final, Protocol, cast

from pyderp.errors import raisable, without_frames

__all__ = ["NO_RECEIVER", "LayeredLink", "Link", "Receiver", "TcpLink", "link_over_socket"]

_UNREAD_HIGH: Final = 256 * 1024
"""Bytes that may wait for `read` before the socket is no longer read."""


class Receiver(Protocol):
    """The callbacks of a link after `start`."""

    def data_received(self, data: bytes) -> None:
        """Take bytes that came."""

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that the stream has ended; called once. `None`: the peer ended it in order."""

    def writable(self) -> None:
        """Take note that the kernel took what was written; `pending` is low again."""


class _NoReceiver:
    """Replaces the receiver of a link that has ended; does nothing."""

    def data_received(self, data: bytes) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        pass

    def writable(self) -> None:
        pass


NO_RECEIVER: Final = _NoReceiver()
"""Replaces the receiver of a link once the link has reported the end. A receiver holds its link;
if the link went on holding the receiver, both would stay in memory until the cyclic collector
runs."""


class Link(ABC):
    """A connected byte stream. All methods belong to the event loop it was made on."""

    @abstractmethod
    async def read(self) -> bytes:
        """Returns bytes, or `b""` at the end of the stream; before `start`, one task at a time.

        Raises:
            OSError: the connection broke.
        """

    @abstractmethod
    def start(self, receiver: Receiver) -> None:
        """Deliver to `receiver` from now on, beginning with bytes that came and were not read."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send bytes, at once if the kernel takes them. After the end this does nothing."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Bytes that were written and that the kernel has not taken yet."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""

    @abstractmethod
    def abort(self) -> None:
        """Close now, without a close message, as Go's client does. May be called again."""

    def close(self) -> None:
        """End the writing half after what was written; the link ends when the peer closes.

        The receiver's `connection_lost` is called then. Call `abort` if that takes too long.
        """
        self.abort()

    @property
    def local_address(self) -> tuple[str, int] | None:
        """The local IP address and port, or `None` if there is no socket below."""
        return None

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """The peer's IP address and port, or `None` if there is no socket below."""
        return None


class LayeredLink(Link):
    """A link on top of another; passes on everything that a subclass does not override."""

    def __init__(self, lower: Link) -> None:
        self._lower = lower

    def write(self, data: bytes) -> None:
        self._lower.write(data)

    @property
    def pending(self) -> int:
        return self._lower.pending

    def pause_reading(self) -> None:
        self._lower.pause_reading()

    def resume_reading(self) -> None:
        self._lower.resume_reading()

    def close(self) -> None:
        self._lower.close()

    def abort(self) -> None:
        self._lower.abort()

    @property
    def local_address(self) -> tuple[str, int] | None:
        return self._lower.local_address

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return self._lower.remote_address


class TcpLink(Link, asyncio.Protocol):
    """A connected TCP socket; made by `link_over_socket`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._unread = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._closing = False
        self._error: Exception | None = None
        self._paused = False

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports are not subclasses of asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.data_received(data)
            return
        self._unread += data
        if len(self._unread) > _UNREAD_HIGH:
            self.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = None if exc is None else without_frames(exc)
        self._wake()
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, NO_RECEIVER
            receiver.connection_lost(self._error)

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.writable()

    # Called by the user of the link

    async def read(self) -> bytes:
        while not self._unread:
            if self._ended:
                if self._error is not None:
                    raise raisable(self._error)
                return b""
            self.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = bytes(self._unread)
        self._unread.clear()
        return data

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        # Before data is delivered, as the receiver may pause again.
        self.resume_reading()
        if self._unread:
            data = bytes(self._unread)
            self._unread.clear()
            receiver.data_received(data)
        if self._ended:
            self._receiver = NO_RECEIVER
            receiver.connection_lost(self._error)

    def write(self, data: bytes) -> None:
        if not self._ended and not self._closing and self._transport is not None:
            self._transport.write(data)

    @property
    def pending(self) -> int:
        if self._ended or self._transport is None:
            return 0
        return self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        if not self._paused and not self._ended and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self._ended and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        # Not after the end: asyncio's transports raise then if a `close` had to wait.
        if self._transport is not None and not self._ended:
            self._transport.abort()

    def drop(self) -> None:
        """As `abort`, for a link that was cancelled while the loop made its transport.

        uvloop does not report the end of such a transport, and goes on holding its protocol.
        """
        self.abort()
        self._transport = None

    def close(self) -> None:
        transport = self._transport
        if transport is None or self._ended or self._closing:
            return
        # Only the writing half. If the socket is closed while bytes from the peer are unread, the
        # kernel sends a reset, and the peer may lose bytes that are still on their way to it. So
        # reading goes on until the peer closes, too.
        self._closing = True
        self.resume_reading()
        try:
            if not transport.is_closing():
                transport.write_eof()
        except OSError:
            transport.abort()

    @property
    def local_address(self) -> tuple[str, int] | None:
        return self._address("sockname")

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return self._address("peername")

    def _address(self, name: str) -> tuple[str, int] | None:
        address = None if self._transport is None else self._transport.get_extra_info(name)
        if not isinstance(address, tuple) or len(address) < 2:
            return None
        return str(address[0]), int(address[1])

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def link_over_socket(sock: socket.socket) -> TcpLink:
    """Returns a link over a connected TCP socket, which belongs to it, also if this fails."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link = TcpLink()
    try:
        await loop.create_connection(lambda: link, sock=sock)
    except BaseException:
        link.drop()
        sock.close()
        raise
    return link
