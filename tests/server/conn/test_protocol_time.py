"""Deadlines, keepalives and write timeouts, by an exact clock."""

from __future__ import annotations

import logging
from ipaddress import ip_network

import pytest

from pyderp.defaults import CLOSE_TIMEOUT, HTTP_IDLE_TIMEOUT, LOGIN_TIMEOUT
from pyderp.keys import MeshKey
from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.server.conn.accept import protocol_factory
from pyderp.server.conn.context import TICK, ConnectionContext
from pyderp.wire import frames
from pyderp.wire.messages import KeepAlive, ReceivedPacket
from pyderp.wire.upgrade import upgrade_request
from tests.server.fakes import ROUTES, FakeLoop, Wire, make_context

MESH = MeshKey.parse("ab" * 32)
GET = b"GET /derp/probe HTTP/1.1\r\nHost: h\r\n\r\n"
GET_DERP = upgrade_request("h", "/derp", user_agent="t")


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, mesh_key=MESH)


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def ends_after(wire: Wire, seconds: float) -> None:
    """Assert that the connection ends on the first tick `seconds` from now, and not before."""
    wire.loop.advance(seconds - TICK / 2)
    assert not wire.gone
    wire.loop.advance(TICK)
    assert wire.gone
    assert not wire.core.protocols
    assert not wire.core.timers


# Login and HTTP


