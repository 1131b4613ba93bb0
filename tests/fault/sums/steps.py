"""Steps that scenarios share."""

from __future__ import annotations

import asyncio

from pyderp.keys import NodePublic

from .packets import HEAD_SIZE
from .peer import BOUND, Peer
from .run import LARGEST, Run

__all__ = ["overrun", "until_dropped", "until_left", "until_nothing_waits", "until_still"]


async def overrun(
    run: Run, senders: list[Peer], stalled: list[Peer], *, largest: int = LARGEST
) -> None:
    """Send until packets were dropped for clients that do not read."""
    keys = [peer.key for peer in stalled]
    await until_dropped(run, senders, keys, 20 * len(stalled), largest=largest)


async def until_dropped(
    run: Run,
    senders: list[Peer],
    keys: list[NodePublic],
    packets: int,
    *,
    largest: int = LARGEST,
) -> None:
    """Send to these keys until the relay has dropped so many packets more than before.

    Args:
        largest: bytes of a packet at most; with smaller ones more leave in one write.
    """
    count = max(1, LARGEST // largest // 2)
    before = sum((await run.relay.totals()).dropped.values())
    enough = False

    async def look() -> None:
        nonlocal enough
        while not enough:
            totals = await run.relay.totals()
            enough = sum(totals.dropped.values()) - before > packets

    async def send(sender: Peer) -> None:
        while not enough:
            for key in keys:
                disco = run.rng.random() < 0.3
                sizes = [run.rng.randint(HEAD_SIZE, largest) for _ in range(count)]
                await sender.send_run(key, sizes, disco=disco)
            await sender.ping()

    await asyncio.gather(look(), *map(send, senders))


async def until_left(run: Run, count: int) -> None:
    """Wait until the relay has this many clients."""
    async with asyncio.timeout(BOUND):
        while await run.relay.clients() > count:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.02)


async def until_nothing_waits(run: Run) -> None:
    """Wait until no packet waits for a client in the relay, up to a limit."""
    for _ in range(100):
        if not (await run.relay.totals()).unaccounted:
            return
        await asyncio.sleep(0.02)


async def until_still(run: Run) -> None:
    """Wait until no client sends."""
    before = -1
    while before != run.ledger.stamped.packets:
        before = run.ledger.stamped.packets
        await asyncio.sleep(0.1)
