"""The ways to relay a client's bytes: in Python, and by runs that native code collects."""

from __future__ import annotations

from functools import partial
from typing import Final

from pyderp.native import NativeUse, Run, load
from pyderp.relay import lane
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    frame_header,
    looks_like_disco,
)

__all__ = ["LANES", "slow_walk"]

_KEY: Final = 32


def slow_walk(
    data: bytearray, pos: int, end: int, source: bytes
) -> tuple[int, list[Run], int, int, int]:
    """Do what `pyderp.native.Walk` does, packet by packet, in plain Python."""
    found: list[tuple[bytes, list[bytes]]] = []
    size = disco = 0
    while end - pos >= FRAME_HEADER_LEN + _KEY:
        kind, length = HEADER.unpack_from(data, pos)
        start, stop = pos + FRAME_HEADER_LEN, pos + FRAME_HEADER_LEN + length
        fits = _KEY <= length <= _KEY + MAX_PACKET_SIZE and stop <= end
        if kind != FrameType.SEND_PACKET or not fits:
            break
        destination, packet = bytes(data[start : start + _KEY]), bytes(data[start + _KEY : stop])
        frame = frame_header(FrameType.RECV_PACKET, length) + source + packet
        data[pos:stop] = frame
        if not found or found[-1][0] != destination:
            found.append((destination, []))
        found[-1][1].append(frame)
        size += len(packet)
        disco += looks_like_disco(packet)
        pos = stop
    runs = [(destination, b"".join(frames), len(frames)) for destination, frames in found]
    return pos, runs, sum(count for _, _, count in runs), size, disco


_NATIVE: Final = load(NativeUse.AUTO)

LANES: Final[dict[str, lane.Receive]] = {
    "python": lane.receive,
    "runs": partial(lane.receive_runs, slow_walk),
    **({} if _NATIVE is None else {"native": partial(lane.receive_runs, _NATIVE.walk)}),
}
