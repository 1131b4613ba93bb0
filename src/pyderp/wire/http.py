"""HTTP/1.1 on a relay's port, up to the upgrade to DERP. Sans-IO, built on h11."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import h11

from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade, without_frames
from pyderp.text import h11_words, printable

__all__ = [
    "BROWSER_HEADERS",
    "DERP_PATH",
    "WEBSOCKET_STATUS",
    "Answer",
    "HttpConnection",
    "Request",
    "Response",
    "Routes",
    "StreamedResponse",
    "Upgrade",
    "page",
    "text_response",
]

WEBSOCKET_STATUS: Final = frozenset({400, 404, 426, 501})
"""Statuses after which a client tries a websocket: those of a proxy that does not pass on the
upgrade, or of a relay to which a proxy passed it on without its headers. Not 401, 403, 407, 429 and
511, which a websocket would get as well."""
DERP_PATH: Final = "/derp"
BROWSER_HEADERS: Final = (
    ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
    (
        "Content-Security-Policy",
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; "
        "block-all-mixed-content; object-src 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
)


_MAX_QUERY_FIELDS: Final = 50


class Upgrade(Enum):
    """The upgrade that a request to the DERP path asks for."""

    NONE = auto()
    DERP = auto()
    WEBSOCKET = auto()


@dataclass(slots=True)
class Request:
    """A request head. Header names are in lower case; values are as sent, without outer space."""

    method: str
    target: str
    http_version: str
    headers: list[tuple[bytes, bytes]]

    remote: str = ""
    """IP address of the client, behind trusted proxies; empty: unknown."""

    tls: str = ""
    """TLS version of the connection, such as `1.3`; empty: none."""

    forwarded: bool = False
    """The request came through a proxy that is not trusted, so `remote` is the proxy's address."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The fields of the target's query; the first value of a repeated one."""
        text = self.target.partition("?")[2]
        try:
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
        except ValueError:
            return {}
        return dict(reversed(fields))

    def header(self, name: bytes) -> str:
        """Return the first value of a header; empty if there is none.

        Args:
            name: in lower case.
        """
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return ""

    def header_values(self, name: bytes) -> list[str]:
        """Return all values of a header, in order."""
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    @property
    def upgrade(self) -> Upgrade:
        """The upgrade of a request to `/derp`, by the rules of Go's handler.

        A websocket request without the subprotocol comes from an old client that speaks DERP.
        """
        wanted = self.header(b"upgrade").lower()
        if wanted == "websocket":
            offered = ",".join(self.header_values(b"sec-websocket-protocol"))
            return Upgrade.WEBSOCKET if "derp" in offered else Upgrade.DERP
        return Upgrade.DERP if wanted == "derp" else Upgrade.NONE

    @property
    def wants_fast_start(self) -> bool:
        """Whether the client expects no HTTP answer (fast start): the header is exactly `1`."""
        return self.header(b"derp-fast-start") == "1"


@dataclass(slots=True)
class Response:
    """An answer; `HttpConnection` adds Content-Length and Connection."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    close: bool = False
    """Close the connection after this answer."""


@dataclass(slots=True)
class StreamedResponse:
    """An answer whose body is made piece by piece while it is sent."""

    status: int
    headers: list[tuple[str, str]]
    chunks: AsyncGenerator[bytes, None]


Answer: TypeAlias = Response | StreamedResponse | Coroutine[Any, Any, Response]
"""The answer to a request, or a coroutine that returns it."""
Routes: TypeAlias = Callable[[Request], Answer]
"""Returns the answer to a request."""


def text_response(status: int, text: str, *, close: bool = False) -> Response:
    """Return a plain-text answer in the form of Go's `http.Error`."""
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Response(status, headers, text.encode() + b"\n", close)


def page(content_type: str, body: bytes) -> Response:
    """Return a page for browsers, with the headers that restrict scripts and frames."""
    return Response(200, [("Content-Type", content_type), *BROWSER_HEADERS], body)


def _origin_form(target: str, headers: list[tuple[bytes, bytes]]) -> str:
    """Return a target without scheme and host, which any request may have (RFC 9112 §3.2.2).

    Its host replaces the Host header.
    """
    start = _SCHEME_AND_HOST.match(target)
    if start is None:
        return target
    host = start[1].encode("latin-1")
    headers[:] = [(name, host if name == b"host" else value) for name, value in headers]
    rest = target[start.end() :]
    return rest if rest.startswith("/") else "/" + rest


_SCHEME_AND_HOST: Final = re.compile("https?://([^/?]*)", re.IGNORECASE)
_QUOTED: Final = 100
"""Most characters of a peer's bytes that an error quotes."""
_MAX_LINES: Final = 200
"""Most lines of a request head. h11 accepts 64 KiB of empty ones, which take 0.2 s of CPU."""
_SERVER_ERROR_CLOSES: Final = ("Connection", "close")


