"""Sends packets and frames on a client's connection; connects first, or forgets it at its end."""

from __future__ import annotations

from collections.abc import Sequence

from pyderp.client.arguments import check_peer
from pyderp.client.connection import ClientConnection
from pyderp.client.lifecycle import Lifecycle
from pyderp.errors import ClientClosed, ConnectionClosed
from pyderp.keys import NodePublic
from pyderp.wire.frames import BytesLike, as_packet

__all__ = ["send_command", "send_on_current", "send_one", "send_packets"]


async def send_one(life: Lifecycle, dst: NodePublic, data: BytesLike) -> None:
    """As `Client.send`."""
    await send_packets(life, dst, (as_packet(data),))


async def send_packets(life: Lifecycle, dst: NodePublic, packets: Sequence[bytes]) -> None:
    """As `Client.send_many`, for packets returned by `as_packet`."""
    if not isinstance(dst, NodePublic):
        check_peer(dst, "the destination")
    life.check_loop()
    connection = life.connection
    # Without a call in the common case: this runs once per packet.
    if connection is None or life.unsent is not None:
        connection = await life.for_send("Send")
    try:
        done = 0
        while done < len(packets):
            if connection.busy:
                # Before as well as after: otherwise each of many tasks that wait in the `drain`
                # below would have queued a packet first, and what waits would have no bound.
                await connection.drain()
            done = connection.send_packets(dst, packets, done)
        if connection.busy:
            await connection.drain()
    except ConnectionClosed as e:
        closed = isinstance(e, ClientClosed)
        if not life.forget_or_retry(connection, "Send", sending=True, closed=closed):
            raise
        # All of them: the relay has read none, as it refused the upgrade before.
        await send_packets(life, dst, packets)


async def send_command(life: Lifecycle, connection: ClientConnection, frame: bytes) -> None:
    """Send a non-packet frame; if that fails, the connection is forgotten."""
    life.check_loop()
    try:
        await _send_frame(connection, frame)
    except ConnectionClosed as e:
        closed = isinstance(e, ClientClosed)
        if not life.forget_or_retry(connection, "Send", sending=True, closed=closed):
            raise
        await _send_frame(await life.for_receive("Send"), frame)


async def send_on_current(life: Lifecycle, frame: bytes) -> None:
    """Send a ping or pong on the current connection; does not forget one that has ended."""
    await _send_frame(await life.require_or_retry("Send"), frame)


async def _send_frame(connection: ClientConnection, frame: bytes) -> None:
    if connection.busy:
        await connection.drain()
    connection.send_frame(frame)
