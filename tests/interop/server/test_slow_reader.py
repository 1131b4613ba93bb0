"""A client that stops reading: which packets it loses, when it is closed, and how that counts."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from pyderp.defaults import SEND_QUEUE_BYTES
from tests.interop.relays import KINDS, Relay
from tests.server import dial

from .support import BOUND, GetRelay, difference, dropped, metrics

PACKET = 16 * 1024
QUEUE = 32
TIMEOUTS = "derp_sclient_write_timeouts"
HEAD, WRITE_ERROR, GONE = (dropped(r) for r in ("queue_head", "write_error", "gone_disconnected"))
WRITE_TIMEOUT = dropped("write_timeout")
"""Of pyderp only."""


@dataclass(frozen=True)
class Seen:
    """What one relay did with it."""

    counted: dict[str, float]
    seconds: float
    """From the first packet to the end of the connection."""


async def stall(relay: Relay) -> Seen:
    address = (relay.address, relay.port)
    sender, other = await dial.connect(address), await dial.connect(address)
    slow = await dial.connect(address, via=dial.Via(receive_buffer=4096))
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        before = await metrics(relay)
        start = time.monotonic()
        # Until the oldest packets are dropped for newer ones. Other clients do not wait meanwhile.
        while (await metrics(relay))[HEAD] < before[HEAD] + QUEUE:
            for _ in range(QUEUE):
                sender.send(slow, os.urandom(PACKET))
            await sender.ping()
            await dial.passes(sender, other)
        async with asyncio.timeout(BOUND):
            while (await metrics(relay))[TIMEOUTS] == before[TIMEOUTS]:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.02)
        seconds = time.monotonic() - start
        await dial.passes(sender, other)
        after = await metrics(relay)
        names = [TIMEOUTS, HEAD, WRITE_ERROR, GONE]
        if WRITE_TIMEOUT in after:
            names.append(WRITE_TIMEOUT)
        return Seen(difference(before, after, names), seconds)
    finally:
        for client in (sender, other, slow):
            await client.aclose()


def test_a_slow_reader_is_closed_after_two_seconds(relays: GetRelay) -> None:
    """All at once, as each takes its time. The packet being written and the queue are counted."""

    async def main() -> None:
        *derpers, ours = await asyncio.gather(*(stall(relays(kind, "plain")) for kind in KINDS))
        for seen in (*derpers, ours):
            assert seen.counted[TIMEOUTS] == 1
            assert seen.counted[HEAD] >= QUEUE
            assert 2 <= seen.seconds < BOUND / 2
        for theirs in derpers:
            assert theirs.counted[WRITE_ERROR] == 1
            assert theirs.counted[GONE] == QUEUE
        # Ours has a reason of its own for both, and bounds what waits by bytes, too, in the queue
        # and for the kernel together; of a packet the kernel may have taken a part.
        lost = ours.counted[WRITE_TIMEOUT]
        assert ours.counted[WRITE_ERROR] == ours.counted[GONE] == 0
        assert SEND_QUEUE_BYTES / 2 < lost * PACKET <= SEND_QUEUE_BYTES + PACKET

    asyncio.run(main())
