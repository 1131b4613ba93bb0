"""Receiving through the client: single messages or many, and when reading stops."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectionClosed,
    Health,
    KeepAlive,
    LocalProtocolError,
    PeerGone,
    PeerPresent,
    PeerPresentFlags,
    Ping,
    Pong,
    ReceivedPacket,
    Restarting,
    ServerInfo,
)
from pyderp.wire.frames import (
    FrameType,
    pack_frame,
    pack_health,
    pack_peer_gone,
    pack_peer_present,
    pack_ping,
    pack_pong,
    pack_restarting,
)
from tests.waiting import until

from .fakes import (
    PEER,
    RELAY,
    FakeLink,
    bounded,
    connected,
    fake_relay,
    frames_of,
    linked,
    over,
    packet_frame,
    server_info_frame,
    until_closed,
)

KIB = 1024


async def test_each_frame_becomes_a_message() -> None:
    """KeepAlive as well (with a twin of TestClientRecv: ping, pong, health set and cleared,
    restarting)."""
    async with linked() as (client, links):
        present = pack_peer_present(PEER, bytes(10) + b"\xff\xff\x01\x02\x03\x04", 99, 3)
        links.last.feed(
            server_info_frame(client.self_public_key, ServerInfo(2)),
            packet_frame(b"x"),
            pack_frame(FrameType.KEEP_ALIVE),
            pack_ping(b"12345678"),
            pack_pong(b"12345678"),
            pack_health("problem"),
            pack_health(""),
            pack_restarting(0.001, 0.002),
            present,
            pack_peer_gone(PEER, 1),
            pack_frame(0x77, b"from the future"),
            pack_frame(FrameType.PING, b"short"),
        )
        found = await client.receive_many()
        gone = PeerGone(PEER, 1)
        assert found[:8] + found[9:] == [
            ServerInfo(2),
            ReceivedPacket(PEER, b"x"),
            KeepAlive(),
            Ping(b"12345678"),
            Pong(b"12345678"),
            Health("problem"),
            Health(""),
            Restarting(0.001, 0.002),
            gone,
        ]
        there = found[8]
        assert isinstance(there, PeerPresent)
        assert (there.peer, str(there.address), there.port) == (PEER, "1.2.3.4", 99)
        assert there.flags == PeerPresentFlags.REGULAR | PeerPresentFlags.MESH_PEER


async def test_nothing_is_answered_by_itself() -> None:
    """Answering a ping of the relay is up to the program."""
    async with linked() as (client, links):
        links.last.feed(pack_ping(b"12345678"))
        assert await client.recv() == Ping(b"12345678")
        await asyncio.sleep(0)
        assert links.last.words() == []
        await client.send_pong(b"12345678")
        await asyncio.sleep(0)
        assert links.last.words() == [(FrameType.PONG, b"12345678")]


async def test_own_pongs_are_not_messages() -> None:
    """The pong to `ping` is consumed, that to `send_ping` is a message."""
    async with linked() as (client, links):
        receiving = asyncio.create_task(client.recv())
        pinging = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        ((kind, data),) = links.last.words()
        assert kind == FrameType.PING
        links.last.feed(pack_pong(data))
        assert await pinging >= 0
        assert not receiving.done()
        await client.send_ping(b"12345678")
        links.last.feed(pack_pong(b"12345678"))
        assert await receiving == Pong(b"12345678")


async def test_a_second_receiver_is_refused() -> None:
    """The first one goes on."""
    async with linked() as (client, links):
        first = asyncio.create_task(client.recv())
        await asyncio.sleep(0)
        for call in (client.recv(), client.recv_with_generation(), client.receive_many()):
            with pytest.raises(LocalProtocolError, match="another task is receiving"):
                await call
        links.last.feed(packet_frame(b"x"))
        assert await first == ReceivedPacket(PEER, b"x")


async def test_a_cancelled_receiver_loses_no_message() -> None:
    """A message that comes with the cancellation is returned by the next call."""
    async with linked() as (client, links):
        for number in range(10):
            receiving = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            links.last.feed(packet_frame(bytes((number,))))
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            assert await client.recv() == ReceivedPacket(PEER, bytes((number,)))


@pytest.mark.parametrize("many", [True, False])
async def test_reading_stops_above_one_mebibyte_unread(many: bool) -> None:
    """It goes on when all was received."""
    async with linked() as (client, links):
        link = links.last
        for _ in range(20):
            link.feed(packet_frame(bytes(60 * KIB)))
        assert not link.reading
        if many:
            assert len(await client.receive_many()) == 20
        else:
            for number in range(20):
                assert not link.reading, number
                await client.recv()
        assert link.reading


@pytest.mark.parametrize("many", [True, False])
async def test_a_slow_receiver_gets_all_messages_then_the_error(many: bool) -> None:
    count = 1000

    async with fake_relay() as relay, connected(relay) as (client, peer):
        for number in range(count):
            peer.say(packet_frame(number.to_bytes(2, "big") * 5000))
        peer.hang_up()
        connection = client._life.connection
        assert connection is not None
        await until(lambda: connection._paused)
        held = sum(len(m.data) for m in connection.messages if isinstance(m, ReceivedPacket))
        assert held < 2 * 1024 * KIB
        found: list[bytes] = []
        with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):  # noqa: PT012 (at the end)
            while True:
                messages = await client.receive_many() if many else [await client.recv()]
                found += [m.data for m in messages if isinstance(m, ReceivedPacket)]
        assert found == [number.to_bytes(2, "big") * 5000 for number in range(count)]


@pytest.mark.parametrize("cut", ["ended", "silent"])
async def test_unread_messages_can_be_received_after_an_end(cut: str) -> None:
    async with fake_relay() as relay, connected(relay) as (client, peer):
        connection = client._life.connection
        assert connection is not None
        for _ in range(100):
            peer.say(packet_frame(bytes(50 * KIB)))
        await until(lambda: connection._paused)
        if cut == "ended":
            connection.end(ConnectionResetError("cut"), "error")
        else:
            peer.cut()
        messages, _ = await until_closed(client)
        assert len(messages) > 15


async def test_a_connection_on_which_the_relay_sends_nothing_ends_at_the_timeout() -> None:
    """After `receive_timeout`; the next call connects."""
    config = ClientConfig(receive_timeout=0.1)
    async with fake_relay() as relay, connected(relay, config) as (client, peer):
        messages, error = await until_closed(client)
        assert messages == [ServerInfo(2)]
        assert str(error) == "derp.Recv: nothing received for 0.1 s"
        assert isinstance(error.__cause__, TimeoutError)
        await peer.gone()
        receiving = asyncio.create_task(client.recv_with_generation())
        await relay.serve()
        assert await receiving == (ServerInfo(2), 2)


async def test_sending_does_not_extend_the_read_timeout() -> None:
    """Bytes that the client sends do not reset the timeout."""
    async with linked(ClientConfig(receive_timeout=0.1)) as (client, _), bounded():
        with pytest.raises(ConnectionClosed, match="nothing received"):  # noqa: PT012 (in time)
            while True:
                await client.send(PEER, b"x")
                await asyncio.sleep(0.01)


async def test_a_protocol_error_ends_the_connection_with_its_reason() -> None:
    async with fake_relay() as relay, connected(relay) as (client, peer):
        await client.recv()
        peer.say(packet_frame(b"x"))
        assert await client.recv() == ReceivedPacket(PEER, b"x")
        peer.say(pack_frame(FrameType.SERVER_INFO, bytes(60)))
        _, error = await until_closed(client)
        assert "failed to open naclbox" in str(error)
        assert client.stats.disconnects == {"protocol": 1}
        await peer.gone()


async def test_received_packets_are_bytes() -> None:
    """A payload is a copy, so it stays valid."""
    async with linked() as (client, links):
        links.last.feed(packet_frame(b"one"), packet_frame(b""), packet_frame(b"two"))
        found = [m for m in await client.receive_many() if isinstance(m, ReceivedPacket)]
        assert [m.data for m in found] == [b"one", b"", b"two"]
        assert all(type(m.data) is bytes for m in found)
        assert {m.source for m in found} == {PEER}


async def test_generations_count_connections_from_1() -> None:
    async with linked() as (client, links):
        for generation in (1, 2, 3):
            await client.connect()
            links.last.feed(packet_frame(b"x"))
            assert await client.recv_with_generation() == (
                ReceivedPacket(PEER, b"x"),
                generation,
            )
            links.last.lose()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.generation == generation
        assert client.server_public_key == RELAY.public
        assert isinstance(client, Client)


async def test_pongs_alone_do_not_stop_reading() -> None:
    """Pongs that `ping` consumed are not unread: a client that only pings goes on."""
    link = FakeLink()
    connection = over(link)
    junk = pack_frame(0xFF, bytes(100_000))
    for _ in range(30):  # three megabytes
        ping = asyncio.create_task(connection.ping())
        for _ in range(4):
            await asyncio.sleep(0)
        data = frames_of(b"".join(link.written))[-1][1]
        link.feed(junk, pack_pong(data))
        await ping
    assert link.reading
    link.feed(packet_frame(b"x"))
    assert len(connection.messages) == 1
    connection.end(None, "eof")
