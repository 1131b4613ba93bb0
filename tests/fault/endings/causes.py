"""Why a connection to a relay ends."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

from websockets.frames import Frame, Opcode

from pyderp.admission.verdict import ClientIdentity
from pyderp.errors import without_frames
from pyderp.relay.connection import EndReason, How
from pyderp.wire.frames import KEEP_ALIVE_FRAME
from tests.server.dial import connect, hang_up

from .stages import MESH, Line, Place, Stage

__all__ = ["CAUSES", "causes_of"]

Cause: TypeAlias = Callable[[Place, Line], Awaitable[None]]

_GARBAGE: Final = b"\x00garbage\r\n\r\n" * 8
_LATE: Final = 1000.0
"""Seconds that are longer than any time limit."""


# The client ends it


async def close(_: Place, line: Line) -> None:
    """The client closes."""
    await hang_up(line.writer)


async def reset(_: Place, line: Line) -> None:
    """The client's kernel resets."""
    sock = line.writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:  # the relay may have closed first
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await hang_up(line.writer)


async def garbage(_: Place, line: Line) -> None:
    """The client sends bytes that are no DERP."""
    if not line.writer.is_closing():  # the relay may have closed first
        line.writer.write(_GARBAGE)
    await hang_up(line.writer)


async def garbage_below(_: Place, line: Line) -> None:
    """The client sends bytes that are no TLS."""
    with suppress(OSError):
        os.write(line.writer.get_extra_info("socket").fileno(), _GARBAGE)
    await hang_up(line.writer)


async def half_close(_: Place, line: Line) -> None:
    """The client closes its half, and reads to the end."""
    with suppress(OSError):
        line.writer.write_eof()
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]


async def goodbye(_: Place, line: Line) -> None:
    """The client closes in order: a websocket's close frame, TLS's close alert, FIN."""
    if line.client is not None and line.client.websocket is not None:
        line.writer.write(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
    line.writer.transport.resume_reading()  # type: ignore[attr-defined]
    line.writer.close()
    with suppress(OSError):
        await line.writer.wait_closed()
    # asyncio's TLS may have got packets after its own close alert.
    error = line.reader.exception()
    if error is not None:
        without_frames(error)


# The relay ends it


def ended(*ways: How) -> Cause:
    """The relay ends it, and maybe ends again what is still ending."""

    async def cause(place: Place, line: Line) -> None:
        for how in ways:
            for protocol in list(place.relay._running().protocols):
                protocol.end(EndReason.STOPPED, how, "for a test")
        with suppress(UnboundLocalError):
            del protocol
        await hang_up(line.writer)

    return cause


async def timed_out(place: Place, line: Line) -> None:
    """Its deadline passes, or it is time for a KeepAlive."""
    core = place.relay._running()
    for protocol in list(core.protocols):
        core.timers.cancel(protocol, getattr(protocol, "_slot"))  # noqa: B009 (not in `Served`)
        # as the timer wheel does before it calls
        protocol.on_timer(core.loop.time())
        del protocol
    await hang_up(line.writer)


async def revoked(place: Place, line: Line) -> None:
    """The list of admitted keys loses its key."""
    place.allow(False)
    place.relay.reload()
    await hang_up(line.writer)


async def rechecked(place: Place, line: Line) -> None:
    """The program's function no longer admits it."""
    gate = place.parts.admission
    assert gate is not None
    place.asked.says = False
    await gate._check_again(ClientIdentity(place.private.public, place.connection().peer[0]))
    place.asked.says = True
    await hang_up(line.writer)


async def closed_by_the_mesh(place: Place, line: Line) -> None:
    """Another relay has its key closed."""
    peer = await connect(place.relay.address, mesh_key=MESH, via=place.via)
    peer.session.close_peer(place.private.public)
    peer.write()
    await peer.ping()
    await peer.aclose()
    await hang_up(line.writer)


async def write_timeout(place: Place, line: Line) -> None:
    """The client reads nothing for too long."""
    core = place.relay._running()
    for seconds in (_LATE, 2 * _LATE):
        for protocol in list(core.stalled):
            protocol.check_progress(core.loop.time() + seconds)
            del protocol
    await hang_up(line.writer)


async def falls_behind(place: Place, line: Line) -> None:
    """More changes wait for a watcher than the limit."""
    backlog = place.connection().backlog
    assert backlog is not None
    backlog.changes.extend([KEEP_ALIVE_FRAME] * 200_000)
    del backlog
    await (await connect(place.relay.address, via=place.via)).aclose()
    await hang_up(line.writer)


CAUSES: Final[dict[str, Cause]] = {
    "close": close,
    "reset": reset,
    "garbage": garbage,
    "garbage below": garbage_below,
    "half-close": half_close,
    "goodbye": goodbye,
    "now": ended(How.NOW),
    "graceful": ended(How.GRACEFUL),
    "graceful, then now": ended(How.GRACEFUL, How.NOW),
    "timer": timed_out,
    "revoked": revoked,
    "rechecked": rechecked,
    "closed by the mesh": closed_by_the_mesh,
    "write timeout": write_timeout,
    "falls behind": falls_behind,
}
_OF_THE_CLIENT: Final = ("close", "reset", "garbage")
_OF_THE_RELAY: Final = ("now", "graceful", "graceful, then now", "timer")


def causes_of(stage: Stage, way: str) -> list[str]:
    """The causes that are possible at a stage, on a transport."""
    in_tls = "tls" in way and stage.above_tls
    if not stage.is_served:
        return [*_OF_THE_CLIENT]
    names = [*_OF_THE_CLIENT, *_OF_THE_RELAY, *stage.also]
    # asyncio's own TLS, which the client uses here, cannot close a half.
    names.append("garbage below" if in_tls else "half-close")
    # It waits for the relay, which must read.
    if stage.see is None and (in_tls or ("websocket" in way and stage.is_in)):
        names.append("goodbye")
    if stage.is_in:
        names.append("closed by the mesh")
    if stage.is_listed:
        names.append("revoked")
    return names
