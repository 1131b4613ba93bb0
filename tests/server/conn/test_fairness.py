"""Limits of what one connection may do in a turn of the loop, and of what it may log."""

from __future__ import annotations

import logging

import pytest

from pyderp.defaults import RECEIVE_BUFFER
from pyderp.server.conn.context import SMALL_READ, ConnectionContext
from pyderp.server.conn.engines import Engine
from pyderp.wire.frames import pack_frame, pack_send_packet
from tests.server.fakes import FakeLoop, TLSWire, Wire, make_context


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop)


def fill(wire: Wire, data: bytes) -> int:
    """Feed a connection one read, as much as it has room for; return how many bytes that was."""
    room = wire.protocol.get_buffer(-1)
    count = min(len(room), len(data))
    room[:count] = data[:count]
    wire.protocol.buffer_updated(count)
    return count


def test_before_login_reads_are_small_and_a_full_one_pauses_for_a_turn(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    assert fill(wire, b"GET / HTTP/1.1\r\nX: " + b"x" * RECEIVE_BUFFER) == SMALL_READ
    assert not wire.transport.reading
    loop.turn()
    assert wire.transport.reading
    assert fill(wire, b"y" * 100) == 100
    assert wire.transport.reading


def test_after_a_full_read_reading_pauses_for_a_turn(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    wire.login()
    packet = pack_send_packet(wire.private.public, bytes(1000))
    assert fill(wire, packet * 20) == 20 * len(packet)
    assert wire.transport.reading
    assert fill(wire, packet * 200) == RECEIVE_BUFFER
    assert not wire.transport.reading
    loop.turn()
    assert wire.transport.reading


def test_under_tls_too_reading_pauses_for_a_turn_after_a_full_read(
    core: ConnectionContext, loop: FakeLoop, engine: Engine
) -> None:
    """Whatever frames the read contains."""
    wire = TLSWire(core, engine)
    wire.shake_hands()
    wire.login()
    packet = pack_send_packet(wire.private.public, bytes(1000))
    assert fill(wire, wire.encrypt(packet * 20)) < RECEIVE_BUFFER
    assert wire.transport.reading
    begun = wire.encrypt(pack_frame(0x7F, bytes(50)) * 3_000)
    assert fill(wire, begun) == RECEIVE_BUFFER
    assert not wire.transport.reading
    loop.turn()
    assert wire.transport.reading


def test_a_client_that_is_closed_by_its_own_read_is_not_paused(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    wire.login()
    fill(wire, pack_frame(0x12, b"short") + bytes(RECEIVE_BUFFER))
    loop.turn()
    assert wire.gone


def test_too_many_pipelined_requests_close_the_connection(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    fill(wire, b"GET /robots.txt HTTP/1.1\r\nHost: h\r\n\r\n" * 9)
    loop.turn()
    assert wire.gone
    assert core.router.counters.protocol_errors == 1


def test_a_head_with_too_many_lines_is_refused_before_it_is_complete(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire = Wire(core)
    fill(wire, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 300)
    loop.turn()
    assert wire.answer().startswith(b"HTTP/1.1 431 ")
    assert wire.gone


def test_bytes_from_a_peer_are_shortened_in_the_log(
    core: ConnectionContext, loop: FakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    fill(wire, b"\x7f" * 6000 + b" / HTTP/1.1\r\n\r\n")
    core.log_problem("%s", "x" * 100_000)
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(lines) == 2
    assert max(map(len, lines)) <= 400
