"""A TLS connection after its handshake: bytes both ways, and all the ends it can have."""

from __future__ import annotations

import os
import ssl

import pytest

from pyderp.errors import TLSError
from pyderp.net.tls import TlsLink

from .certificates import ROOT, certificate
from .tlspeer import NAME, MemoryLink, Sink, TlsPeer, finish, handshake

GOOD = certificate(NAME, issuer=ROOT)
SIZES = [1, 1200, 16 * 1024, 16 * 1024 + 1, 1 << 20]


class World:
    """Both sides of a connection."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        self.peer = TlsPeer(GOOD.server(version))
        self.link = MemoryLink(self.peer.answer)
        self.tls: TlsLink = handshake(self.link)
        self.sink = Sink()

    def started(self) -> World:
        self.tls.start(self.sink)
        return self

    def feed(self, data: bytes) -> None:
        self.link.feed(data)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_what_comes_at_once_is_delivered_at_once(world: World, size: int) -> None:
    data = os.urandom(size)
    world.started().feed(world.peer.say(data))
    assert world.sink.chunks == [data]


@pytest.mark.parametrize("cut", [1, 1000, 1460, 16 * 1024, 65_536])
def test_any_cut_yields_the_same_bytes(world: World, cut: int) -> None:
    data = os.urandom(200_000 if cut > 1 else 40_000)
    encrypted = world.peer.say(data)
    world.started()
    for start in range(0, len(encrypted), cut):
        world.feed(encrypted[start : start + cut])
    assert b"".join(world.sink.chunks) == data
    assert b"" not in world.sink.chunks
    assert not world.link.aborted
    assert world.tls._incoming.pending == 0


def test_small_records_are_joined(world: World) -> None:
    encrypted = b"".join(world.peer.say(b"%d " % number) for number in range(50))
    world.started().feed(encrypted)
    assert world.sink.chunks == [b"".join(b"%d " % number for number in range(50))]


@pytest.mark.parametrize("size", SIZES)
def test_a_write_is_one_write_below(world: World, size: int) -> None:
    world.started()
    before = len(world.link.written)
    data = os.urandom(size)
    world.tls.write(data)
    assert len(world.link.written) == before + 1
    assert bytes(world.peer.received) == data


def test_an_empty_write_writes_nothing(world: World) -> None:
    before = len(world.link.written)
    world.tls.write(b"")
    assert len(world.link.written) == before


def test_reads_before_start_return_all_whole_records(world: World) -> None:
    world.feed(world.peer.say(b"first") + world.peer.say(b"second"))
    assert finish(world.tls.read()) == b"firstsecond"
    encrypted = world.peer.say(b"third")
    world.feed(encrypted[:-1])
    assert finish(world.tls.read()) == b""  # the stream ended within a record
    world.feed(encrypted[-1:])
    assert finish(world.tls.read()) == b"third"


def test_unread_bytes_are_delivered(world: World) -> None:
    world.feed(world.peer.say(b"one") + world.peer.say(b"two"))
    world.started().feed(world.peer.say(b"three"))
    assert b"".join(world.sink.chunks) == b"onetwothree"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bytes_that_came_with_the_handshake_are_delivered(version: ssl.TLSVersion) -> None:
    peer = TlsPeer(GOOD.server(version))

    def answer(data: bytes) -> bytes:
        before = peer.established
        back = peer.answer(data)
        return back + peer.say(b"at once") if peer.established > before else back

    link = MemoryLink(answer)
    tls, sink = handshake(link), Sink()
    tls.start(sink)
    assert sink.chunks == [b"at once"]


def test_flow_control_and_addresses_are_those_of_the_link(world: World) -> None:
    world.started()
    world.link.pending_bytes = 77
    assert world.tls.pending == 77
    world.tls.pause_reading()
    assert world.link.paused
    world.tls.resume_reading()
    assert not world.link.paused
    world.tls.writable()
    assert world.sink.times_writable == 1
    assert world.tls.local_address == ("127.0.0.1", 1)
    assert world.tls.remote_address == ("127.0.0.2", 2)


# Ends


def lost(world: World, error: Exception | None = None) -> Exception | None:
    """End the link below; returns the error that the receiver got."""
    assert world.sink.ends == []
    world.tls.connection_lost(error)
    [end] = world.sink.ends
    return end


def test_a_close_alert_is_a_clean_end(world: World) -> None:
    world.started().feed(world.peer.say(b"last") + world.peer.close_alert())
    assert world.sink.chunks == [b"last"]
    assert world.link.aborted
    assert lost(world, ConnectionResetError()) is None


def test_nothing_is_delivered_or_sent_after_a_close_alert(world: World) -> None:
    alert = world.peer.close_alert()
    world.started().feed(alert)
    before = len(world.link.written)
    world.feed(b"garbage")
    world.tls.write(b"too late")
    assert world.sink.chunks == []
    assert len(world.link.written) == before
    assert lost(world) is None


def test_a_close_alert_while_reading_ends_reads(world: World) -> None:
    world.feed(world.peer.say(b"last") + world.peer.close_alert() + b"garbage")
    assert finish(world.tls.read()) == b"last"
    assert finish(world.tls.read()) == b""
    world.started()
    assert world.link.aborted
    assert lost(world) is None


def test_an_end_without_an_alert_is_a_clean_end(world: World) -> None:
    world.started().feed(world.peer.say(b"all")[:-1])
    assert lost(world) is None
    assert world.sink.chunks == []


def test_an_error_of_the_link_reaches_the_receiver(world: World) -> None:
    error = ConnectionResetError()
    assert lost(world.started(), error) is error


def test_an_error_of_the_link_fails_a_read(world: World) -> None:
    world.link.error = ConnectionResetError()
    with pytest.raises(ConnectionResetError):
        finish(world.tls.read())


def test_a_modified_record_ends_the_connection(world: World) -> None:
    good, bad = world.peer.say(b"good"), bytearray(world.peer.say(b"bad"))
    bad[-1] ^= 1
    world.started().feed(good + bytes(bad) + world.peer.say(b"after"))
    assert world.sink.chunks == [b"good"]
    assert world.link.aborted
    end = lost(world)
    assert isinstance(end, TLSError)
    assert f"{NAME}: TLS: " in str(end)
    assert isinstance(end.__cause__, ssl.SSLError)
    world.peer.answer(world.link.written[-1])
    assert world.peer.error is not None  # the peer got an alert


def test_a_modified_record_fails_a_read(world: World) -> None:
    good, bad = world.peer.say(b"good"), bytearray(world.peer.say(b"bad"))
    bad[-1] ^= 1
    world.feed(good + bytes(bad))
    assert finish(world.tls.read()) == b"good"
    for _ in range(2):
        with pytest.raises(TLSError):
            finish(world.tls.read())
    world.started()
    assert isinstance(lost(world), TLSError)


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 200 OK\r\n", bytes(100), b"\xff" * 40_000])
def test_garbage_ends_the_connection(world: World, garbage: bytes) -> None:
    world.started().feed(garbage)
    assert world.link.aborted
    assert isinstance(lost(world), TLSError)
    assert world.sink.chunks == []


def test_an_alert_of_the_peer_is_in_the_error() -> None:
    world = World(ssl.TLSVersion.TLSv1_2)
    # The peer sends an alert because it cannot decrypt this.
    alert = world.peer.answer(bytes.fromhex("17 0303 0020") + bytes(32))
    world.started().feed(alert)
    end = lost(world)
    assert isinstance(end, TLSError)
    assert "alert 'bad record mac'" in str(end)


def test_abort_sends_no_close_alert_and_discards_all(world: World) -> None:
    world.started().tls.abort()
    world.tls.abort()
    assert world.link.aborted
    before = len(world.link.written)  # no close alert
    world.tls.write(b"too late")
    world.feed(world.peer.say(b"too late"))
    assert len(world.link.written) == before
    assert world.sink.chunks == []
    assert lost(world) is None


def test_abort_in_a_callback_delivers_no_more(world: World) -> None:
    class Aborting(Sink):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            world.tls.abort()

    world.sink = Aborting()
    world.feed(world.peer.say(b"one"))
    world.started().feed(world.peer.say(b"two"))
    assert world.sink.chunks == [b"one"]
    assert lost(world) is None


def test_a_failed_write_of_openssl_ends_the_connection(world: World) -> None:
    world.started()
    world.link.answer = lambda _: b""
    with pytest.raises(ssl.SSLWantReadError):
        world.tls._tls.unwrap()
    world.tls.write(b"after our own close alert")
    assert world.link.aborted
    assert isinstance(lost(world), TLSError)


# Layers


def test_tls_in_tls_carries_bytes() -> None:
    """As through a proxy that is reached over TLS."""
    inner_peer = TlsPeer(GOOD.server())
    outer_peer = TlsPeer(certificate("proxy.example.com", issuer=ROOT).server())

    def answer(data: bytes) -> bytes:
        back = outer_peer.answer(data)
        if outer_peer.received:
            inner = bytes(outer_peer.received)
            outer_peer.received.clear()
            if more := inner_peer.answer(inner):
                back += outer_peer.say(more)
        return back

    link = MemoryLink(answer)
    outer = handshake(link, server_name="proxy.example.com")
    inner = handshake(outer)
    assert inner.state.peer_chain == (GOOD.der,)
    sink = Sink()
    inner.start(sink)
    data = os.urandom(1 << 20)
    inner.write(data)
    assert bytes(inner_peer.received) == data
    link.feed(outer_peer.say(inner_peer.say(data)))
    assert sink.chunks == [data]
    link.feed(outer_peer.say(inner_peer.close_alert()))
    assert link.aborted
    outer.connection_lost(None)
    assert sink.ends == [None]


def test_a_failed_handshake_aborts_the_links_below() -> None:
    link = MemoryLink(TlsPeer(GOOD.server()).answer)
    outer = handshake(link)
    with pytest.raises(TLSError):
        handshake(outer)
    assert link.aborted
