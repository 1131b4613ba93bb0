"""A client that stops reading: what it does not get, when it is closed, and how that counts."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from pyderp.wire.messages import PeerGone
from tests.aio import dial
from tests.interop.relays import Relay

from .support import BOUND, KINDS, GetRelay, Metrics, difference, dropped, metrics

PACKET = 16 * 1024
QUEUE = 32
TIMEOUTS = "derp_sclient_write_timeouts"
HEAD, WRITE_ERROR, GONE = (dropped(r) for r in ("queue_head", "write_error", "gone_disconnected"))


@dataclass(frozen=True)
class Seen:
    """How one relay dealt with it."""

    counted: dict[str, float]
    seconds: float
    """From when the last buffer was full to the end of the connection."""


async def stall(relay: Relay) -> Seen:
    address = (relay.address, relay.port)
    sender, other = await dial.connect(address), await dial.connect(address)
    slow = await dial.connect(address, via=dial.Via(receive_buffer=4096))
    # So that the sender hears when the relay has given it up.
    slow.send(sender, b"hello")
    assert await sender.packet() == b"hello"
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        before = await metrics(relay)
        full = await fill(relay, sender, slow, other, before)
        async with asyncio.timeout(BOUND):
            while (gone := await sender.wait_for(PeerGone)).peer != slow.key:
                pass
        seconds = time.monotonic() - full
        assert gone.reason == 0
        await dial.passes(sender, other)
        async with asyncio.timeout(BOUND):
            while (after := await metrics(relay))[TIMEOUTS] == before[TIMEOUTS]:
                pass
        names = [TIMEOUTS, HEAD, WRITE_ERROR, GONE]
        return Seen(difference(before, after, names), seconds)
    finally:
        for client in (sender, other, slow):
            await client.aclose()


async def fill(
    relay: Relay, sender: dial.Client, slow: dial.Client, other: dial.Client, before: Metrics
) -> float:
    """Send until the oldest packets are dropped for newer ones; others do not wait meanwhile."""
    while (await metrics(relay))[HEAD] < before[HEAD] + QUEUE:
        for _ in range(QUEUE):
            sender.send(slow, os.urandom(PACKET))
        await sender.ping()
        await asyncio.wait_for(dial.passes(sender, other), 1)
    return time.monotonic()


def test_a_slow_reader_is_closed_after_two_seconds(relays: GetRelay) -> None:
    """Both at once, as each takes its time; ours counts what the kernel did not take as well."""

    async def main() -> None:
        pair = [relays(kind, "plain") for kind in KINDS]
        theirs, ours = await asyncio.gather(*map(stall, pair))
        for seen in (theirs, ours):
            assert seen.counted[TIMEOUTS] == 1
            assert seen.counted[HEAD] >= QUEUE
            assert 0.5 < seen.seconds < 6
        # The packet under way, and a full queue.
        assert theirs.counted[WRITE_ERROR] == 1
        assert theirs.counted[GONE] == QUEUE
        # The queue is bounded by bytes as well, and so is what waits for the kernel.
        assert ours.counted[WRITE_ERROR] >= 1
        assert 1 <= ours.counted[GONE] <= QUEUE
        assert (ours.counted[WRITE_ERROR] + ours.counted[GONE]) * PACKET <= 2 * 256 * 1024

    asyncio.run(main())
