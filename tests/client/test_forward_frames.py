"""ForwardPacket frames that are packed already, as a relay sends them."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import Client, ClientClosed, ClientConfig, ConnectionClosed, NodePrivate, NotConnected
from pyderp.client import connection as module
from pyderp.wire.frames import FrameType, pack_forward_packet
from tests.waiting import until

from .fakes import DIRECT, linked

A, B = (NodePrivate.generate().public for _ in range(2))
FRAMES = [pack_forward_packet(A, B, bytes((number,)) * 100) for number in range(50)]
BIG = [pack_forward_packet(A, B, bytes(60_000)) for _ in range(3)]


async def test_frames_leave_in_one_write() -> None:
    """After what was sent before; each counts as a packet."""
    async with linked() as (client, links):
        sent = client.stats.packets_sent
        await client.send(A, b"before")
        links.last.written.clear()
        await client.forward_frames(FRAMES)
        (data,) = links.last.written
        assert data.endswith(b"before" + b"".join(FRAMES))
        assert client.stats.packets_sent == sent + 51


async def test_without_a_connection_they_raise_and_do_not_connect() -> None:
    """The frames are for one connection; the next may be to another relay."""
    client = Client.for_url("http://127.0.0.1:1/derp", config=ClientConfig(network=DIRECT))
    with pytest.raises(NotConnected):
        await client.forward_frames(FRAMES)
    await client.aclose()
    with pytest.raises(ClientClosed):
        await client.forward_frames(FRAMES)


async def test_frames_that_cannot_leave_in_five_seconds_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says so."""
    monkeypatch.setattr(module, "FORWARD_TIMEOUT", 0.05)

    async with linked() as (client, links):
        links.last.pending_bytes = 100_000
        with pytest.raises(ConnectionClosed, match=r"took no packet for 0\.05 s"):
            await client.forward_frames(BIG)
        assert links.last.aborted
        assert not client.connected


async def test_a_full_kernel_holds_them_up() -> None:
    """They go on when the kernel takes bytes again."""
    async with linked() as (client, links):
        link = links.last
        link.pending_bytes = 100_000
        sending = asyncio.create_task(client.forward_frames(BIG))
        await until(lambda: client._life.connection and client._life.connection._senders)
        assert not sending.done()
        link.took_all()
        await sending


async def test_watching_again_can_ask_for_the_whole_state() -> None:
    """The client asks the relay for it only if the caller wants it."""
    async with linked(ClientConfig(watch_connection_changes=True)) as (client, links):
        await client.watch_connection_changes()
        await client.watch_connection_changes(again=True)
        await until(lambda: links.last.written)
        assert links.last.words() == [(FrameType.WATCH_CONNS, b"")]
