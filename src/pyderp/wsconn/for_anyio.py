"""A websocket as anyio's `ByteStream`. The only module of pyderp that needs anyio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pyderp.errors import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from pyderp.extras import needs
from pyderp.wsconn.stream import WebSocketStream

with needs("anyio", "byte streams for anyio"):
    import anyio
    import anyio.abc
    import anyio.lowlevel

__all__ = ["AnyioByteStream"]


class AnyioByteStream(anyio.abc.ByteStream):
    """A `WebSocketStream` with anyio's interface and errors; on asyncio only.

    The `TimeoutError` of a deadline is not changed. The cause of a `BrokenResourceError` is the
    error of `WebSocketStream`.

    Args:
        stream: belongs to this object from now on.
    """

    def __init__(self, stream: WebSocketStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Returns bytes of one message; cancelling loses none.

        Raises:
            anyio.EndOfStream: the peer closed with 1000 or 1001.
            anyio.ClosedResourceError: `aclose` was called.
            anyio.BrokenResourceError: the stream ended in another way.
            ValueError: `max_bytes` is less than 1.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await anyio.lowlevel.checkpoint()
        with self._translated():
            data = await self._stream.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send a message, or several if the stream splits.

        Raises:
            anyio.BusyResourceError: another task is sending.
            anyio.ClosedResourceError: `aclose` was called.
            anyio.BrokenResourceError: the stream ended in another way.
        """
        await anyio.lowlevel.checkpoint()
        with self._translated():
            await self._stream.write(item)

    async def send_eof(self) -> None:
        """Not possible: a websocket closes both directions at once.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a websocket cannot end one direction only")

    async def aclose(self) -> None:
        """Close with 1000, as `WebSocketStream.aclose`, but without an error if no answer comes."""
        with contextlib.suppress(TimeoutError):
            await self._stream.aclose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except LocalProtocolError as e:
            raise anyio.BusyResourceError("sending to") from e
        except (ConnectionClosed, RemoteProtocolError) as e:
            if self._stream.closed:
                raise anyio.ClosedResourceError from e
            raise anyio.BrokenResourceError from e
