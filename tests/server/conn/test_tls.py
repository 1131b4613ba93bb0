"""TLS under a connection: on a fake transport here, on sockets in `test_relay.py`."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl

import pytest

from pyderp.server.conn.accept import protocol_factory
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.engines import Engine, SSLEngine
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire.messages import ReceivedPacket
from pyderp.wire.upgrade import upgrade_request
from tests.server.fakes import (
    LOCAL,
    ROUTES,
    SIDE_ROUTES,
    FakeLoop,
    FixedContext,
    TLSWire,
    Wire,
    make_context,
    records_of,
)

NAME = "derp.example.com"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop)


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("version", VERSIONS)
def test_login_and_packets_pass_under_both_versions(
    core: ConnectionContext, engine: Engine, version: ssl.TLSVersion
) -> None:
    first, second = TLSWire(core, engine, version), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    assert first.protocol.tls_version == version.name.removeprefix("TLSv").replace("_", ".")
    first.session.send_packet(second.private.public, b"there")
    first.say()
    second.session.send_packet(first.private.public, b"back")
    second.say()
    assert second.messages() == [ReceivedPacket(first.private.public, b"there")]
    assert first.messages() == [ReceivedPacket(second.private.public, b"back")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_handshake_may_arrive_in_small_pieces(
    core: ConnectionContext, engine: Engine, version: ssl.TLSVersion, chunk: int
) -> None:
    wire = TLSWire(core, engine, version)
    wire.shake_hands(chunk)
    wire.login()
    assert core.router.registry.size == 1


def test_handshake_request_and_login_may_end_in_one_read(
    core: ConnectionContext, engine: Engine
) -> None:
    wire = TLSWire(core, engine)
    with pytest.raises(ssl.SSLWantReadError):
        wire.tls.do_handshake()
    wire.feed_encrypted(wire.outgoing.read())
    wire.incoming.write(Wire.answer(wire))
    wire.tls.do_handshake()
    wire.session.receive_data(core.login.greeting)
    finished = wire.outgoing.read()
    request = upgrade_request("h", "/derp", user_agent="t", fast_start=True)
    wire.feed_encrypted(finished + wire.encrypt(request + b"".join(wire.session.data_to_send())))
    assert core.router.registry.size == 1


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 65536])
def test_packets_of_any_size_pass_both_ways(
    core: ConnectionContext, engine: Engine, size: int
) -> None:
    first, second = TLSWire(core, engine), TLSWire(core, engine)
    for wire in (first, second):
        wire.shake_hands()
        wire.login()
    packet = os.urandom(size)
    first.session.send_packet(second.private.public, packet)
    first.say()
    assert second.messages() == [ReceivedPacket(first.private.public, packet)]


@pytest.mark.parametrize("chunk", [1460, 16384, 40000, 1 << 20])
def test_many_packets_in_reads_of_any_size_arrive_in_order(
    core: ConnectionContext, engine: Engine, chunk: int
) -> None:
    first, second = TLSWire(core, engine), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    packets = [os.urandom(1 + 7919 * i % 3000) for i in range(100)]
    for packet in packets:
        first.session.send_packet(second.private.public, packet)
    first.feed_encrypted(first.encrypt(b"".join(first.session.data_to_send())), chunk)
    received = [each.data for each in second.messages() if isinstance(each, ReceivedPacket)]
    assert received == packets


def test_packets_of_one_turn_are_one_write_of_full_records(
    core: ConnectionContext, engine: Engine
) -> None:
    first, second = Wire(core), TLSWire(core, engine)
    second.shake_hands()
    second.login()
    first.login()
    second.transport.writes.clear()
    for _ in range(2):
        first.session.send_packet(second.private.public, bytes(40000))
    first.say()
    assert len(second.transport.writes) == 1
    assert second.transport.writes[0].count(b"\x17\x03\x03\x40\x11") == 4


def test_incomplete_frames_survive_reads_of_other_connections(
    core: ConnectionContext, engine: Engine
) -> None:
    target = Wire(core)
    target.login()
    sources = [TLSWire(core, engine) for _ in range(3)]
    data = []
    for i, source in enumerate(sources):
        source.shake_hands()
        source.login()
        source.session.send_packet(target.private.public, bytes((i,)) * (1000 + 9000 * i))
        data.append(b"".join(source.session.data_to_send()))
    for start in range(0, max(map(len, data)), 777):
        for source, each in zip(sources, data, strict=True):
            source.feed(each[start : start + 777])
    received = {
        each.source: each.data for each in target.messages() if isinstance(each, ReceivedPacket)
    }
    assert received == {
        source.private.public: bytes((i,)) * (1000 + 9000 * i) for i, source in enumerate(sources)
    }


def test_each_connection_gets_the_current_context_of_its_address(
    core: ConnectionContext, context: ssl.SSLContext
) -> None:
    contexts = FixedContext(context)
    for _ in range(2):
        wire = TLSWire(core, context)
        Wire.__init__(wire, core, protocol_factory(core, ROUTES, SSLEngine(contexts))())
        wire.shake_hands()
    assert contexts.asked == [LOCAL, LOCAL]


def test_without_certificates_connections_are_plain(core: ConnectionContext) -> None:
    protocol = protocol_factory(core, SIDE_ROUTES, None, derp=False)()
    assert type(protocol) is RelayProtocol
    assert protocol.tls_version == ""


def test_a_library_that_writes_one_record_per_call_is_called_again(
    core: ConnectionContext, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one call writes all depends on how Python was built."""
    first, second = Wire(core), TLSWire(core, context)
    second.shake_hands()
    second.login()
    first.login()
    records = records_of(second)
    write = records._write_record
    monkeypatch.setattr(records, "_write_record", lambda data: write(data[:16384]))
    second.transport.writes.clear()
    packet = os.urandom(60000)
    first.session.send_packet(second.private.public, packet)
    first.say()
    assert second.messages() == [ReceivedPacket(first.private.public, packet)]
    assert len(second.transport.writes) == 1


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_a_server_name_that_is_not_ascii_is_refused_before_openssl(
    core: ConnectionContext, engine: Engine, chunk: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The ssl module would print a traceback for each."""
    wire = TLSWire(core, engine)
    with contextlib.suppress(ssl.SSLWantReadError):
        wire.tls.do_handshake()
    hello = wire.outgoing.read().replace(b"derp.example.com", b"derp.ex\xffmple.com")
    for start in range(0, len(hello), chunk):
        Wire.feed(wire, hello[start : start + chunk])
    assert wire.gone
    assert Wire.answer(wire) == bytes((21, 3, 3, 0, 2, 2, 47))
    assert core.router.counters.protocol_errors == 1
    assert capfd.readouterr().err == ""


class Challenged(FixedContext):
    """While an ACME challenge is pending, the authority gets its own context."""

    challenge_pending = True

    def __init__(self, context: ssl.SSLContext, challenge: ssl.SSLContext) -> None:
        super().__init__(context)
        self._challenge = challenge
        self.hellos: list[bytes] = []

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        self.hellos.append(bytes(hello))
        return self._challenge


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_an_acme_authority_gets_its_certificate_however_its_client_hello_is_cut(
    core: ConnectionContext, context: ssl.SSLContext, chunk: int
) -> None:
    never = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate: no handshake succeeds
    contexts = Challenged(never, context)
    wire = TLSWire(core, never)
    Wire.__init__(wire, core, protocol_factory(core, ROUTES, SSLEngine(contexts))())
    wire.shake_hands(chunk)
    assert len(contexts.hellos) == 1
    wire.login()


def test_too_many_records_without_data_end_the_connection(
    core: ConnectionContext, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as key updates, each as expensive as a handshake; the ssl module can make none."""
    wire = TLSWire(core, context)
    wire.shake_hands()
    wire.login()
    records = records_of(wire)

    def nothing(size: int, room: memoryview) -> int:
        raise ssl.SSLWantReadError

    monkeypatch.setattr(records, "_read_record", nothing)
    Wire.feed(wire, bytes(40 * 1024))
    assert not wire.gone
    Wire.feed(wire, b"x")
    assert wire.gone
    assert core.router.counters.protocol_errors == 1
