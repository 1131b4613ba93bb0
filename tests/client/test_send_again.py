"""`send(…, reconnect=True)`: over as many connections as needed, within its time."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import CertificateError, ClientClosed, ConnectError, ConnectionClosed, ReceivedPacket
from pyderp.wire.frames import FrameType
from tests.waiting import until

from .fakes import PEER, LoginLink, linked, packet_frame


def sent(link: LoginLink) -> list[bytes]:
    """The packets that were written."""
    return [payload[32:] for kind, payload in link.words() if kind == FrameType.SEND_PACKET]


async def test_an_answer_leaves_by_the_next_connection() -> None:
    """The connection ends while the program handles a message."""
    async with linked() as (client, links):
        links.last.feed(packet_frame(b"one"))
        messages = client.messages()
        assert await anext(messages) == ReceivedPacket(PEER, b"one")
        links.last.lose()
        await client.send(PEER, b"answer", reconnect=True)
        await asyncio.sleep(0)
        assert len(links.all) == 2
        assert sent(links.last) == [b"answer"]
        links.last.feed(packet_frame(b"two"))
        assert await anext(messages) == ReceivedPacket(PEER, b"two")


async def test_it_waits_for_a_relay_that_comes_back() -> None:
    async with linked() as (client, links):
        links.error = ConnectionRefusedError("no")
        links.last.lose()
        sending = asyncio.create_task(client.send(PEER, b"x", reconnect=True))
        await until(lambda: client.stats.failed_connects >= 2)
        links.error = None
        await sending
        await asyncio.sleep(0)
        assert sent(links.last) == [b"x"]


async def test_it_ends_in_time_with_the_last_error() -> None:
    async with linked() as (client, links):
        links.error = ConnectionRefusedError("no relay")
        links.last.lose()
        with pytest.raises(ConnectError, match="no relay"):
            await client.send(PEER, b"x", reconnect=True, within=0.2)
        assert client.stats.failed_connects > 1
        links.error = None


async def test_a_permanent_error_is_raised_at_once() -> None:
    async with linked() as (client, links):
        links.error = CertificateError("no")
        links.last.lose()
        with pytest.raises(ConnectError):
            await client.send(PEER, b"x", reconnect=True, within=60)
        assert client.stats.failed_connects == 1
        links.error = None


async def test_closing_ends_it() -> None:
    async with linked() as (client, links):
        links.error = ConnectionRefusedError("no")
        links.last.lose()
        sending = asyncio.create_task(client.send(PEER, b"x", reconnect=True))
        await until(lambda: client.stats.failed_connects)
        await client.aclose()
        with pytest.raises(ClientClosed):
            await sending


async def test_without_it_the_error_says_that_the_next_call_connects() -> None:
    async with linked() as (client, links):
        links.last.lose()
        with pytest.raises(ConnectionClosed, match="EOF; the next call connects again"):
            await client.send(PEER, b"x")
        await client.send(PEER, b"y")
