"""`pyderp relay`, which writes its counters to the file `SUMS_COUNTERS` once it has stopped.

By then it serves no page that has them.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pyderp
from pyderp.cli.main import main
from pyderp.relay.counters import KINDS, Counters, DropReason


def totals(counters: Counters) -> dict[str, object]:
    """The packet counters of `/debug/vars`, under the same names."""
    found: dict[str, object] = {
        name: getattr(counters, name)
        for name in (
            "packets_received",
            "bytes_received",
            "packets_sent",
            "bytes_sent",
            "packets_forwarded_in",
            "packets_forwarded_out",
        )
    }
    disco = counters.disco_received
    found["counter_packets_received_kind"] = {
        "disco": disco,
        "other": counters.packets_received - disco,
    }
    for index, what in enumerate(("packets_dropped", "bytes_dropped")):
        found[what] = {
            reason.value: {kind: counters.drops[reason, kind][index] for kind in KINDS}
            for reason in DropReason
        }
    return found


class LateTurns:
    """Counts the turns of the loop after a moment: turns do not depend on the machine's speed.

    Args:
        deadline: the moment, on the loop's clock.
    """

    def __init__(self, deadline: float) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle = self._loop.call_at(deadline, self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._handle.cancel()


_aclose = pyderp.Relay.aclose


async def _aclose_and_tell(self: pyderp.Relay, *, drain: float | None = None) -> None:
    assert drain is not None
    late = LateTurns(asyncio.get_running_loop().time() + drain)
    deadline = time.time() + drain
    await _aclose(self, drain=drain)
    late.stop()
    found = totals(self.counters)
    found["stop"] = {
        "deadline": deadline,
        "late_turns": late.count,
        "late_seconds": time.time() - deadline,
    }
    found["ends"] = {reason.value: count for reason, count in self.counters.ends.items()}
    text = json.dumps(found)
    Path(os.environ["SUMS_COUNTERS"]).write_text(text)  # noqa: ASYNC240 (no task waits any more)


if __name__ == "__main__":
    pyderp.Relay.aclose = _aclose_and_tell  # type: ignore[method-assign]  # for this process
    main()
