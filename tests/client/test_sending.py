"""Calls of the client that send: packets, commands, pings."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import (
    ClientClosed,
    ConnectionClosed,
    LocalProtocolError,
    NotConnected,
)
from pyderp.client import client as module
from pyderp.wire.frames import FrameType
from tests.conftest import Run

from .fakes import (
    PEER,
    Links,
    connected,
    fake_relay,
    linked,
    until_closed,
)

BIG = bytes((1 << 16) + 1)


class TestSending:
    """Calls that send."""

    @pytest.mark.parametrize("state", ["new", "connected"])
    def test_too_big(self, run: Run, state: str) -> None:
        """A packet above 64 KiB is refused before anything is connected, sent or closed."""

        async def main() -> None:
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

        run(main())

    def test_many_in_order(self, run: Run) -> None:
        """A list leaves in order and in few writes, waiting for the kernel in between."""

        async def main() -> None:
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

        run(main())

    def test_send_waits_for_the_kernel(self, run: Run) -> None:
        """With more than 64 KiB on its way a send waits, and goes on when it is taken."""

        async def main() -> None:
            async with linked() as (client, links):
                links.last.pending_bytes = (1 << 16) + 1
                await client.send(PEER, bytes(60_000))
                waiting = [asyncio.create_task(client.send(PEER, bytes(60_000))) for _ in range(3)]
                for _ in range(3):
                    await asyncio.sleep(0)
                assert not any(task.done() for task in waiting)
                links.last.took_all()
                await asyncio.gather(*waiting)

        run(main())

    def test_slow_relay(self, run: Run) -> None:
        """Against a relay that reads slowly nothing is lost, nor much is held."""

        async def main() -> None:
            async with fake_relay() as relay, connected(relay) as (client, peer):
                count = 400
                sent = 0

                async def sender() -> None:
                    nonlocal sent
                    for number in range(count):
                        await client.send(PEER, number.to_bytes(2, "big") * 30_000)
                        sent += 1

                sending = asyncio.create_task(sender())
                await asyncio.sleep(0.1)
                assert sent < count
                for number in range(count):
                    packet = (await peer.expect(FrameType.SEND_PACKET))[32:]
                    assert packet == number.to_bytes(2, "big") * 30_000
                await sending

        run(main())

    def test_ping_and_pong_frames(self, run: Run) -> None:
        """Exact bytes (twin of TestClientSendPing and TestClientSendPong)."""

        async def main() -> None:
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

        run(main())

    def test_pings_do_not_close(self, run: Run) -> None:
        """Without a connection they fail; the receiver still hears of its end."""

        async def main() -> None:
            async with linked() as (client, links):
                links.last.lose()
                for call in (client.ping(), client.send_ping(bytes(8)), client.send_pong(bytes(8))):
                    with pytest.raises(NotConnected):
                        await call
                with pytest.raises(ConnectionClosed):
                    await client.recv()

        run(main())

    def test_preferred(self, run: Run) -> None:
        """A change is said at once; no change is not said."""

        async def main() -> None:
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
                await client.note_preferred(True)  # is kept for the next connect
                await client.connect()
                assert links.last.words()[1] == (FrameType.NOTE_PREFERRED, b"\x01")

        run(main())

    def test_watch(self, run: Run) -> None:
        """The first call subscribes, also on a connection that is there; once a connection."""

        async def main() -> None:
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

        run(main())

    def test_watch_connects(self, run: Run) -> None:
        """Without a connection it makes one."""

        async def main() -> None:
            links = Links()
            client = links.client()
            await client.watch_connection_changes()
            assert [kind for kind, _ in links.last.words()][1:] == [FrameType.WATCH_CONNS]
            links.finish()
            await client.aclose()

        run(main())


class TestPing:
    """Round trips."""

    def test_timeout(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a pong in time a ping fails, and the connection stays."""
        monkeypatch.setattr(module, "PING_TIMEOUT", 0.05)

        async def main() -> None:
            async with linked() as (client, _):
                with pytest.raises(TimeoutError, match=r"no pong within 0\.05 s"):
                    await client.ping()
                assert client.connected

        run(main())

    def test_sooner_deadline(self, run: Run) -> None:
        """The caller's own deadline is his TimeoutError."""

        async def main() -> None:
            async with linked() as (client, _):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.ping()

        run(main())

    def test_connection_lost(self, run: Run) -> None:
        """A connection that ends meanwhile is an error at once."""

        async def main() -> None:
            async with linked() as (client, links):
                pinging = asyncio.create_task(client.ping())
                await asyncio.sleep(0)
                links.last.lose()
                with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):
                    await pinging

        run(main())

    def test_closed(self, run: Run) -> None:
        """So is a client that is closed."""

        async def main() -> None:
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

        run(main())
