"""`/debug/traffic`: which clients are busy, for as long as somebody watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from pyderp.relay.connection import Connection
from pyderp.server.conn.kernel import tcp_info
from pyderp.server.site.tally import slices
from pyderp.server.site.view import RelayView

if TYPE_CHECKING:
    from pyderp.server.conn.context import Served

__all__ = ["traffic"]

_PERIOD: Final = 2.0
"""Seconds between two rounds."""


async def traffic(view: RelayView) -> AsyncGenerator[bytes, None]:
    """In each round a line of JSON for each client whose bytes grew, then an empty line.

    `Sent` and `Recv` are bytes of its TCP connection so far, as the relay sees them: TLS, HTTP
    and frames included. `UniqueSenders` is how many other keys have written to it, exactly,
    and is left out if the relay is not to tell. Unix sockets are left out.
    """
    before: dict[Served, tuple[int, int]] = {}
    while True:
        now: dict[Served, tuple[int, int]] = {}
        for some in slices(view.protocols()):
            lines = []
            for protocol in some:
                connection = protocol.connection
                info = None if connection is None else tcp_info(protocol.transport)
                if connection is None or info is None:
                    continue
                now[protocol] = bytes_now = (info.sent, info.received)
                if bytes_now != before.get(protocol):
                    lines.append(_line(view, connection, *bytes_now))
            if lines:
                yield b"".join(lines)
            await asyncio.sleep(0)
        before = now
        yield b"\n"
        await asyncio.sleep(_PERIOD)


def _line(view: RelayView, connection: Connection, sent: int, received: int) -> bytes:
    line: dict[str, object] = {"Sent": sent, "Recv": received, "Key": str(connection.public)}
    if connection.heard_from and view.sender_cardinality:
        line["UniqueSenders"] = len(connection.heard_from)
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