class HttpConnection:
    """Reads one connection's requests and writes the answers, one after another.

    Call `receive_data`, then `next_request` until it returns `None`; after each request
    either `respond`, or take over the connection with `take_over`.
    """

    __slots__ = ("_h11", "_lines", "_refusal_status", "finished", "head_only", "served")

    finished: bool
    """No request can follow: close the connection when everything is written."""
    head_only: bool
    """The request was HEAD: no body is sent."""
    served: int
    """Requests answered so far."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HTTP_HEAD)
        self.head_only = False
        self._refusal_status = HTTPStatus.BAD_REQUEST
        self._lines = 0
        self.finished = False
        self.served = 0

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the peer, without parsing them."""
        if data:
            self._lines += data.count(b"\n")
            self._h11.receive_data(data)

    def next_request(self) -> Request | None:
        """Return the next request head, or `None` while bytes are missing.

        Raises:
            BadUpgrade: not HTTP, CONNECT, both Content-Length and Transfer-Encoding, or a head of
                more than 64 KiB. `refusal` returns the answer.
        """
        if self.finished:
            return None
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as e:
            self._refusal_status = HTTPStatus(e.error_status_hint)
            problem = printable(h11_words(e), _QUOTED)
            # h11 raises it in its own method: without this, error and frames refer to each other.
            raise BadUpgrade(f"bad HTTP request: {problem}") from without_frames(e)
        if event is h11.NEED_DATA:
            if self._lines > _MAX_LINES:
                self._refusal_status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                raise BadUpgrade(f"HTTP request head of more than {_MAX_LINES} lines")
            return None
        self._lines = 0
        if not isinstance(event, h11.Request):
            self.finished = True
            return None
        if event.method == b"CONNECT":
            # After a 2xx answer the connection would be a tunnel, also to h11.
            self._refusal_status = HTTPStatus.METHOD_NOT_ALLOWED
            raise BadUpgrade("HTTP request for a proxy: CONNECT")
        self.head_only = event.method == b"HEAD"
        # Twice as fast as iterating over h11's own view with names in lower case.
        headers = [(name.lower(), value) for name, value in event.headers.raw_items()]
        if {b"transfer-encoding", b"content-length"} <= {name for name, _ in headers}:
            # A proxy in front may take the other length, and what it takes for a body be a
            # request here. RFC 9112 §6.1 lets us refuse, and wants the connection closed.
            raise BadUpgrade("HTTP request with both Content-Length and Transfer-Encoding")
        # h11 looks at its limit only while a head is incomplete.
        if sum(len(k) + len(v) for k, v in headers) + len(event.target) > MAX_HTTP_HEAD:
            self._refusal_status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise BadUpgrade(f"HTTP request head of more than {MAX_HTTP_HEAD} bytes")
        return Request(
            event.method.decode("latin-1"),
            _origin_form(event.target.decode("latin-1"), headers),
            event.http_version.decode("latin-1"),
            headers,
        )

    def take_over(self) -> bytes:
        """End HTTP on this connection; return the bytes after the request head."""
        self.finished = True
        return self._h11.trailing_data[0]

    def respond(self, response: Response) -> bytes:
        """Return the bytes of the answer to the last request.

        The answer to HEAD has Content-Length and no body. After a request with a body the
        connection ends, because no route reads bodies.
        """
        headers = [*response.headers, ("Content-Length", str(len(response.body)))]
        if response.status == HTTPStatus.NO_CONTENT:
            headers.pop()
        out = self._head(response.status, headers, close=response.close)
        if response.body and not self.head_only:
            out += self._h11.send(h11.Data(data=response.body)) or b""
        return out + self.end()

    def begin(self, response: StreamedResponse) -> bytes:
        """Return the head of an answer; `chunk` and `end` follow."""
        return self._head(response.status, response.headers, close=False)

    def chunk(self, data: bytes) -> bytes:
        """Return the bytes of a piece of the body; none after HEAD."""
        return b"" if self.head_only or not data else self._h11.send(h11.Data(data=data)) or b""

    def _head(self, status: int, headers: list[tuple[str, str]], *, close: bool) -> bytes:
        try:
            no_body = isinstance(self._h11.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError as e:
            without_frames(e)
            no_body = False
        if close or not no_body:
            headers = [*headers, _SERVER_ERROR_CLOSES]
        # A value may repeat what a request said, which was read as Latin-1; left to h11,
        # text must be ASCII.
        encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        reason = HTTPStatus(status).phrase.encode("ascii")
        head = h11.Response(status_code=status, headers=encoded, reason=reason)
        return self._h11.send(head) or b""

    def end(self) -> bytes:
        """Return the bytes that end an answer."""
        out = self._h11.send(h11.EndOfMessage()) or b""
        self.served += 1
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        else:
            self.finished = True
        return out

    def refusal(self) -> bytes:
        """Return the answer to bytes for which `next_request` raised."""
        self.finished = True
        line = f"{self._refusal_status.value} {self._refusal_status.phrase}"
        return (
            f"HTTP/1.1 {line}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Connection: close\r\n\r\n{line}"
        ).encode("ascii")
