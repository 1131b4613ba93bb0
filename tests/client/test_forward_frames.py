"""ForwardPacket frames that are ready made, as a relay has them."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import Client, ClientClosed, ClientConfig, ConnectionClosed, NodePrivate, NotConnected
from pyderp.client import connection as module
from pyderp.wire.frames import FrameType, pack_forward_packet

from .fakes import DIRECT, linked, until

A, B = (NodePrivate.generate().public for _ in range(2))
FRAMES = [pack_forward_packet(A, B, bytes((number,)) * 100) for number in range(50)]
BIG = [pack_forward_packet(A, B, bytes(60_000)) for _ in range(3)]


async def test_leave_in_one_write() -> None:
    """At once and together, behind what was sent before; each counts as a packet."""
    async with linked() as (client, links):
        sent = client.stats.packets_sent
        await client.send(A, b"before")
        links.last.written.clear()
        await client.forward_frames(FRAMES)
        (data,) = links.last.written
        assert data.endswith(b"before" + b"".join(FRAMES))
        assert client.stats.packets_sent == sent + 51


async def test_does_not_connect() -> None:
    """Frames are for one connection; on the next everything may be different."""
    client = Client.for_url("http://127.0.0.1:1/derp", config=ClientConfig(network=DIRECT))
    with pytest.raises(NotConnected):
        await client.forward_frames(FRAMES)
    await client.aclose()
    with pytest.raises(ClientClosed):
        await client.forward_frames(FRAMES)


async def test_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that cannot leave close the connection, and the error says so."""
    monkeypatch.setattr(module, "FORWARD_TIMEOUT", 0.05)

    async with linked() as (client, links):
        links.last.pending_bytes = 100_000
        with pytest.raises(ConnectionClosed, match=r"took no packet for 0\.05 s"):
            await client.forward_frames(BIG)
        assert links.last.aborted
        assert not client.connected


async def test_waits_while_the_kernel_takes_no_more() -> None:
    """And goes on when it does."""
    async with linked() as (client, links):
        link = links.last
        link.pending_bytes = 100_000
        sending = asyncio.create_task(client.forward_frames(BIG))
        await until(lambda: client._life.connection and client._life.connection._senders)
        assert not sending.done()
        link.took_all()
        await sending


async def test_watch_again() -> None:
    """The relay tells the whole picture once more, only if asked to."""
    async with linked(ClientConfig(watch_connection_changes=True)) as (client, links):
        await client.watch_connection_changes()
        await client.watch_connection_changes(again=True)
        await until(lambda: links.last.written)
        assert links.last.words() == [(FrameType.WATCH_CONNS, b"")]
