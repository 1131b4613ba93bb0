"""The stage that a connection to a relay has reached when it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyderp
from pyderp import AdmissionConfig, NodePrivate, NodePublic, RelayConfig
from pyderp.keys import KEY_LEN, MeshKey
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.limits import MIN_BURST
from pyderp.server.app.assemble import RelayParts
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire.frames import FrameType, frame_header
from tests.server.dial import Client, Via, connect, drained, hang_up, open_stream, start_login
from tests.server.ways import KINDS
from tests.waiting import until

from .controller import Controller

__all__ = [
    "BALANCER",
    "MESH",
    "STAGES",
    "V1",
    "Line",
    "Place",
    "Stage",
    "trusting_loopback",
    "until",
]

MESH: Final = MeshKey(bytes(range(32)))
BALANCER: Final = "PROXY, "
"""Prefix of transports through a load balancer."""
V1: Final = b"PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\r\n"
_HALF_A_HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00"


class Decision:
    """A program's admission function, which answers at once or later."""

    def __init__(self) -> None:
        self.says: bool | None = True
        """`None`: nothing, until `answer`."""
        self._open: list[asyncio.Future[bool]] = []

    async def __call__(self, _: NodePublic, __: str) -> bool:
        if self.says is not None:
            return self.says
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open.append(answer)
        try:
            return await answer
        finally:
            self._open.remove(answer)

    @property
    def waiting(self) -> int:
        return len(self._open)

    def answer(self, allowed: bool) -> None:
        for each in self._open:
            each.set_result(allowed)


@dataclass
class Place:
    """Where a case happens: a relay and its settings."""

    folder: Path
    via: Via
    private: NodePrivate = field(default_factory=NodePrivate.generate)
    asked: Decision = field(default_factory=Decision)
    controller: Controller | None = None
    config: RelayConfig = field(default_factory=RelayConfig)
    relay: pyderp.Relay = field(init=False)

    @property
    def keys(self) -> Path:
        """The file of admitted keys."""
        return self.folder / "keys"

    def allow(self, allowed: bool) -> None:
        """Write `keys`, with this client or without."""
        self.keys.write_text(f"{self.private.public}\n" if allowed else "")

    @property
    def raw(self) -> Via:
        """The same as `via`, without TLS."""
        return Via(before=self.via.before)

    @property
    def parts(self) -> RelayParts:
        assert self.relay._parts is not None
        return self.relay._parts

    def protocols(self) -> list[RelayProtocol]:
        found = [p for p in self.relay._running().protocols if isinstance(p, RelayProtocol)]
        return sorted(found, key=lambda protocol: protocol.number)

    def protocol(self) -> RelayProtocol:
        """The relay's end of the latest connection."""
        return self.protocols()[-1]

    def connection(self) -> Connection:
        connection = self.protocol().connection
        assert connection is not None
        return connection


@dataclass
class Line:
    """The client's end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client: Client | None = None
    others: list[Client] = field(default_factory=list)
    """Further clients, which close last."""


def line(client: Client, *others: Client) -> Line:
    return Line(client.reader, client.writer, client, list(others))


Reach: TypeAlias = Callable[[Place], Awaitable[Line]]


# Before a login


async def silent(place: Place) -> Line:
    """Connected, after TLS if there is any; no byte was sent."""
    reader, writer = await open_stream(place.relay.address, place.via)
    await until(place.protocols)
    return Line(reader, writer)


async def in_the_hello(place: Place) -> Line:
    """In the middle of the first record of TLS."""
    via = Via(before=place.via.before + _HALF_A_HELLO)
    reader, writer = await open_stream(place.relay.address, via)
    await until(
        lambda: any(getattr(getattr(p, "outmost", None), "_hello", b"") for p in place.protocols())
    )
    return Line(reader, writer)


async def in_the_head(place: Place) -> Line:
    """In the middle of a request's head."""
    reader, writer = await open_stream(place.relay.address, place.via)
    writer.write(b"GET /derp HTTP/1.1\r\nHost: h\r\n")
    await until(lambda: any(getattr(p.stage, "_http", None) for p in place.protocols()))
    return Line(reader, writer)


async def answered(place: Place) -> Line:
    """Between two requests."""
    reader, writer = await open_stream(place.relay.address, place.via)
    writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return Line(reader, writer)


