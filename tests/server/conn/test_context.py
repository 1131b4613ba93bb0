from __future__ import annotations

import logging
from typing import cast

import pytest

from pyderp.server.conn.context import TICK, ConnectionContext
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire.messages import ReceivedPacket
from tests.server.fakes import FakeLoop, Wire, make_context


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_one_timer_serves_all_connections(loop: FakeLoop, core: ConnectionContext) -> None:
    for _ in range(100):
        Wire(core).login()
    assert len(loop.later) == 1
    loop.advance(0.6)
    assert len(loop.later) == 1


class Probe:
    """An item of the timer wheel in the place of a connection."""

    def __init__(self, error: Exception | None = None) -> None:
        self.given_at: list[float] = []
        self.error = error

    def on_timer(self, now: float) -> None:
        self.given_at.append(now)
        if self.error is not None:
            raise self.error


def put(core: ConnectionContext, probe: Probe, when: float) -> None:
    core.timers.add(cast("RelayProtocol", probe), when)


def test_timers_fire_on_the_first_tick_at_or_after_their_time(
    loop: FakeLoop, core: ConnectionContext
) -> None:
    start = loop.now
    probes = {seconds: Probe() for seconds in (0.1, TICK, 0.9)}
    for seconds, probe in probes.items():
        put(core, probe, start + seconds)
    loop.advance(2.0)
    given = {seconds: probe.given_at for seconds, probe in probes.items()}
    assert given == {0.1: [start + TICK], TICK: [start + TICK], 0.9: [start + 4 * TICK]}


def test_a_stopped_context_has_no_timer(loop: FakeLoop, core: ConnectionContext) -> None:
    core.stop()
    core.stop()
    assert all(handle.cancelled for handle in loop.later)


def test_an_error_in_a_tick_does_not_stop_the_timer(
    loop: FakeLoop, core: ConnectionContext
) -> None:
    probe = Probe()
    put(core, Probe(RuntimeError("boom")), loop.now + 1)
    put(core, probe, loop.now + 2)
    with pytest.raises(RuntimeError):
        loop.advance(3.0)
    loop.advance(3.0)
    assert len(probe.given_at) == 1


def test_flushes_scheduled_in_one_turn_run_once(loop: FakeLoop, core: ConnectionContext) -> None:
    core.schedule_flush()
    core.schedule_flush()
    assert len(loop.ready) == 1
    loop.turn()
    core.schedule_flush()
    assert len(loop.ready) == 1


def test_packets_of_one_turn_are_sent_in_one_write(loop: FakeLoop, core: ConnectionContext) -> None:
    sources = [Wire(core), Wire(core)]
    target = Wire(core)
    for wire in (*sources, target):
        wire.login()
    target.transport.writes.clear()
    for source in sources:
        for packet in (b"a", b"b"):
            source.session.send_packet(target.private.public, packet)
        source.feed_only(b"".join(source.session.data_to_send()))
    assert target.transport.writes == []
    loop.turn()
    assert len(target.transport.writes) == 1
    packets = [each for each in target.messages() if isinstance(each, ReceivedPacket)]
    assert [each.data for each in packets] == [b"a", b"b", b"a", b"b"]


def test_fifty_problems_are_logged_at_once(
    loop: FakeLoop, core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(80):
        core.log_problem("problem %d", i)
    assert warnings(caplog) == [f"problem {i}" for i in range(50)]


def test_the_number_of_problems_not_logged_is_logged_later(
    loop: FakeLoop, core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(80):
        core.log_problem("problem %d", i)
    caplog.clear()
    loop.now += 0.2
    for i in range(3):
        core.log_problem("later %d", i)
    assert warnings(caplog) == [
        "later 0 (30 further problems with peers were not logged)",
        "later 1",
    ]


def test_a_single_line_that_was_cut_is_counted_in_the_singular(
    loop: FakeLoop, core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(51):
        core.log_problem("problem %d", i)
    caplog.clear()
    loop.now += 0.2
    core.log_problem("later")
    assert warnings(caplog) == ["later (1 further problem with peers was not logged)"]


def test_after_a_quiet_hour_no_more_than_fifty_are_logged_at_once(
    loop: FakeLoop, core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    loop.now += 3600
    for i in range(200):
        core.log_problem("problem %d", i)
    assert len(warnings(caplog)) == 50


def test_a_flood_is_logged_with_ten_lines_a_second(
    loop: FakeLoop, core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        core.log_problem("first")
    caplog.clear()
    for _ in range(1000):
        loop.now += 0.01
        core.log_problem("problem")
    assert 90 <= len(warnings(caplog)) <= 100
