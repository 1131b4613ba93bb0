"""Go's ``derper`` and pyderp's relay, side by side, with the same file of rate limits."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.server.dial import BOUND, Client, connect, hang_up
from tests.waiting import until

from .relays import KINDS, Kind, running

if TYPE_CHECKING:
    from pathlib import Path

    from .relays import Relay

pytestmark = pytest.mark.timeout(90)

RATE: Final = 20_000
BURST: Final = 65_568
"""The minimum, which is also the default."""
LIMITS: Final = json.dumps({"PerClientRateLimitBytesPerSec": RATE})
PACKET: Final = bytes(1000)
FRAME: Final = 32 + len(PACKET)
"""What a packet costs: the header of its frame is free."""
AT_ONCE: Final = 16
"""Packets that are under way at a time."""
READ: Final = 8 * 1024 + 2 * (5 + FRAME)
"""What one read brings, at most; pyderp relays it, and the client waits afterwards."""


async def deliver(sender: Client, receiver: Client, count: int) -> float:
    """Send packets as fast as the relay takes them; returns the time when the last has arrived.

    A few at a time: a relay drops what exceeds its queue of 32 packets.
    """
    for start in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - start)
        for _ in range(some):
            sender.session.send_packet(receiver.key, PACKET)
        sender.write()
        for _ in range(some):
            assert await receiver.packet() == PACKET
    return time.monotonic()


def reload(relay: Relay, path: Path, content: str) -> None:
    """Have a relay read its file again, with this content."""
    path.write_text(content)
    relay.process.send_signal(signal.SIGHUP)


async def logged(relay: Relay, line: str, times: int = 1) -> None:
    """Wait until a relay has logged a line this many times."""
    await until(lambda: relay.log_text().count(line) >= times)


@pytest.mark.parametrize("kind", KINDS)
def test_packets_above_the_burst_come_at_the_rate(kind: Kind, tmp_path: Path) -> None:
    """No packet is lost, and a file that is read again applies to connected clients."""
    path = tmp_path / "rates.json"
    path.write_text(LIMITS)
    with running(kind, "plain", tmp_path, options=[f"--rate-config={path}"]) as relay:
        applied = f"rate config applied: client-rate={RATE} bytes/sec, client-burst={BURST} bytes"
        assert applied in relay.log_text()
        asyncio.run(check(relay, path, applied))


async def check(relay: Relay, path: Path, applied: str) -> None:
    address = ("127.0.0.1", relay.port)
    sender, receiver = await connect(address), await connect(address)
    try:
        # 109,392 bytes: the last frame is paid for after 2.19 seconds.
        begin = time.monotonic()
        end = await deliver(sender, receiver, 106)
        assert end - begin >= (106 * FRAME - BURST - READ) / RATE
        assert end - begin < BOUND
        # A file that cannot be used changes nothing: the bucket is still empty.
        begin = end
        reload(relay, path, "{")
        await logged(relay, "not JSON" if relay.kind == "pyderp" else "parsing rate config")
        end = await deliver(sender, receiver, 40)
        assert end - begin >= (40 * FRAME - 2 * READ) / RATE
        # The same limit again is a full bucket.
        reload(relay, path, LIMITS)
        await logged(relay, applied, times=2)
        begin = time.monotonic()
        end = await deliver(sender, receiver, BURST // FRAME)
        assert end - begin < BURST / RATE
        reload(relay, path, "{}")
        await logged(relay, "rate config applied: client-rate=0 bytes/sec, client-burst=0 bytes")
        begin = time.monotonic()
        end = await deliver(sender, receiver, 200)
        assert end - begin < (200 * FRAME - BURST) / RATE
    finally:
        for client in (sender, receiver):
            await hang_up(client.writer)