async def streamed(place: Place) -> Line:
    """In the middle of an answer without an end."""
    reader, writer = await open_stream(place.relay.address, place.via)
    writer.write(b"GET /debug/traffic HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert place.protocol().task is not None
    return Line(reader, writer)


async def greeted(place: Place) -> Line:
    """The client knows the relay's key, and has not sent its own."""
    return line(await start_login(place.relay.address, via=place.via, silent=True))


async def in_the_login(place: Place) -> Line:
    """In the middle of its ClientInfo."""
    client = await start_login(place.relay.address, via=place.via, silent=True)
    client.write_stream(b"".join(client.session.data_to_send())[:40])
    await until(lambda: _unused(place.protocol()))
    return line(client)


def _unused(protocol: RelayProtocol) -> object:
    """Bytes of the stream that the relay keeps, as they are no whole frame."""
    return protocol.tail


# After the login


async def logged_in(place: Place) -> Line:
    """Logged in, and a packet to itself is on its way."""
    client = await connect(place.relay.address, private=place.private, via=place.via)
    client.send(client, bytes(1000))
    return line(client)


async def in_a_frame(place: Place) -> Line:
    """In the middle of a packet so large that the relay collects it in a buffer of its own."""
    client = await connect(place.relay.address, private=place.private, via=place.via)
    client.write_stream(frame_header(FrameType.SEND_PACKET, 60_000) + bytes(20_000))
    await until(lambda: _unused(place.protocol()))
    return line(client)


async def known_to_others(place: Place) -> Line:
    """Packets were exchanged, and another connection has its key."""
    one = await connect(place.relay.address, via=place.via)
    twin = await connect(place.relay.address, private=place.private, via=place.via)
    client = await connect(place.relay.address, private=place.private, via=place.via)
    for sender, receiver in ((one, client), (client, one), (twin, one)):
        sender.send(receiver, b"a packet")
        await sender.ping()
    return line(client, one, twin)


async def stall(place: Place, mesh_key: MeshKey | None = None) -> Client:
    via = Via(**{**vars(place.via), "receive_buffer": 4096})
    client = await connect(place.relay.address, private=place.private, via=via, mesh_key=mesh_key)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    connection = place.connection()
    while connection.backlog is None or not connection.backlog.data:
        client.send(client, bytes(60_000))
        await client.writer.drain()
        await asyncio.sleep(0)
    return client


async def stalled(place: Place) -> Line:
    """The client does not read; packets wait in the kernel, in the transport and in the queue."""
    return line(await stall(place))


async def watching(place: Place) -> Line:
    """A mesh peer that does not read, and has not got the clients that it asked for."""
    client = await stall(place, MESH)
    connection = place.connection()
    # The kernel may take a little more than it seemed, and these messages with it.
    while connection.backlog is None or not connection.backlog.picture_waits:
        client.send(client, bytes(60_000))
        client.session.watch_conns()
        client.write()
        await client.writer.drain()
        await asyncio.sleep(0.002)
    return line(client)


# Connections that the relay does not read


async def limited(place: Place) -> Line:
    """It exceeds its rate, and is not read until that is paid for."""
    place.relay.reload()  # with what it may send at once, of which the second half is to be left
    client = await connect(place.relay.address, private=place.private, via=place.via)
    _exceed(client)
    limits = place.parts.limits
    assert limits is not None
    await until(lambda: limits.waiting)
    return line(client)


async def held(place: Place) -> Line:
    """Its bytes wait until another connection of its key has paid."""
    other = (await limited(place)).client
    assert other is not None
    client = await connect(place.relay.address, private=place.private, via=place.via)
    client.send(client, bytes(1000))
    limits = place.parts.limits
    assert limits is not None
    await until(lambda: any(stage.holds for stage in limits.waiting))
    return line(client, other)


def _exceed(client: Client) -> None:
    for _ in range(2):
        client.send(NodePrivate.generate().public, bytes(MIN_BURST - KEY_LEN))


async def reread(place: Place) -> None:
    """The limits are read again: all buckets are full, and all connections are read."""
    place.relay.reload()


async def awaiting_the_function(place: Place) -> Line:
    """The program's function has not answered yet."""
    place.asked.says = None
    place.allow(True)
    place.relay.reload()
    client = await start_login(place.relay.address, private=place.private, via=place.via)
    await until(lambda: place.asked.waiting)
    return line(client)


async def admitted(place: Place) -> None:
    place.asked.answer(True)


async def not_admitted(place: Place) -> None:
    place.asked.answer(False)


async def removed_from_list(place: Place) -> None:
    """The list has lost its key meanwhile."""
    place.allow(False)
    place.relay.reload()
    place.asked.answer(True)


async def never_answered(place: Place) -> None:
    core = place.relay._running()
    for protocol in place.protocols():
        core.timers.cancel(protocol, protocol._slot)  # as the timer wheel does before it calls
        protocol.on_timer(core.loop.time())


async def awaiting_the_controller(place: Place) -> Line:
    """The controller has not answered yet."""
    gate = place.parts.admission
    assert gate is not None
    before = gate.counters.queries
    client = await start_login(place.relay.address, private=place.private, via=place.via)
    await until(lambda: gate.counters.queries > before)
    return line(client)


# Connections that are ending


async def refused(place: Place) -> Line:
    """Not admitted; the relay has closed its half, and waits for the client's."""
    client = await start_login(place.relay.address, via=place.via)
    await drained(client.reader)
    return line(client)


async def leaving(place: Place) -> Line:
    """Ended by the relay, which waits for the client to close its half."""
    reached = await logged_in(place)
    place.protocol().end(EndReason.STOPPED, How.GRACEFUL)
    return reached


async def leaving_late(place: Place) -> Line:
    """Ended by the relay, which cannot write its last bytes."""
    reached = await stalled(place)
    place.protocol().end(EndReason.STOPPED, How.GRACEFUL)
    return reached


# At accept


async def before_the_header(place: Place) -> Line:
    """It has not sent a PROXY header yet."""
    reader, writer = await open_stream(place.relay.address)
    await until(lambda: place.relay._running().protocols)
    return Line(reader, writer)


async def in_the_header(place: Place) -> Line:
    """In the middle of the PROXY header."""
    reader, writer = await open_stream(place.relay.address, Via(before=V1[:20]))
    await until(
        lambda: any(
            getattr(getattr(p, "stage", None), "_data", b"")
            for p in place.relay._running().protocols
        )
    )
    return Line(reader, writer)


async def from_an_untrusted_proxy(place: Place) -> Line:
    """Not from a trusted proxy, and so closed before it sends a byte."""
    reader, writer = await open_stream(place.relay.address, place.raw)
    await drained(reader)
    return Line(reader, writer)


async def too_fast(place: Place) -> Line:
    """One connection more than the relay accepts in this time."""
    assert place.relay._parts is not None
    accepts = place.relay._parts.accepts
    before = accepts.rejected
    while True:
        reader, writer = await open_stream(place.relay.address, place.raw)
        await until(lambda: accepts.rejected > before or place.relay._running().protocols)
        if accepts.rejected > before:
            return Line(reader, writer)
        await hang_up(writer)


async def one_too_many(place: Place) -> Line:
    """One connection more than there are file descriptors for."""
    assert place.relay._parts is not None
    accepts = place.relay._parts.accepts
    accepts.most = 0
    before = accepts.shed
    reader, writer = await open_stream(place.relay.address, place.raw)
    await until(lambda: accepts.shed > before)
    return Line(reader, writer)


# All of them

EVERY: Final = (*KINDS, BALANCER + "plain", BALANCER + "tls1.3", BALANCER + "websocket")
SOME: Final = ("plain", "tls1.3", "websocket")
OPEN: Final = ("plain", "websocket")
"""Where asyncio's client does not close as soon as the relay does."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage, and the causes that are possible at it."""

    reach: Reach
    settings: Callable[[Place], dict[str, Any]] = lambda _: {}
    ways: Sequence[str] = EVERY
    see: Callable[[Place], Awaitable[None]] | None = None
    """Called afterwards, if the relay needs it to notice the client's end."""
    is_in: bool = False
    """Logged in, to a relay with a mesh key."""
    is_listed: bool = False
    """The relay admits by a list of keys as well."""
    above_tls: bool = True
    """TLS goes on below it, if there is any."""
    rereads: bool = False
    """Files are read again."""
    controlled: bool = False
    """A controller is asked over HTTP."""
    also: Sequence[str] = ()
    """Causes that are possible at this stage only."""
    is_served: bool = True
    """The relay keeps it, so there is something to end."""


def _listed(place: Place) -> dict[str, Any]:
    place.allow(True)
    return {"admission": AdmissionConfig(keys_file=place.keys), "mesh_key": MESH}


def _rated(place: Place) -> dict[str, Any]:
    path = place.folder / "rates"
    path.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 1}))
    return {**_listed(place), "rate_config": path}


