"""A graceful stop: all clients get Restarting, and are closed one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest

import pyderp
from pyderp.defaults import LINGER_TIMEOUT
from pyderp.relay.connection import EndReason, How
from pyderp.server.app import relay as relay_module
from pyderp.server.conn.context import ConnectionContext
from pyderp.wire.messages import Restarting
from tests.server.dial import Client, clients, connect, drained, hang_up, open_stream, passes


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when the loop would wait, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        selector = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def at_once(timeout: float | None) -> object:
            self.now += timeout or 0.0
            return select(0)

        selector.select = at_once

    def time(self) -> float:
        return self.now


class Closing:
    """A connection that records when it is closed."""

    def __init__(self, number: int, closes: list[tuple[float, int]]) -> None:
        self.number = number
        self.closes = closes

    def end(self, reason: EndReason, how: How) -> None:
        self.closes.append((asyncio.get_running_loop().time(), self.number))


class FakeContext:
    """The attributes of `ConnectionContext` that the drain uses."""

    def __init__(self, protocols: list[Closing]) -> None:
        self.loop = asyncio.get_running_loop()
        self.protocols = protocols


def close_times(count: int, drain: float) -> tuple[list[float], list[int]]:
    """When `count` connections are closed, and in which order, on a virtual clock."""
    closes: list[tuple[float, int]] = []

    async def main() -> None:
        core = FakeContext([Closing(number, closes) for number in range(count)])
        await relay_module._close_spread(cast("ConnectionContext", core), drain)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return [when for when, _ in closes], [number for _, number in closes]


def busiest(closes: list[float], window: float) -> int:
    """The most closes in any window."""
    ordered = sorted(closes)
    most = start = 0
    for end, when in enumerate(ordered):
        while when - ordered[start] >= window:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.parametrize("count", [100, 1000, 5000])
def test_no_100_ms_of_three_seconds_see_more_than_5_percent_of_the_closes(count: int) -> None:
    closes, _ = close_times(count, 5.0)
    assert len(closes) == count
    assert busiest(closes, 0.1) <= count * 0.05


@pytest.mark.parametrize("drain", [2.0, 5.0, 60.0])
def test_closes_are_spread_evenly_and_leave_time_for_last_bytes(drain: float) -> None:
    closes, _ = close_times(1000, drain)
    spread = drain - min(LINGER_TIMEOUT, 0.4 * drain)
    assert closes[0] <= spread * 0.1
    assert spread * 0.9 <= closes[-1] <= spread + 0.02
    for tenth in range(10):
        begin, end = spread * tenth / 10, spread * (tenth + 1) / 10
        assert 80 <= sum(begin <= when < end for when in closes) <= 120


def test_the_order_of_the_closes_is_random() -> None:
    _, order = close_times(1000, 1.0)
    _, again = close_times(1000, 1.0)
    assert sorted(order) == list(range(1000))
    assert order != again
    early = order[:500]
    assert 150 < sum(number < 500 for number in early) < 350


def test_one_connection_is_closed_within_the_time() -> None:
    closes, _ = close_times(1, 5.0)
    assert closes[0] <= 5.02


async def test_without_connections_the_drain_ends_at_once() -> None:
    relay = pyderp.Relay()
    await relay.start()
    await relay.aclose(drain=3600)


async def test_a_drain_of_zero_sends_restarting_and_closes_all_at_once() -> None:
    relay = pyderp.Relay()
    await relay.start()
    async with clients(relay, 20) as opened:
        await relay.aclose(drain=0)
        assert not relay._running().protocols
        for client in opened:
            restarting = await client.wait_for(Restarting)
            assert (restarting.reconnect_in, restarting.try_for) == (0, 60)
            await client.closed()


async def test_packets_pass_until_a_connection_is_closed() -> None:
    relay = pyderp.Relay()
    await relay.start()
    async with clients(relay, 10) as opened:
        closing = asyncio.ensure_future(relay.aclose(drain=1.0))
        served = 0
        waits = set()
        for client in opened:
            waits.add((await client.wait_for(Restarting)).reconnect_in)
            with contextlib.suppress(EOFError, OSError):
                await passes(client, client)
                served += 1
        assert served >= 5
        assert len(waits) > 1, "each has its own time to come back"
        assert all(0 <= seconds <= 1.0 for seconds in waits)
        await closing


async def test_connections_without_a_login_are_closed_too() -> None:
    relay = pyderp.Relay()
    await relay.start()
    streams = [await open_stream(relay.address) for _ in range(5)]
    await relay.aclose(drain=0.1)
    for reader, writer in streams:
        assert await drained(reader) == b""
        await hang_up(writer)


async def test_a_client_that_leaves_during_the_drain_does_not_disturb_it() -> None:
    relay = pyderp.Relay()
    await relay.start()
    async with clients(relay, 10) as opened:
        closing = asyncio.ensure_future(relay.aclose(drain=0.5))
        for client in opened[:5]:
            await client.wait_for(Restarting)
            await client.aclose()
        await closing
        assert not relay._running().protocols


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_a_thousand_clients_are_closed_one_by_one_over_the_time() -> None:
    count, drain = 1000, 5.0

    async def follow(client: Client, waits: list[float], closes: list[float]) -> None:
        waits.append((await client.wait_for(Restarting)).reconnect_in)
        await client.closed()
        closes.append(time.monotonic())

    async def look(looks: list[float]) -> None:
        while True:
            looks.append(time.monotonic())
            await asyncio.sleep(0.01)

    relay = pyderp.Relay()
    await relay.start()
    opened = [await connect(relay.address) for _ in range(count)]
    waits: list[float] = []
    closes: list[float] = []
    following = [asyncio.ensure_future(follow(each, waits, closes)) for each in opened]
    looks: list[float] = []
    looking = asyncio.ensure_future(look(looks))
    await relay.aclose(drain=drain)
    await asyncio.gather(*following)
    looking.cancel()
    # Where this process waits for a processor, its closes come later.
    pause = max(after - before for before, after in pairwise(looks))
    assert looks[-1] - looks[0] < drain + 1 + pause
    for each in opened:
        await each.aclose()
    assert all(0 <= seconds <= drain for seconds in waits)
    assert len(set(waits)) > count / 4, "each has its own"
    assert max(waits) > drain * 0.9
    assert min(waits) < drain * 0.1
    spread = drain - LINGER_TIMEOUT
    window = spread / 50
    assert busiest(closes, window) <= 2 * count * (window + pause) / spread


async def test_a_client_that_may_end_on_it_gets_no_restarting_frame() -> None:
    """Its connection just ends."""
    relay = pyderp.Relay()
    await relay.start()
    async with clients(relay, 2) as (bare, known):
        bare_connection = next(iter(relay._running().router.registry.connections_of(bare.key.raw)))
        bare_connection.takes_health = False
        await relay.aclose(drain=0)
        assert isinstance(await known.receive(), Restarting)
        with pytest.raises(EOFError):
            await bare.receive()
