"""An ordinary HTTP/1.1 request to a server and its answer, both bounded. Sans-IO, on h11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11

from pyderp.errors import LocalProtocolError, RemoteProtocolError, without_frames
from pyderp.text import h11_words, printable

__all__ = ["HttpExchange", "HttpReply"]

MAX_HEAD: Final = 64 * 1024
"""Bytes of an answer's head, together with informational answers before it."""
_MAX_LINES: Final = 400
"""Lines of the same. h11 takes seconds for a head of many thousands."""
_SLICE: Final = 4096
"""Bytes that h11 gets at once: it looks at its limit only while a head is incomplete."""
_QUOTED: Final = 100
_SWITCHING: Final = 101


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
            name: in upper or lower case.
        """
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), "")


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
        self.rest = b""
        """What followed a 101, which is the answer if the request asks for an upgrade."""
        self.finished = False
        self._body = bytearray()
        self._max_body = max_body
        self._switched = False
        self._head_size = self._head_lines = 0

    @property
    def body(self) -> bytes:
        """As much of the body as came, at most `max_body` bytes."""
        return bytes(self._body)

    def receive_data_untrusted(self, data: bytes) -> None:
        """Take bytes of the server; `b""` means that it closed its side.

        Raises:
            RemoteProtocolError: not HTTP, cut short, or a head that is too long.
        """
        for start in range(0, len(data) or 1, _SLICE):
            piece = data[start : start + _SLICE]
            if not self.finished:
                self._receive(piece)
            elif self._switched:
                self.rest += piece

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
            text = printable(h11_words(e), _QUOTED)
            if not self._head_size:
                text = "nothing but a closed connection"
            raise RemoteProtocolError(f"the answer is not HTTP: {text}") from e
        if self.reply is None and (self._head_size > MAX_HEAD or self._head_lines > _MAX_LINES):
            raise RemoteProtocolError("the answer is not HTTP: its head does not end")

    def _take(self, event: object) -> bool:
        """Take an event of h11; returns whether another may follow at once."""
        if isinstance(event, h11.Response | h11.InformationalResponse):
            # h11 lets a 101 pass only if the request has the header Upgrade.
            self._switched = event.status_code == _SWITCHING
            if self._switched or isinstance(event, h11.Response):
                self.reply = HttpReply(
                    event.status_code,
                    event.reason.decode("latin-1"),
                    tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers),
                )
            if self._switched:
                self.rest = self._h11.trailing_data[0]
                self.finished = True
        elif isinstance(event, h11.Data):
            self._body += event.data[: self._max_body - len(self._body)]
            self.finished = len(self._body) >= self._max_body
        elif isinstance(event, h11.EndOfMessage):
            self.finished = True
        else:
            return False  # more is needed
        return True
