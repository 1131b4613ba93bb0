"""A client that reads nothing half-closes while a write to it is stuck: when peers get PeerGone."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from pyderp.keys import NodePrivate
from pyderp.wire.frames import PeerGoneReason
from pyderp.wire.messages import PeerGone
from tests.fault.sums.packets import Ledger
from tests.fault.sums.peer import Peer
from tests.fault.sums.stack import KINDS as WAYS
from tests.interop.relays import NEWER, Kind, Relay, Setup, running
from tests.server import dial
from tests.server.ways import NAME, over_tls

from .support import BOUND

_PACKETS: Final = 500
_PACKET: Final = 20_000
"""Bytes; a websocket message of more than 32 KiB is refused by derper."""
_FAR_BEYOND: Final = f"--tcp-write-timeout={10 * BOUND:g}s"


async def half_close_while_stuck(relay: Relay, way: str) -> float:
    """Seconds from the half-close until a client that got a packet from it gets PeerGone."""
    address = (relay.address, relay.port)
    via = over_tls() if "tls" in way else dial.Via()
    via.websocket = way.startswith("websocket")
    stuck = Peer(way, Ledger(), NodePrivate.generate(), receive_buffer=4096)
    async with AsyncExitStack() as stack:
        stack.callback(stuck.close)
        other = await dial.connect(address, via=via)
        stack.push_async_callback(other.aclose)
        await stuck.connect(address)
        await stuck.send(other.key, 100)
        await other.packet()
        stuck.stop_reading()
        # More than the relay's queue and both kernels hold.
        for _ in range(_PACKETS):
            other.send(stuck.key, bytes(_PACKET))
            await other.ping()
        begin = time.monotonic()
        stuck.close_half()
        gone = await other.wait_for(PeerGone)
        assert (gone.peer, gone.reason) == (stuck.key, PeerGoneReason.DISCONNECTED)
        return time.monotonic() - begin


@pytest.mark.parametrize("kind", [NEWER, "pyderp"])
@pytest.mark.parametrize("way", WAYS)
def test_peer_gone_arrives_before_the_write_times_out(kind: Kind, way: str, tmp_path: Path) -> None:
    """From derper v1.104.7 and from pyderp; derper v1.102.3 waits for the write.

    In a websocket derper sends it after the 5 s that its library waits for a close frame.
    """
    setup: Setup = "named" if "tls" in way else "plain"
    with running(kind, setup, tmp_path, hostname=NAME, options=[_FAR_BEYOND]) as relay:
        seconds = asyncio.run(half_close_while_stuck(relay, way))
        print(f"{kind}, {way}: told after {1000 * seconds:.1f} ms")  # noqa: T201
