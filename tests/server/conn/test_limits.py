"""Rate limits between a connection and the lane: waits, their lengths, reloads."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from functools import partial
from pathlib import Path

import pytest

import pyderp
from pyderp.defaults import RECEIVE_BUFFER
from pyderp.errors import ConfigError
from pyderp.keys import KEY_LEN, MeshKey
from pyderp.relay import lane
from pyderp.relay.connection import EndReason, How
from pyderp.relay.limits import MIN_BURST, RateConfig, RateLimit
from pyderp.server.conn.context import SMALL_READ, ConnectionContext
from pyderp.server.conn.engines import Engine
from pyderp.server.conn.limits import Limits, read_rate_config
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    MAX_PACKET_SIZE,
    pack_frame,
    pack_ping,
    pack_send_packet,
)
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import Pong, ReceivedPacket
from tests.server.dial import BOUND, Client, Via, clients
from tests.server.fakes import FakeLoop, TLSWire, Wire, make_context

from .test_websocket import WebSocketWire, message

MESH = MeshKey(bytes(range(32)))


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, mesh_key=MESH)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rates.json"


def write(path: Path, rate: int = 0, burst: int = 0, **keys: int) -> None:
    """Write a file with a limit for all and limits for single keys, given in hex."""
    config: dict[str, object] = {
        "PerClientRateLimitBytesPerSec": rate,
        "PerClientRateBurstBytes": burst,
        "PerKey": {f"nodekey:{key}": {"BytesPerSec": n} for key, n in keys.items()},
    }
    path.write_text(json.dumps(config))


def limit(
    core: ConnectionContext, path: Path, rate: int = 0, burst: int = 0, **keys: int
) -> Limits:
    write(path, rate, burst, **keys)
    core.limits = limits = Limits(core.loop, core.router.counters, path)
    return limits


def reload(core: ConnectionContext, limits: Limits) -> bool:
    """Read the file again, as a relay does at a reload."""
    is_read = limits.reload()
    for protocol in list(core.protocols):
        protocol.limit_again()
    return is_read


def join(core: ConnectionContext, *, mesh: bool = False, like: Wire | None = None) -> Wire:
    wire = Wire(core, mesh_key=MESH if mesh else None)
    if like is not None:
        take_key(wire, like)
    wire.login()
    return wire


def upgrade_only(core: ConnectionContext, *, like: Wire) -> Wire:
    """Connect a client with another client's key, which has yet to log in."""
    wire = Wire(core)
    take_key(wire, like)
    wire.upgrade()
    return wire


def take_key(wire: Wire, other: Wire) -> None:
    wire.private = other.private
    wire.session = ClientSession(other.private, random=os.urandom, info=ClientInfo())


def charge(wire: Wire, size: int) -> None:
    """Send one packet that costs `size` bytes, in a read of its own."""
    packet = bytes(size - KEY_LEN)
    wire.feed(pack_send_packet(wire.private.public, packet))


def received(wire: Wire) -> int:
    return sum(isinstance(each, ReceivedPacket) for each in wire.messages())


def in_the_lane(wire: Wire) -> bool:
    """Return whether the client's bytes go to the lane without a limit before it."""
    stage = wire.protocol.stage
    return isinstance(stage, partial) and stage.func is lane.receive


# How long


