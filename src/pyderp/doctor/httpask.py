"""One request over a link, and its answer, of which only so much is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11

from pyderp.errors import BadUpgrade, FailureReason, without_frames
from pyderp.net.link import Link
from pyderp.text import h11_words, printable

__all__ = ["NotHttp", "Reply", "ask", "get"]

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read, head and body."""
_MAX_BODY: Final = 4096
_FRAME_HEAD: Final = 9
"""Bytes of the head of an HTTP/2 frame (RFC 9113, section 4.1)."""
_SETTINGS: Final = 0x04
_GOAWAY: Final = 0x07


class NotHttp(BadUpgrade):
    """What answered does not speak HTTP/1.1.

    Attributes:
        http2: its answer is HTTP/2.
    """

    def __init__(self, message: str, *, http2: bool = False) -> None:
        super().__init__(message, reason=FailureReason.NO_HTTP)
        self.http2 = http2


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    headers: Sequence[tuple[str, str]]
    """Names in lower case."""
    body: bytes
    """At most 4 KiB of it."""
    rest: bytes = b""
    """What followed a 101."""

    def header(self, name: str) -> str:
        """The first value of a header; empty: there is none."""
        return next((value for each, value in self.headers if each == name), "")

    @property
    def front(self) -> str:
        """How what answers calls itself, as far as it does: `Server`, and `Via` of proxies."""
        named = [self.header("server"), self.header("via") and f"via {self.header('via')}"]
        return printable(", ".join(filter(None, named)), 80)


async def get(
    link: Link, host: str, target: str, *, headers: Sequence[tuple[str, str]] = ()
) -> Reply:
    """GET over a link; raises as `ask`."""
    request = h11.Request(
        method="GET",
        target=target,
        headers=[("Host", host), ("User-Agent", "pyderp"), *headers, ("Connection", "close")],
    )
    return await ask(link, h11.Connection(h11.CLIENT).send(request) or b"")


async def ask(link: Link, request: bytes) -> Reply:
    """Write a request that has no body, and read the answer.

    Args:
        link: not started.

    Raises:
        NotHttp: the answer is not HTTP/1.1, or longer than 64 KiB.
        ConnectionError: there was no answer.
        OSError, TLSError: the link broke.
    """
    reader = _Reader()
    link.write(request)
    while True:
        data = await link.read()
        reply = reader.receive(data)
        if reply is not None:
            return reply


class _Reader:
    """Reads one answer, piece by piece."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        # The request went out by other means; h11 must know of one to expect its answer.
        upgrade = [("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "DERP")]
        self._h11.send(h11.Request(method="GET", target="/", headers=upgrade))
        self._h11.send(h11.EndOfMessage())
        self._first = b""
        self._size = 0
        self._head: h11.Response | None = None
        self._body = b""

    def receive(self, data: bytes) -> Reply | None:
        """Take bytes, `b""` at the end of the stream; returns the answer once it is whole."""
        if not data and not self._size:
            raise ConnectionError("the connection was closed without an answer")
        self._size += len(data)
        self._first = (self._first + data[:_FRAME_HEAD])[:_FRAME_HEAD]
        try:
            self._h11.receive_data(data)
            return self._events()
        except h11.RemoteProtocolError as e:
            without_frames(e)
            if self._head is not None:
                return self._reply()  # cut, or with an odd body: the head is what counts
            if _is_http2(self._first):
                raise NotHttp("the answer is HTTP/2, which was not asked for", http2=True) from e
            text = "nothing but a closed connection" if not data else printable(h11_words(e), 100)
            raise NotHttp(f"the answer is not HTTP: {text}") from e

    def _events(self) -> Reply | None:
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return Reply(101, _headers(event), b"", self._h11.trailing_data[0])
            elif isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body = (self._body + bytes(event.data))[:_MAX_BODY]
            else:
                return self._reply()
        if self._size > MAX_ANSWER:
            if self._head is not None:
                return self._reply()
            raise NotHttp(f"the answer has more than {MAX_ANSWER} bytes, and no end")
        return None

    def _reply(self) -> Reply:
        assert self._head is not None
        return Reply(self._head.status_code, _headers(self._head), self._body)


def _headers(head: h11.Response | h11.InformationalResponse) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]


def _is_http2(first: bytes) -> bool:
    """Whether bytes begin with a frame of HTTP/2 that is about the connection."""
    if len(first) < _FRAME_HEAD:
        return False
    return first[3] in (_SETTINGS, _GOAWAY) and not any(first[5:_FRAME_HEAD]) and first[0] == 0
