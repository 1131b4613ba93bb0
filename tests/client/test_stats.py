"""What a client counts."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import (
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    ServerInfo,
)
from pyderp.wire.frames import pack_frame, pack_ping, pack_restarting

from .fakes import PEER, linked, packet_frame, server_info_frame, until_closed


async def test_packets_and_bytes_are_counted_both_ways() -> None:
    """Bytes are those of the DERP stream."""
    async with linked() as (client, links):
        await client.send(PEER, b"12")
        await client.send_many(PEER, [b"3", b"4"])
        await client.forward_packet(PEER, PEER, b"5")
        await client.send_ping(bytes(8))
        await asyncio.sleep(0)
        sent = b"".join(links.last.written)
        incoming = packet_frame(b"x") + pack_ping(bytes(8)) + pack_frame(0x66)
        links.last.feed(incoming)
        stats = client.stats
        assert stats.packets_sent == 4
        assert stats.bytes_sent == len(sent)
        assert stats.packets_received == 1
        assert stats.bytes_received == len(incoming)
        with pytest.raises(LocalProtocolError):
            await client.send(PEER, bytes(70_000))
        links.last.lose()
        for _ in range(2):
            with pytest.raises(ConnectionClosed):
                client._life.connection.send_packets(PEER, (b"x",))  # type: ignore[union-attr]  # not None
        await asyncio.sleep(0)
        assert stats.packets_sent == 4


async def test_packets_without_tokens_count_as_dropped() -> None:
    """They do not count as sent."""
    async with linked() as (client, links):
        links.last.feed(server_info_frame(client.self_public_key, ServerInfo(2, 1, 38)))
        await client.send(PEER, b"1")
        await client.send(PEER, b"2")
        await asyncio.sleep(0)
        assert (client.stats.packets_sent, client.stats.packets_dropped) == (1, 1)
        # A new connection is unlimited until the relay sends a limit.
        links.last.lose()
        await client.connect()
        await client.send_many(PEER, [b"x"] * 50)
        await asyncio.sleep(0)
        assert (client.stats.packets_sent, client.stats.packets_dropped) == (51, 1)


async def test_each_end_is_counted_once_by_its_reason() -> None:
    """A close is not counted."""
    async with linked(ClientConfig(receive_timeout=0.2)) as (client, links):
        stats = client.stats

        async def lose(error: Exception | None) -> None:
            links.last.lose(error)
            with pytest.raises(ConnectionClosed):
                await client.send(PEER, b"x")
            await client.connect()

        await lose(None)
        await lose(None)
        await lose(ConnectionResetError())
        await lose(RemoteProtocolError("x"))
        links.last.feed(pack_restarting(1, 1))
        await lose(None)
        await until_closed(client)
        assert stats.disconnects == {
            "eof": 2,
            "error": 1,
            "protocol": 1,
            "restarting": 1,
            "timeout": 1,
        }
        assert (stats.connects, stats.failed_connects) == (6, 0)
        links.error = OSError("x")
        with pytest.raises(ConnectError):
            await client.connect()
        assert (stats.connects, stats.failed_connects) == (6, 1)
        links.error = None
        await client.connect()
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        links.finish()
        await closing
        assert stats.disconnects.total() == 6
