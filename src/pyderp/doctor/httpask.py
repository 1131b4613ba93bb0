"""Sends one HTTP request over a link, and reads its answer up to a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyderp.errors import BadUpgrade, FailureReason, RemoteProtocolError, without_frames
from pyderp.net.link import Link
from pyderp.text import printable
from pyderp.wire.httpreply import HttpExchange, HttpReply
from pyderp.wire.upgrade import UPGRADE_HEADERS

__all__ = ["NotHttp", "Reply", "ask_upgrade", "get"]

_MAX_BODY: Final = 4096
_FRAME_HEAD: Final = 9
"""Bytes of the head of an HTTP/2 frame (RFC 9113, section 4.1)."""
_SETTINGS: Final = 0x04
_GOAWAY: Final = 0x07


class NotHttp(BadUpgrade):
    """The answer is not HTTP/1.1.

    Attributes:
        http2: the answer is HTTP/2.
    """

    def __init__(self, message: str, *, http2: bool = False) -> None:
        super().__init__(message, reason=FailureReason.NO_HTTP)
        self.http2 = http2


@dataclass(frozen=True, slots=True)
class Reply(HttpReply):
    """An HTTP answer."""

    body: bytes
    """At most 4 KiB of the body."""
    rest: bytes
    """The bytes that followed the head of a 101."""

    @property
    def front(self) -> str:
        """The names in the headers `Server` and `Via` (of proxies); empty: it has neither."""
        named = [self.header("server"), self.header("via") and f"via {self.header('via')}"]
        return printable(", ".join(filter(None, named)), 80)


async def get(
    link: Link, host: str, target: str, *, headers: Sequence[tuple[str, str]] = ()
) -> Reply:
    """Send a GET over a link, and return its answer; raises the errors of `ask_upgrade`."""
    return await _ask(link, host, target, (*headers, ("Connection", "close")))


async def ask_upgrade(link: Link, host: str, target: str) -> Reply:
    """Ask for the upgrade to DERP, as a client does that does not know the relay's key.

    Args:
        link: a link over which nothing was sent yet.
        host: host and, unless it is the default, port.
        target: path and query.

    Raises:
        NotHttp: the answer is not HTTP/1.1, or its head has more than 64 KiB.
        LocalProtocolError: a value cannot be part of a request head.
        ConnectionError: there was no answer.
        OSError, TLSError: the link broke.
    """
    return await _ask(link, host, target, UPGRADE_HEADERS)


async def _ask(link: Link, host: str, target: str, headers: Sequence[tuple[str, str]]) -> Reply:
    http = HttpExchange(host, target, headers=headers, max_body=_MAX_BODY)
    link.write(http.request)
    first = b""
    while not http.finished:
        data = await link.read()
        if not data and not first:
            raise ConnectionError("the connection was closed without an answer")
        first = (first + data[:_FRAME_HEAD])[:_FRAME_HEAD]
        try:
            http.receive_data_untrusted(data)
        except RemoteProtocolError as e:
            if http.reply is not None:
                break  # The body is cut short or malformed; checks use the head.
            http2 = _is_http2(first)
            text = "the answer is HTTP/2, which the client did not offer" if http2 else str(e)
            raise NotHttp(text, http2=http2) from without_frames(e)
    reply = http.reply
    assert reply is not None
    return Reply(reply.status, reply.reason, reply.headers, http.body, http.rest)


def _is_http2(first: bytes) -> bool:
    """Return whether bytes begin with a SETTINGS or GOAWAY frame of HTTP/2, as its servers do."""
    if len(first) < _FRAME_HEAD:
        return False
    return first[3] in (_SETTINGS, _GOAWAY) and not any(first[5:_FRAME_HEAD]) and first[0] == 0