def _asking(place: Place) -> dict[str, Any]:
    place.allow(True)
    admission = AdmissionConfig(decide=place.asked, keys_file=place.keys, remember=0, recheck=0)
    return {"admission": admission}


def _asking_again(place: Place) -> dict[str, Any]:
    return {
        "admission": AdmissionConfig(decide=place.asked, remember=0, recheck=0),
        "mesh_key": MESH,
    }


def _asking_by_http(place: Place) -> dict[str, Any]:
    assert place.controller is not None
    return {"admission": AdmissionConfig(url=place.controller.url, remember=0, recheck=0)}


def _keeping_out(place: Place) -> dict[str, Any]:
    place.allow(False)
    return {"admission": AdmissionConfig(keys_file=place.keys)}


def _distrusting(_: Place) -> dict[str, Any]:
    return {"proxy_protocol": True, "trusted_proxies": (ip_network("192.0.2.0/24"),)}


def _hurried(_: Place) -> dict[str, Any]:
    return {"accept_limit": 1e-9, "accept_burst": 1}


def _meshed(_: Place) -> dict[str, Any]:
    return {"mesh_key": MESH}


def trusting_loopback() -> dict[str, Any]:
    """Settings of a relay behind a load balancer."""
    return {"proxy_protocol": True, "trusted_proxies": (ip_network("127.0.0.0/8"),)}


