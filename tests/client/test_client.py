"""The client connects when needed, has one connection at a time, reports each error once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientClosed,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    DERPRegion,
    NodePrivate,
    NotConnected,
    ReceivedPacket,
    ServerInfo,
    is_transient,
)
from pyderp.wire.frames import FrameType
from tests.waiting import until

from .fakes import (
    DIRECT,
    PEER,
    RELAY,
    bounded,
    connected,
    fake_relay,
    linked,
    packet_frame,
    until_closed,
)


def state(client: Client) -> str:
    """The client's state, behind a call: mypy takes an attribute to be unchanged."""
    return client.connection_state


class TestMaking:
    def test_does_no_io(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No constructor opens a socket, looks up a name, reads a file or needs a loop."""

        def never(*_: object, **__: object) -> Any:
            raise AssertionError("input or output")

        for owner, name in ((socket, "socket"), (socket, "getaddrinfo"), (Path, "read_bytes")):
            monkeypatch.setattr(owner, name, never)
        monkeypatch.setattr("builtins.open", never)
        region = DERPRegion(region_id=1)
        made = [
            Client.for_url("https://derp.example.com/derp"),
            Client.for_region(region),
            Client.for_region(never),
            Client.over_stream(never),
        ]
        assert len({client.self_public_key for client in made}) == 4
        for client in made:
            assert client.connection_state == "not connected"

    def test_text(self) -> None:
        """Its text has the relay's key, and none before a connect; its repr has the client's
        key."""
        private = NodePrivate.generate()
        client = Client.for_url("https://user:pw@derp.example.com/derp", private_key=private)
        short = private.public.short()
        assert str(client) == "<pyderp.Client  url=https://xxxxx@derp.example.com/derp>"
        assert repr(client) == f"<pyderp.Client {short} url=https://xxxxx@derp.example.com/derp>"

    async def test_before_the_first_connect(self) -> None:
        """It has no addresses and no relay key (with a twin of TestLocalAddrNoMutex)."""
        client = Client.for_url("http://127.0.0.1:1/derp")
        assert client.server_public_key is None
        assert client.tls_state is None
        assert (client.generation, client.connected) == (0, False)
        with pytest.raises(NotConnected, match=r"^client not connected; "):
            _ = client.local_address
        for call in (client.ping(), client.send_ping(bytes(8)), client.send_pong(bytes(8))):
            with pytest.raises(NotConnected, match=r"^client not connected; "):
                await call
        await client.aclose()


class TestState:
    """Attributes of a client."""

    async def test_properties(self) -> None:
        """Keys, addresses and state are those of the connection; the relay's key outlives it."""
        async with fake_relay() as relay, connected(relay) as (client, peer):
            assert client.connected
            assert state(client) == "connected"
            assert client.generation == 1
            assert client.server_public_key == RELAY.public
            assert client.self_public_key == peer.key
            assert client.local_address == peer.writer.get_extra_info("peername")
            assert client.tls_state is None
            peer.cut()
            await until(lambda: not client.connected)
            assert state(client) == "not connected"
            with pytest.raises(NotConnected):
                _ = client.local_address
            assert client.server_public_key == RELAY.public

    async def test_connecting(self) -> None:
        """During a connect, calls that need no connection do not wait
        (with a twin of TestLocalAddrNoMutex)."""
        async with fake_relay() as relay:
            client = Client.for_url(relay.url, config=ClientConfig(network=DIRECT))
            connecting = asyncio.create_task(client.connect())
            await relay.accept()
            assert state(client) == "connecting"
            async with asyncio.timeout(10):
                with pytest.raises(NotConnected):
                    _ = client.local_address
                with pytest.raises(NotConnected):
                    await client.ping()
                await client.note_preferred(True)
                client.set_can_ack_pings(True)
                assert client.server_public_key is None
                await client.aclose()
            with pytest.raises(ClientClosed):
                await connecting
            assert client.connection_state == "closed"


class TestReconnect:
    """A connection that breaks is reported once; then the client connects anew."""

    async def test_receiver(self) -> None:
        """A receiver gets all messages, one error, and then a higher generation."""
        async with fake_relay() as relay, connected(relay) as (client, peer):
            peer.say(packet_frame(b"1"), packet_frame(b"2"))
            peer.hang_up()
            messages, error = await until_closed(client)
            assert messages == [
                ServerInfo(2),
                ReceivedPacket(PEER, b"1"),
                ReceivedPacket(PEER, b"2"),
            ]
            assert str(error) == "derp.Recv: EOF"
            assert error.generation == 1
            assert is_transient(error)
            receiving = asyncio.create_task(client.recv_with_generation())
            await relay.serve()
            assert await receiving == (ServerInfo(2), 2)
            assert client.generation == 2

    async def test_sender(self) -> None:
        """A send over a broken connection raises once; the next send connects."""
        async with linked() as (client, links):
            links.last.lose(ConnectionResetError("gone"))
            with pytest.raises(
                ConnectionClosed, match=r"^derp\.Send: gone; the next call "
            ) as caught:
                await client.send(PEER, b"x")
            assert caught.value.generation == 1
            await client.send(PEER, b"y")
            await asyncio.sleep(0)
            assert client.generation == 2
            words = links.last.words()
            assert [kind for kind, _ in words] == [FrameType.CLIENT_INFO, FrameType.SEND_PACKET]
            assert len(links.all) == 2

    @pytest.mark.parametrize("lost", [True, False])
    async def test_receiver_after_a_sender(self, lost: bool) -> None:
        """A reconnect by a sender is one error for the receiver, after all earlier messages."""
        async with linked() as (client, links):
            links.last.feed(packet_frame(b"1"), packet_frame(b"2"))
            assert await client.recv() == ReceivedPacket(PEER, b"1")
            links.last.lose(ConnectionResetError("gone") if lost else None)
            with pytest.raises(ConnectionClosed):
                await client.send(PEER, b"x")
            await client.send(PEER, b"y")
            links.last.feed(packet_frame(b"3"))
            assert await client.recv_with_generation() == (ReceivedPacket(PEER, b"2"), 1)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.generation == 1
            assert await client.recv_with_generation() == (ReceivedPacket(PEER, b"3"), 2)

    async def test_together(self) -> None:
        """A sender and a receiver that fail together do not close each other's new connection."""
        async with linked() as (client, links):
            receiving = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            links.last.lose(ConnectionResetError("gone"))
            with pytest.raises(ConnectionClosed):
                await client.send(PEER, b"x")
            await client.send(PEER, b"y")
            assert client.generation == 2
            # Only now the receiver runs, and closes the broken connection.
            with pytest.raises(ConnectionClosed):
                await receiving
            assert client.connected
            links.last.feed(packet_frame(b"z"))
            assert await client.recv_with_generation() == (ReceivedPacket(PEER, b"z"), 2)
            assert not links.last.aborted

    async def test_connect_replaces_what_broke(self) -> None:
        """`connect` makes a new connection at once; a receiver first gets the error of the old
        one."""
        async with linked() as (client, links):
            receiving = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            links.last.lose()
            await client.connect()
            assert client.generation == 2
            with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):
                await receiving
            assert client.connected
            await client.send(PEER, b"x")
            assert client.generation == 2

    async def test_failed_reconnect(self) -> None:
        """A failed attempt raises a connect error each time; the next attempt can succeed."""
        async with linked() as (client, links):
            links.last.lose()
            await until_closed(client)
            links.error = OSError("no way")
            for call in (client.recv(), client.send(PEER, b"x"), client.connect()):
                with pytest.raises(ConnectError, match="no way"):
                    await call
            links.error = None
            await client.send(PEER, b"x")
            assert client.generation == 2
            assert client.stats.connects == 2
            assert client.stats.failed_connects == 3

    async def test_one_connection_at_a_time(self) -> None:
        """Many senders that fail together make one new connection."""
        async with linked() as (client, links):

            async def sender() -> None:
                for _ in range(5):
                    try:
                        await client.send(PEER, b"x")
                    except ConnectionClosed:
                        await asyncio.sleep(0)

            for _ in range(10):
                links.last.lose(ConnectionResetError("gone"))
                await asyncio.gather(*(sender() for _ in range(5)))
            assert len(links.all) == client.generation == 11


