"""Steps that scenarios share."""

from __future__ import annotations

import asyncio

from .peer import BOUND, Peer
from .run import Run

__all__ = ["overrun", "until_left", "until_still"]


async def overrun(run: Run, senders: list[Peer], stalled: list[Peer]) -> None:
    """Send until packets of each kind were dropped for clients that do not read."""
    keys = [peer.key for peer in stalled]
    enough = False

    async def look() -> None:
        nonlocal enough
        while not enough:
            totals = await run.relay.totals()
            enough = sum(totals.dropped.values()) > 20 * len(stalled)

    async def send(sender: Peer) -> None:
        while not enough:
            for key in keys:
                disco = run.rng.random() < 0.3
                await sender.send_run(key, [run.rng.randint(82, 64 * 1024)], disco=disco)
            await sender.ping()

    await asyncio.gather(look(), *map(send, senders))


async def until_left(run: Run, count: int) -> None:
    """Wait until the relay has so many clients."""
    async with asyncio.timeout(BOUND):
        while await run.relay.clients() > count:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.02)


async def until_still(run: Run) -> None:
    """Wait until no client sends anything any more."""
    before = -1
    while before != run.ledger.stamped.packets:
        before = run.ledger.stamped.packets
        await asyncio.sleep(0.1)