IN: Final[dict[str, Any]] = {"settings": _listed, "is_in": True, "is_listed": True}
RATED: Final[dict[str, Any]] = {**IN, "settings": _rated, "see": reread, "rereads": True}
ASKED: Final[dict[str, Any]] = {
    "reach": awaiting_the_function,
    "settings": _asking,
    "rereads": True,
}
BELOW: Final[dict[str, Any]] = {"above_tls": False}
TWO: Final = ("plain", "websocket over tls")
ACCEPT: Final[dict[str, Any]] = {"ways": ("plain", BALANCER + "plain"), "is_served": False}
BEHIND: Final = (BALANCER + "plain",)

STAGES: Final = {
    "silent": Stage(reach=silent),
    "in the hello": Stage(reach=in_the_hello, ways=("tls1.3", BALANCER + "tls1.3"), **BELOW),
    "in the head": Stage(reach=in_the_head, ways=KINDS),
    "answered": Stage(reach=answered, ways=KINDS),
    "streamed": Stage(reach=streamed, ways=("plain", "tls1.3")),
    "greeted": Stage(reach=greeted, ways=SOME),
    "in the login": Stage(reach=in_the_login, ways=SOME),
    "logged in": Stage(reach=logged_in, **IN),
    "in a frame": Stage(reach=in_a_frame, ways=SOME, **IN),
    "known to others": Stage(reach=known_to_others, ways=TWO, settings=_meshed, is_in=True),
    "rechecked": Stage(
        reach=logged_in, settings=_asking_again, ways=SOME, is_in=True, also=("rechecked",)
    ),
    "stalled": Stage(reach=stalled, ways=SOME, also=("write timeout",), **IN),
    "watching": Stage(
        reach=watching,
        ways=SOME,
        settings=_meshed,
        also=("write timeout", "falls behind"),
        is_in=True,
    ),
    "limited": Stage(reach=limited, ways=SOME, **RATED),
    "held": Stage(reach=held, ways=TWO, **RATED),
    "asked, admitted": Stage(see=admitted, ways=SOME, **ASKED),
    "asked, not admitted": Stage(see=not_admitted, ways=TWO, **ASKED),
    "asked, removed": Stage(see=removed_from_list, ways=TWO, **ASKED),
    "asked, no answer": Stage(see=never_answered, ways=SOME, **ASKED),
    "asked by HTTP": Stage(
        reach=awaiting_the_controller,
        settings=_asking_by_http,
        ways=TWO,
        see=never_answered,
        controlled=True,
    ),
    "refused": Stage(reach=refused, ways=OPEN, settings=_keeping_out),
    "leaving": Stage(reach=leaving, ways=OPEN, settings=_listed),
    "leaving late": Stage(reach=leaving_late, ways=OPEN, settings=_listed),
    "before the header": Stage(reach=before_the_header, ways=BEHIND),
    "in the header": Stage(reach=in_the_header, ways=BEHIND),
    "from an untrusted proxy": Stage(
        reach=from_an_untrusted_proxy, settings=_distrusting, **ACCEPT
    ),
    "too fast": Stage(reach=too_fast, settings=_hurried, **ACCEPT),
    "one too many": Stage(reach=one_too_many, **ACCEPT),
}
