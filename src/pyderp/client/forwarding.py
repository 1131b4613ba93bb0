"""Sends packets on behalf of other clients, as relays of a mesh do."""

from __future__ import annotations

from collections.abc import Sequence

from pyderp.client.lifecycle import Lifecycle
from pyderp.errors import ConnectionClosed
from pyderp.keys import NodePublic

__all__ = ["forward_frames", "forward_packet"]


async def forward_packet(life: Lifecycle, src: NodePublic, dst: NodePublic, packet: bytes) -> None:
    """As `Client.forward_packet`, for a packet returned by `as_packet`."""
    connection = await life.for_send("ForwardPacket")
    try:
        if connection.busy:
            await connection.drain_forward()
        connection.forward_packet(src, dst, packet)
        if connection.busy:
            await connection.drain_forward()
    except ConnectionClosed:
        life.forget(connection, sending=True)
        raise


async def forward_frames(life: Lifecycle, frames: Sequence[bytes]) -> None:
    """As `Client.forward_frames`."""
    connection = life.require_here()
    try:
        connection.forward_frames(frames)
        if connection.busy:
            await connection.drain_forward()
    except ConnectionClosed:
        life.forget(connection, sending=True)
        raise