def test_a_silent_connection_has_ten_seconds(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    ends_after(wire, 10.0)
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: no login within 10 s"]


def test_one_timeout_covers_request_and_login(core: ConnectionContext) -> None:
    """Bytes that arrive slowly do not extend the time."""
    wire = Wire(core)
    wire.feed(GET_DERP[:10])
    core_loop = wire.loop
    core_loop.advance(4)
    wire.feed(GET_DERP[10:])
    core_loop.advance(4)
    wire.feed(b"\x02\0")
    ends_after(wire, 2.0)


def test_a_client_that_logs_in_late_but_in_time_stays(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.loop.advance(9.9)
    wire.login()
    wire.loop.advance(30)
    assert not wire.gone


def test_an_idle_http_connection_is_closed_after_thirty_seconds_without_a_log_line(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.feed(GET)
    ends_after(wire, 30.0)
    assert problems(caplog) == []


def test_each_request_restarts_the_idle_time(core: ConnectionContext) -> None:
    wire = Wire(core)
    for _ in range(5):
        wire.feed(GET)
        wire.loop.advance(29)
    assert not wire.gone
    ends_after(wire, 1.0)


def test_half_a_request_does_not_extend_the_idle_time(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(GET)
    wire.loop.advance(29)
    wire.feed(GET[:20])
    ends_after(wire, 1.0)


def test_an_upgrade_on_a_kept_connection_has_ten_seconds_for_the_login(
    core: ConnectionContext,
) -> None:
    wire = Wire(core)
    wire.feed(GET)
    wire.loop.advance(25)
    wire.feed(GET_DERP)
    ends_after(wire, 10.0)


V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n"
FIRST_BYTES = {
    "silent": b"",
    "half a head": GET_DERP[:10],
    "half a login": GET_DERP + b"\x02\0",
}


def ends_without(wire: Wire, seconds: float, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Assert that the connection ends in so many seconds as `what` is missing, and is counted."""
    ends_after(wire, seconds)
    assert problems(caplog) == [f"client 1 192.0.2.1:4711 closed: no {what}"]
    assert wire.core.router.counters.ends[EndReason.NO_LOGIN] == 1


@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
@pytest.mark.parametrize("timeout", [0.5, 45.0, 86_400.0])
def test_the_login_timeout_is_a_setting(
    loop: FakeLoop, timeout: float, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(make_context(loop, login_timeout=timeout))
    wire.feed(data)
    ends_without(wire, timeout, caplog, f"login within {timeout:g} s")


@pytest.mark.parametrize("timeout", [2.0, 45.0])
def test_an_upgrade_on_a_kept_connection_has_the_login_timeout(
    loop: FakeLoop, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The idle time between requests does not depend on it."""
    wire = Wire(make_context(loop, login_timeout=timeout))
    wire.feed(GET)
    loop.advance(HTTP_IDLE_TIMEOUT - 1)
    wire.feed(GET_DERP)
    ends_without(wire, timeout, caplog, f"login within {timeout:g} s")


@pytest.mark.parametrize("timeout", [2.0, 45.0])
@pytest.mark.parametrize("header", [b"", V1[:5]], ids=["silent", "half a header"])
def test_a_proxy_header_has_the_login_timeout(
    loop: FakeLoop, timeout: float, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire = behind_a_proxy(loop, timeout)
    wire.feed(header)
    ends_without(wire, timeout, caplog, f"PROXY header within {timeout:g} s")


@pytest.mark.parametrize("timeout", [2.0, 45.0])
@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
def test_after_the_proxy_header_a_client_has_the_whole_login_timeout(
    loop: FakeLoop, timeout: float, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The time until the header arrived does not count."""
    wire = behind_a_proxy(loop, timeout)
    loop.advance(timeout - TICK)
    wire.feed(V1 + data)
    ends_without(wire, timeout, caplog, f"login within {timeout:g} s")


def behind_a_proxy(loop: FakeLoop, login_timeout: float) -> Wire:
    """Return a connection from a trusted proxy."""
    proxies = (ip_network("192.0.2.0/24"),)
    core = make_context(loop, login_timeout=login_timeout, trusted_proxies=proxies)
    return Wire(core, protocol_factory(core, ROUTES, None, proxy_header=True)())


def test_a_client_that_logs_in_within_the_timeout_stays(loop: FakeLoop) -> None:
    wire = Wire(make_context(loop, login_timeout=45.0))
    wire.loop.advance(44.0)
    wire.login()
    wire.loop.advance(100)
    assert not wire.gone


def test_the_default_timeouts() -> None:
    assert (LOGIN_TIMEOUT, HTTP_IDLE_TIMEOUT) == (10.0, 30.0)


# Keepalive


def keep_alives(wire: Wire) -> int:
    return sum(isinstance(each, KeepAlive) for each in wire.messages())


@pytest.mark.parametrize(("uniform", "period"), [(0.0, 60.0), (0.5, 62.5), (0.999, 64.995)])
def test_keepalives_are_sent_after_sixty_seconds_and_jitter(
    loop: FakeLoop, uniform: float, period: float
) -> None:
    wire = Wire(make_context(loop, uniform=lambda: uniform))
    wire.login()
    loop.advance(period - TICK)
    assert keep_alives(wire) == 0
    loop.advance(2 * TICK)
    assert keep_alives(wire) == 1
    loop.advance(period - 2 * TICK)
    assert keep_alives(wire) == 0
    loop.advance(3 * TICK)
    assert keep_alives(wire) == 1


def test_keepalives_are_sent_for_hours_and_also_to_busy_clients(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    quiet, busy = Wire(core), Wire(core)
    quiet.login()
    busy.login()
    count = 0
    for _ in range(7200):
        loop.advance(1.0)
        busy.feed(frames.pack_ping(b"12345678"))
        count += keep_alives(busy)
    assert 7200 / 63 - 2 <= count <= 7200 / 62.5
    assert keep_alives(quiet) == count


def test_the_jitter_is_drawn_once_per_connection(loop: FakeLoop) -> None:
    drawn: list[None] = []
    wire = Wire(make_context(loop, uniform=lambda: drawn.append(None) or 0.5))  # type: ignore[func-returns-value, redundant-expr]
    wire.login()
    loop.advance(600)
    assert len(drawn) == 1


def test_a_closed_connection_gets_no_keepalive(core: ConnectionContext, loop: FakeLoop) -> None:
    wire = Wire(core)
    wire.login()
    wire.transport.abort()
    loop.turn()
    writes = len(wire.transport.writes)
    loop.advance(200)
    assert len(wire.transport.writes) == writes


# Write timeout


def stall(wire: Wire, source: Wire, *, room: int = 0) -> None:
    """From now on the client's kernel accepts only `room` bytes; a packet waits for it."""
    wire.transport.room = room
    source.session.send_packet(wire.private.public, bytes(1000))
    source.say()
    assert wire.transport.held


def stall_with_a_full_queue(wire: Wire, source: Wire) -> None:
    """One packet is with the transport, 32 wait, and 8 were dropped to make room for them."""
    stall(wire, source)
    for _ in range(40):
        source.session.send_packet(wire.private.public, b"x" * 100)
    source.say()


def drops(core: ConnectionContext) -> dict[DropReason, int]:
    dropped = core.router.counters.dropped
    return {reason: dropped(reason) for reason in DropReason if dropped(reason)}


def pair(core: ConnectionContext, *, mesh_key: MeshKey | None = None) -> tuple[Wire, Wire]:
    stalled, source = Wire(core, mesh_key=mesh_key), Wire(core)
    stalled.login()
    source.login()
    return stalled, source


def test_the_transport_buffers_nothing(core: ConnectionContext) -> None:
    assert Wire(core).transport.high == 0


@pytest.mark.parametrize("timeout", [0.5, 2.0])
def test_a_client_that_reads_no_byte_is_aborted(
    loop: FakeLoop, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_context(loop, write_timeout=timeout)
    stalled, source = pair(core)
    stall(stalled, source)
    loop.advance(timeout - 0.01)
    assert not stalled.gone
    loop.advance(2 * TICK)
    assert stalled.transport.aborted
    assert not source.gone
    assert core.router.counters.write_timeouts == 1
    assert problems(caplog) == [
        f"client 1 192.0.2.1:4711 {stalled.private.public.short()} closed: "
        f"no byte taken for {timeout:g} s"
    ]
    assert not core.stalled


def test_a_mesh_peer_has_thirty_seconds(core: ConnectionContext, loop: FakeLoop) -> None:
    stalled, source = pair(core, mesh_key=MESH)
    stall(stalled, source)
    loop.advance(29.5)
    assert not stalled.gone
    loop.advance(1.0)
    assert stalled.transport.aborted


def test_a_write_timeout_of_zero_is_none(loop: FakeLoop) -> None:
    core = make_context(loop, write_timeout=0)
    stalled, source = pair(core)
    stall(stalled, source)
    loop.advance(3600)
    assert not stalled.gone


def test_a_slow_client_that_reads_a_byte_now_and_then_stays(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    slow, source = pair(core)
    stall(slow, source)
    for _ in range(20):
        loop.advance(1.5)
        slow.transport.take(1)
    assert not slow.gone
    loop.advance(3.0)
    assert slow.gone


def test_a_client_that_catches_up_has_the_full_write_timeout_again(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    slow, source = pair(core)
    stall(slow, source)
    loop.advance(1.5)
    slow.transport.take(1 << 20)
    assert not core.stalled
    assert slow.protocol.full is None
    assert isinstance(slow.messages()[0], ReceivedPacket)
    loop.advance(60)
    assert not slow.gone


def test_an_idle_client_is_never_stalled(core: ConnectionContext, loop: FakeLoop) -> None:
    wire = Wire(core)
    wire.login()
    wire.transport.room = 0
    loop.advance(30)
    assert not wire.gone


def test_packets_dropped_at_a_write_timeout_are_counted(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    """In the transport and in the queues: write_timeout. Dropped to make room: queue_head."""
    stalled, source = pair(core)
    stall_with_a_full_queue(stalled, source)
    loop.advance(3.0)
    assert drops(core) == {DropReason.QUEUE_HEAD: 8, DropReason.WRITE_TIMEOUT: 1 + 32}


def test_packets_dropped_when_a_stalled_client_leaves_are_counted(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    """In the transport: write_error.

    In the queues: gone_disconnected. Dropped to make room: queue_head.
    """
    stalled, source = pair(core)
    stall_with_a_full_queue(stalled, source)
    stalled.transport.abort()
    loop.advance(3.0)
    assert drops(core) == {
        DropReason.QUEUE_HEAD: 8,
        DropReason.GONE_DISCONNECTED: 32,
        DropReason.WRITE_ERROR: 1,
    }


def test_a_stalled_client_gets_its_next_keepalive_once_it_reads(loop: FakeLoop) -> None:
    core = make_context(loop, write_timeout=0)
    stalled, source = pair(core)
    stall(stalled, source)
    loop.advance(100)
    writes = len(stalled.transport.writes)
    stalled.transport.take(1 << 20)
    assert len(stalled.transport.writes) == writes
    stalled.messages()
    loop.advance(63)
    assert keep_alives(stalled) == 1


UPGRADES = {
    "derp": GET_DERP,
    "fast start": upgrade_request("h", "/derp", user_agent="t", fast_start=True),
    "websocket": (
        b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: derp\r\n\r\n"
    ),
}


@pytest.mark.parametrize("request_", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("kept_alive", [False, True], ids=["first", "kept alive"])
@pytest.mark.parametrize(
    ("write_timeout", "seconds", "reason", "why"),
    [
        (2.0, 2.0, EndReason.WRITE_TIMEOUT, "no byte taken for 2 s"),
        (0.0, LOGIN_TIMEOUT, EndReason.NO_LOGIN, "no login within 10 s"),
    ],
    ids=["write timeout", "none"],
)
def test_a_client_that_does_not_read_the_upgrade_answer_is_closed_and_logged(
    loop: FakeLoop,
    request_: bytes,
    kept_alive: bool,
    write_timeout: float,
    seconds: float,
    reason: EndReason,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its kernel accepts one byte, as in Go's test.

    Without a write timeout the login timeout ends it.
    """
    core = make_context(loop, write_timeout=write_timeout)
    wire = Wire(core)
    if kept_alive:
        wire.feed(GET)
        loop.advance(LOGIN_TIMEOUT + 1)  # the time since the accept does not count
    answered = len(wire.transport.taken)
    wire.transport.room = 1
    wire.feed(request_)
    assert wire.transport.held
    loop.advance(seconds - TICK / 2)
    assert not wire.gone
    loop.advance(2 * TICK)  # a write counts from the first tick that checks it
    assert wire.gone
    assert not core.protocols
    assert problems(caplog) == [f"client 1 192.0.2.1:4711 closed: {why}"]
    assert core.router.counters.ends[reason] == 1
    assert core.router.registry.size == 0
    # The client may read one byte and then the end: the rest is discarded.
    assert wire.transport.aborted
    assert len(wire.transport.taken) == answered + 1


def test_reading_the_upgrade_answer_byte_by_byte_does_not_extend_the_login_timeout(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.transport.room = 1
    wire.feed(GET_DERP)
    for _ in range(9):
        wire.loop.advance(1.0)
        wire.transport.take(1)
    ends_after(wire, 1.0)
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: no login within 10 s"]


def test_idle_connections_schedule_nothing_before_and_after_traffic(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    """Go's relay has a writer goroutine for each. This relay has one timer for all, and no task."""
    wires = [Wire(core) for _ in range(20)]

    def check_idle() -> None:
        assert not loop.ready
        assert [each for each in loop.later if not each.cancelled] == [core._ticker]
        assert not core.router.wants_flush
        assert not core.stalled
        for connection in core.router.registry.connections():
            assert connection.backlog is None
            assert not connection.out
        writes = [len(wire.transport.writes) for wire in wires]
        loop.advance(10)
        assert [len(wire.transport.writes) for wire in wires] == writes

    for wire in wires:
        wire.login()
    check_idle()
    for wire in wires:
        wire.session.send_packet(wire.private.public, wire.key)
        wire.say()
        assert [each.data for each in wire.messages() if isinstance(each, ReceivedPacket)] == [
            wire.key
        ]
    check_idle()
    # Nor do packets that had to wait leave anything behind.
    for wire in wires:
        stall(wire, wires[0])
        stall(wire, wires[0])
        wire.transport.take(1 << 20)
        assert len(wire.messages()) == 2
    check_idle()
    for wire in wires:
        wire.hang_up()
    loop.advance(2 * TICK)
    assert not core.protocols
    assert not core.timers


@pytest.mark.parametrize("last", [b"\0\0\r\n\r\n", b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_a_last_answer_that_is_not_read_does_not_keep_the_connection_open(
    core: ConnectionContext, last: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.transport.room = 10
    wire.feed(last)
    assert wire.transport.held
    ends_after(wire, CLOSE_TIMEOUT)
    assert not core.stalled
    assert not [text for text in problems(caplog) if "no login" in text]


def test_a_graceful_close_that_is_not_read_does_not_keep_the_connection_open(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    stalled, source = pair(core)
    stall(stalled, source)
    stalled.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    assert core.router.registry.size == 1
    loop.advance(CLOSE_TIMEOUT - TICK)
    assert not stalled.gone, "buffered bytes have until CLOSE_TIMEOUT"
    loop.advance(2 * TICK)
    assert stalled.transport.aborted
    assert core.protocols == {source.protocol}


def test_a_graceful_close_writes_what_is_buffered(core: ConnectionContext) -> None:
    slow, source = pair(core)
    stall(slow, source)
    slow.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    slow.transport.take(1 << 20)
    slow.loop.turn()
    assert slow.gone
    assert not slow.transport.aborted
    assert isinstance(slow.messages()[0], ReceivedPacket)


def test_pause_and_resume_after_the_end_are_harmless(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    wire.login()
    wire.transport.abort()
    loop.turn()
    wire.protocol.pause_writing()
    wire.protocol.check_progress(loop.now)
    wire.protocol.resume_writing()
    assert not core.stalled
