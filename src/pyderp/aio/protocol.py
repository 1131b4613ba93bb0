"""One connection of a relay: HTTP, then login, then frames; over plain TCP.

`pyderp.aio.tls` puts TLS under it, `WebSocketServer` a websocket inside. Bytes arrive in
buffers that all connections share; what a connection keeps is an incomplete frame, if any.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from pyderp.aio.core import Core
from pyderp.aio.routes import DERP_PATH, Routes
from pyderp.aio.sockets import format_address, unmap
from pyderp.defaults import (
    CLOSE_TIMEOUT,
    HTTP_IDLE_TIMEOUT,
    KEEP_ALIVE,
    KEEP_ALIVE_JITTER,
    LOGIN_TIMEOUT,
)
from pyderp.errors import BadUpgrade, RemoteProtocolError
from pyderp.relay import lane
from pyderp.relay.connection import Connection
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER
from pyderp.wire.http import HttpConnection, Request, text_response
from pyderp.wire.server import LoggedIn
from pyderp.wire.upgrade import Upgrade, classify_upgrade, wants_fast_start
from pyderp.wire.websocket import WebSocketServer, refuse_handshake, websocket_accept

__all__ = ["RelayProtocol", "closed_stage"]

log = logging.getLogger("pyderp.relay")

_LARGE: Final = 4096
"""An incomplete frame of more bytes is collected apart, instead of being copied to and fro."""

Stage: TypeAlias = Callable[[bytearray, memoryview, int], int]
"""Takes bytes in a buffer, how many there are; gives how many it used up."""


class RelayProtocol(asyncio.BufferedProtocol):
    """A connection from accept to end.

    Args:
        core: what it shares with the relay's other connections.
        routes: answers requests that are not for DERP.
        derp: whether `/derp` is served here.
    """

    __slots__ = (
        "_core",
        "_derp",
        "_http",
        "_need",
        "_period",
        "_progress",
        "_routes",
        "_slot",
        "_stage",
        "_tail",
        "_websocket",
        "connection",
        "not_ideal",
        "number",
        "peer",
        "transport",
    )

    def __init__(self, core: Core, routes: Routes, *, derp: bool = True) -> None:
        self._core = core
        self._routes = routes
        self._derp = derp
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self.peer: tuple[str, int] = ("", 0)
        self.number = 0
        self.not_ideal = False
        self._stage: Stage = self._http_stage
        self._http: HttpConnection | None = None
        self._websocket: WebSocketServer | None = None
        # The start of an incomplete frame; in a bytearray once it is large, and then
        # _need says how long it must get.
        self._tail: bytes | bytearray | None = None
        self._need = 0
        self._slot = 0
        self._period = 0.0
        self._progress: tuple[int, float] | None = None

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (asyncio)."""
        core = self._core
        # uvloop's transports have the interface and not the base class.
        transport = self.transport = cast("asyncio.Transport", transport)
        # Any byte that the kernel does not take means pause_writing: what waits must wait
        # in the router's queues, where it is bounded and can be dropped.
        transport.set_write_buffer_limits(high=0)
        name = transport.get_extra_info("peername")
        if name:
            self.peer = (unmap(name[0]), name[1])
        core.protocols.add(self)
        core.router.counters.accepts += 1
        self.number = core.router.counters.accepts
        self._slot = core.timers.add(self, core.loop.time() + LOGIN_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio)."""
        self._leave()
        self._core.protocols.discard(self)
        self.transport = None

    def eof_received(self) -> bool:
        """The client closed its half: nothing it could still be waiting for (asyncio)."""
        return False

    def close(self, reason: str) -> None:
        """Unregister and close, now (`Sink`)."""
        if self.transport is not None:
            self._core.log_problem("%s closed: %s", self.who, reason)
            self.abort()

    def close_gracefully(self) -> None:
        """Unregister, write what is buffered, close."""
        self._leave()
        if self._websocket is not None:
            self._websocket.close()
            self._write(b"".join(self._websocket.data_to_send()))
        self._finish()

    def _finish(self) -> None:
        """Close once all that was written is out, or after a while."""
        if self.transport is not None:
            self.transport.close()
            if self._progress is not None:
                core = self._core
                self._slot = core.timers.add(self, core.loop.time() + CLOSE_TIMEOUT)

    def abort(self) -> None:
        """Unregister and close; what the transport holds is lost."""
        self._leave()
        if self.transport is not None:
            self.transport.abort()

    def _leave(self) -> None:
        core = self._core
        core.timers.cancel(self, self._slot)
        core.stalled.pop(self, None)
        self._stage = closed_stage
        self._tail = None
        connection, self.connection = self.connection, None
        if connection is not None:
            core.router.leave(connection, unsent=self._unsent())
            log.debug("%s %s left", self.who, connection.public.short())
            if core.router.touched:
                core.schedule_flush()

    def _unsent(self) -> int:
        # A transport that failed has forgotten what it held.
        if self._progress is None:
            return 0
        size = 0 if self.transport is None else self.transport.get_write_buffer_size()
        return size or self._progress[0]

    @property
    def who(self) -> str:
        """The client in log lines: its number and address, and its key once it is known."""
        where = f"client {self.number} {format_address(*self.peer)}"
        if self.connection is None:
            return where
        return f"{where} {self.connection.public.short()}"

    def _fail(self, error: RemoteProtocolError) -> None:
        self._core.router.counters.protocol_errors += 1
        self._core.log_problem("%s closed: %s", self.who, error)
        if self._websocket is None:
            self.abort()
        else:
            self.close_gracefully()

    # In

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind the incomplete frame that is here already (asyncio)."""
        tail = self._tail
        if tail is None or self._need:
            return self._core.view
        size = len(tail)
        self._core.buffer[:size] = tail
        return self._core.view[size:]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived in the shared buffer (asyncio)."""
        core = self._core
        tail = self._tail
        if tail is not None:
            if self._need:
                self._collect(tail, nbytes)
            else:
                self._feed(core.buffer, core.view, len(tail) + nbytes)
        else:
            self._feed(core.buffer, core.view, nbytes)
        if core.router.touched and not core.flush_scheduled:
            core.schedule_flush()

    def _collect(self, tail: bytes | bytearray, nbytes: int) -> None:
        assert isinstance(tail, bytearray)
        tail += self._core.view[:nbytes]
        if len(tail) >= self._need:
            self._need = 0
            with memoryview(tail) as view:
                self._feed(tail, view, len(tail))

    def _feed(self, data: bytearray, view: memoryview, end: int) -> None:
        stage = self._stage
        try:
            used = stage(data, view, end)
        except RemoteProtocolError as e:
            self._fail(e)
            return
        if used == end:
            self._tail = None
        elif self._stage is not stage:
            rest = bytearray(view[used:end])
            with memoryview(rest) as rest_view:
                self._feed(rest, rest_view, len(rest))
        else:
            self._keep(view[used:end])

    def _keep(self, rest: memoryview) -> None:
        if len(rest) >= FRAME_HEADER_LEN:
            need = FRAME_HEADER_LEN + HEADER.unpack_from(rest)[1]
            if need > _LARGE:
                self._tail = bytearray(rest)
                self._need = need
                return
        self._tail = bytes(rest)

    # Stage 1: HTTP

    def _http_stage(self, _: bytearray, view: memoryview, end: int) -> int:
        if self._http is None:
            self._http = HttpConnection()
        http = self._http
        http.receive_data(bytes(view[:end]))
        rest = 0
        try:
            while (request := http.next_request()) is not None:
                if self._progress is not None:
                    # More answers would pile up without bound.
                    self._fail(RemoteProtocolError("HTTP answers are not read"))
                    return end
                rest = self._on_request(http, request)
        except BadUpgrade as e:
            self._core.router.counters.protocol_errors += 1
            self._core.log_problem("%s closed: %s", self.who, e)
            self._write(http.refusal())
        if self._http is http and http.finished:
            self._leave()
            self._finish()
        return end - rest

    def _on_request(self, http: HttpConnection, request: Request) -> int:
        """Answer a request, or upgrade; gives how many bytes already belong to DERP."""
        if self._derp and request.path == DERP_PATH:
            upgrade = classify_upgrade(request)
            if upgrade is Upgrade.DERP:
                return self._upgrade(http, request)
            if upgrade is Upgrade.WEBSOCKET:
                return self._upgrade_websocket(http, request)
            if asked := request.header(b"upgrade"):
                self._core.log_problem("%s asks for upgrade to %.40r", self.who, asked)
            response = text_response(426, "DERP requires connection upgrade")
        else:
            response = self._routes(request)
        self._write(http.respond(response, head_only=request.method == "HEAD"))
        self._restart_timer(HTTP_IDLE_TIMEOUT)
        return 0

    def _upgrade(self, http: HttpConnection, request: Request) -> int:
        core = self._core
        self.not_ideal = bool(request.header(b"ideal-node"))
        if wants_fast_start(request):
            self._write(core.login.greeting)
        else:
            self._write(core.greeting_with_head)
        self._stage = self._login_stage
        return self._begin_login(http)

    def _upgrade_websocket(self, http: HttpConnection, request: Request) -> int:
        refusal = refuse_handshake(request)
        if refusal is not None:
            self._write(http.respond(refusal))
            return 0
        head, agreed = websocket_accept(request)
        websocket = self._websocket = WebSocketServer()
        if not agreed:
            websocket.close(1008, "client must speak the derp subprotocol")
            self._write(head + b"".join(websocket.data_to_send()))
            self._http = None
            self._leave()
            self._finish()
            return 0
        self._core.router.counters.websocket_accepts += 1
        websocket.send((self._core.login.greeting,))
        self._write(head + b"".join(websocket.data_to_send()))
        self._stage = _WebSocketStage(self, websocket, self._login_stage)
        return self._begin_login(http)

    def _begin_login(self, http: HttpConnection) -> int:
        # A first request shares the budget of the accept; one on a kept-alive connection
        # begins a budget of its own.
        if http.served:
            self._restart_timer(LOGIN_TIMEOUT)
        self._http = None
        return len(http.take_over())

    # Stage 2: login

    def _login_stage(self, data: bytearray, view: memoryview, end: int) -> int:
        used, client = self._core.login.receive_untrusted(view, end)
        if client is not None:
            self._on_login(client)
        return used

    def _on_login(self, client: LoggedIn) -> None:
        core = self._core
        info = client.info
        now = core.loop.time()
        connection = Connection(
            client.client.raw,
            self,
            number=self.number,
            peer=self.peer,
            connected_at=now,
            can_mesh=info.mesh_key is not None and info.mesh_key == core.mesh_key,
            is_prober=info.is_prober,
            not_ideal=self.not_ideal,
            app_name=info.app_name,
        )
        self.connection = connection
        # Others may write to it from the next line on; what they write comes after this.
        connection.out.append(client.server_info)
        core.router.touch(connection)
        core.router.login(connection)
        if isinstance(self._stage, _WebSocketStage):
            self._stage.inner = self._relay_stage
        else:
            self._stage = self._relay_stage
        self._period = KEEP_ALIVE + KEEP_ALIVE_JITTER * core.uniform()
        self._restart_timer(self._period)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s logged in%s", self.who, ", mesh" if connection.can_mesh else "")

    # Stage 3: frames

    def _relay_stage(self, data: bytearray, view: memoryview, end: int) -> int:
        connection = self.connection
        if connection is None:
            return end  # left while an earlier websocket message of the same read was relayed
        return lane.receive(self._core.router, connection, data, view, end)

    # Out

    def send(self, chunks: list[bytes]) -> None:
        """Write frames (`Sink`)."""
        if self._websocket is None:
            self._write(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        else:
            self._websocket.send(chunks)
            self._write_websocket()

    def _write(self, data: bytes) -> None:
        if self.transport is not None and data:
            self.transport.write(data)

    def _write_websocket(self) -> None:
        assert self._websocket is not None
        chunks = self._websocket.data_to_send()
        self._write(b"".join(chunks))
        if b"" in chunks and self.transport is not None:
            # The closing handshake is complete, or failed.
            if (error := self._websocket.error) is not None:
                self._core.router.counters.protocol_errors += 1
                self._core.log_problem("%s closed: websocket: %s", self.who, error)
            self._leave()
            self._finish()

    def answer_websocket(self) -> None:
        """Write what the websocket has to say by itself: pongs, closes."""
        assert self._websocket is not None
        if self._progress is not None and self._websocket.is_open:
            # Pongs would pile up without bound while the client does not read.
            self._websocket.data_to_send()
        else:
            self._write_websocket()

    def pause_writing(self) -> None:
        """The kernel did not take all (asyncio)."""
        transport = self.transport
        if transport is None:
            return
        size = transport.get_write_buffer_size()
        self._progress = (size, self._core.loop.time())
        self._core.stalled[self] = None
        if self.connection is not None:
            self._core.router.pause(self.connection, size)

    def resume_writing(self) -> None:
        """The kernel took all (asyncio)."""
        self._core.stalled.pop(self, None)
        self._progress = None
        if self.connection is not None:
            self._core.router.resume(self.connection)

    # Time

    def _restart_timer(self, seconds: float) -> None:
        core = self._core
        core.timers.cancel(self, self._slot)
        self._slot = core.timers.add(self, core.loop.time() + seconds)

    def on_timer(self, now: float) -> None:
        """The deadline of the current stage passed, or it is time for a KeepAlive."""
        core = self._core
        if self.connection is not None:
            core.router.keep_alive(self.connection)
            self._slot = core.timers.add(self, now + self._period)
            return
        closing = self.transport is None or self.transport.is_closing()
        if not closing and (self._http is None or not self._http.served):
            core.log_problem("%s closed: no login within %g s", self.who, LOGIN_TIMEOUT)
        self.abort()

    def check_progress(self, now: float) -> None:
        """Give up a client whose kernel buffer took no byte for too long."""
        transport = self.transport
        if transport is None or self._progress is None:
            return
        size = transport.get_write_buffer_size()
        last_size, since = self._progress
        if size != last_size:
            self._progress = (size, now)
            return
        core = self._core
        mesh = self.connection is not None and self.connection.can_mesh
        timeout = core.mesh_write_timeout if mesh else core.write_timeout
        if timeout and now - since >= timeout:
            core.router.counters.write_timeouts += 1
            core.log_problem("%s closed: no byte taken for %g s", self.who, timeout)
            self.abort()


def closed_stage(_: bytearray, __: memoryview, end: int) -> int:
    """The stage of a connection that is being closed."""
    return end


class _WebSocketStage:
    """Takes the websocket off the bytes, and gives the stream inside to the stage of DERP."""

    __slots__ = ("_protocol", "_stream", "_websocket", "inner")

    def __init__(self, protocol: RelayProtocol, websocket: WebSocketServer, inner: Stage) -> None:
        self._protocol = protocol
        self._websocket = websocket
        self._stream = bytearray()
        self.inner = inner

    def __call__(self, _: bytearray, view: memoryview, end: int) -> int:
        for payload in self._websocket.receive_data(bytes(view[:end])):
            self._stream += payload
            self._feed()
        self._protocol.answer_websocket()
        return end

    def _feed(self) -> None:
        stream = self._stream
        while stream:
            inner = self.inner
            with memoryview(stream) as view:
                used = inner(stream, view, len(stream))
            del stream[:used]
            if not used or self.inner is inner:
                return
