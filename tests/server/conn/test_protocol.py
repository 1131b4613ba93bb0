"""Login, frames and the end of a connection, on a fake transport."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from pyderp.defaults import RECONNECT_TRY_FOR
from pyderp.errors import LocalProtocolError, Restarting
from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.server.conn.context import ConnectionContext
from pyderp.wire import frames
from pyderp.wire.frames import HEADER, FrameType, pack_frame
from pyderp.wire.messages import (
    PeerGone,
    PeerPresent,
    ReceivedPacket,
    ServerInfo,
)
from pyderp.wire.upgrade import upgrade_request
from tests.server.fakes import FakeLoop, Wire, make_context

MESH = MeshKey.parse("ab" * 32)
GET_DERP = upgrade_request("relay.test", "/derp", user_agent="tests")


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, mesh_key=MESH)


def two(core: ConnectionContext) -> tuple[Wire, Wire]:
    first, second = Wire(core), Wire(core, peername=("192.0.2.2", 4712))
    first.login()
    second.login()
    return first, second


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def login_bytes(core: ConnectionContext, wire: Wire) -> bytes:
    """Return the ClientInfo frame of a client that knows the relay's key."""
    wire.session.receive_data(core.login.greeting)
    return b"".join(wire.session.data_to_send())


@pytest.mark.parametrize("stage", ["head", "greeting", "login", "frames"])
def test_every_stage_accepts_bytes_cut_anywhere(core: ConnectionContext, stage: str) -> None:
    """Request, ClientInfo and frames in two reads, cut at each byte."""
    script = upgrade_request("h", "/derp", user_agent="t", fast_start=True)
    before = 0
    private = NodePrivate.generate()
    parts = {"head": script}
    probe = Wire(core)
    probe.private = private
    parts["greeting"] = login_bytes(core, probe)
    parts["login"] = frames.pack_note_preferred(True)
    parts["frames"] = pack_frame(0x7F, b"unknown") + frames.pack_ping(b"ijklmnop")
    for name, part in parts.items():
        if name == stage:
            break
        before += len(part)
    whole = b"".join(parts.values())
    for cut in range(before, before + len(parts[stage]) + 1):
        wire = Wire(core)
        wire.session = probe.session
        wire.feed(whole[:cut])
        wire.feed(whole[cut:])
        answer = wire.answer()
        assert answer.startswith(core.login.greeting), cut
        assert frames.pack_pong(b"ijklmnop") in answer, cut
        wire.transport.abort()
        wire.loop.turn()


def test_a_login_byte_by_byte_succeeds(core: ConnectionContext) -> None:
    wire = Wire(core)
    for byte in GET_DERP + login_bytes(core, wire):
        wire.feed(bytes((byte,)))
    assert core.router.registry.size == 1


@pytest.mark.parametrize("after_head", [0, 3, 5, 40, 100])
def test_a_large_client_info_may_be_cut_anywhere_behind_the_request(
    core: ConnectionContext, after_head: int
) -> None:
    """A ClientInfo beyond 4 KiB is collected in its own buffer, wherever it started."""
    private = NodePrivate.generate()
    text = b'{"pad":"' + b"a" * 9000 + b'"}'
    sealed = private.seal_to(NodePrivate.generate().public, text, nonce=bytes(24))
    assert len(sealed) > 4096
    wire = Wire(core)
    relay_key = core.login._private.public
    sealed = private.seal_to(relay_key, text, nonce=bytes(24))
    login = frames.pack_client_info(private.public, sealed)
    wire.feed(GET_DERP + login[:after_head])
    for start in range(after_head, len(login), 1500):
        wire.feed(login[start : start + 1500])
    assert core.router.registry.size == 1
    wire.feed(frames.pack_ping(b"12345678"))
    assert wire.answer().endswith(frames.pack_pong(b"12345678"))


def test_a_connection_has_key_address_and_number(core: ConnectionContext) -> None:
    wire = Wire(core, peername=("::ffff:198.51.100.7", 1234, 0, 0))
    wire.login()
    connection = core.router.registry.active[wire.key]
    assert connection.peer == ("198.51.100.7", 1234)
    assert connection.number == 1
    assert not connection.can_mesh
    assert not connection.not_ideal


