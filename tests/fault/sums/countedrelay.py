"""`pyderp relay`, which writes its counters to the file `SUMS_COUNTERS` once it has stopped.

No page can be asked for them any more by then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyderp
from pyderp.cli.main import main
from pyderp.relay.counters import KINDS, Counters, DropReason


def totals(counters: Counters) -> dict[str, object]:
    """What `/debug/vars` has of packets, under the same names."""
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


_aclose = pyderp.Relay.aclose


async def _aclose_and_tell(self: pyderp.Relay, *, drain: float | None = None) -> None:
    await _aclose(self, drain=drain)
    text = json.dumps(totals(self.counters))
    Path(os.environ["SUMS_COUNTERS"]).write_text(text)  # noqa: ASYNC240 (nobody waits any more)


if __name__ == "__main__":
    pyderp.Relay.aclose = _aclose_and_tell  # type: ignore[method-assign]  # for this process
    main()
