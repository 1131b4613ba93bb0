"""How connections under TLS end, on a fake transport."""

from __future__ import annotations

import logging
import ssl

import pytest

from pyderp.defaults import CLOSE_TIMEOUT
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.engines import Engine
from pyderp.wire import frames
from pyderp.wire.messages import ReceivedPacket
from tests.server.fakes import FakeLoop, TLSWire, Wire, make_context, records_of

NAME = "derp.example.com"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop)


def refuse(_: bytes) -> int:
    """Fail like OpenSSL's write after an error."""
    error = ssl.SSLError(1, "broken")
    error.reason = "BROKEN"
    raise error


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_close_alert_is_answered_and_ends_the_connection(
    core: ConnectionContext, engine: Engine
) -> None:
    wire = TLSWire(core, engine)
    wire.shake_hands()
    wire.login()
    with pytest.raises(ssl.SSLWantReadError):
        wire.tls.unwrap()
    wire.feed_encrypted(wire.outgoing.read())
    assert wire.gone
    assert not wire.transport.aborted
    wire.incoming.write(Wire.answer(wire))
    wire.tls.unwrap()
    wire.hang_up()
    assert not core.protocols
    assert core.router.counters.protocol_errors == 0


def test_frames_in_the_read_of_the_close_alert_are_relayed(
    core: ConnectionContext, engine: Engine
) -> None:
    first, second = TLSWire(core, engine), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    first.session.send_packet(second.private.public, b"last words")
    data = first.encrypt(b"".join(first.session.data_to_send()))
    with pytest.raises(ssl.SSLWantReadError):
        first.tls.unwrap()
    first.feed_encrypted(data + first.outgoing.read())
    assert first.gone
    assert ReceivedPacket(first.private.public, b"last words") in second.messages()


def test_the_relay_closes_with_an_alert(core: ConnectionContext, engine: Engine) -> None:
    wire = TLSWire(core, engine)
    wire.shake_hands()
    wire.login()
    wire.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    wire.loop.turn()
    assert wire.gone
    wire.incoming.write(Wire.answer(wire))
    assert wire.tls.read(1) == b"", "the end is authenticated"


def test_a_graceful_close_during_the_handshake_is_silent(
    core: ConnectionContext, engine: Engine
) -> None:
    wire = TLSWire(core, engine)
    wire.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    wire.loop.turn()
    assert wire.gone
    assert wire.transport.writes == []


