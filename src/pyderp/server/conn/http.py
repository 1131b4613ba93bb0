"""A connection's first stage: HTTP requests, until one of them upgrades to DERP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from email.utils import formatdate
from typing import Any, Final

from pyderp.addresses import parse_ip
from pyderp.defaults import HTTP_IDLE_TIMEOUT, MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade, RemoteProtocolError
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.login import LoginStage
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import HOLD_HTTP
from pyderp.text import printable
from pyderp.wire.foreign import foreign_protocol_untrusted
from pyderp.wire.http import (
    DERP_PATH,
    Answer,
    HttpConnection,
    Request,
    Response,
    Routes,
    StreamedResponse,
    Upgrade,
    text_response,
)

__all__ = ["HttpStage", "client_address"]

log = logging.getLogger("pyderp.http")

_PIPELINED: Final = 8
"""Requests in one read. Each costs 0.1 ms in which no other client is served."""
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"forwarded"})
_ANSWER_TIMEOUT: Final = 60.0
"""Seconds that an answer may take if it is not ready at once; a stream has no limit."""


def _date() -> tuple[str, str]:
    """Return the Date header with this machine's time (RFC 9110, section 6.6.1)."""
    return "Date", formatdate(usegmt=True)


def _dated(answer: Response) -> Response:
    # A copy: pages are made once, and one object answers many requests.
    return replace(answer, headers=[*answer.headers, _date()])


