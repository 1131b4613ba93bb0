"""Round-trip times, sampled for the metrics."""

from __future__ import annotations

import sys

import pytest

import pyderp
from pyderp.server.conn import watch
from pyderp.server.conn.context import TICK, ConnectionContext
from pyderp.server.conn.kernel import NON_TCP
from pyderp.server.conn.watch import RttSampler
from tests.server.dial import clients
from tests.server.fakes import FakeLoop, Wire, make_context

PERIOD = 10.0


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    core = make_context(loop)
    sampler = RttSampler(core.protocols, core.router.counters, core.loop)
    core.every_tick(sampler.tick)
    return core


def join(core: ConnectionContext, count: int) -> list[Wire]:
    wires = [Wire(core) for _ in range(count)]
    for wire in wires:
        wire.login()
    return wires


def taken(core: ConnectionContext) -> int:
    """Return the number of samples so far; a fake transport has no TCP socket."""
    samples = core.router.counters.tcp_rtt
    assert samples.keys() <= {NON_TCP}
    return samples.get(NON_TCP, 0)


def test_each_client_is_sampled_once_in_ten_seconds(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    join(core, 3)
    loop.advance(PERIOD - TICK)
    assert taken(core) == 0
    loop.advance(TICK)
    assert taken(core) == 3
    loop.advance(PERIOD - TICK)
    assert taken(core) == 3
    loop.advance(TICK)
    assert taken(core) == 6


def test_a_connection_without_a_login_is_not_sampled(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    join(core, 1)
    loop.advance(PERIOD - TICK)
    Wire(core).upgrade()
    loop.advance(TICK)
    assert taken(core) == 1


def test_many_clients_are_sampled_over_several_ticks(
    core: ConnectionContext, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_A_TICK", 2)
    wires = join(core, 5)
    loop.advance(PERIOD)
    assert taken(core) == 2
    loop.advance(TICK)
    assert taken(core) == 4
    loop.advance(5 * TICK)
    assert taken(core) == 5
    loop.advance(PERIOD - 6 * TICK)
    assert taken(core) == 7
    for wire in wires:
        wire.transport.abort()
    loop.advance(PERIOD)
    assert taken(core) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO")
async def test_a_tcp_connection_has_a_round_trip_time() -> None:
    config = pyderp.RelayConfig(rtt_stats=True)
    async with pyderp.Relay(config) as relay, clients(relay, 2):
        core = relay._running()
        (tick,) = (call for call in core._on_tick if call.__qualname__ == "RttSampler.tick")
        tick(core.loop.time() + PERIOD)
        samples = core.router.counters.tcp_rtt
        assert sum(samples.values()) == 2
        assert not samples.keys() & {NON_TCP, "error"}
