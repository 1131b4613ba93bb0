"""A connection's first stage: HTTP requests, until one of them becomes DERP."""

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
"""What an answer that is not ready at once may take; a stream may go on for ever."""


def _date() -> tuple[str, str]:
    """The header with this machine's time (RFC 9110, section 6.6.1)."""
    return "Date", formatdate(usegmt=True)


def _dated(answer: Response) -> Response:
    # Not into the answer itself: pages are made once and given out again and again.
    return replace(answer, headers=[*answer.headers, _date()])


class HttpStage:
    """Answers requests and hands the connection over to DERP's login; it is gone afterwards.

    Args:
        protocol: the connection.
        routes: answers requests that are not for DERP.
        derp: whether `/derp` is served here.
    """

    __slots__ = ("_behind", "_busy", "_derp", "_http", "_peer", "_protocol", "_routes")

    def __init__(self, protocol: RelayProtocol, routes: Routes, *, derp: bool) -> None:
        self._protocol = protocol
        self._routes = routes
        self._derp = derp
        self._busy = False
        self._behind = 0
        self._peer: tuple[str, int] | None = None
        # Made when bytes come: a silent connection should stay small.
        self._http: HttpConnection | None = None

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        """Take bytes; returns how many are not DERP's yet (`Stage`)."""
        http = self._http
        first = b""
        if http is None:
            http = self._http = HttpConnection()
            first = bytes(view[:end])
        if self._busy:
            self._behind += end
            if self._behind > MAX_HTTP_HEAD:
                raise RemoteProtocolError("too much behind an HTTP request that is being answered")
        http.receive_data(bytes(view[:end]))
        return end - len(self._serve(http, first))

    def _serve(self, http: HttpConnection, first: bytes = b"") -> bytes:
        """Answer the requests that are there; returns the bytes that already belong to DERP.

        Args:
            first: the first bytes of the connection, if these are they.
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
                    # More answers would pile up without bound.
                    raise RemoteProtocolError("HTTP answers are not read")
                rest = self._on_request(http, request)
            if first and not requests and (foreign := foreign_protocol_untrusted(first)):
                # Of a protocol without blank lines, such as SSH, no request would ever be whole.
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
        self._note_asker(request)
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
        """Say why a request for DERP is none: mostly, a proxy has taken something out."""
        protocol = self._protocol
        asked = request.header(b"upgrade")
        what = f"asks for upgrade to {printable(asked, 40)!r}" if asked else "has no Upgrade header"
        protocol.context.log_problem(
            "%s: a request for /derp %s; a proxy in front must pass the headers Upgrade and "
            "Connection (Upgrade: DERP or websocket) by HTTP/1.1",
            protocol.who,
            what,
            fields=protocol.log_fields(),
        )

    def _note_asker(self, request: Request) -> None:
        protocol = self._protocol
        context = protocol.context
        if self._peer is None:
            self._peer = protocol.peer
        if context.rules.trusts(self._peer[0]):
            client = client_address(request, self._peer, context.rules.trusts)
            protocol.peer = client or self._peer
            request.forwarded = client is None
        else:
            # An empty one counts, too: a proxy may have added a second one behind it.
            request.forwarded = any(name in _FORWARDED for name, _ in request.headers)
        request.remote = protocol.peer[0]
        request.tls = version = protocol.tls_version
        if version:
            context.tls_requests[version] = context.tls_requests.get(version, 0) + 1

    def _keep_alive(self) -> None:
        self._protocol.kept_alive = True
        self._protocol.restart_timer(HTTP_IDLE_TIMEOUT)

    # Answers that take their time

    def _answer_later(
        self, http: HttpConnection, answer: StreamedResponse | Coroutine[Any, Any, Response]
    ) -> None:
        protocol = self._protocol
        self._busy = True
        self._behind = 0
        if isinstance(answer, StreamedResponse):
            # Reading goes on, to see when the client has gone.
            protocol.stop_timer()
        else:
            protocol.hold(HOLD_HTTP)
            protocol.restart_timer(_ANSWER_TIMEOUT, "no answer to its request")
        protocol.task = task = protocol.context.spawn(self._finish(http, answer))
        if not isinstance(answer, StreamedResponse):
            # It may end before it begins, and Python complains of a coroutine never run.
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
            # The head may be out already: closing is the only way left to tell.
            log.exception("%s: an HTTP answer failed", protocol.who)
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
                    await asyncio.sleep(0)  # a quick reader is no reason to keep others waiting
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
        # Not at the top: most relays never see a websocket, and the library takes 2 MB.
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
        # A first request shares the budget of the accept; one on a kept-alive connection
        # begins a budget of its own.
        if protocol.kept_alive:
            protocol.kept_alive = False
            protocol.restart_timer(context.rules.login_timeout)
        return http.take_over()


_MOST_HOPS: Final = 32


def client_address(
    request: Request, peer: tuple[str, int], trusts: Callable[[str], bool]
) -> tuple[str, int] | None:
    """The last address that a trusted proxy vouches for and that is no trusted proxy itself.

    Read from `X-Forwarded-For`, from the right: what stands further left is the client's own
    word. `Forwarded` (RFC 7239) is not read: a proxy that writes the one header passes the
    other on as the client made it, and nothing says which one to believe.

    Args:
        peer: whom the connection comes from, a trusted proxy; the answer if there is no header.
        trusts: whether an address is a trusted proxy's.

    Returns:
        address and port; port 0: not told. `None`: a proxy does not name the client, or what it
        says cannot be read; the client is then certainly not the proxy itself.
    """
    values = request.header_values(b"x-forwarded-for")
    if not values:
        return peer
    hops = [item.strip() for item in ",".join(values).split(",")]
    for item in reversed(hops[-_MOST_HOPS:]):
        hop = _parse(item)
        if hop is None or not trusts(hop[0]):
            return hop
    # All are trusted: it comes from the one furthest away, if that is the first.
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
