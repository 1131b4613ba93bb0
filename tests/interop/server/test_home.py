"""A relay counts homes at once, and moves only later than five seconds after the login."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.interop.relays import KINDS, Relay
from tests.server import dial

from .support import BOUND, GetRelay, difference, metrics

HOMES = "derp_current_home_connections"
IN, OUT = "derp_home_moves_in", "derp_home_moves_out"
GRACE = 5.0


async def play(relay: Relay) -> None:
    before = await metrics(relay)

    async def counted() -> list[float]:
        return list(difference(before, await metrics(relay), [HOMES, IN, OUT]).values())

    async def note(client: dial.Client, preferred: bool) -> None:
        client.session.note_preferred(preferred)
        client.write()
        await client.ping()

    start = time.monotonic()
    client = await dial.connect((relay.address, relay.port))
    logged_in = time.monotonic()
    for preferred in (True, True, False, True):
        await note(client, preferred)
        assert await counted() == [preferred, 0, 0]
    assert time.monotonic() - start < GRACE, "the machine is too busy for this"
    moves = 0.0
    async with asyncio.timeout(BOUND):
        while not moves:
            await asyncio.sleep(0.1)
            for preferred in (False, True):
                await note(client, preferred)
            homes, came, went = await counted()
            assert homes == 1
            # The five seconds may be over between the two.
            assert went in (came, came - 1)
            moves = came
    assert time.monotonic() - start >= GRACE
    assert time.monotonic() - logged_in < GRACE + 5
    await note(client, True)
    assert (await counted())[:2] == [1, moves]
    await client.aclose()
    async with asyncio.timeout(BOUND):
        while (await counted())[0]:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.02)
    _, came, went = await counted()
    assert went in (came, came - 1), "leaving is no move"


@pytest.mark.slow
def test_moves_count_after_five_seconds(relays: GetRelay) -> None:
    """All at once, as each takes its time."""

    async def main() -> None:
        await asyncio.gather(*(play(relays(kind, "plain")) for kind in KINDS))

    asyncio.run(main())
