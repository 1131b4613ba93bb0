"""HTTP requests on a relay's port: `wire.http`, `wire.upgrade` and `server.site.routes`.

Modes, by bit: 1 the plain listener beside TLS, which redirects; 2 `/derp` is not served.
"""

from __future__ import annotations

from typing import Final

import h11

from fuzz.targets._input import cut, split_input
from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade
from pyderp.server.conn.http import client_address
from pyderp.server.site.routes import relay_routes, side_routes
from pyderp.wire.http import (
    DERP_PATH,
    HttpConnection,
    Request,
    Response,
    Upgrade,
    page,
    text_response,
)
from pyderp.wire.websocket import refuse_handshake, websocket_accept

__all__ = ["TOKENS", "one_input"]

TOKENS: Final = (
    b"GET /derp HTTP/1.1\r\nHost: h\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\n",
    b"HEAD /derp/probe HTTP/1.1\r\n",
    b"CONNECT ",
    b"OPTIONS * HTTP/1.1\r\n",
    b"POST /derp/latency-check ",
    b"/generate_204",
    b"/bootstrap-dns",
    b"/robots.txt",
    b" HTTP/1.0\r\n",
    b"Host: h\r\n",
    b"Connection: Upgrade\r\n",
    b"Connection: close\r\n",
    b"Upgrade: DERP\r\n",
    b"Upgrade: websocket\r\n",
    b"Sec-WebSocket-Protocol: derp\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n",
    b"Derp-Fast-Start: 1\r\n",
    b"Ideal-Node: 1a\r\n",
    b"X-Tailscale-Challenge: a.b-c_d:1\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n\r\n",
    b"\xff",
)

_MAX_ANSWER: Final = 4096
"""Bytes; no page is larger, except that a redirect has the length of its request."""


_ROUTES: Final = relay_routes({"/": lambda _: page("text/html", b"home")})
_SIDE_ROUTES: Final = side_routes(lambda _: None, _ROUTES, lambda _: False)
_PROXY: Final = ("10.0.0.1", 1)


class _Server:
    """The HTTP stage of `pyderp.server.conn.protocol`, without a socket."""

    def __init__(self, mode: int) -> None:
        self.routes = _SIDE_ROUTES if mode & 1 else _ROUTES
        self.derp = not mode & 2
        self.http = HttpConnection()
        self.fed = 0
        self.out: list[bytes] = []
        self.rest: bytes | None = None

    @property
    def is_over(self) -> bool:
        """Whether HTTP has ended: by an upgrade or by the end of the connection."""
        return self.rest is not None or self.http.finished

    def receive_data(self, data: bytes) -> None:
        """Take bytes and answer the requests in them."""
        http = self.http
        self.fed += len(data)
        http.receive_data(data)
        try:
            while self.rest is None and (request := http.next_request()) is not None:
                self._on_request(request)
        except BadUpgrade:
            answer = http.refusal()
            _check_answer(answer, "GET")
            self.out.append(answer)
        if not self.is_over:
            held = len(http._h11.trailing_data[0])
            assert held <= MAX_HTTP_HEAD, f"{held} bytes of an incomplete head are held"

    def _on_request(self, request: Request) -> None:
        assert request.path in request.target
        assert all(isinstance(value, str) for value in request.query.values())
        client_address(request, _PROXY, lambda host: host.startswith("10."))
        assert request.wants_fast_start in (False, True)
        if self.derp and request.path == DERP_PATH:
            upgrade = request.upgrade
            if upgrade is Upgrade.DERP:
                self.rest = self.http.take_over()
                return
            if upgrade is Upgrade.WEBSOCKET:
                self._on_websocket(request)
                return
            response = text_response(426, "DERP requires connection upgrade")
        else:
            routed = self.routes(request)
            assert isinstance(routed, Response)
            response = routed
        answer = self.http.respond(response)
        _check_answer(answer, request.method)
        self.out.append(answer)

    def _on_websocket(self, request: Request) -> None:
        refusal = refuse_handshake(request)
        if refusal is not None:
            answer = self.http.respond(refusal)
            _check_answer(answer, request.method)
            self.out.append(answer)
            return
        head, _ = websocket_accept(request)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert head.count(b"\r\n\r\n") == 1
        assert head.endswith(b"\r\n\r\n")
        self.out.append(head)
        self.rest = self.http.take_over()


def _check_answer(answer: bytes, method: str) -> None:
    """Check that the answer is exactly one response: no bytes of the request can end it early."""
    client = h11.Connection(h11.CLIENT)
    # For h11 a 2xx answer to CONNECT opens a tunnel; a relay opens none, so it is read as to GET.
    asked = method if method in ("GET", "HEAD") else "GET"
    client.send(h11.Request(method=asked, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response), response
    while isinstance(event := client.next_event(), h11.Data):
        pass
    assert isinstance(event, h11.EndOfMessage), event
    assert client.trailing_data[0] == b"", "something follows the answer"


def _answers(payload: bytes, sizes: bytes, mode: int) -> tuple[bytes, bytes | None]:
    server = _Server(mode)
    for chunk in cut(payload, sizes):
        server.receive_data(chunk)
        if server.is_over:
            break
    out = b"".join(server.out)
    assert len(out) <= server.fed + _MAX_ANSWER * len(server.out)
    if server.rest is None:
        return out, None
    seen = payload[: server.fed]
    assert seen.endswith(server.rest), "bytes behind the head are lost or made up"
    return out, server.rest + payload[server.fed :]


def one_input(data: bytes) -> None:
    """Answer requests, in chunks and at once."""
    mode, sizes, payload = split_input(data)
    chunked = _answers(payload, sizes, mode)
    whole = _answers(payload, b"", mode)
    if len(payload) <= MAX_HTTP_HEAD:  # above, the chunks decide whether a head is too large
        assert chunked == whole, "chunks make a difference"