class HttpStage:
    """Answers requests, and hands the connection over to DERP's login after an upgrade.

    Args:
        protocol: the connection.
        routes: answers requests that are not for DERP.
        derp: whether `/derp` is served on this connection.
    """

    __slots__ = ("_behind", "_busy", "_derp", "_http", "_peer", "_protocol", "_routes")

    def __init__(self, protocol: RelayProtocol, routes: Routes, *, derp: bool) -> None:
        self._protocol = protocol
        self._routes = routes
        self._derp = derp
        self._busy = False
        self._behind = 0
        self._peer: tuple[str, int] | None = None
        # Made when the first bytes come, so that a silent connection needs little memory.
        self._http: HttpConnection | None = None

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        """Take bytes; returns how many belonged to HTTP (`Stage`)."""
        http = self._http
        first = b""
        if http is None:
            http = self._http = HttpConnection()
            first = bytes(view[:end])
        if self._busy:
            self._behind += end
            if self._behind > MAX_HTTP_HEAD:
                raise RemoteProtocolError("too many bytes after an HTTP request before its answer")
        http.receive_data(bytes(view[:end]))
        return end - len(self._serve(http, first))

    def _serve(self, http: HttpConnection, first: bytes = b"") -> bytes:
        """Answer the complete requests; returns the bytes that already belong to DERP.

        Args:
            first: the bytes of the connection's first read; empty for later ones.
        """
        protocol = self._protocol
        rest = b""
        requests = 0
        try:
            while not self._busy and (request := http.next_request()) is not None:
                requests += 1
                if requests > _PIPELINED:
                    raise RemoteProtocolError("too many HTTP requests at once")
                if protocol.full is not None:
                    # A client that does not read could make the relay store any number of answers.
                    raise RemoteProtocolError("HTTP answers are not read")
                rest = self._on_request(http, request)
            if first and not requests and (foreign := foreign_protocol_untrusted(first)):
                # In a protocol without blank lines, such as SSH, no request would ever end.
                raise BadUpgrade(foreign)
        except BadUpgrade as e:
            protocol.send([http.refusal()])
            foreign = foreign_protocol_untrusted(first)
            protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, foreign or str(e))
        if protocol.stage is self and http.finished and not self._busy:
            protocol.end(EndReason.ANSWERED, How.GRACEFUL)
        return rest

    def _on_request(self, http: HttpConnection, request: Request) -> bytes:
        """Answer a request, or upgrade; returns the bytes that already belong to DERP."""
        protocol = self._protocol
        self._note_requester(request)
        if self._derp and request.path == DERP_PATH:
            upgrade = request.upgrade
            if upgrade is Upgrade.DERP:
                return self._upgrade(http, request)
            if upgrade is Upgrade.WEBSOCKET:
                return self._upgrade_websocket(http, request)
            self._log_no_upgrade(request)
            answer: Answer = text_response(426, "DERP requires connection upgrade")
        else:
            answer = self._routes(request)
        if isinstance(answer, Response):
            protocol.send([http.respond(_dated(answer))])
            self._keep_alive()
        else:
            self._answer_later(http, answer)
        return b""

    def _log_no_upgrade(self, request: Request) -> None:
        """Log a request for `/derp` without an upgrade; usually a proxy has removed the header."""
        protocol = self._protocol
        asked = request.header(b"upgrade")
        what = f"asks for upgrade to {printable(asked, 40)!r}" if asked else "has no Upgrade header"
        protocol.context.log_problem(
            "%s: a request for /derp %s; a proxy in front must pass the headers Upgrade and "
            "Connection (Upgrade: DERP or websocket) by HTTP/1.1",
            protocol.log_name,
            what,
            fields=protocol.log_fields(),
        )

    def _note_requester(self, request: Request) -> None:
        """Set the client's address, and what pages check: address, TLS, and forwarding."""
        protocol = self._protocol
        context = protocol.context
        if self._peer is None:
            self._peer = protocol.peer
        if context.rules.trusts(self._peer[0]):
            client = client_address(request, self._peer, context.rules.trusts)
            protocol.peer = client or self._peer
            request.forwarded = client is None
        else:
            # An empty header counts too: a proxy may have added its own as a second one.
            request.forwarded = any(name in _FORWARDED for name, _ in request.headers)
        request.remote = protocol.peer[0]
        request.tls = version = protocol.tls_version
        if version:
            context.tls_requests[version] = context.tls_requests.get(version, 0) + 1

    def _keep_alive(self) -> None:
        self._protocol.kept_alive = True
        self._protocol.restart_timer(HTTP_IDLE_TIMEOUT)

    # Answers that are not ready at once

    def _answer_later(
        self, http: HttpConnection, answer: StreamedResponse | Coroutine[Any, Any, Response]
    ) -> None:
        protocol = self._protocol
        self._busy = True
        self._behind = 0
        if isinstance(answer, StreamedResponse):
            # Reading goes on, so that the end of the client is noticed.
            protocol.stop_timer()
        else:
            protocol.hold(HOLD_HTTP)
            protocol.restart_timer(_ANSWER_TIMEOUT, "no answer to its request")
        protocol.task = task = protocol.context.spawn(self._finish(http, answer))
        if not isinstance(answer, StreamedResponse):
            # A task that is cancelled before its first step never awaits the coroutine, and Python
            # would log that.
            task.add_done_callback(lambda _: answer.close())

    async def _finish(
        self, http: HttpConnection, answer: StreamedResponse | Coroutine[Any, Any, Response]
    ) -> None:
        protocol = self._protocol
        try:
            if isinstance(answer, StreamedResponse):
                await self._stream(http, answer)
            else:
                protocol.send([http.respond(_dated(await answer))])
        except Exception:
            # The head may have been sent already, so the only way to report the failure is a close.
            log.exception("%s: an HTTP answer failed", protocol.log_name)
            protocol.task = None
            protocol.end(EndReason.FAILED, How.NOW)
            return
        protocol.task = None
        self._busy = False
        self._keep_alive()
        protocol.release(HOLD_HTTP)
        try:
            rest = self._serve(http)
        except RemoteProtocolError as e:
            protocol.on_protocol_error(e)
            return
        if rest:
            protocol.feed(rest)
        protocol.flush_soon()

    async def _stream(self, http: HttpConnection, answer: StreamedResponse) -> None:
        protocol = self._protocol
        async with contextlib.aclosing(answer.chunks) as chunks:
            protocol.send([http.begin(replace(answer, headers=[*answer.headers, _date()]))])
            if not http.head_only:
                async for chunk in chunks:
                    protocol.send([http.chunk(chunk)])
                    await protocol.writable()
                    # If the client reads quickly, `writable` never waits: let other clients run.
                    await asyncio.sleep(0)
        protocol.send([http.end()])

    # Upgrades

    def _upgrade(self, http: HttpConnection, request: Request) -> bytes:
        protocol = self._protocol
        context = protocol.context
        protocol.not_ideal = bool(request.header(b"ideal-node"))
        login, fast_start = context.login, request.wants_fast_start
        protocol.send([login.greeting if fast_start else context.greeting_with_head])
        protocol.stage = LoginStage(protocol)
        return self._hand_over(http)

    def _upgrade_websocket(self, http: HttpConnection, request: Request) -> bytes:
        # Imported here: most relays never serve a websocket, and the library takes 2 MB.
        from pyderp.server.conn.websocket import WebSocketLayer
        from pyderp.wire.websocket import close_frame, refuse_handshake, websocket_accept

        protocol = self._protocol
        refusal = refuse_handshake(request)
        if refusal is not None:
            protocol.send([http.respond(_dated(refusal))])
            return b""
        head, agreed = websocket_accept(request)
        if not agreed:
            closing = close_frame(1008, "client must speak the derp subprotocol")
            protocol.send([head, closing])
            protocol.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL)
            return b""
        context = protocol.context
        context.router.counters.websocket_accepts += 1
        protocol.is_websocket = True
        protocol.stage = LoginStage(protocol)
        rest = self._hand_over(http)
        layer = WebSocketLayer(protocol)
        protocol.add_layer(layer)
        layer.open(head, context.login.greeting)
        if rest:
            layer.receive(memoryview(rest))
        return b""

    def _hand_over(self, http: HttpConnection) -> bytes:
        protocol = self._protocol
        context = protocol.context
        context.router.counters.derp_accepts += 1
        # If the first request upgrades, the login has the rest of the login timeout, which began at
        # the accept. On a connection that was kept alive, the login has the whole timeout.
        if protocol.kept_alive:
            protocol.kept_alive = False
            protocol.restart_timer(context.rules.login_timeout)
        return http.take_over()


