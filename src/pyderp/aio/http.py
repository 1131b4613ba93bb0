"""A connection's first stage: HTTP requests, until one of them becomes DERP."""

from __future__ import annotations

from typing import Final

from pyderp.aio.protocol import RelayProtocol
from pyderp.aio.routes import DERP_PATH, Routes
from pyderp.aio.websocket import WebSocketStage
from pyderp.defaults import HTTP_IDLE_TIMEOUT, LOGIN_TIMEOUT
from pyderp.errors import BadUpgrade, RemoteProtocolError
from pyderp.wire.http import HttpConnection, Request, text_response
from pyderp.wire.upgrade import Upgrade, classify_upgrade, wants_fast_start
from pyderp.wire.websocket import refuse_handshake, websocket_accept

__all__ = ["HttpStage"]


_PIPELINED: Final = 8
"""Requests in one read. Each costs 0.1 ms in which nobody else is served."""


class HttpStage:
    """Answers requests and hands the connection over to DERP's login; it is gone afterwards.

    Args:
        protocol: the connection.
        routes: answers requests that are not for DERP.
        derp: whether `/derp` is served here.
    """

    __slots__ = ("_derp", "_http", "_protocol", "_routes")

    def __init__(self, protocol: RelayProtocol, routes: Routes, *, derp: bool) -> None:
        self._protocol = protocol
        self._routes = routes
        self._derp = derp
        # Made when bytes come: a silent connection should stay small.
        self._http: HttpConnection | None = None

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        """Take bytes; gives how many are not DERP's yet (`Stage`)."""
        protocol = self._protocol
        http = self._http = self._http or HttpConnection()
        http.receive_data(bytes(view[:end]))
        rest = requests = 0
        try:
            while (request := http.next_request()) is not None:
                requests += 1
                if requests > _PIPELINED:
                    raise RemoteProtocolError("too many HTTP requests at once")
                if protocol.stalled:
                    # More answers would pile up without bound.
                    raise RemoteProtocolError("HTTP answers are not read")
                rest = self._on_request(http, request)
        except BadUpgrade as e:
            protocol.count_problem(e)
            protocol.write(http.refusal())
        if protocol.stage is self and http.finished:
            protocol.finish()
        return end - rest

    def _on_request(self, http: HttpConnection, request: Request) -> int:
        """Answer a request, or upgrade; gives how many bytes already belong to DERP."""
        protocol = self._protocol
        if self._derp and request.path == DERP_PATH:
            upgrade = classify_upgrade(request)
            if upgrade is Upgrade.DERP:
                return self._upgrade(http, request)
            if upgrade is Upgrade.WEBSOCKET:
                return self._upgrade_websocket(http, request)
            if asked := request.header(b"upgrade"):
                protocol.core.log_problem("%s asks for upgrade to %.40r", protocol.who, asked)
            response = text_response(426, "DERP requires connection upgrade")
        else:
            response = self._routes(request)
        protocol.write(http.respond(response))
        protocol.kept_alive = True
        protocol.restart_timer(HTTP_IDLE_TIMEOUT)
        return 0

    def _upgrade(self, http: HttpConnection, request: Request) -> int:
        protocol = self._protocol
        core = protocol.core
        protocol.not_ideal = bool(request.header(b"ideal-node"))
        fast_start = wants_fast_start(request)
        protocol.write(core.login.greeting if fast_start else core.greeting_with_head)
        protocol.stage = protocol.login_stage
        return self._hand_over(http)

    def _upgrade_websocket(self, http: HttpConnection, request: Request) -> int:
        protocol = self._protocol
        refusal = refuse_handshake(request)
        if refusal is not None:
            protocol.write(http.respond(refusal))
            return 0
        head, agreed = websocket_accept(request)
        stage = WebSocketStage(protocol)
        if not agreed:
            stage.close(1008, "client must speak the derp subprotocol", head=head)
            protocol.finish()
            return 0
        protocol.core.router.counters.websocket_accepts += 1
        stage.open(head, protocol.core.login.greeting)
        protocol.stage = protocol.websocket = stage
        return self._hand_over(http)

    def _hand_over(self, http: HttpConnection) -> int:
        # A first request shares the budget of the accept; one on a kept-alive connection
        # begins a budget of its own.
        if self._protocol.kept_alive:
            self._protocol.kept_alive = False
            self._protocol.restart_timer(LOGIN_TIMEOUT)
        return len(http.take_over())
