"""A route over a stream that exists already, or that a function opens; DERP without HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pyderp.client.login import Established, Login, over_stream
from pyderp.client.route import Progress, Route, call_user_code
from pyderp.errors import LocalProtocolError
from pyderp.net.streams import Stream, as_link

__all__ = ["StreamRoute"]


class StreamRoute(Route):
    """A route over one stream, or over those that a function opens."""

    label = "the given stream"

    def __init__(self, stream: Stream | Callable[[], Awaitable[Stream]]) -> None:
        self._stream: Stream | Callable[[], Awaitable[Stream]] | None = stream

    async def connect(self, login: Login, progress: Progress) -> Established:
        """Log in over the stream, or over a new one of the function."""
        link = await as_link(await self._take())
        progress.step = "waiting for the relay's greeting"
        try:
            done = await over_stream(link, login)
            done.tls = getattr(link, "state", None)
            return done
        except BaseException:
            link.abort()
            raise

    async def _take(self) -> Stream:
        stream = self._stream
        if stream is None:
            raise LocalProtocolError(
                "the only stream of this client has ended; to reconnect, pass a function that "
                "opens a stream"
            )
        if callable(stream):
            return await call_user_code(stream)
        self._stream = None
        return stream

    async def aclose(self) -> None:
        """Close the stream, if no login has begun over it."""
        stream, self._stream = self._stream, None
        if stream is not None and not callable(stream):
            (await as_link(stream)).abort()