_MOST_HOPS: Final = 32
"""Addresses that are read from the right end of `X-Forwarded-For`."""


def client_address(
    request: Request, peer: tuple[str, int], trusts: Callable[[str], bool]
) -> tuple[str, int] | None:
    """Return the client's address, as reported by trusted proxies in `X-Forwarded-For`.

    Each proxy appends the address that it got the request from. So the header is read from the
    right, up to the first address that is not a trusted proxy: all left of it could be written by
    the client. `Forwarded` (RFC 7239) is not read: a proxy that appends to one header passes the
    other on as the client sent it, and the relay cannot know which one the proxy uses.

    Args:
        peer: address and port of the trusted proxy at the other end of the connection; returned
            if there is no header.
        trusts: returns whether an address is a trusted proxy.

    Returns:
        address and port; port 0 if it is unknown. `None` if a proxy does not name the client, or
        its text cannot be read; the client is another machine than the proxy in any case.
    """
    values = request.header_values(b"x-forwarded-for")
    if not values:
        return peer
    hops = [item.strip() for item in ",".join(values).split(",")]
    for item in reversed(hops[-_MOST_HOPS:]):
        hop = _parse(item)
        if hop is None or not trusts(hop[0]):
            return hop
    # All are trusted proxies, so the request was made by the first of them. If the header was too
    # long to be read to its start, that is not known.
    return _parse(hops[0]) if 0 < len(hops) <= _MOST_HOPS else None


def _parse(item: str) -> tuple[str, int] | None:
    host, port = item, ""
    if item.startswith("["):
        host, _, port = item[1:].partition("]")
        port = port.removeprefix(":")
    elif item.count(":") == 1:
        host, _, port = item.partition(":")
    address = parse_ip(host)
    if address is None:
        return None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return str(address), number if number <= 65535 else 0
