"""A byte stream to a relay: TCP, what lies on top of it, or a stream that the program has already.

Two phases. While a connection is being made, one task awaits `read`. Then `start` hands
over to a `Receiver`, whose callbacks cost no task and no await.
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
    """Gets what a link receives."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def connection_lost(self, error: Exception | None) -> None:
        """The stream ended, once: `None` for a clean end by the other side."""

    def writable(self) -> None:
        """What was written before is on its way; `pending` is low again."""


class _NoReceiver:
    """Takes the place of a receiver once `connection_lost` was called."""

    def data_received(self, data: bytes) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        pass

    def writable(self) -> None:
        pass


NO_RECEIVER: Final = _NoReceiver()
"""What a link has instead of its receiver once it has reported the end. The receiver holds the
link, so a link that went on holding the receiver would keep both until the collector runs."""


class Link(ABC):
    """A connected byte stream. All methods belong to the event loop it was made on."""

    @abstractmethod
    async def read(self) -> bytes:
        """Some bytes; `b""` at the end of the stream. Before `start` only, one task at a time.

        Raises:
            OSError: the connection broke.
        """

    @abstractmethod
    def start(self, receiver: Receiver) -> None:
        """Deliver to `receiver` from now on, beginning with what came and was not read."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send bytes, at once if the kernel takes them. After the end: silently nothing."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Bytes written that no kernel has taken yet."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Bring nothing until `resume_reading`."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""

    @abstractmethod
    def abort(self) -> None:
        """Close now, without a goodbye (so does Go's client). May be called again."""

    def close(self) -> None:
        """Say that nothing more follows what was written, and close with the other side.

        The receiver hears when that is done. `abort` if it takes too long.
        """
        self.abort()

    @property
    def local_address(self) -> tuple[str, int] | None:
        """Our IP address and port, if there is a socket below."""
        return None

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """The IP address and port that the socket below is connected to, if there is one."""
        return None


class LayeredLink(Link):
    """A link on top of another, to which everything goes that a subclass does not do itself."""

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
        # A cast, because uvloop's transports are no subclasses of asyncio.Transport.
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

    # Called by us

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
        # First of all, as the receiver may pause again.
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
        # asyncio's transports fail at this after a `close` that had to wait.
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
        # Only our half: to close both with bytes unread is a reset, which takes what is still
        # on its way with it.
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
    """A link over a connected TCP socket, which then belongs to it, also when this fails."""
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
