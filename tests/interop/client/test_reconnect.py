"""Relays that crash or restart under traffic: clients reconnect by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyderp import (
    Client,
    ConnectError,
    ConnectionClosed,
    ReceivedPacket,
    Restarting,
    ServerInfo,
)
from tests.interop.relays import KINDS, NEWER, Kind, Relay, Setup, running
from tests.waiting import until

from .recorder import recording
from .support import GetRelay, clients, config, next_of, node, plain_region, region, url

CRASHES = 2
DRAIN = 1.0


class Traffic:
    """A sender that never stops trying, and a receiver that never stops receiving."""

    def __init__(self, sender: Client, receiver: Client) -> None:
        self.sender = sender
        self.receiver = receiver
        self.sent = 0
        self.newest = -1
        """The number in the packet that came last."""
        self.failures = 0

    async def send(self) -> None:
        while True:
            try:
                await self.sender.send(self.receiver.self_public_key, str(self.sent).encode())
                self.sent += 1
            except (ConnectionClosed, ConnectError):
                self.failures += 1
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.005)

    async def drain(self) -> None:
        """Receive in the sender, as all clients do."""
        async for _ in self.sender:
            pass

    async def receive(self) -> None:
        async for message in self.receiver:
            if isinstance(message, ReceivedPacket):
                number = int(message.data)
                assert number > self.newest
                self.newest = number

    async def flows(self) -> None:
        """Wait until a packet arrives that is not sent yet."""
        wanted = self.sent
        await until(lambda: self.newest > wanted, 15)


@asynccontextmanager
async def traffic(sender: Client, receiver: Client) -> AsyncIterator[Traffic]:
    made = Traffic(sender, receiver)
    tasks = [asyncio.create_task(work()) for work in (made.send, made.drain, made.receive)]
    try:
        async with sender, receiver:
            yield made
            for task in tasks:
                assert not task.done() or task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def client_of(relay: Relay, way: str) -> Client:
    if way == "region":
        settings = config(relay, network=plain_region())
        return Client.for_region(region(node(relay)), config=settings)
    return Client.for_url(url(relay), config=config(relay, websocket=way == "ws"))


@pytest.mark.parametrize(
    ("kind", "setup", "way", "on_loop"),
    [
        ("derper", "plain", "http", "asyncio"),
        ("derper", "plain", "http", "uvloop"),
        ("derper", "plain", "region", "uvloop"),
        ("derper", "plain", "ws", "asyncio"),
        ("derper", "named", "https", "uvloop"),
        (NEWER, "plain", "http", "uvloop"),
        (NEWER, "plain", "ws", "uvloop"),
        (NEWER, "named", "https", "asyncio"),
        ("pyderp", "plain", "http", "uvloop"),
        ("pyderp", "named", "https", "asyncio"),
    ],
    indirect=["on_loop"],
)
async def test_packets_flow_after_crashes_and_restarts(
    kind: Kind, setup: Setup, way: str, tmp_path: Path
) -> None:
    """The relay is killed and started again on the same port."""
    with running(kind, setup, tmp_path) as relay:
        sender, receiver = client_of(relay, way), client_of(relay, way)
        async with traffic(sender, receiver) as flow:
            await flow.flows()
            server_key = receiver.server_public_key
            for crash in range(CRASHES):
                generations = sender.generation, receiver.generation
                relay.kill()
                await until(lambda: not (sender.connected or receiver.connected))
                await asyncio.to_thread(relay.start_again)
                await flow.flows()
                assert sender.generation > generations[0]
                assert receiver.generation > generations[1]
                assert receiver.stats.disconnects.total() == crash + 1
                assert receiver.server_public_key == server_key


@pytest.mark.parametrize("kind", KINDS)
async def test_a_late_receiver_keeps_the_new_connection(kind: Kind, relays: GetRelay) -> None:
    """A sender has connected anew before the receiver gets the end: one reconnect, not two."""
    relay = relays(kind, "plain")

    async with recording(relay.port) as recorder:
        client = Client.for_url(url(relay, port=recorder.port), config=config(relay))
        async with clients(client):
            await next_of(client, ServerInfo)
            recorder.cut()
            await until(lambda: not client.connected)
            with pytest.raises(ConnectionClosed):
                await client.send(client.self_public_key, b"too late")
            await client.send(client.self_public_key, b"on a new connection")
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.generation == 1
            assert client.connected
            await client.ping()
            _, generation = await client.recv_with_generation()
            assert generation == client.generation == client.stats.connects == 2


async def test_clients_return_after_an_announced_restart(tmp_path: Path) -> None:
    """No sooner than announced; then packets flow again."""
    with running("pyderp", "plain", tmp_path, options=["--drain", str(DRAIN)]) as relay:
        many = [Restarted(relay) for _ in range(6)]
        async with asyncio.TaskGroup() as group:
            for one in many:
                group.create_task(one.receive())
            await until(lambda: all(one.client.connected for one in many))
            await asyncio.gather(*(one.client.ping() for one in many))
            relay.process.terminate()
            await until(lambda: relay.process.poll() is not None)
            await asyncio.to_thread(relay.start_again)
            await until(lambda: all(one.client.generation == 2 for one in many))
            for one in many:
                await one.client.aclose()
        for one in many:
            assert one.announcement is not None
            assert 0 <= one.announcement.reconnect_in < DRAIN
            assert one.attempts[1] - one.announced_at >= one.announcement.reconnect_in
            assert one.client.stats.disconnects == {"restarting": 1}


class Restarted:
    """A client that records when a restart is announced, and when it connects."""

    def __init__(self, relay: Relay) -> None:
        self.client = Client.for_url(url(relay), config=config(relay, dialer=self._dial))
        self.attempts: list[float] = []
        self.announcement: Restarting | None = None
        self.announced_at = 0.0

    async def _dial(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.attempts.append(time.monotonic())
        return await asyncio.open_connection(host, port)

    async def receive(self) -> None:
        async for message in self.client:
            if isinstance(message, Restarting):
                self.announcement, self.announced_at = message, time.monotonic()
