"""Health frames, from the event at a connection to what its client reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.relay.health import HealthReporter, Trouble
from pyderp.relay.limits import MIN_BURST
from pyderp.server.conn.context import TICK, ConnectionContext
from pyderp.server.conn.limits import Limits
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import pack_ping, pack_send_packet
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import Health
from tests.server.certificates import write_pair
from tests.server.dial import clients
from tests.server.fakes import FakeLoop, Wire, make_context
from tests.server.ways import NAME, over_tls

PROBLEM = "the certificate is about to expire"


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, health=True)


def health(core: ConnectionContext) -> HealthReporter:
    assert isinstance(core.observer, HealthReporter)
    return core.observer


def join(core: ConnectionContext) -> Wire:
    wire = Wire(core)
    wire.login()
    return wire


def twin(wire: Wire) -> Wire:
    """Return another connection with the same key."""
    other = Wire(wire.core)
    other.private = wire.private
    other.session = ClientSession(
        wire.private, random=os.urandom, info=ClientInfo(takes_health=True)
    )
    other.login()
    return other


def problems(wire: Wire) -> list[str]:
    """Return the texts of Health frames since the last call."""
    return [each.problem for each in wire.messages() if isinstance(each, Health)]


def take_over_in_turn(*wires: Wire) -> None:
    for _ in range(4):
        for wire in wires:
            wire.feed(pack_ping(b"12345678"))


def test_a_healthy_client_gets_no_health_frame(core: ConnectionContext, loop: FakeLoop) -> None:
    wire = join(core)
    loop.advance(300)
    assert problems(wire) == []
    assert health(core).sent_problems == health(core).cleared == 0


def test_duplicates_are_reported_within_a_second_and_cleared_after_a_minute(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    one, other = join(core), join(core)
    two = twin(one)
    take_over_in_turn(one, two, other)
    loop.advance(1)
    assert problems(one) == problems(two) == [Trouble.DUPLICATE.value]
    assert problems(other) == []
    assert health(core).sent_problems == 2
    loop.advance(59)
    assert problems(one) == problems(two) == []
    loop.advance(2)
    assert problems(one) == problems(two) == [""]
    assert health(core).cleared == 2


def test_a_duplicate_that_sends_nothing_is_not_reported(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    """Otherwise each reconnect would be reported, while the old connection is still open."""
    one = join(core)
    two = twin(one)
    take_over_in_turn(two)
    loop.advance(5)
    assert problems(one) == problems(two) == []


def test_a_duplicate_that_left_gets_no_frame(core: ConnectionContext, loop: FakeLoop) -> None:
    one = join(core)
    two = twin(one)
    take_over_in_turn(one, two)
    two.transport.abort()
    loop.advance(100)
    assert problems(one) == [Trouble.DUPLICATE.value, ""]


def test_a_client_that_waits_for_its_rate_limit_most_of_the_time_is_notified(
    core: ConnectionContext, loop: FakeLoop, tmp_path: Path
) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 1000}))
    core.limits = Limits(core.loop, core.router.counters, path, observer=health(core))
    wire, other = join(core), join(core)
    for size in (MIN_BURST, 16_000):
        wire.feed(pack_send_packet(other.private.public, bytes(size - 32)))
    loop.advance(14.5)
    assert problems(wire) == []
    loop.advance(2)
    assert problems(wire) == [Trouble.RATE_LIMITED.value]
    loop.advance(120)
    assert problems(wire) == [""]
    assert problems(other) == []


@pytest.mark.parametrize("lifted_after", [5.0, 20.0])
def test_lifting_a_limit_ends_the_expected_wait(
    core: ConnectionContext, loop: FakeLoop, tmp_path: Path, lifted_after: float
) -> None:
    """Half an hour was expected. A client that got the text gets the empty one a minute later."""
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 1}))
    core.limits = limits = Limits(core.loop, core.router.counters, path, observer=health(core))
    wire, other = join(core), join(core)
    for size in (MIN_BURST, 2000):
        wire.feed(pack_send_packet(other.private.public, bytes(size - 32)))
    loop.advance(lifted_after)
    texts = [Trouble.RATE_LIMITED.value] if lifted_after > 15 else []
    assert problems(wire) == texts
    path.write_text("{}")
    assert limits.reload()
    wire.protocol.limit_again()
    other.protocol.limit_again()
    loop.advance(15 + 61)
    assert problems(wire) == [""] * len(texts)
    loop.advance(600)
    assert problems(wire) == []


def test_health_frames_are_sent_once_a_second(core: ConnectionContext, loop: FakeLoop) -> None:
    wire = join(core)
    health(core).set_certificate_problem(PROBLEM)
    loop.advance(TICK)
    assert problems(wire) == [PROBLEM]
    health(core).set_certificate_problem(None)
    loop.advance(1 - TICK)
    assert problems(wire) == []
    loop.advance(TICK)
    assert problems(wire) == [""]


def test_a_certificate_problem_is_sent_to_all_clients_and_to_new_ones(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    one = join(core)
    health(core).set_certificate_problem(PROBLEM)
    loop.advance(1)
    assert problems(one) == [PROBLEM]
    late = Wire(core)
    late.upgrade()
    late.say()
    info, *rest = late.messages()
    assert type(info).__name__ == "ServerInfo"
    assert rest == [Health(PROBLEM)]
    health(core).set_certificate_problem(None)
    loop.advance(1)
    assert problems(one) == problems(late) == [""]
    loop.advance(10)
    assert problems(one) == problems(late) == []
    assert problems(join(core)) == []


def test_a_client_that_does_not_read_gets_it_behind_waiting_frames(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    wire, other = join(core), join(core)
    wire.transport.room = 0
    other.feed(pack_send_packet(wire.private.public, b"first"))
    health(core).set_certificate_problem(PROBLEM)
    loop.advance(1)
    wire.transport.take(1 << 20)
    loop.turn()
    packet, problem = wire.messages()
    assert type(packet).__name__ == "ReceivedPacket"
    assert problem == Health(PROBLEM)


def test_duplicates_are_reported_with_one_frame_however_long_they_last(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    one = join(core)
    two = twin(one)
    for _ in range(50):
        take_over_in_turn(one, two)
        loop.advance(0.9)
    assert problems(one) == problems(two) == [Trouble.DUPLICATE.value]


async def test_a_relay_reports_its_own_certificate(tmp_path: Path) -> None:
    """To connected and to new clients, until it is renewed."""
    write_pair(tmp_path, NAME, days=60)
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname=NAME))
    async with pyderp.Relay(config) as relay, clients(relay, 1, via=over_tls()) as (first,):
        assert relay._parts is not None
        write_pair(tmp_path, NAME, days=3)
        relay._look_at_certificates(relay._parts)
        problem = (await first.wait_for(Health)).problem
        assert problem.startswith(f"the relay's certificate for {NAME} expires on ")
        async with clients(relay, 1, via=over_tls()) as (second,):
            assert await second.wait_for(Health) == Health(problem)
            write_pair(tmp_path, NAME, days=60)
            relay._look_at_certificates(relay._parts)
            for client in (first, second):
                assert await client.wait_for(Health) == Health("")
