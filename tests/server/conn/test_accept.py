"""Which connections are accepted: a rate of accepts, and a limit of file descriptors."""

from __future__ import annotations

import asyncio
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.server.conn.accept import AcceptGate, log_accept_errors
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.conn.kernel import open_files, raise_file_limit
from tests.server.dial import (
    Client,
    clients,
    connect,
    drained,
    hang_up,
    open_stream,
    passes,
    until_gone,
)
from tests.server.fakes import FakeLoop, make_context
from tests.server.ways import over_tls


@contextmanager
def file_limit(files: int) -> Iterator[None]:
    """Limit the open files of this process within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def accepted_of(gate: AcceptGate, attempts: int) -> int:
    made: list[object] = []

    def make() -> asyncio.BaseProtocol:
        made.append(None)
        return asyncio.Protocol()

    factory = gate.guard(make)
    for _ in range(attempts):
        factory()
    return len(made)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop)


def test_without_a_limit_all_connections_are_accepted(core: ConnectionContext) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=math.inf, burst=1)
    assert accepted_of(gate, 500) == 500
    assert (gate.accepted, gate.rejected, gate.shed) == (500, 0, 0)


def test_a_burst_is_accepted_at_once_and_then_the_rate(
    core: ConnectionContext, loop: FakeLoop
) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=10, burst=5)
    assert accepted_of(gate, 8) == 5
    loop.now += 0.31
    assert accepted_of(gate, 8) == 3
    loop.now += 3600
    assert accepted_of(gate, 8) == 5
    assert (gate.accepted, gate.rejected, gate.shed) == (13, 11, 0)


def test_a_burst_of_zero_accepts_no_connection(core: ConnectionContext, loop: FakeLoop) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=10, burst=0)
    loop.now += 3600
    assert accepted_of(gate, 3) == 0


def test_the_side_listener_has_no_rate_limit(core: ConnectionContext) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=1, burst=1)
    factory = gate.guard(asyncio.Protocol, limited=False)
    assert all(type(factory()) is asyncio.Protocol for _ in range(5))


def test_a_quarter_of_a_low_file_limit_is_reserved(core: ConnectionContext) -> None:
    with file_limit(200):
        gate = AcceptGate(core.loop, core.protocols, limit=math.inf, burst=1)
    assert gate.most <= 200 - 50
    with file_limit(4096):
        assert AcceptGate(core.loop, core.protocols, limit=math.inf, burst=1).most <= 4096 - 64


@pytest.mark.parametrize(("shed", "text"), [(1, "1 connection"), (2, "2 connections")])
def test_the_log_has_the_number_of_connections_that_were_shed(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture, shed: int, text: str
) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=math.inf, burst=1)
    gate.most = 0
    gate.shed = shed - 1
    accepted_of(gate, 1)
    assert caplog.messages == [f"out of file descriptors: {text} shed so far"]


def test_rejections_are_logged_at_intervals(
    core: ConnectionContext, loop: FakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    gate = AcceptGate(core.loop, core.protocols, limit=1, burst=1)
    accepted_of(gate, 100)
    assert len(caplog.records) == 1
    loop.now += 10
    accepted_of(gate, 100)
    assert len(caplog.records) == 2


async def test_connections_beyond_the_burst_are_closed_and_the_relay_continues(
    tls: ManualTLS,
) -> None:
    # So slow a rate that no further connection is accepted within the test.
    config = RelayConfig(tls=tls, accept_limit=1e-6, accept_burst=2)
    async with pyderp.Relay(config) as relay, clients(relay, 2, via=over_tls()) as both:
        for _ in range(3):
            with pytest.raises((EOFError, OSError)):
                await connect(relay.address, via=over_tls())
        await passes(*both)


async def test_near_the_file_limit_connections_are_closed_and_the_relay_recovers() -> None:
    async with pyderp.Relay() as relay, clients(relay, 2) as both:
        assert relay._parts is not None
        gate = relay._parts.accepts
        # Like a low file limit, without limiting the test itself.
        gate.most = 5
        more = [await connect(relay.address) for _ in range(3)]
        reader, writer = await open_stream(relay.address)
        assert await drained(reader) == b""
        await hang_up(writer)
        assert gate.shed == 1
        await passes(*both)
        for each in more:
            await each.aclose()
        again = await _connect_when_accepted(relay)
        await passes(both[0], again)
        await again.aclose()
    await until_gone(relay)


async def _connect_when_accepted(relay: pyderp.Relay) -> Client:
    async with asyncio.timeout(10):
        while True:
            try:
                return await connect(relay.address)
            except (EOFError, OSError):
                await asyncio.sleep(0.01)


def test_the_file_limit_is_raised_to_the_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with file_limit(min(1000, hard)):
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard


def test_open_files_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    with open("/dev/null", "rb"):
        assert open_files() == before + 1

    def refuse(_: str) -> list[str]:
        raise OSError

    monkeypatch.setattr("os.listdir", refuse)
    assert open_files() == 0


def test_connections_of_the_same_turn_count(core: ConnectionContext, loop: FakeLoop) -> None:
    """asyncio accepts many at once, before the core knows of the first."""
    gate = AcceptGate(core.loop, core.protocols, limit=math.inf, burst=1)
    gate.most = 3
    assert accepted_of(gate, 10) == 3
    assert gate.shed == 7
    for callback, args in loop.ready:
        callback(*args)
    assert accepted_of(gate, 10) == 3  # the earlier ones never reached `core.protocols`


async def test_accept_errors_are_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    log_accept_errors(loop)
    error = OSError(24, "Too many open files")
    for _ in range(1000):
        message = "socket.accept() out of system resource"
        loop.call_exception_handler({"message": message, "exception": error})
    message = "Exception in callback BaseSelectorEventLoop._start_serving(…)"
    loop.call_exception_handler({"message": message})
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections for now: [Errno 24] Too many open files"
    ]
    loop.call_exception_handler({"message": "something else"})
    assert caplog.records[1].getMessage().startswith("something else")
    loop.set_exception_handler(handler)
