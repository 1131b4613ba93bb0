"""Calls of the client that send: packets, commands, pings."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import pytest

from pyderp import (
    ClientClosed,
    ConnectionClosed,
    LocalProtocolError,
    NotConnected,
)
from pyderp.client import client as module
from pyderp.wire.frames import FrameType

from .fakes import (
    PEER,
    Links,
    connected,
    fake_relay,
    frames_of,
    linked,
    until_closed,
)

BIG = bytes((1 << 16) + 1)


class TestSending:
    """Calls that send packets and commands."""

    @pytest.mark.parametrize("state", ["new", "connected"])
    async def test_too_big_a_packet_is_refused(self, state: str) -> None:
        """Above 64 KiB, before anything is connected, sent or closed."""
        links = Links()
        client = links.client()
        if state == "connected":
            await client.connect()
            links.last.words()
        for call in (
            client.send(PEER, BIG),
            client.send_many(PEER, [b"x", BIG]),
            client.forward_packet(PEER, PEER, BIG),
        ):
            with pytest.raises(LocalProtocolError, match="packet too big: 65537"):
                await call
        await asyncio.sleep(0)
        assert client.connected is (state == "connected")
        assert len(links.all) == (state == "connected")
        for link in links.all:
            assert not link.written
        links.finish()
        await client.aclose()

    async def test_many_in_order(self) -> None:
        """A list leaves in order and in few writes; in between the caller waits for the kernel."""
        async with linked() as (client, links):
            link = links.last
            packets = [number.to_bytes(2, "big") * 600 for number in range(200)]
            link.pending_bytes = 1 << 20
            sending = asyncio.create_task(client.send_many(PEER, iter(packets)))
            while not sending.done():
                await asyncio.sleep(0)
                link.took_all()
            await asyncio.sleep(0)
            assert len(link.written) < 10
            assert [payload[32:] for _, payload in link.words()] == packets
            assert client.stats.packets_sent == 200

    async def test_send_waits_for_the_kernel(self) -> None:
        """With more than 64 KiB unsent a send waits until the kernel has taken them."""
        async with linked() as (client, links):
            links.last.pending_bytes = (1 << 16) + 1
            await client.send(PEER, bytes(60_000))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(client.send(PEER, bytes(60_000))) for _ in range(3)]
            for _ in range(3):
                await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            assert len(links.last.written) == 1  # the packet of a waiting send is not queued
            links.last.took_all()
            await asyncio.gather(*waiting)

    async def test_a_slow_relay_loses_nothing(self) -> None:
        """Little is held in memory."""
        async with fake_relay() as relay, connected(relay) as (client, peer):
            count = 400
            sent = 0

            async def sender() -> None:
                nonlocal sent
                for number in range(count):
                    await client.send(PEER, number.to_bytes(2, "big") * 30_000)
                    sent += 1

            sending = asyncio.create_task(sender())
            before = -1
            while before != sent:
                before = sent
                for _ in range(50):
                    await asyncio.sleep(0)
            assert sent < count
            for number in range(count):
                packet = (await peer.expect(FrameType.SEND_PACKET))[32:]
                assert packet == number.to_bytes(2, "big") * 30_000
            await sending

    async def test_ping_and_pong_frames(self) -> None:
        """Exact bytes (twin of TestClientSendPing and TestClientSendPong)."""
        async with linked() as (client, links):
            await client.send_ping(b"12345678")
            await client.send_pong(b"abcdefgh")
            await asyncio.sleep(0)
            wanted = bytes.fromhex("12 00000008") + b"12345678"
            wanted += bytes.fromhex("13 00000008") + b"abcdefgh"
            assert b"".join(links.last.written) == wanted
            for call in (client.send_ping(b"1234567"), client.send_pong(b"123456789")):
                with pytest.raises(LocalProtocolError, match="8 bytes"):
                    await call
            assert client.connected

    async def test_pings_without_a_connection_fail(self) -> None:
        """The receiver still gets the error of the connection's end."""
        async with linked() as (client, links):
            links.last.lose()
            for call in (client.ping(), client.send_ping(bytes(8)), client.send_pong(bytes(8))):
                with pytest.raises(NotConnected):
                    await call
            with pytest.raises(ConnectionClosed):
                await client.recv()

    async def test_a_change_of_preferred_is_sent_at_once(self) -> None:
        """The same value again is not sent."""
        async with linked() as (client, links):
            for value in (False, True, True, False):
                await client.note_preferred(value)
            await asyncio.sleep(0)
            words = links.last.words()
            assert words == [
                (FrameType.NOTE_PREFERRED, b"\x01"),
                (FrameType.NOTE_PREFERRED, b"\x00"),
            ]
            links.last.lose()
            await client.note_preferred(True)  # kept for the next connect
            await client.connect()
            assert links.last.words()[1] == (FrameType.NOTE_PREFERRED, b"\x01")

    async def test_watch_subscribes_once_a_connection(self) -> None:
        """Also on a connection that is open already."""
        async with linked() as (client, links):
            await client.watch_connection_changes()
            await client.watch_connection_changes()
            await asyncio.sleep(0)
            assert links.last.words() == [(FrameType.WATCH_CONNS, b"")]
            links.last.lose()
            await until_closed(client)
            await client.watch_connection_changes()
            assert [kind for kind, _ in links.last.words()] == [
                FrameType.CLIENT_INFO,
                FrameType.WATCH_CONNS,
            ]

    async def test_watch_connects(self) -> None:
        links = Links()
        client = links.client()
        await client.watch_connection_changes()
        assert [kind for kind, _ in links.last.words()][1:] == [FrameType.WATCH_CONNS]
        links.finish()
        await client.aclose()


