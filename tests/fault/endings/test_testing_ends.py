"""The test kit's relay leaves nothing of a connection, at any stage and for any cause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import pytest

from pyderp.testing import FaultyRelay
from tests.leftovers import none_left
from tests.server.certificates import trusting_nobody
from tests.server.dial import Via, connect, hang_up, open_stream, until_gone
from tests.waiting import until

from .stages import Line, line

Reach: TypeAlias = Callable[[FaultyRelay, Via], Awaitable[Line]]
Cause: TypeAlias = Callable[[FaultyRelay, Line], Awaitable[object]]


async def silent(relay: FaultyRelay, via: Via) -> Line:
    reader, writer = await open_stream(relay.address, via)
    await until(lambda: relay.connections)
    return Line(reader, writer)


async def logged_in(relay: FaultyRelay, via: Via) -> Line:
    client = await connect(relay.address, via=via)
    client.send(client, bytes(1000))
    return line(client)


async def late(relay: FaultyRelay, via: Via) -> Line:
    """Its packet is still on its way."""
    reached = await logged_in(relay, via)
    relay.latency = 0.05
    assert reached.client is not None
    reached.client.send(reached.client, bytes(1000))
    return reached


async def frozen(relay: FaultyRelay, via: Via) -> Line:
    reached = await logged_in(relay, via)
    relay.freeze()
    return reached


async def nothing(_: FaultyRelay, __: Line) -> None:
    """The client closes; the caller does that in any case."""


CAUSES: Final[dict[str, Cause]] = {
    "close": nothing,
    "cut": lambda relay, _: _done(relay.cut()),
    "reset": lambda relay, _: _done(relay.cut(reset=True)),
    "cut after": lambda relay, line: _cut_after(relay, line),
    "junk": lambda relay, _: _done(relay.junk("oversized")),
}
STAGES: Final[dict[str, Reach]] = {
    each.__name__: each for each in (silent, logged_in, late, frozen)
}


async def _done(_: object) -> None:
    pass


async def _cut_after(relay: FaultyRelay, line: Line) -> None:
    """In the middle of the next frame to a client, if there is one."""
    relay.cut_after(1)
    if line.client is not None:
        line.client.send(line.client, b"x")


async def one_ending(relay: FaultyRelay, via: Via, stage: str, cause: str) -> None:
    reached = await STAGES[stage](relay, via)
    await CAUSES[cause](relay, reached)
    relay.thaw()
    relay.latency = 0.0
    relay._plan.cut_after = None
    await hang_up(reached.writer)
    del reached
    await until(lambda: not relay.connections)
    await until_gone(relay.relay)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("on_loop", "tls"), [("asyncio", False), ("uvloop", True)], indirect=["on_loop"]
)
async def test_nothing_is_left_of_a_connection(tls: bool, stage: str, cause: str) -> None:
    via = Via(tls=trusting_nobody() if tls else None)

    async with FaultyRelay(tls=tls) as relay:
        await one_ending(relay, via, stage, cause)
        async with none_left():
            await one_ending(relay, via, stage, cause)
