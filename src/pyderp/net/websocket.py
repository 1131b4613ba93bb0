"""A websocket on top of a link, as a link that carries the DERP stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from pyderp.errors import TLSError, UpgradeRejected, raisable, without_frames
from pyderp.net.link import NO_RECEIVER, LayeredLink, Link, Receiver
from pyderp.wire.websocket_client import WebSocketClient

__all__ = ["BODY_WAIT", "WebSocketLink", "open_websocket", "read_refusal"]

_MAX_PENDING: Final = 256 * 1024
"""Above so many bytes that wait to be sent, pings are not answered, so that pongs cannot add up."""
BODY_WAIT: Final = 1.0
"""Seconds that the body of a refusal has to arrive."""


class WebSocketLink(LayeredLink):
    """The DERP stream inside a websocket; made by `open_websocket`.

    The end of the stream is clean if the relay closed with 1000 or 1001. Another code, an end
    without a close frame and a malformed message are errors (`RemoteProtocolError`): `read`
    raises them, or `connection_lost` gets them.
    """

    def __init__(self, link: Link, client: WebSocketClient, unread: bytes) -> None:
        super().__init__(link)
        self._client = client
        self._unread = unread
        self._receiver: Receiver | None = None
        self._aborted = False
        self._over = False

    async def read(self) -> bytes:
        data, self._unread = self._unread, b""
        while not data:
            if self._client.ended:
                if self._client.error is not None:
                    raise raisable(self._client.error)
                return b""
            if chunk := await self._lower.read():
                data = self._client.receive_data(chunk)
            else:
                self._client.receive_eof()
            self._answer()
        return data

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        data, self._unread = self._unread, b""
        if data:
            receiver.data_received(data)
        if self._client.ended:
            self._end(self._client.error)
        self._lower.start(self)

    # Called by the link below

    def data_received(self, data: bytes) -> None:
        if self._aborted:
            # After `close`: handling the relay's close frame would abort the link, and bytes that
            # are still on their way would be lost.
            return
        client = self._client
        stream = client.receive_data(data)
        self._answer()
        if stream and self._receiver is not None:
            self._receiver.data_received(stream)
        if client.ended:
            self._end(client.error)

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and not self._aborted and not self._over:
            self._client.receive_eof()
            error = self._client.error
        self._end(error)

    def writable(self) -> None:
        if self._receiver is not None and not self._over:
            self._receiver.writable()

    # Called by the user of the link

    def write(self, data: bytes) -> None:
        self._client.send(data)
        self._lower.write(self._client.data_to_send())

    def close(self) -> None:
        """Send a close frame, and close the link below after it; the answer is not awaited."""
        self._client.close()
        self._lower.write(self._client.data_to_send())
        self._aborted = True
        self._lower.close()

    def abort(self) -> None:
        self._aborted = True
        self._lower.abort()

    def _answer(self) -> None:
        answer = self._client.data_to_send()
        if answer and self._lower.pending < _MAX_PENDING:
            self._lower.write(answer)

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        self._lower.abort()
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, NO_RECEIVER
            receiver.connection_lost(error)


async def open_websocket(link: Link, client: WebSocketClient) -> WebSocketLink:
    """Make the websocket handshake over a link that was not started yet.

    A failure or cancellation aborts the link. There is no time limit here.

    Args:
        link: connected, TLS included.
        client: a new one, with the request.

    Raises:
        BadUpgrade: as `receive_data` of the client. The body of an `UpgradeRejected` has one
            second to arrive.
        OSError: the connection broke.
    """
    try:
        link.write(client.data_to_send())
        unread = b""
        while not client.opened:
            if data := await link.read():
                unread = client.receive_data(data)
            else:
                client.receive_eof()
            if client.refused:
                await read_refusal(link, client.receive_data, client.refusal)
        link.write(client.data_to_send())
    except BaseException:
        link.abort()
        raise
    return WebSocketLink(link, client, unread)


async def read_refusal(
    link: Link, take: Callable[[bytes], object], refusal: Callable[[], UpgradeRejected]
) -> NoReturn:
    """Read the body of a refusal, for one second at most, and raise the refusal.

    Args:
        take: takes bytes, `b""` at the end; raises the refusal when it is complete.
        refusal: returns the refusal with as much of the body as came.

    Raises:
        UpgradeRejected: always; without the rest of the body if that took too long, or the
            connection broke.
    """
    try:
        async with asyncio.timeout(BODY_WAIT):
            while True:
                take(await link.read())
    except (OSError, TLSError) as e:  # a TimeoutError is an OSError, too
        raise refusal() from without_frames(e)