def test_plain_http_on_the_tls_port_gets_an_answer(
    core: ConnectionContext, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, engine)
    wire.feed_encrypted(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert Wire.answer(wire) == (
        b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
        b"This port speaks HTTPS; the request was plain HTTP.\n"
    )
    assert wire.gone
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: TLS: plain HTTP on the TLS port"]


@pytest.mark.parametrize("established", [False, True])
def test_garbage_ends_with_an_alert_and_is_logged_and_counted_once(
    core: ConnectionContext,
    engine: Engine,
    established: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wire = TLSWire(core, engine)
    if established:
        wire.shake_hands()
        wire.login()
    wire.feed_encrypted(b"\x17\x03\x03\x00\x20" + bytes(60))
    assert wire.gone
    wire.hang_up()
    assert not core.protocols
    assert not core.timers
    assert core.router.registry.size == 0
    assert core.router.counters.protocol_errors == 1
    assert len(problems(caplog)) == 1
    assert "192.0.2.1:4711" in problems(caplog)[0]
    assert "closed: TLS: " in problems(caplog)[0]
    assert b"\x03\x03\x00" in wire.transport.writes[-1]


def test_an_alert_that_is_not_read_does_not_keep_the_connection_open(
    core: ConnectionContext, engine: Engine
) -> None:
    wire = TLSWire(core, engine)
    wire.transport.room = 3
    wire.feed_encrypted(b"GET / HTTP/1.1\r\n\r\n")
    assert wire.transport.held
    wire.loop.advance(CLOSE_TIMEOUT + 0.5)
    assert wire.transport.aborted


def test_the_login_timeout_covers_the_handshake(
    core: ConnectionContext, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, engine)
    wire.loop.advance(5)
    wire.shake_hands()
    wire.loop.advance(4.5)
    assert not wire.gone
    wire.loop.advance(1)
    assert wire.gone
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: no login within 10 s"]


def test_the_login_timeout_of_the_handshake_is_a_setting(
    loop: FakeLoop, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(make_context(loop, login_timeout=45.0), engine)
    wire.loop.advance(44.5)
    assert not wire.gone
    wire.loop.advance(1)
    assert wire.gone
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: no login within 45 s"]


def test_bytes_behind_a_bad_frame_are_ignored(core: ConnectionContext, engine: Engine) -> None:
    first, second = TLSWire(core, engine), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    bad = first.encrypt(frames.pack_frame(frames.FrameType.PING, b"short"))
    first.session.send_packet(second.private.public, b"too late")
    first.feed_encrypted(bad + first.encrypt(b"".join(first.session.data_to_send())))
    assert first.gone
    assert second.messages() == []


def test_a_write_to_a_broken_session_ends_its_connection(
    core: ConnectionContext, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL refuses to write after an error. The error must not reach the sender."""
    first, second = Wire(core), TLSWire(core, context)
    second.shake_hands()
    second.login()
    first.login()
    monkeypatch.setattr(records_of(second), "_write_record", refuse)
    first.session.send_packet(second.private.public, b"x")
    first.say()
    assert second.gone
    assert not first.gone
    assert core.router.registry.size == 1


def test_a_session_that_breaks_at_server_info_is_never_registered(
    core: ConnectionContext, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = TLSWire(core, context)
    wire.shake_hands()
    wire.upgrade()
    monkeypatch.setattr(records_of(wire), "_write_record", refuse)
    wire.say()
    assert wire.gone
    assert core.router.registry.size == 0
    assert core.router.counters.ends[EndReason.PROTOCOL_ERROR] == 1


def test_an_end_that_an_error_reports_is_an_end(
    core: ConnectionContext, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is a count of zero or an error depends on the version of OpenSSL."""
    wire = TLSWire(core, context)
    wire.shake_hands()
    wire.login()

    def end(_: int, __: memoryview) -> int:
        raise ssl.SSLZeroReturnError(6, "closed")

    monkeypatch.setattr(records_of(wire), "_read_record", end)
    wire.feed(frames.pack_ping(b"12345678"))
    assert wire.gone
    assert not wire.transport.aborted
    assert core.router.counters.protocol_errors == 0


def test_errors_behind_a_bad_frame_are_not_counted_again(
    core: ConnectionContext, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, engine)
    wire.shake_hands()
    wire.login()
    bad = wire.encrypt(frames.pack_frame(frames.FrameType.PING, b"short"))
    wire.feed_encrypted(bad + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert wire.gone
    assert len(problems(caplog)) == 1
    assert core.router.counters.protocol_errors == 1


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        (b"PROXY TCP4 192.0.2.9 192.0.2.1 5 443\r\n", "PROXY header, but proxy-protocol is off"),
        (b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", "RDP (Remote Desktop)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    ],
    ids=["proxy", "rdp", "ssh"],
)
def test_another_protocol_than_tls_is_named_in_the_log(
    core: ConnectionContext,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    first: bytes,
    problem: str,
) -> None:
    wire = TLSWire(core, engine)
    wire.feed_encrypted(first)
    assert wire.gone
    (line,) = problems(caplog)
    assert line.startswith(f"client 1 192.0.2.1:4711 closed: TLS: {problem}")


def test_no_openssl_error_name_is_logged(
    core: ConnectionContext, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, engine)
    wire.feed_encrypted(b"\x17\x03\x03\x00\x20" + bytes(60))
    (line,) = problems(caplog)
    assert "_" not in line
