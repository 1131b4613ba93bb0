"""An ordinary HTTP/1.1 request to a server and its answer, both bounded. Sans-IO, on h11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11

from pyderp.errors import LocalProtocolError, RemoteProtocolError, without_frames
from pyderp.text import h11_words, printable

__all__ = ["HttpExchange", "HttpReply"]

MAX_HEAD: Final = 32 * 1024
"""Bytes of an answer's head, together with informational answers before it."""
_MAX_LINES: Final = 400
"""Lines of the same. h11 takes seconds for a head of many thousands."""
_SLICE: Final = 4096
"""Bytes that h11 gets at once: it looks at its limit only while a head is incomplete."""
_QUOTED: Final = 100


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The head of an answer."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, values as they came, decoded as Latin-1."""

    def header(self, name: str) -> str:
        """The first value of a header; empty when absent.

        Args:
            name: in lower case.
        """
        return next((value for key, value in self.headers if key == name), "")


class HttpExchange:
    """One request, and the answer to it.

    Send `request`, give what comes to `receive_data_untrusted`, until `finished`.

    Args:
        host: of the header Host.
        target: path and query.
        method: GET or HEAD.
        headers: further ones.
        max_body: bytes of the body that are kept; then it is `finished`, whatever follows.

    Raises:
        LocalProtocolError: a value that cannot stand in a request head.
    """

    def __init__(
        self,
        host: str,
        target: str,
        *,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        max_body: int = 8192,
    ) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        request = [("Host", host), ("User-Agent", "pyderp"), *headers]
        try:
            head = self._h11.send(h11.Request(method=method, target=target, headers=request))
            self._h11.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeEncodeError) as e:
            raise LocalProtocolError(f"cannot ask {printable(host, _QUOTED)} by HTTP: {e}") from e
        self.request: bytes = head or b""
        self.reply: HttpReply | None = None
        """The head of the answer, once it is complete."""
        self.body = b""
        """As much of the body as came, at most `max_body` bytes."""
        self.finished = False
        self._max_body = max_body
        self._head_size = self._head_lines = 0

    def receive_data_untrusted(self, data: bytes) -> None:
        """Take bytes of the server; `b""` means that it closed its side.

        Raises:
            RemoteProtocolError: not HTTP, cut short, or a head that is too long.
        """
        for start in range(0, len(data) or 1, _SLICE):
            if not self.finished:
                self._receive(data[start : start + _SLICE])

    def _receive(self, data: bytes) -> None:
        if self.reply is None:
            self._head_size += len(data)
            self._head_lines += data.count(b"\n")
        try:
            self._h11.receive_data(data)
            while not self.finished and self._take(self._h11.next_event()):
                pass
        except h11.RemoteProtocolError as e:
            without_frames(e)  # h11 raises it in a method of itself: its own frames hold it
            raise RemoteProtocolError(f"bad HTTP answer: {printable(h11_words(e), _QUOTED)}") from e
        if self.reply is None and (self._head_size > MAX_HEAD or self._head_lines > _MAX_LINES):
            raise RemoteProtocolError("bad HTTP answer: its head does not end")

    def _take(self, event: object) -> bool:
        """Take an event of h11; returns whether another may follow at once."""
        if isinstance(event, h11.Response):
            self.reply = HttpReply(
                event.status_code,
                event.reason.decode("latin-1"),
                tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers),
            )
        elif isinstance(event, h11.Data):
            self.body += event.data[: self._max_body - len(self.body)]
            self.finished = len(self.body) >= self._max_body
        elif isinstance(event, h11.EndOfMessage):
            self.finished = True
        elif isinstance(event, h11.ConnectionClosed):
            raise RemoteProtocolError("bad HTTP answer: the connection ended without one")
        elif not isinstance(event, h11.InformationalResponse):
            return False  # more is needed, or it switches to another protocol
        return True
