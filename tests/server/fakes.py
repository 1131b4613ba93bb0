"""A loop whose clock the test sets, and a transport whose kernel accepts what the test allows."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pyderp.certs import ServerContexts
from pyderp.config.relay import Network
from pyderp.defaults import LOGIN_TIMEOUT
from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.health import HealthReporter
from pyderp.relay.router import Router
from pyderp.server.conn.accept import protocol_factory
from pyderp.server.conn.context import TICK, ConnectionContext, ConnectionRules
from pyderp.server.conn.engines import Engine, SSLEngine
from pyderp.server.conn.limits import Limits
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.records import SSLRecords
from pyderp.server.conn.tls import TLSLayer
from pyderp.server.site.routes import relay_routes, side_routes
from pyderp.wire.client import ClientSession
from pyderp.wire.http import Answer, Request, Response, page
from pyderp.wire.login import ClientInfo, ServerLogin
from pyderp.wire.messages import Message
from pyderp.wire.upgrade import UpgradeReply, upgrade_request

from .certificates import trusting_nobody

ALL = 1 << 30


class FakeHandle:
    """The handle that `call_later` returns."""

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """The part of an event loop that a `ConnectionContext` uses."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.ready: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.later: list[FakeHandle] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.ready.append((callback, args))

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object
    ) -> FakeHandle:
        handle = FakeHandle(self.now + delay, callback, args)
        self.later.append(handle)
        return handle

    def turn(self) -> None:
        """Run what is ready, and what that makes ready."""
        while self.ready:
            callback, args = self.ready.pop(0)
            callback(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass, running each callback at its time."""
        end = self.now + seconds
        self.turn()
        while True:
            self.later = [handle for handle in self.later if not handle.cancelled]
            due = min(self.later, key=lambda handle: handle.when, default=None)
            if due is None or due.when > end:
                break
            self.later.remove(due)
            self.now = due.when
            due.callback(*due.args)
            self.turn()
        self.now = end


LOCAL = "198.51.100.1"
"""The relay's address."""


class FakeTransport(asyncio.Transport):
    """Collects what is written; accepts `room` bytes and keeps the rest, like a full socket."""

    def __init__(self, loop: FakeLoop, peername: object = ("192.0.2.1", 4711)) -> None:
        super().__init__({"peername": peername, "sockname": (LOCAL, 443)})
        self.loop = loop
        self.taken = bytearray()
        self.writes: list[bytes] = []
        self.room = ALL
        self.held = bytearray()
        self.high: int | None = None
        self.reading = True
        self.protocol: RelayProtocol | None = None
        self.paused = False
        self.closing = False
        self.aborted = False
        self.lost = False
        self.eof = False
        """The relay closed its half."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.lost, "written to a connection that is gone"
        assert not self.eof, "written behind the end"
        if self.aborted or (self.closing and not self.held):
            return
        self.writes.append(bytes(data))
        self.held += data
        self.take(0)

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def take(self, more: int) -> None:
        """The kernel accepts `more` bytes beyond what it had room for."""
        assert self.protocol is not None
        self.room += more
        count = min(self.room, len(self.held))
        self.room -= count
        self.taken += self.held[:count]
        del self.held[:count]
        if self.held and not self.paused:
            self.paused = True
            self.protocol.pause_writing()
        elif not self.held and self.paused:
            self.paused = False
            self.protocol.resume_writing()
        if self.closing and not self.held:
            self._lose()

    def pause_reading(self) -> None:
        assert self.reading
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        assert not self.closing
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.held:
                self._lose()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.held.clear()
        self._lose()

    def _lose(self) -> None:
        def lose() -> None:
            if not self.lost:
                self.lost = True
                assert self.protocol is not None
                self.protocol.connection_lost(None)

        self.loop.call_soon(lose)


def make_context(
    loop: FakeLoop,
    *,
    private: NodePrivate | None = None,
    mesh_key: MeshKey | None = None,
    uniform: Callable[[], float] = lambda: 0.5,
    trusted_proxies: tuple[Network, ...] = (),
    login_timeout: float = LOGIN_TIMEOUT,
    write_timeout: float = 2.0,
    mesh_write_timeout: float = 30.0,
    rate_config: Path | None = None,
    health: bool = False,
) -> ConnectionContext:
    """A started context on a fake loop."""
    private = private or NodePrivate.generate()
    real = cast("asyncio.AbstractEventLoop", loop)
    router = Router(private.public.raw, loop.time)
    reporter = HealthReporter(router, loop.time) if health else None
    context = ConnectionContext(
        real,
        router,
        ServerLogin(private, random=os.urandom),
        uniform=uniform,
        rules=ConnectionRules(
            mesh_key=mesh_key,
            trusted_proxies=trusted_proxies,
            login_timeout=login_timeout,
            write_timeout=write_timeout,
            mesh_write_timeout=mesh_write_timeout,
        ),
        limits=None
        if rate_config is None
        else Limits(real, router.counters, rate_config, observer=reporter),
        observer=reporter,
    )
    if reporter is not None:
        context.every_tick(reporter.tick)
    context.start()
    return context


def _home(_: Request) -> Answer:
    return page("text/html; charset=utf-8", b"<h1>DERP</h1>")


def _last(_: Request) -> Answer:
    return Response(200, body=b"the last", close=True)


ROUTES = relay_routes({"/": _home, "/last": _last})
"""The routes of the main listener."""
SIDE_ROUTES = side_routes(lambda _: None, ROUTES, lambda _: False)


class FixedContext(ServerContexts):
    """Returns the same context for every address."""

    challenge_pending = False

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.asked: list[str] = []

    def context(self, local_address: str) -> ssl.SSLContext:
        self.asked.append(local_address)
        return self._context


class Wire:
    """One connection to a relay's context, seen from the client, with no socket in between."""

    def __init__(
        self,
        core: ConnectionContext,
        protocol: RelayProtocol | None = None,
        *,
        peername: object = ("192.0.2.1", 4711),
        mesh_key: MeshKey | None = None,
    ) -> None:
        self.core = core
        self.loop = cast("FakeLoop", core.loop)
        self.protocol = protocol or protocol_factory(core, ROUTES, None)()
        self.transport = FakeTransport(self.loop, peername)
        self.transport.protocol = self.protocol
        self.private = NodePrivate.generate()
        self.session = ClientSession(
            self.private, random=os.urandom, info=ClientInfo(mesh_key=mesh_key, takes_health=True)
        )
        self.read = 0
        self.protocol.connection_made(self.transport)

    @property
    def key(self) -> bytes:
        return self.private.public.raw

    @property
    def gone(self) -> bool:
        """The connection is closed, or the relay has closed its half and sent all it had."""
        return self.transport.lost or (self.transport.eof and not self.transport.held)

    def hang_up(self) -> None:
        """The client closes its half, and the connection ends."""
        if not self.transport.lost and not self.protocol.eof_received():
            self.transport.close()
        self.loop.turn()

    def feed(self, data: bytes) -> None:
        """Pass bytes to the relay in reads as large as its buffer allows, then run the loop."""
        self.feed_only(data)
        self.loop.turn()

    def feed_only(self, data: bytes) -> None:
        """Pass bytes to the relay without running the loop afterwards."""
        while data and not self.transport.closing:
            buffer = self.protocol.get_buffer(-1)
            assert len(buffer), "a loop cannot read into nothing"
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.protocol.buffer_updated(count)
            data = data[count:]

    def answer(self) -> bytes:
        """Return what the relay wrote since the last call, as far as the kernel accepted it."""
        data = bytes(self.transport.taken[self.read :])
        self.read = len(self.transport.taken)
        return data

    def messages(self) -> list[Message]:
        """Return the messages from the relay since the last call."""
        return self.session.receive_data(self.answer())

    def say(self) -> None:
        """Send the session's pending bytes to the relay."""
        self.feed(b"".join(self.session.data_to_send()))

    def upgrade(self) -> None:
        """Send the HTTP upgrade request and read the answer."""
        self.feed(upgrade_request("relay.test", "/derp", user_agent="tests"))
        rest = UpgradeReply().receive_data(self.answer())
        assert rest is not None
        self.session.receive_data(rest)

    def login(self) -> None:
        """Log in, up to ServerInfo."""
        self.upgrade()
        self.say()
        assert [type(message).__name__ for message in self.messages()] == ["ServerInfo"]


def records_of(wire: Wire) -> SSLRecords:
    """Return the TLS records of a connection."""
    assert isinstance(wire.protocol.outmost, TLSLayer)
    assert isinstance(wire.protocol.outmost._records, SSLRecords)
    return wire.protocol.outmost._records


def ticks(seconds: float) -> float:
    """Return the time of the first tick at or after `seconds`: when the relay notices."""
    return -(-seconds // TICK) * TICK


class TLSWire(Wire):
    """A connection whose client speaks TLS."""

    def __init__(
        self,
        core: ConnectionContext,
        engine: Engine | ssl.SSLContext,
        version: ssl.TLSVersion | None = None,
        server_name: str = "derp.example.com",
    ) -> None:
        if isinstance(engine, ssl.SSLContext):
            engine = SSLEngine(FixedContext(engine), b"derp.example.com")
        super().__init__(core, protocol_factory(core, ROUTES, engine)())
        client = trusting_nobody()
        if version is not None:
            client.minimum_version = client.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self.incoming, self.outgoing, server_hostname=server_name)

    def shake_hands(self, chunk: int = 1 << 20) -> None:
        for _ in range(10):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                self.feed_encrypted(self.outgoing.read(), chunk)
                return
            self.feed_encrypted(self.outgoing.read(), chunk)
            self.incoming.write(super().answer())
        raise AssertionError("the handshake does not end")

    def feed_encrypted(self, data: bytes, chunk: int = 1 << 20) -> None:
        for start in range(0, len(data), chunk):
            super().feed(data[start : start + chunk])

    def encrypt(self, data: bytes) -> bytes:
        while data:
            data = data[self.tls.write(data) :]
        return self.outgoing.read()

    def feed(self, data: bytes) -> None:
        self.feed_encrypted(self.encrypt(data))

    def answer(self) -> bytes:
        self.incoming.write(super().answer())
        plain = bytearray()
        try:
            while chunk := self.tls.read(1 << 16):
                plain += chunk
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return bytes(plain)
