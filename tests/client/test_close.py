"""Closing a client, and what still arrives afterwards."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pyderp import (
    ClientClosed,
)
from pyderp.wire.frames import FrameType
from tests.waiting import until

from .fakes import PEER, Links, bounded, connected, fake_relay, linked


class TestClose:
    async def test_calls_after_it(self) -> None:
        """Each call that would connect raises that the client is closed; a second close does
        nothing."""
        async with fake_relay() as relay, connected(relay) as (client, peer):
            await client.send(PEER, b"last words")
            await client.aclose()
            await client.aclose()
            assert (await peer.expect(FrameType.SEND_PACKET))[32:] == b"last words"
            await peer.gone()
            assert client.connection_state == "closed"
            assert not client.connected
            for call in (
                client.connect(),
                client.recv(),
                client.receive_many(),
                client.send(PEER, b"x"),
                client.send_many(PEER, [b"x"]),
                client.forward_packet(PEER, PEER, b"x"),
                client.close_peer(PEER),
                client.watch_connection_changes(),
                client.ping(),
                client.send_ping(bytes(8)),
                client.send_pong(bytes(8)),
            ):
                with pytest.raises(ClientClosed, match=r"^derphttp\.Client closed$"):
                    await call
            await client.note_preferred(True)  # sends no frame
            assert len(relay.seen) == 1

    async def test_waiting_calls(self) -> None:
        """Waiting calls raise ClientClosed itself."""
        async with linked() as (client, links):
            links.last.pending_bytes = 1 << 20
            waiting = [
                asyncio.create_task(client.recv()),
                asyncio.create_task(client.send_many(PEER, [bytes(60_000)] * 3)),
                asyncio.create_task(client.ping()),
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            closing = asyncio.create_task(client.aclose())
            await asyncio.sleep(0)
            links.finish()
            await closing
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(error, ClientClosed)
                assert str(error) == "derphttp.Client closed"
            assert not client.stats.disconnects

    async def test_a_lot_to_send(self) -> None:
        """What was sent before still leaves, also when the kernel waits for the relay."""
        async with fake_relay() as relay, connected(relay) as (client, peer):
            sending = asyncio.create_task(client.send_many(PEER, [bytes(60_000)] * 200))
            connection = client._life.connection
            assert connection is not None
            await until(lambda: connection.backed_up)
            closing = asyncio.create_task(client.aclose())
            received = 0
            async with bounded():
                while not peer.reader.at_eof():
                    with contextlib.suppress(asyncio.IncompleteReadError):
                        await peer.frame()
                        received += 1
            await closing
            with pytest.raises(ClientClosed):
                await sending
            assert 0 < received == client.stats.packets_sent < 200

    async def test_context(self) -> None:
        """`async with` closes at its end and does not connect at its start."""
        links = Links()
        async with links.client() as client:
            assert not links.all
        assert client.connection_state == "closed"