class TestWriteErrors:
    """Bytes that could not be written are reported to the next send and to the receiver."""

    async def test_receiver_and_next_sender(self) -> None:
        """The receiver gets the error first; the next send raises once, and the one after it
        connects."""
        async with linked() as (client, links):
            receiving = asyncio.create_task(client.recv())
            await client.send(PEER, b"lost")
            await asyncio.sleep(0)
            links.last.lose(BrokenPipeError("broken"))
            with pytest.raises(ConnectionClosed, match="broken"):
                await receiving
            with pytest.raises(ConnectionClosed, match=r"^derp\.Send: broken; the next call "):
                await client.send(PEER, b"x")
            await client.send(PEER, b"y")
            assert client.generation == 2

    @pytest.mark.parametrize("call", ["send", "send_many", "forward_packet"])
    async def test_receiver_that_reconnects(self, call: str) -> None:
        """The next send raises also if the receiver has connected anew; that connection stays."""
        async with linked() as (client, links):
            receiving = asyncio.create_task(client.recv())
            await client.send(PEER, b"lost")
            await asyncio.sleep(0)
            links.last.lose(BrokenPipeError("broken"))
            with pytest.raises(ConnectionClosed):
                await receiving
            receiving = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            assert client.generation == 2
            calls = {
                "send": lambda: client.send(PEER, b"x"),
                "send_many": lambda: client.send_many(PEER, [b"x"]),
                "forward_packet": lambda: client.forward_packet(PEER, PEER, b"x"),
            }
            with pytest.raises(ConnectionClosed, match="broken") as caught:
                await calls[call]()
            assert caught.value.generation == 1
            await calls[call]()
            assert client.generation == 2
            links.last.feed(packet_frame(b"1"))
            assert await receiving == ReceivedPacket(PEER, b"1")

    async def test_connect_in_between(self) -> None:
        """The next send raises also after a `connect`, which itself works."""
        async with linked() as (client, links):
            await client.send(PEER, b"lost")
            links.last.lose()  # before the turn was over
            await client.connect()
            with pytest.raises(
                ConnectionClosed, match=r"^derp\.Send: EOF; the next call "
            ) as caught:
                await client.send(PEER, b"x")
            assert caught.value.generation == 1
            await client.send(PEER, b"y")
            assert client.generation == 2

    async def test_a_sender_that_receives_its_own_packets(self) -> None:
        """A waiting sender raises at once; its next send does not raise again."""
        async with linked() as (client, links):
            links.last.pending_bytes = 1 << 20
            await client.send_many(PEER, [])
            sending = asyncio.create_task(client.send_many(PEER, [bytes(60_000)] * 3))
            receiving = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not sending.done()
            links.last.lose(BrokenPipeError("broken"))
            for task in (sending, receiving):
                with pytest.raises(ConnectionClosed, match="broken"):
                    await task
            await client.send(PEER, b"x")
            assert client.generation == 2

    async def test_broken_byte_stream(self) -> None:
        """A stream that cannot be written raises in sender and receiver."""

        class Broken:
            """Sends a greeting, and then fails each write."""

            def __init__(self) -> None:
                self.end = asyncio.get_running_loop().create_future()
                self.words = [b"\x01\0\0\0\x28" + "DERP🔑".encode() + RELAY.public.raw]

            async def receive(self, _max_bytes: int = 65536) -> bytes:
                return self.words.pop() if self.words else await self.end

            async def send(self, item: bytes) -> None:
                if len(item) < 100:
                    raise RuntimeError("full")

            async def aclose(self) -> None:
                if not self.end.done():
                    self.end.set_result(b"")

        async def opens() -> Broken:
            return Broken()

        async with Client.over_stream(opens) as client, bounded():
            await client.connect()
            receiving = asyncio.create_task(client.recv())
            await client.send(PEER, b"x")
            with pytest.raises(ConnectionClosed, match="writing failed: full"):
                await receiving
            with pytest.raises(ConnectionClosed, match=r"derp\.Send: writing failed: full"):
                await client.send(PEER, b"y")
