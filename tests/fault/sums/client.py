"""A client in its own process, so that it can be stopped: it receives until its input ends.

    python -m tests.fault.sums.client KIND PORT RANDOM

Its key is made of 32 random bytes, in hex. It prints `ready` once it is logged in, leaves when its
standard input ends, and then prints what it got, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from pyderp.keys import NodePrivate

from .packets import Ledger
from .peer import Peer


async def receive(kind: str, port: int, private: NodePrivate) -> None:
    """Receive until standard input ends."""
    ledger = Ledger(knows_senders=False)
    peer = await Peer(kind, ledger, private, receive_buffer=16 * 1024).connect(("127.0.0.1", port))
    print("ready", flush=True)  # noqa: T201 (for the test)
    await asyncio.to_thread(sys.stdin.read)
    await peer.leave()
    found = {
        "packets": ledger.delivered.packets,
        "bytes": ledger.delivered.bytes,
        "disco": ledger.delivered_disco,
        "problems": ledger.problems,
        "end": peer.end,
    }
    print(json.dumps(found), flush=True)  # noqa: T201 (for the test)


if __name__ == "__main__":
    private = NodePrivate.generate(bytes.fromhex(sys.argv[3]))
    asyncio.run(receive(sys.argv[1], int(sys.argv[2]), private))
