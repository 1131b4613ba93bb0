"""The client with a relay of this project."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    DERPNode,
    DERPRegion,
    ManualTLS,
    MeshKey,
    NetworkSettings,
    PeerGone,
    PeerPresent,
    ReceivedPacket,
    Relay,
    RelayConfig,
    ServerInfo,
    TLSConfig,
)
from tests.net.ways_out import serving
from tests.server.dial import until_gone
from tests.server.ways import NAME

from .fakes import (
    DIRECT,
    PEER,
    bounded,
    until_closed,
    wait_for,
)

MESH = MeshKey(bytes(range(32)))


def of(relay: Relay, **settings: Any) -> Client:
    return Client.for_url(relay.url, config=ClientConfig(network=DIRECT, **settings))


class TestRelay:
    async def test_send_and_receive(self) -> None:
        """Twin of TestSendRecv: 0 → 1 and 1 → 2 arrive, no other client gets a packet, and the
        first message of each is ServerInfo."""
        async with Relay() as relay, of(relay) as a, of(relay) as b, of(relay) as c:
            keys = [client.self_public_key for client in (a, b, c)]
            for client in (a, b, c):
                async with bounded():
                    assert isinstance(await client.recv(), ServerInfo)
                assert client.server_public_key == relay.public_key
            await a.send(keys[1], b"hello 0->1")
            await b.send(keys[2], b"hello 1->2")
            async with bounded():
                assert await b.recv() == ReceivedPacket(keys[0], b"hello 0->1")
                assert await c.recv() == ReceivedPacket(keys[1], b"hello 1->2")
                # Nothing more comes: a pong comes after all that was sent before.
                for client in (a, b, c):
                    await client.ping()
                    assert not client._life.connection or not client._life.connection.messages

    async def test_ping(self) -> None:
        """Twin of TestPing: with a receive loop running, pings are answered."""
        async with Relay() as relay, of(relay) as client, bounded():
            await client.connect()

            async def receive() -> None:
                while True:
                    await client.recv()

            receiving = asyncio.create_task(receive())
            assert 0 < await client.ping() < 5
            assert all(await asyncio.gather(*(client.ping() for _ in range(20))))
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            assert await client.ping() > 0  # and without one

    async def test_mesh_commands(self) -> None:
        """With the mesh key a client may watch, forward, and close other clients."""
        config = RelayConfig(mesh_key=MESH)
        async with Relay(config) as relay, of(relay) as user, bounded():
            mesh_config = {"mesh_key": MESH, "watch_connection_changes": True}
            async with of(relay, **mesh_config) as mesh:
                await user.connect()
                await mesh.connect()
                seen = {(await wait_for(mesh, PeerPresent)).peer for _ in range(2)}
                assert seen == {user.self_public_key, mesh.self_public_key}
                await mesh.forward_packet(PEER, user.self_public_key, b"from afar")
                assert await wait_for(user, ReceivedPacket) == ReceivedPacket(PEER, b"from afar")
                await mesh.close_peer(user.self_public_key)
                assert (await wait_for(mesh, PeerGone)).peer == user.self_public_key
                _, error = await until_closed(user)
                assert isinstance(error, ConnectionClosed)
            await user.aclose()
            await until_gone(relay)

    async def test_forwarding_without_the_mesh_key(self) -> None:
        """The relay closes the connection; the next call raises."""
        async with Relay() as relay, of(relay) as client, bounded():
            await client.forward_packet(PEER, PEER, b"x")
            _, error = await until_closed(client)
            assert str(error) == "derp.Recv: EOF"
            assert client.stats.disconnects == {"eof": 1}


@pytest.mark.parametrize("way", ["plain", "tls", "websocket", "tls websocket", "streams"])
async def test_packets_sent_before_a_close_arrive(tls: ManualTLS, way: str) -> None:
    """Over each kind of connection."""
    own = TLSConfig(
        system_roots=False, builtin_roots=False, extra_roots=(tls.certdir / f"{NAME}.crt",)
    )

    async with Relay(RelayConfig(tls=tls if "tls" in way else None)) as relay:

        async def dialer(_host: str, _port: int) -> Any:
            if way == "streams":
                return await asyncio.open_connection(*relay.address)
            return socket.create_connection(relay.address)

        config = ClientConfig(network=DIRECT, tls=own, dialer=dialer, websocket="websocket" in way)
        url = f"http{'s' * ('tls' in way)}://{NAME}:{relay.address[1]}/derp"
        packets = [bytes((number,)) * 2000 for number in range(20)]
        async with Client.for_url(url, config=config) as receiver, bounded():
            await receiver.connect()
            for _ in range(3):
                async with Client.for_url(url, config=config) as sender:
                    await sender.send_many(receiver.self_public_key, packets)
                found = [(await wait_for(receiver, ReceivedPacket)).data for _ in packets]
                assert found == packets


async def test_through_a_proxy() -> None:
    """Twin of TestConnectThroughProxyHonorsDERPPort: the tunnel leads to the node's port, and
    a ping works through it."""
    targets: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        targets.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
        port = int(targets[-1].rpartition(b":")[2])
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with Relay() as relay, serving(tunnel) as port:
        node = DERPNode(
            name="1", region_id=1, host_name=NAME, derp_port=relay.address[1], ipv4="192.0.2.1"
        )
        region = DERPRegion(region_id=1, nodes=(node,))
        network = NetworkSettings(https_proxy=f"http://127.0.0.1:{port}", use_derp_http=True)
        config = ClientConfig(network=network)
        async with Client.for_region(region, config=config) as client, bounded():
            await client.connect()
            assert await client.ping() > 0
        assert targets == [f"{NAME}:{relay.address[1]}".encode()]


async def test_a_relay_that_stops_sends_restarting() -> None:
    """The error has its advice."""
    relay = Relay()
    await relay.start()
    async with of(relay) as client, bounded():
        await client.connect()
        stopping = asyncio.create_task(relay.aclose(drain=0.05))
        _, error = await until_closed(client)
        await stopping
        assert error.restarting is not None
        assert error.restarting.try_for == 60
        assert client.stats.disconnects == {"restarting": 1}
        with pytest.raises(ConnectError):
            await client.connect()