class TestPing:
    """Round trips of `ping`."""

    async def test_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a pong in time a ping fails, and the connection stays."""
        monkeypatch.setattr(module, "PING_TIMEOUT", 0.05)

        async with linked() as (client, _):
            with pytest.raises(TimeoutError, match=r"no pong within 0\.05 s"):
                await client.ping()
            assert client.connected

    async def test_a_sooner_deadline_of_the_caller_raises_timeouterror(self) -> None:
        async with linked() as (client, _):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.ping()

    async def test_a_lost_connection_is_an_error_at_once(self) -> None:
        async with linked() as (client, links):
            pinging = asyncio.create_task(client.ping())
            await asyncio.sleep(0)
            links.last.lose()
            with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):
                await pinging

    async def test_a_closed_client_is_an_error_at_once(self) -> None:
        async with linked() as (client, links):
            pinging = asyncio.create_task(client.ping())
            await asyncio.sleep(0)
            closing = asyncio.create_task(client.aclose())
            with pytest.raises(ClientClosed):
                await pinging
            links.finish()
            await closing
            with pytest.raises(ClientClosed):
                await client.ping()


class TestTroublemakers:
    """Wrong or greedy calls do not harm other calls."""

    @pytest.mark.parametrize("wrong", ["text", [1, 2, 300], None, 5])
    async def test_an_object_that_is_not_a_packet_changes_nothing(self, wrong: Any) -> None:
        """It is refused before anything is queued; the packets after it arrive whole."""
        async with linked() as (client, links):
            with pytest.raises(TypeError, match="a packet is bytes, not"):
                await client.send(PEER, wrong)
            with pytest.raises(TypeError, match="a packet is bytes, not"):
                await client.send_many(PEER, [b"one", wrong])
            with pytest.raises(TypeError, match="a packet is bytes, not"):
                await client.forward_packet(PEER, PEER, wrong)
            await client.send(PEER, memoryview(array("I", [1, 2, 3])))  # type: ignore[arg-type]  # bytes-like
            await client.send(PEER, b"secret")
            await asyncio.sleep(0)
            packets = [p[32:] for _, p in frames_of(b"".join(links.last.written))]
            assert packets == [array("I", [1, 2, 3]).tobytes(), b"secret"]

    async def test_a_sender_in_a_loop_lets_others_run(self) -> None:
        """Also while the kernel takes all: a deadline is not late by a second."""
        async with linked() as (client, _):
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            for _ in range(2000):
                await client.send(PEER, bytes(200))
            task.cancel()
            # One turn for each 64 KiB.
            assert turns >= 2000 * 237 // 65536 - 1

    @pytest.mark.parametrize("call", ["pong", "ping", "close_peer", "note_preferred"])
    async def test_other_frames_wait_as_well(self, call: str) -> None:
        """A relay that does not read cannot make a client queue its answers without limit."""
        async with linked() as (client, links):
            links.last.pending_bytes = (1 << 16) + 1
            await client.send_pong(b"12345678")
            await asyncio.sleep(0)
            calls = {
                "pong": lambda: client.send_pong(b"12345678"),
                "ping": lambda: client.send_ping(b"12345678"),
                "close_peer": lambda: client.close_peer(PEER),
                "note_preferred": lambda: client.note_preferred(True),
            }
            task = asyncio.create_task(calls[call]())
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            links.last.took_all()
            await task


def test_a_closed_loop_is_an_error_each_time() -> None:
    """Packets of a client whose event loop has ended are not lost without an error."""

    def scenario() -> None:
        client = Links().client()
        asyncio.run(client.connect())

        async def use() -> None:
            with pytest.raises(LocalProtocolError, match="belongs to the event loop"):
                await client.send(PEER, b"x")

        for _ in range(3):
            asyncio.run(use())

    with pytest.warns(ResourceWarning, match=r"unclosed <pyderp\.Client"):
        scenario()