def test_ideal_node_marks_a_client_of_another_node(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(upgrade_request("h", "/derp", user_agent="t", ideal_node="derp1"))
    wire.feed(login_bytes(core, wire))
    assert core.router.registry.not_ideal == 1


@pytest.mark.parametrize(("key", "mesh"), [(MESH, True), (MeshKey.parse("cd" * 32), False)])
def test_only_the_mesh_key_grants_mesh_rights(
    core: ConnectionContext, key: MeshKey, mesh: bool
) -> None:
    wire = Wire(core, mesh_key=key)
    wire.login()
    assert core.router.registry.active[wire.key].can_mesh is mesh


def test_without_a_mesh_key_no_client_has_mesh_rights(loop: FakeLoop) -> None:
    core = make_context(loop)
    wire = Wire(core)
    wire.login()
    assert not core.router.registry.active[wire.key].can_mesh


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pack_frame(FrameType.SEND_PACKET, bytes(64)), "bad frame type 0x4, want 0x2"),
        (HEADER.pack(2, 55), "short client info"),
        (HEADER.pack(2, 262145), "long client info"),
        (pack_frame(FrameType.CLIENT_INFO, bytes(100)), "closed:"),
        (pack_frame(FrameType.CLIENT_INFO, b"\x01" * 100), "closed:"),
    ],
)
def test_a_failed_login_is_closed_without_an_answer(
    core: ConnectionContext, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.upgrade()
    wire.feed(data)
    assert wire.answer() == b""
    assert wire.transport.aborted
    assert not core.protocols
    assert not core.timers
    assert core.router.counters.protocol_errors == 1
    assert len(problems(caplog)) == 1
    assert "192.0.2.1:4711" in problems(caplog)[0]
    assert reason in problems(caplog)[0]


def test_a_bad_frame_after_login_is_logged_with_the_key_and_counted(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    bad, other = two(core)
    bad.feed(frames.pack_ping(b"12345678") + HEADER.pack(FrameType.SEND_PACKET, 31))
    assert bad.gone
    assert not other.gone
    assert core.router.registry.size == 1
    assert core.router.counters.protocol_errors == 1
    assert problems(caplog) == [
        f"client 1 192.0.2.1:4711 {bad.private.public.short()} closed: short send packet frame"
    ]


@pytest.mark.parametrize("exc", [None, ConnectionResetError()])
def test_a_lost_connection_leaves_no_state(core: ConnectionContext, exc: Exception | None) -> None:
    first, second = two(core)
    first.session.send_packet(second.private.public, b"x")
    first.say()
    first.transport.lost = True
    first.protocol.connection_lost(exc)
    first.loop.turn()
    assert core.protocols == {second.protocol}
    assert core.router.registry.size == 1
    assert len(core.timers) == 1
    assert PeerGone(first.private.public, 0) in second.messages()


def test_eof_closes_the_connection(core: ConnectionContext) -> None:
    assert Wire(core).protocol.eof_received() is False


def test_packets_for_a_client_that_left_this_turn_are_counted(core: ConnectionContext) -> None:
    first, second = two(core)
    first.session.send_packet(second.private.public, b"x" * 100)
    first.feed_only(b"".join(first.session.data_to_send()))
    second.transport.abort()
    second.protocol.connection_lost(None)
    second.transport.lost = True
    first.loop.turn()
    assert core.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 1


def test_a_login_while_the_relay_stops_gets_restarting(core: ConnectionContext) -> None:
    """Clients that were connected when the stop began get it too."""
    core.restarts_within = 8.0
    wire = Wire(core)
    wire.upgrade()
    wire.say()
    server_info, restarting = wire.messages()
    assert isinstance(server_info, ServerInfo)
    assert restarting == Restarting(4.0, RECONNECT_TRY_FOR)


def test_a_mesh_peer_closes_a_client(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    mesh, victim = Wire(core, mesh_key=MESH), Wire(core)
    mesh.login()
    victim.login()
    mesh.session.close_peer(victim.private.public)
    mesh.say()
    assert victim.gone
    assert not mesh.gone
    assert core.router.counters.protocol_errors == 0
    assert problems(caplog)[0].endswith("closed: closed by a mesh peer")


def test_a_mesh_peer_may_close_itself_in_the_middle_of_a_read(core: ConnectionContext) -> None:
    mesh, other = Wire(core, mesh_key=MESH), Wire(core)
    mesh.login()
    other.login()
    mesh.session.close_peer(mesh.private.public)
    mesh.session.send_packet(other.private.public, b"x")
    mesh.feed(b"".join(mesh.session.data_to_send()) + b"\x04\0")
    assert mesh.gone
    assert core.router.registry.size == 1
    assert len(core.timers) == 1


def test_a_watcher_gets_mapped_addresses_as_ipv4(core: ConnectionContext) -> None:
    mesh = Wire(core, mesh_key=MESH)
    mesh.login()
    mesh.session.watch_conns()
    mesh.say()
    mesh.messages()
    Wire(core, peername=("::ffff:203.0.113.9", 99, 0, 0)).login()
    (present,) = mesh.messages()
    assert isinstance(present, PeerPresent)
    assert (str(present.address), present.port) == ("203.0.113.9", 99)


@pytest.mark.parametrize("peername", [None, ""])
def test_a_connection_without_an_address_is_served(
    core: ConnectionContext, peername: object
) -> None:
    wire = Wire(core, peername=peername)
    wire.login()
    assert core.router.registry.active[wire.key].peer == ("", 0)


def test_logins_and_ends_are_logged_at_debug(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pyderp.relay")
    mesh = Wire(core, mesh_key=MESH)
    mesh.login()
    mesh.transport.abort()
    mesh.loop.turn()
    short = mesh.private.public.short()
    assert [each.getMessage() for each in caplog.records] == [
        f"client 1 192.0.2.1:4711 {short} logged in, mesh",
        f"client 1 192.0.2.1:4711 {short} ended: client_closed",
    ]


def test_large_frames_in_small_reads_arrive_complete(core: ConnectionContext) -> None:
    first, second = two(core)
    packet = bytes(range(256)) * 256
    first.session.send_packet(second.private.public, packet)
    first.session.send_packet(second.private.public, b"after")
    data = b"".join(first.session.data_to_send())
    for start in range(0, len(data), 1460):
        first.feed(data[start : start + 1460])
    received = [each.data for each in second.messages() if isinstance(each, ReceivedPacket)]
    assert received == [packet, b"after"]


def test_reads_of_different_connections_do_not_mix(core: ConnectionContext) -> None:
    """Incomplete frames of many connections use one buffer, one after another."""
    target = Wire(core)
    target.login()
    sources = [Wire(core) for _ in range(5)]
    data = []
    for i, source in enumerate(sources):
        source.login()
        source.session.send_packet(target.private.public, bytes((i,)) * (100 + 3000 * i))
        data.append(b"".join(source.session.data_to_send()))
    for start in range(0, max(map(len, data)), 700):
        for source, each in zip(sources, data, strict=True):
            source.feed(each[start : start + 700])
    received = {
        each.source: each.data for each in target.messages() if isinstance(each, ReceivedPacket)
    }
    assert received == {
        source.private.public: bytes((i,)) * (100 + 3000 * i) for i, source in enumerate(sources)
    }


def test_sending_before_login_is_a_local_protocol_error(core: ConnectionContext) -> None:
    wire = Wire(core)
    with pytest.raises(LocalProtocolError):
        wire.session.send_ping(b"12345678")


def test_after_the_end_nothing_is_written_or_logged(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.login()
    wire.transport.abort()
    wire.loop.turn()
    writes = len(wire.transport.writes)
    wire.protocol.end(EndReason.REVOKED, How.NOW, "again")
    wire.protocol.end(EndReason.STOPPED, How.NOW)
    wire.protocol.end(EndReason.STOPPED, How.GRACEFUL)
    wire.protocol.send([b"late"])
    wire.protocol.connection_lost(None)
    wire.loop.turn()
    assert len(wire.transport.writes) == writes
    assert problems(caplog) == []
    assert not core.protocols
    assert not core.timers


def test_bytes_after_the_end_are_ignored(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.login()
    wire.protocol.end(EndReason.STOPPED, How.NOW)
    wire.protocol.get_buffer(-1)[:13] = frames.pack_ping(b"12345678")
    wire.protocol.buffer_updated(13)
    wire.loop.turn()
    assert core.router.counters.got_ping == 0


@pytest.mark.parametrize("name", ["a" * 33, "a" * 100_000, "a\\n", "a\x7f", "é", "\\ud800"])
@pytest.mark.parametrize("mesh", ["", f'"meshKey":"{MESH.to_text()}",'])
def test_an_invalid_app_name_ends_the_login(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture, name: str, mesh: str
) -> None:
    """Also a mesh peer's. The client gets the server key, and the connection ends."""
    private = NodePrivate.generate()
    text = f'{{{mesh}"AppName":"{name}"}}'.encode()
    sealed = private.seal_to(core.login._private.public, text, nonce=bytes(24))
    wire = Wire(core)
    wire.feed(GET_DERP + frames.pack_client_info(private.public, sealed))
    assert core.router.registry.size == 0
    assert wire.transport.is_closing()
    assert wire.answer() == core.greeting_with_head
    (line,) = (each.getMessage() for each in caplog.records)
    assert 'closed: invalid AppName "' in line
    assert len(line) < 200
    assert line.isprintable()


@pytest.mark.parametrize("name", ["", "a" * 32, "my app ~"])
def test_a_name_that_keeps_the_rule_is_sent_to_watchers(core: ConnectionContext, name: str) -> None:
    watcher = Wire(core, mesh_key=MESH)
    watcher.login()
    watcher.feed(frames.pack_watch_conns())
    private = NodePrivate.generate()
    text = f'{{"AppName":"{name}"}}'.encode()
    sealed = private.seal_to(core.login._private.public, text, nonce=bytes(24))
    wire = Wire(core)
    wire.feed(GET_DERP + frames.pack_client_info(private.public, sealed))
    watcher.loop.turn()
    assert watcher.answer().endswith(bytes((len(name),)) + name.encode())


def test_a_disallowed_app_name_ends_the_login_except_for_mesh_peers(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    core.rules = replace(core.rules, disallowed_app_names=frozenset({"bad", "b ad"}))
    for name, mesh, taken in (
        ("bad", "", False),
        ("b ad", "", False),
        ("Bad", "", True),
        ("bad ", "", True),
        ("", "", True),
        ("bad", f'"meshKey":"{MESH.to_text()}",', True),
    ):
        private = NodePrivate.generate()
        text = f'{{{mesh}"AppName":"{name}"}}'.encode()
        sealed = private.seal_to(core.login._private.public, text, nonce=bytes(24))
        wire = Wire(core)
        wire.feed(GET_DERP + frames.pack_client_info(private.public, sealed))
        assert (private.public.raw in core.router.registry.active) is taken
        rejection = f'client {private.public} rejected: disallowed app name "{name}"'
        assert (rejection in caplog.text) is not taken
    assert core.router.counters.ends[EndReason.DISALLOWED_APP_NAME] == 2
    assert core.router.counters.ends[EndReason.REFUSED] == 0


def test_the_largest_login_arrives_in_small_reads(core: ConnectionContext) -> None:
    private = NodePrivate.generate()
    text = b'{"pad":"' + b"a" * 261_000 + b'"}'
    sealed = private.seal_to(core.login._private.public, text, nonce=bytes(24))
    login = frames.pack_client_info(private.public, sealed)
    wire = Wire(core)
    wire.feed(GET_DERP)
    for start in range(0, len(login), 10_000):
        wire.feed(login[start : start + 10_000])
    assert core.router.registry.size == 1


def test_a_small_frame_behind_a_large_one_may_be_cut(core: ConnectionContext) -> None:
    first, second = two(core)
    first.session.send_packet(second.private.public, bytes(20_000))
    large = b"".join(first.session.data_to_send())
    first.session.send_packet(second.private.public, b"small")
    small = b"".join(first.session.data_to_send())
    first.feed(large[:9000])
    first.feed(large[9000:])
    first.feed(small[:10])
    first.feed(small[10:])
    received = [each.data for each in second.messages() if isinstance(each, ReceivedPacket)]
    assert received == [bytes(20_000), b"small"]
