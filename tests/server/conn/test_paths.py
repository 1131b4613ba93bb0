"""Dead paths are detected by what the kernel waits for, on a fake clock; see also tests/fault."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter

import pytest

from pyderp.relay.connection import EndReason
from pyderp.server.conn.context import TICK, ConnectionContext
from pyderp.server.conn.kernel import Unanswered, unanswered
from pyderp.server.conn.watch import PathWatch
from tests.server.fakes import FakeLoop, Wire, make_context

TIMEOUT = 15.0
SLACK = TIMEOUT / 4 + 1


class Kernel:
    """What the kernel reports of each connection; by default it waits for no acknowledgement."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waits: dict[asyncio.BaseTransport, Unanswered | None] = {}
        self.asked_at: Counter[float] = Counter()

    @property
    def asked(self) -> int:
        return self.asked_at.total()

    def ask(self, transport: asyncio.BaseTransport | None) -> Unanswered | None:
        self.asked_at[self.loop.time()] += 1
        return None if transport is None else self.waits.get(transport, Unanswered(False, 3600.0))


@pytest.fixture
def core() -> ConnectionContext:
    return make_context(FakeLoop())


@pytest.fixture
def kernel(core: ConnectionContext) -> Kernel:
    kernel = Kernel(core.loop)
    paths = PathWatch(core.protocols, core.loop, TIMEOUT, kernel.ask)
    core.every_tick(paths.tick)
    return kernel


def logged_in(core: ConnectionContext, count: int) -> list[Wire]:
    wires = [Wire(core) for _ in range(count)]
    for wire in wires:
        wire.login()
    return wires


def go_silent(kernel: Kernel, wire: Wire, seconds: float) -> None:
    """Let the client acknowledge nothing, and advance the clock, a second at a time."""
    for second in range(int(seconds)):
        kernel.waits[wire.transport] = Unanswered(True, float(second))
        wire.loop.advance(1.0)


def test_a_path_that_is_dead_for_the_timeout_is_ended_counted_and_logged(
    core: ConnectionContext, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    dead, other = logged_in(core, 2)
    go_silent(kernel, dead, TIMEOUT - 1)
    assert not dead.gone
    for second in (15.0, 16.0, 17.0, 18.0, 19.0):
        kernel.waits[dead.transport] = Unanswered(True, second)
        dead.loop.advance(1.0)
    assert dead.gone
    assert not other.gone
    assert core.router.counters.ends[EndReason.DEAD_PATH] == 1
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "acknowledged nothing for" in line


def test_an_acknowledgement_restarts_the_timeout(core: ConnectionContext, kernel: Kernel) -> None:
    (wire,) = logged_in(core, 1)
    for _ in range(4):
        go_silent(kernel, wire, TIMEOUT - 1)
        kernel.waits[wire.transport] = Unanswered(False, 0.0)
        wire.loop.advance(1.0)
    assert not wire.gone


def test_a_connection_idle_for_long_has_the_full_timeout(
    core: ConnectionContext, kernel: Kernel
) -> None:
    """Its last acknowledgement is old, but only now does the kernel wait for one."""
    (wire,) = logged_in(core, 1)
    wire.loop.advance(3.0)
    kernel.waits[wire.transport] = Unanswered(True, 50.0)
    wire.loop.advance(TIMEOUT - SLACK)
    assert not wire.gone
    wire.loop.advance(2 * SLACK)
    assert wire.gone


def test_a_client_with_a_closed_window_that_answers_probes_stays(
    core: ConnectionContext, kernel: Kernel
) -> None:
    (wire,) = logged_in(core, 1)
    for probe in range(40):
        kernel.waits[wire.transport] = Unanswered(bool(probe % 4 == 0), 20.0)
        wire.loop.advance(1.0)
    assert not wire.gone


def test_each_connection_is_checked_four_times_within_the_timeout(
    core: ConnectionContext, kernel: Kernel
) -> None:
    logged_in(core, 40)
    core.router.flush()
    kernel.asked_at.clear()
    loop = core.loop
    assert isinstance(loop, FakeLoop)
    loop.advance(TIMEOUT)
    assert 3 * 40 <= kernel.asked <= 5 * 40


def test_only_a_few_connections_are_checked_in_a_turn(
    core: ConnectionContext, kernel: Kernel
) -> None:
    """Packets wait while the kernel is asked, so thousands must not be checked in a row."""
    logged_in(core, 3000)
    core.router.flush()
    loop = core.loop
    assert isinstance(loop, FakeLoop)
    loop.advance(TIMEOUT / 4)
    assert 2800 <= kernel.asked <= 3100
    assert max(kernel.asked_at.values()) <= 32


def test_suspected_connections_are_checked_a_few_at_a_time_too(
    core: ConnectionContext, kernel: Kernel
) -> None:
    """When a whole network fails, all of its connections end in time."""
    wires = logged_in(core, 1000)
    core.router.flush()
    loop = core.loop
    assert isinstance(loop, FakeLoop)
    begin = loop.time()
    while loop.time() - begin < TIMEOUT + 2 * SLACK:
        silent = Unanswered(True, loop.time() - begin)
        kernel.waits = dict.fromkeys((wire.transport for wire in wires), silent)
        loop.advance(TICK)
    assert all(wire.gone for wire in wires)
    assert max(kernel.asked_at.values()) <= 32


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO")
def test_the_kernel_waits_for_nothing_on_a_healthy_connection() -> None:
    class Transport(asyncio.BaseTransport):
        def is_closing(self) -> bool:
            return False

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        waits = unanswered(Transport({"socket": client}))
        assert waits is not None
        assert not waits.sent_again
    assert unanswered(None) is None
    assert unanswered(Transport()) is None