def test_the_burst_passes_and_what_exceeds_it_waits(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    """With rate and burst of 65568 the second full charge waits for a second, to the byte."""
    limits = limit(core, path, MIN_BURST)
    wire = join(core)
    charge(wire, MIN_BURST)
    assert wire.transport.reading
    assert limits.waited == 0
    charge(wire, MIN_BURST)
    assert received(wire) == 2, "what was read is relayed, not held"
    assert not wire.transport.reading
    assert limits.waited == 1
    assert len(limits.waiting) == 1
    loop.advance(0.999)
    assert not wire.transport.reading
    loop.advance(0.001)
    assert wire.transport.reading
    assert not limits.waiting
    charge(wire, 1000)
    assert limits.waited == 2


def test_packet_headers_do_not_count_and_pings_do(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1000)
    wire = join(core)
    for _ in range(MIN_BURST // 32):
        wire.feed(pack_send_packet(wire.private.public, b""))
    assert wire.transport.reading
    assert limits.waited == 0
    wire.feed(pack_ping(b"12345678"))
    assert not wire.transport.reading
    assert any(isinstance(each, Pong) for each in wire.messages())
    loop.advance(0.013)
    assert wire.transport.reading


def test_frames_that_are_ignored_count(core: ConnectionContext, loop: FakeLoop, path: Path) -> None:
    limits = limit(core, path, 1000)
    wire = join(core)
    wire.feed(pack_frame(0x7F, bytes(MIN_BURST)))
    assert limits.waited
    assert not wire.transport.reading
    loop.advance(0.006)
    assert wire.transport.reading


def test_a_frame_counts_when_it_is_complete(core: ConnectionContext, path: Path) -> None:
    limits = limit(core, path, 1000)
    wire = join(core)
    charge(wire, MIN_BURST)
    frame = pack_send_packet(wire.private.public, bytes(100))
    wire.feed(frame[:-1])
    assert wire.transport.reading
    wire.feed(frame[-1:])
    assert not wire.transport.reading
    assert limits.waited == 1


def test_several_charges_in_one_read_make_one_wait(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    """One read of a websocket may contain several messages; the last sets the time."""
    limits = limit(core, path, 10_000)
    wire = WebSocketWire(core)
    wire.login()
    wire.feed(message(pack_send_packet(wire.private.public, bytes(MIN_BURST - KEY_LEN))))
    packet = message(pack_send_packet(wire.private.public, bytes(1000 - KEY_LEN)))
    wire.feed(packet * 7)
    assert received(wire) == 8
    assert limits.waited > 1
    loop.advance(0.699)
    assert not wire.transport.reading
    loop.advance(0.002)
    assert wire.transport.reading


def test_a_long_wait_ends_on_time(core: ConnectionContext, loop: FakeLoop, path: Path) -> None:
    limit(core, path, 100)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 1234)
    loop.advance(12.3)
    assert not wire.transport.reading
    loop.advance(0.041)
    assert wire.transport.reading


def test_a_wait_too_short_for_a_timer_is_added_to_the_next(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1_000_000)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 999)
    assert limits.waited == 0
    assert wire.transport.reading
    charge(wire, 501)
    assert limits.waited == 1
    loop.advance(0.0015)
    assert wire.transport.reading


# Which clients have a limit


def test_without_a_limit_reads_go_to_the_lane_directly(core: ConnectionContext, path: Path) -> None:
    free, other = Wire(core), Wire(core)
    limits = limit(core, path)
    for wire in (free, other):
        wire.login()
        assert in_the_lane(wire)
    write(path, 1, **{free.key.hex(): 0})
    assert reload(core, limits)
    assert in_the_lane(free)
    assert not in_the_lane(other)


def test_mesh_peers_have_no_limit(core: ConnectionContext, path: Path) -> None:
    limits = limit(core, path, 1)
    peer = join(core, mesh=True)
    charge(peer, MIN_BURST)
    charge(peer, MIN_BURST)
    assert peer.transport.reading
    write(path, 2)
    reload(core, limits)
    charge(peer, MIN_BURST)
    assert limits.waited == 0


def test_a_key_may_have_its_own_limit(core: ConnectionContext, path: Path) -> None:
    slow, fast = Wire(core), Wire(core)
    limits = limit(core, path, 1, **{fast.key.hex(): 0})
    slow.login()
    fast.login()
    for wire in (slow, fast):
        charge(wire, MIN_BURST)
        charge(wire, 1000)
    assert not slow.transport.reading
    assert fast.transport.reading
    assert limits.waited == 1


def test_all_connections_of_a_key_share_one_bucket_and_get_new_limits(
    core: ConnectionContext, path: Path
) -> None:
    limits = limit(core, path, 1)
    one, unrelated = join(core), join(core)
    other = join(core, like=one)
    charge(one, MIN_BURST)
    assert limits.waited == 0
    charge(other, 1000)
    assert not other.transport.reading
    assert one.transport.reading, "until it sends"
    charge(one, 1000)
    assert received(one) == 1, "what it sends meanwhile is held"
    charge(unrelated, MIN_BURST)
    assert not one.transport.reading
    assert unrelated.transport.reading
    write(path, 5)
    reload(core, limits)
    assert one.transport.reading
    assert other.transport.reading
    charge(one, MIN_BURST - 1000)
    assert one.transport.reading
    charge(other, 1000)
    assert not other.transport.reading


def test_a_waiting_connection_has_its_turn_whatever_others_of_its_key_send(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    """Each pays for all that was sent before it, so in the end the rate is that of one."""
    limit(core, path, 1000)
    one = join(core)
    other = join(core, like=one)
    charge(one, MIN_BURST)
    charge(one, 1000)
    loop.advance(0.5)
    charge(other, 2000)
    loop.advance(0.5)
    assert one.transport.reading
    charge(one, 1000)
    loop.advance(1.999)
    assert not other.transport.reading
    loop.advance(0.001)
    assert other.transport.reading
    assert not one.transport.reading
    loop.advance(0.999)
    assert not one.transport.reading
    loop.advance(0.001)
    assert one.transport.reading


@pytest.mark.parametrize("count", [1, 2, 8])
def test_more_connections_of_a_key_have_no_higher_rate(
    core: ConnectionContext, loop: FakeLoop, path: Path, count: int
) -> None:
    """One read may exceed burst and rate. Each connection has the same share."""
    limit(core, path, 10_000)
    wires = [join(core)]
    wires += [join(core, like=wires[0]) for _ in range(count - 1)]
    sent = dict.fromkeys(wires, 0)
    for _ in range(1000):
        for wire in wires:
            if wire.transport.reading:
                charge(wire, 1000)
                sent[wire] += 1
        loop.advance(0.01)
    relayed = core.router.counters.packets_received * 1000
    assert MIN_BURST + 98_000 <= relayed <= MIN_BURST + 101_000
    assert min(sent.values()) >= relayed // 1000 // count - 1


# Reconnects


def leave(wire: Wire) -> None:
    wire.transport.abort()
    wire.loop.turn()
    assert wire.gone


def test_a_reconnect_keeps_the_debt_of_its_key(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1000)
    first = join(core)
    charge(first, MIN_BURST)
    charge(first, 1000)
    leave(first)
    del first.protocol, first.transport
    gc.collect()
    wire = join(core, like=first)
    charge(wire, 1000)
    assert limits.waited == 2
    assert not wire.transport.reading
    loop.advance(0.999)
    assert received(wire) == 0
    loop.advance(0.001)
    assert received(wire) == 1
    assert not wire.transport.reading, "out of debt is not full"
    loop.advance(1)
    assert wire.transport.reading


@pytest.mark.parametrize("stay", [False, True])
def test_reconnects_have_no_higher_rate(
    core: ConnectionContext, loop: FakeLoop, path: Path, stay: bool
) -> None:
    """Also if the waiting connections stay, and continue later."""
    limit(core, path, 10_000)
    first = wire = join(core)
    for _ in range(500):
        charge(wire, 1000)
        if not stay:
            leave(wire)
        loop.advance(0.01)
        wire = join(core, like=first)
    relayed = core.router.counters.packets_received * 1000
    assert MIN_BURST + (45_000 if stay else 0) <= relayed <= MIN_BURST + 51_000


@pytest.mark.parametrize("size", [100, 6000])
def test_frames_behind_the_login_wait_too(
    core: ConnectionContext, loop: FakeLoop, path: Path, size: int
) -> None:
    limit(core, path, 1000)
    first = join(core)
    charge(first, MIN_BURST)
    charge(first, 1000)
    wire = upgrade_only(core, like=first)
    frame = pack_send_packet(wire.private.public, bytes(size))
    wire.feed(b"".join(wire.session.data_to_send()) + frame + frame[:-1])
    assert received(wire) == 0
    loop.advance(0.999)
    assert received(wire) == 0
    loop.advance(0.001)
    assert received(wire) == 1
    assert not wire.transport.reading, "and is paid for"
    loop.advance(10)
    wire.feed(frame[-1:])
    assert received(wire) == 1


def test_frames_held_behind_a_login_are_relayed_when_the_limits_change(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1)
    first = join(core)
    charge(first, MIN_BURST)
    charge(first, 1000)
    wire = upgrade_only(core, like=first)
    frame = pack_send_packet(wire.private.public, bytes(100))
    wire.feed(b"".join(wire.session.data_to_send()) + frame)
    assert received(wire) == 0
    reload(core, limits)
    loop.turn()
    assert received(wire) == 1
    assert wire.transport.reading


def test_a_charge_that_was_held_is_refunded_if_its_sender_leaves(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1000)
    first = join(core)
    charge(first, MIN_BURST)
    charge(first, 1000)
    wire = join(core, like=first)
    charge(wire, 5000)
    leave(wire)
    loop.advance(1.0)
    assert not limits.waiting
    assert core.router.counters.packets_received == 2
    third = join(core, like=first)
    charge(third, 1000)
    assert received(third) == 1
    leave(third)
    leave(first)
    loop.advance(1.0)
    core.stop()
    assert [handle for handle in loop.later if not handle.cancelled] == []


def test_frames_before_a_bad_frame_count(core: ConnectionContext, path: Path) -> None:
    limits = limit(core, path, 1)
    first = join(core)
    packet = pack_send_packet(first.private.public, bytes(60_000))
    for _ in range(2):
        assert not first.gone
        first.feed(packet + pack_frame(0x12, b"short"))
        assert first.gone
        first = join(core, like=first)
    assert limits.waited == 0
    charge(first, 1000)
    assert received(first) == 0
    assert not first.transport.reading


def test_all_parts_of_a_held_read_are_held(
    core: ConnectionContext, loop: FakeLoop, path: Path, engine: Engine
) -> None:
    """Under TLS one read arrives in several parts; the largest fits the shared buffer."""
    limit(core, path, 100_000_000)
    first = join(core)
    for _ in range(300):
        charge(first, MIN_BURST)
    wire = TLSWire(core, engine)
    take_key(wire, first)
    wire.shake_hands()
    wire.login()
    packet = pack_send_packet(wire.private.public, bytes(1000 - KEY_LEN))
    wire.feed(packet * 100)
    assert received(wire) == 0
    loop.advance(1)
    assert received(wire) == 100
    assert wire.transport.reading


def test_reads_of_a_client_with_a_limit_are_small(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    """So it exceeds its limit by little. With a high limit reads stay large."""
    limits = limit(core, path, 20_000)
    wire = join(core)
    assert len(wire.protocol.get_buffer(-1)) == SMALL_READ
    wire.feed_only(pack_frame(0xFF, bytes(SMALL_READ - FRAME_HEADER_LEN)))
    assert not wire.transport.reading, "a small share of the turn, too"
    loop.turn()
    assert wire.transport.reading
    wire.feed_only(pack_send_packet(wire.private.public, b"")[:-1])
    assert len(wire.protocol.get_buffer(-1)) <= SMALL_READ
    write(path, 100 * RECEIVE_BUFFER)
    reload(core, limits)
    wire.feed(b"\x20")
    room = len(wire.protocol.get_buffer(-1))
    assert SMALL_READ < room <= RECEIVE_BUFFER


# Reload


def test_a_new_limit_starts_with_a_full_bucket_and_ends_a_wait(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 30_000)
    loop.advance(100)
    assert not wire.transport.reading
    write(path, 2, 100_000)
    assert reload(core, limits)
    assert wire.transport.reading
    charge(wire, MIN_BURST)
    charge(wire, 30_000)
    assert wire.transport.reading
    charge(wire, 30_000)
    assert not wire.transport.reading


def test_removing_the_limit_ends_a_wait(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 30_000)
    path.write_text("{}")
    assert reload(core, limits)
    for _ in range(5):
        charge(wire, MIN_BURST)
    assert wire.transport.reading
    assert received(wire) == 7
    assert limits.config == RateConfig()
    assert in_the_lane(wire)


def test_a_later_login_gets_the_limits_of_that_time(core: ConnectionContext, path: Path) -> None:
    limits = limit(core, path)
    wire = Wire(core)
    wire.upgrade()
    write(path, 1)
    reload(core, limits)
    wire.say()
    charge(wire, MIN_BURST)
    charge(wire, 1000)
    assert not wire.transport.reading


def test_a_reload_in_the_middle_of_a_frame_loses_nothing(
    core: ConnectionContext, path: Path
) -> None:
    limits = limit(core, path, 10**9)
    wire = join(core)
    for size in (100, MAX_PACKET_SIZE):
        frame = pack_send_packet(wire.private.public, bytes(size))
        for start in range(0, len(frame), 50 if size == 100 else 30_000):
            wire.feed(frame[start : start + (50 if size == 100 else 30_000)])
            reload(core, limits)
        assert received(wire) == 1


@pytest.mark.parametrize("content", [None, "", '{"PerClientRateLimitBytesPerSec": -1}'])
def test_an_invalid_file_is_logged_and_the_limits_stay(
    core: ConnectionContext, path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    limits = limit(core, path, 7)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 1000)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert not limits.reload()
    assert limits.config.default == RateLimit(7, MIN_BURST)
    assert not wire.transport.reading, "the wait goes on"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(path) in record.getMessage()
    assert "the limits stay as they are" in record.getMessage()


def test_applied_limits_are_logged_as_by_upstream(
    core: ConnectionContext, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = limit(core, path, 20_000, 10, **{"0" * 64: 0, "1" * 64: 5})
    path.write_text('{"PerClientRateLimitBytePerSec": 1}')
    reload(core, limits)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == (
        "rate config applied: client-rate=20000 bytes/sec, client-burst=65568 bytes, "
        "2 keys with limits of their own"
    )
    assert lines[1] == "rate config applied: client-rate=0 bytes/sec, client-burst=0 bytes"
    assert lines[2].endswith("unknown members are ignored: PerClientRateLimitBytePerSec")
    assert len(lines) == 3


def test_a_single_key_with_a_limit_is_logged_in_the_singular(
    core: ConnectionContext, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limit(core, path, 20_000, 10, **{"1" * 64: 5})
    assert caplog.messages[0].endswith(", 1 key with a limit of its own")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_invalid_file_at_the_start_is_a_config_error(
    core: ConnectionContext, path: Path, content: str | None
) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"rate config .*rates\.json"):
        Limits(core.loop, core.router.counters, path)
    with pytest.raises(ConfigError):
        read_rate_config(path)


# The end of a connection and of the relay


def test_a_client_that_leaves_while_waiting_leaves_no_timer(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 1000)
    wire.transport.abort()
    loop.turn()
    loop.advance(1.0)
    assert not limits.waiting
    core.stop()
    assert [handle for handle in loop.later if not handle.cancelled] == []


def test_a_relay_that_stops_leaves_no_timer(
    core: ConnectionContext, loop: FakeLoop, path: Path
) -> None:
    limits = limit(core, path, 1)
    wire = join(core)
    charge(wire, MIN_BURST)
    charge(wire, 1000)
    wire.protocol.end(EndReason.STOPPED, How.NOW)
    core.stop()
    limits.close()
    assert not limits.waiting
    assert [handle for handle in loop.later if not handle.cancelled] == []


def test_a_frame_that_ends_the_connection_starts_no_wait(
    core: ConnectionContext, path: Path
) -> None:
    limits = limit(core, path, 1)
    wire = join(core)
    wire.feed(pack_frame(0x7F, bytes(MIN_BURST)))
    waited = limits.waited
    wire.feed(pack_frame(0x12, b"short"))
    assert wire.gone
    assert limits.waited == waited


# On real sockets

AT_ONCE = 10
"""Packets in a write, and in one message of a websocket: relayed before the wait starts."""


@pytest.mark.parametrize("via", ["tcp", "websocket"])
async def test_a_limited_client_has_its_rate_and_an_unlimited_one_does_not_wait(
    path: Path, via: str
) -> None:
    """All packets arrive; burst and rate are a bound for the time that takes."""
    rate, count = 200_000, 100
    write(path, rate)

    config = pyderp.RelayConfig(rate_config=path)
    async with (
        pyderp.Relay(config) as relay,
        clients(relay, 2, via=Via(websocket=via == "websocket")) as (sender, receiver),
    ):
        begin = time.monotonic()
        await deliver(sender, receiver, count)
        took = time.monotonic() - begin
        assert took >= (count * 1032 - MIN_BURST - SMALL_READ - AT_ONCE * 1032) / rate
        write(path)
        relay.reload()
        begin = time.monotonic()
        await deliver(sender, receiver, count)
        assert time.monotonic() - begin < BOUND


async def deliver(sender: Client, receiver: Client, count: int) -> None:
    """Send packets that count 1032 bytes each, a few at a time, and wait for them."""
    for _ in range(0, count, AT_ONCE):
        for _ in range(AT_ONCE):
            sender.session.send_packet(receiver.key, bytes(1000))
        sender.write()
        for _ in range(AT_ONCE):
            await receiver.packet()
