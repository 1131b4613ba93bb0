"""TLS under a connection: on a fake transport here, on sockets in `test_relay.py`."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest

from pyderp.aio.certs import ManualCertificates
from pyderp.aio.core import Core
from pyderp.aio.protocol import RelayProtocol
from pyderp.aio.routes import redirect_to_https, relay_routes
from pyderp.aio.tls import TLSRelayProtocol, protocol_factory
from pyderp.defaults import CLOSE_TIMEOUT
from pyderp.keys import NodePrivate
from pyderp.wire import frames
from pyderp.wire.messages import ReceivedPacket
from pyderp.wire.upgrade import upgrade_request

from .certificates import trusting_nobody, write_pair
from .fakes import FakeLoop, Wire, make_core

NAME = "derp.example.com"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> Core:
    return make_core(loop)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory: Path = tmp_path_factory.mktemp("certificates")
    write_pair(directory, NAME)
    return ManualCertificates(directory, NAME, NodePrivate.generate().public).context


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


class TLSWire(Wire):
    """A connection whose client speaks TLS."""

    def __init__(
        self, core: Core, context: ssl.SSLContext, version: ssl.TLSVersion | None = None
    ) -> None:
        super().__init__(core, protocol_factory(core, relay_routes, lambda: context)())
        client = trusting_nobody()
        if version is not None:
            client.minimum_version = client.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)

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


@pytest.mark.parametrize("version", VERSIONS)
def test_login_and_packets_pass_under_both_versions(
    core: Core, context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    first, second = TLSWire(core, context, version), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    assert isinstance(first.protocol, TLSRelayProtocol)
    assert first.protocol.version == version.name.replace("_", ".")
    first.session.send_packet(second.private.public, b"there")
    first.say()
    second.session.send_packet(first.private.public, b"back")
    second.say()
    assert second.messages() == [ReceivedPacket(first.private.public, b"there")]
    assert first.messages() == [ReceivedPacket(second.private.public, b"back")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_handshake_may_come_in_small_pieces(
    core: Core, context: ssl.SSLContext, version: ssl.TLSVersion, chunk: int
) -> None:
    wire = TLSWire(core, context, version)
    wire.shake_hands(chunk)
    wire.login()
    assert core.router.registry.size == 1


def test_handshake_request_and_login_may_end_in_one_read(
    core: Core, context: ssl.SSLContext
) -> None:
    wire = TLSWire(core, context)
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
def test_packets_of_any_size_pass_both_ways(core: Core, context: ssl.SSLContext, size: int) -> None:
    first, second = TLSWire(core, context), TLSWire(core, context)
    for wire in (first, second):
        wire.shake_hands()
        wire.login()
    packet = os.urandom(size)
    first.session.send_packet(second.private.public, packet)
    first.say()
    assert second.messages() == [ReceivedPacket(first.private.public, packet)]


@pytest.mark.parametrize("chunk", [1460, 16384, 40000, 1 << 20])
def test_many_packets_in_reads_of_any_size_arrive_in_order(
    core: Core, context: ssl.SSLContext, chunk: int
) -> None:
    first, second = TLSWire(core, context), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    packets = [os.urandom(1 + 7919 * i % 3000) for i in range(100)]
    for packet in packets:
        first.session.send_packet(second.private.public, packet)
    first.feed_encrypted(first.encrypt(b"".join(first.session.data_to_send())), chunk)
    received = [each.data for each in second.messages() if isinstance(each, ReceivedPacket)]
    assert received == packets


def test_what_a_turn_brings_is_one_write_of_full_records(
    core: Core, context: ssl.SSLContext
) -> None:
    first, second = Wire(core), TLSWire(core, context)
    second.shake_hands()
    second.login()
    first.login()
    second.transport.writes.clear()
    for _ in range(2):
        first.session.send_packet(second.private.public, bytes(40000))
    first.say()
    assert len(second.transport.writes) == 1
    assert second.transport.writes[0].count(b"\x17\x03\x03\x40\x11") == 4


def test_a_close_alert_is_answered_and_ends_the_connection(
    core: Core, context: ssl.SSLContext
) -> None:
    wire = TLSWire(core, context)
    wire.shake_hands()
    wire.login()
    with pytest.raises(ssl.SSLWantReadError):
        wire.tls.unwrap()
    wire.feed_encrypted(wire.outgoing.read())
    assert wire.gone
    assert not wire.transport.aborted
    wire.incoming.write(Wire.answer(wire))
    wire.tls.unwrap()
    assert not core.protocols
    assert core.router.counters.protocol_errors == 0


def test_frames_in_the_read_of_the_close_alert_are_relayed(
    core: Core, context: ssl.SSLContext
) -> None:
    first, second = TLSWire(core, context), Wire(core)
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


def test_the_relay_closes_with_an_alert(core: Core, context: ssl.SSLContext) -> None:
    wire = TLSWire(core, context)
    wire.shake_hands()
    wire.login()
    wire.protocol.close_gracefully()
    wire.loop.turn()
    assert wire.gone
    wire.incoming.write(Wire.answer(wire))
    assert wire.tls.read(1) == b"", "an end that is authenticated"


def test_a_graceful_close_during_the_handshake_is_silent(
    core: Core, context: ssl.SSLContext
) -> None:
    wire = TLSWire(core, context)
    wire.protocol.close_gracefully()
    wire.loop.turn()
    assert wire.gone
    assert wire.transport.writes == []


def test_plain_http_on_the_tls_port_is_told_so(
    core: Core, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, context)
    wire.feed_encrypted(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert Wire.answer(wire) == (
        b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
        b"This port speaks HTTPS; the request was plain HTTP.\n"
    )
    assert wire.gone
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: TLS: HTTP_REQUEST"]


@pytest.mark.parametrize("established", [False, True])
def test_garbage_ends_with_an_alert_one_line_and_one_count(
    core: Core, context: ssl.SSLContext, established: bool, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, context)
    if established:
        wire.shake_hands()
        wire.login()
    wire.feed_encrypted(b"\x17\x03\x03\x00\x20" + bytes(60))
    assert wire.gone
    assert not core.protocols
    assert not core.timers
    assert core.router.registry.size == 0
    assert core.router.counters.protocol_errors == 1
    assert len(problems(caplog)) == 1
    assert "192.0.2.1:4711" in problems(caplog)[0]
    assert "closed: TLS: " in problems(caplog)[0]
    assert b"\x03\x03\x00" in wire.transport.writes[-1]


def test_an_alert_that_is_not_taken_does_not_keep_the_socket(
    core: Core, context: ssl.SSLContext
) -> None:
    wire = TLSWire(core, context)
    wire.transport.room = 3
    wire.feed_encrypted(b"GET / HTTP/1.1\r\n\r\n")
    assert wire.transport.held
    wire.loop.advance(CLOSE_TIMEOUT + 0.5)
    assert wire.transport.aborted


def test_the_ten_seconds_cover_the_handshake(
    core: Core, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = TLSWire(core, context)
    wire.loop.advance(5)
    wire.shake_hands()
    wire.loop.advance(4.5)
    assert not wire.gone
    wire.loop.advance(1)
    assert wire.gone
    assert problems(caplog) == ["client 1 192.0.2.1:4711 closed: no login within 10 s"]


def test_a_bad_frame_ends_what_the_same_read_still_holds(
    core: Core, context: ssl.SSLContext
) -> None:
    first, second = TLSWire(core, context), Wire(core)
    first.shake_hands()
    first.login()
    second.login()
    bad = first.encrypt(frames.pack_frame(frames.FrameType.PING, b"short"))
    first.session.send_packet(second.private.public, b"too late")
    first.feed_encrypted(bad + first.encrypt(b"".join(first.session.data_to_send())))
    assert first.gone
    assert second.messages() == []


def test_incomplete_frames_survive_reads_of_others(core: Core, context: ssl.SSLContext) -> None:
    target = Wire(core)
    target.login()
    sources = [TLSWire(core, context) for _ in range(3)]
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


def test_each_connection_takes_the_context_of_its_time(core: Core, context: ssl.SSLContext) -> None:
    asked: list[ssl.SSLContext] = []

    def current() -> ssl.SSLContext:
        asked.append(context)
        return context

    factory = protocol_factory(core, relay_routes, current)
    assert isinstance(factory(), TLSRelayProtocol)
    assert isinstance(factory(), TLSRelayProtocol)
    assert len(asked) == 2


def test_without_a_context_connections_are_plain(core: Core) -> None:
    protocol = protocol_factory(core, redirect_to_https, None, derp=False)()
    assert type(protocol) is RelayProtocol


def test_a_session_that_is_broken_ends_the_connection_when_written_to(
    core: Core, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL refuses to write after an error: that must not reach the one who sends."""
    first, second = Wire(core), TLSWire(core, context)
    second.shake_hands()
    second.login()
    first.login()
    assert isinstance(second.protocol, TLSRelayProtocol)

    def refuse(_: bytes) -> int:
        error = ssl.SSLError(1, "broken")
        error.reason = "BROKEN"
        raise error

    monkeypatch.setattr(second.protocol, "_write_record", refuse)
    first.session.send_packet(second.private.public, b"x")
    first.say()
    assert second.gone
    assert not first.gone
    assert core.router.registry.size == 1
