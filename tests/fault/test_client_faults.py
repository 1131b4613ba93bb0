"""A client of a relay or network that fails: it reports, connects anew, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from pyderp import (
    BadBox,
    Client,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    FrameTooLarge,
    NetworkSettings,
    Pong,
    ReceivedPacket,
    RemoteProtocolError,
    Restarting,
    ServerInfo,
    UpgradeRejected,
    is_transient,
)
from pyderp.testing import FaultyRelay, Junk, client_pair
from pyderp.wire.frames import pack_restarting

M = TypeVar("M")

BOUND = 10.0
SHORT = 0.1
"""Seconds to wait for something that never comes."""


def client_of(relay: FaultyRelay, **settings: Any) -> Client:
    """A client that is not connected."""
    return Client.for_url(relay.url, config=ClientConfig(network=NetworkSettings(), **settings))


async def next_of(client: Client, kind: type[M]) -> M:
    """The next message of a type; others before it are dropped."""
    async with asyncio.timeout(BOUND):
        while not isinstance(message := await client.recv(), kind):
            pass
    return message


async def ended(client: Client) -> ConnectionClosed:
    """The error at the end of the connection."""
    async with asyncio.timeout(BOUND):
        while True:
            try:
                await client.recv()
            except ConnectionClosed as e:
                return e


async def arrives(sender: Client, receiver: Client) -> None:
    """A packet passes from one client to the other, on their present connections."""
    await sender.send(receiver.self_public_key, b"arrives")
    while (await next_of(receiver, ReceivedPacket)).data != b"arrives":
        pass


async def send_forever(sender: Client, receiver: Client, packet: bytes) -> None:
    """Send the same packet until a send fails."""
    while True:
        await sender.send(receiver.self_public_key, packet)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run a function beside the block, until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Stream:
    """A client sends numbers to another, without end, whatever happens to either."""

    def __init__(self, sender: Client, receiver: Client) -> None:
        self.sender = sender
        self.receiver = receiver
        self.sent = 0
        self.seen: list[int] = []
        self._news = asyncio.Event()

    async def send(self) -> None:
        while True:
            with contextlib.suppress(ConnectionClosed, ConnectError):
                await self.sender.send(self.receiver.self_public_key, self.sent.to_bytes(4, "big"))
                self.sent += 1
            await asyncio.sleep(0.001)

    async def receive(self) -> None:
        async for message in self.receiver:
            if isinstance(message, ReceivedPacket):
                self.seen.append(int.from_bytes(message.data, "big"))
                self._news.set()
        raise AssertionError("the iteration ended")

    async def goes_on(self, count: int = 5) -> None:
        """Wait for some packets that were not sent yet."""
        begin = self.sent
        async with asyncio.timeout(BOUND):
            while not (len(self.seen) >= count and self.seen[-count] >= begin):
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def stream(relay: FaultyRelay) -> AsyncIterator[Stream]:
    """A running stream; the sender receives as well, and so notices the end of its connections."""
    async with client_of(relay) as a, client_of(relay) as b:
        made = Stream(a, b)
        async with running(made.receive()), running(made.send()), running(drain(a)):
            await made.goes_on()
            yield made


async def drain(client: Client) -> None:
    async for _ in client:
        pass


# Cut


@pytest.mark.parametrize("reset", [False, True])
async def test_a_receiver_gets_the_error_of_a_cut_and_connects_again(reset: bool) -> None:
    """The error is raised once and has the connection's number; the next call connects."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        assert relay.cut(reset=reset, client=b.self_public_key) == 1
        error = await ended(b)
        assert error.generation == 1
        assert isinstance(error.__cause__, ConnectionResetError) is reset
        message, generation = await b.recv_with_generation()
        assert isinstance(message, ServerInfo)
        assert generation == b.generation == 2
        await arrives(a, b)
        assert b.stats.disconnects == {"error" if reset else "eof": 1}
        assert a.generation == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_a_sender_gets_the_error_of_a_cut_and_connects_again(reset: bool) -> None:
    """No task receives: a send reports the end, and the one after it arrives."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        relay.cut(reset=reset, client=a.self_public_key)
        async with asyncio.timeout(BOUND):
            with pytest.raises(ConnectionClosed):
                await send_forever(a, b, b"lost")
        await arrives(a, b)
        assert a.generation == 2


async def test_messages_before_a_cut_are_received() -> None:
    """Messages that have come are received before the error."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        for n in range(10):
            await a.send(b.self_public_key, bytes([n]))
        await a.ping()
        await b.ping()
        relay.cut(client=b.self_public_key)
        got = [await b.recv() for _ in range(10)]
        assert got == [ReceivedPacket(a.self_public_key, bytes([n])) for n in range(10)]
        await ended(b)


@pytest.mark.parametrize("nbytes", [1, 4, 5, 6, 36, 37, 38, 136, 137])
async def test_half_a_frame_is_never_a_message(nbytes: int) -> None:
    """A connection that is cut inside a frame of 137 bytes delivers the whole ones and ends."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        packet = ReceivedPacket(a.self_public_key, bytes(100))
        relay.cut_after(137 + nbytes)
        for _ in range(3):
            await a.send(b.self_public_key, packet.data)
        assert await b.recv() == packet
        if nbytes == 137:
            assert await b.recv() == packet
        with pytest.raises(ConnectionClosed):
            await b.recv()
        assert isinstance(await b.recv(), ServerInfo)
        await arrives(a, b)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_login_may_break_at_any_byte(way: str) -> None:
    """The error is one of pyderp's, and the next login works."""

    async def attempt(relay: FaultyRelay, nbytes: int) -> bool:
        async with client_of(relay) as client:
            relay.cut_after(nbytes, way="up" if way == "up" else "down", reset=nbytes % 2 == 0)
            with contextlib.suppress(ConnectError, ConnectionClosed):
                assert isinstance(await client.recv(), ServerInfo)
                await client.ping()
                return False
            assert isinstance(await anext(aiter(client)), ServerInfo)
            await client.ping()
        return True

    async with FaultyRelay() as relay:
        nbytes = 1
        while await attempt(relay, nbytes):
            nbytes += 7
        assert nbytes > 200  # head, frames and ping
        assert relay.counters.cut >= nbytes // 7


async def test_a_stream_goes_on_after_cuts_of_both_ends() -> None:
    """Sender and receiver connect again each time; packets stay in order, none is doubled."""
    async with FaultyRelay() as relay, stream(relay) as numbers:
        for reset in (False, True, False, True):
            assert relay.cut(reset=reset) == 2
            await numbers.goes_on()
        assert numbers.sender.generation >= 5
        assert numbers.receiver.generation >= 5
        assert numbers.seen == sorted(set(numbers.seen))


# Lossy, slow, frozen


@pytest.mark.parametrize("seed", [1, 2])
async def test_lost_packets_are_the_only_loss(seed: int) -> None:
    """Losses end no connection, and the packets that do not arrive are those dropped."""
    async with (
        FaultyRelay(seed=seed) as relay,
        client_pair(relay) as (a, b),
    ):
        relay.loss = 0.2
        for n in range(200):
            await a.send(b.self_public_key, bytes([n]))
            if n % 10 == 9:
                await a.ping()
                await b.ping()
        relay.loss = 0
        await a.send(b.self_public_key, b"end")
        got = []
        while (packet := await next_of(b, ReceivedPacket)).data != b"end":
            got.append(packet.data)
        assert got == sorted(set(got))
        assert 0 < len(got) == 200 - relay.counters.dropped < 200
        assert (a.generation, b.generation) == (1, 1)


async def test_a_ping_measures_the_latency_both_ways() -> None:
    async with FaultyRelay() as relay, client_pair(relay) as (a, _):
        relay.latency = 0.05
        slow = await a.ping()
        assert slow >= 0.098
        relay.latency = 0
        # The quickest of several: a busy machine delays some of them.
        assert min([await a.ping() for _ in range(20)]) < 0.05


async def test_a_ping_into_a_freeze_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays, and a pong that comes too late is a message."""
    monkeypatch.setattr("pyderp.client.client.PING_TIMEOUT", SHORT)

    async with FaultyRelay() as relay, client_pair(relay) as (a, _):
        relay.freeze()
        with pytest.raises(TimeoutError, match="no pong"):
            await a.ping()
        assert a.connected
        relay.thaw()
        await next_of(a, Pong)
        await a.ping()
        assert a.generation == 1


async def test_a_frozen_connection_is_given_up() -> None:
    """After the time that the settings allow; a new connect is given up, too."""
    async with (
        FaultyRelay() as relay,
        client_of(relay, receive_timeout=SHORT, connect_timeout=SHORT) as client,
    ):
        assert isinstance(await client.recv(), ServerInfo)
        relay.freeze()
        error = await ended(client)
        assert isinstance(error.__cause__, TimeoutError)
        with pytest.raises(ConnectError) as caught:
            await client.connect()
        assert is_transient(caught.value)
        relay.thaw()
        assert isinstance(await client.recv(), ServerInfo)
        assert client.stats.disconnects["timeout"] == 1


async def test_sends_into_a_freeze_wait() -> None:
    """They wait once buffers are full, can be cancelled, and go on after the thaw."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        relay.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_forever(a, b, bytes(60_000)), 1)
        relay.thaw()
        await a.ping()
        await arrives(a, b)
        assert a.generation == 1


# Restarts


async def test_a_relay_that_is_away_is_an_error_or_waited_for() -> None:
    """A connect raises; an iteration waits until it is back."""
    async with FaultyRelay() as relay, stream(relay) as numbers:
        relay.refuse()
        relay.cut()
        while numbers.receiver.stats.failed_connects < 2:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        async with client_of(relay) as newcomer:
            with pytest.raises(ConnectError) as caught:
                await newcomer.connect()
        assert is_transient(caught.value)
        relay.accept()
        await numbers.goes_on()


@pytest.mark.parametrize("new_key", [False, True])
async def test_an_announced_restart_is_a_message_and_an_error(new_key: bool) -> None:
    """The error after the message has the announcement."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        old = relay.public_key
        await relay.restart(new_key=new_key)
        for client in (a, b):
            assert await client.recv() == Restarting(0.0, 60.0)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.restarting == Restarting(0.0, 60.0)
            assert isinstance(await client.recv(), ServerInfo)
            assert client.stats.disconnects == {"restarting": 1}
            assert client.server_public_key == relay.public_key
        await arrives(a, b)
        assert (relay.public_key != old) is new_key


@pytest.mark.parametrize("announce", [False, True])
async def test_a_stream_goes_on_after_restarts(announce: bool) -> None:
    """With the same key and with a new one."""
    async with FaultyRelay() as relay, stream(relay) as numbers:
        for new_key in (False, True):
            await relay.restart(new_key=new_key, announce=announce)
            await numbers.goes_on()
        assert relay.counters.restarts == 2
        assert numbers.receiver.stats.disconnects["restarting"] == (2 if announce else 0)


async def test_an_iteration_connects_again_if_asked_to() -> None:
    """Not before the time that the relay announced."""
    loop = asyncio.get_running_loop()
    async with FaultyRelay() as relay, client_of(relay) as client:
        messages = aiter(client)
        assert isinstance(await anext(messages), ServerInfo)
        relay.inject(pack_restarting(0.3, 60.0))
        assert isinstance(await anext(messages), Restarting)
        relay.cut()
        begin = loop.time()
        assert isinstance(await anext(messages), ServerInfo)
        assert loop.time() - begin >= 0.298


# Wrong answers


@pytest.mark.parametrize("tls", [False, True])
async def test_a_relay_with_a_wrong_key_ends_the_connection(tls: bool) -> None:
    """Its box does not open; with the right key the client connects."""
    async with FaultyRelay(tls=tls) as relay:
        config = ClientConfig(network=NetworkSettings(use_derp_http=not tls))
        async with Client.for_region(relay.region, config=config) as client:
            relay.wrong_key()
            error = await ended(client)
            assert isinstance(error.__cause__, BadBox)
            assert isinstance(await client.recv(), ServerInfo)
            assert client.server_public_key == relay.public_key
            assert client.stats.disconnects == {"protocol": 1}


@pytest.mark.parametrize("status", [302, 403, 426, 429, 500, 503])
async def test_a_refused_upgrade_has_status_and_body(status: int) -> None:
    """The status decides whether trying again may help.

    Without the fallback to a websocket, which a 426 would lead to.
    """
    async with FaultyRelay() as relay, client_of(relay, websocket=False) as client:
        relay.http_status(status)
        with pytest.raises(ConnectError, match=str(status)) as caught:
            await client.connect()
        (error,) = caught.value.attempts
        assert isinstance(error, UpgradeRejected)
        assert error.status == status
        assert error.body.startswith(str(status))
        assert is_transient(caught.value) is (status in (429, 500, 503))
        await client.connect()


async def test_an_iteration_waits_for_transient_errors() -> None:
    """Two answers of 503 are waited out from the start; one of 403 is raised."""
    async with FaultyRelay() as relay, client_of(relay) as client:
        relay.http_status(503, count=2)
        assert isinstance(await anext(aiter(client)), ServerInfo)
        assert client.stats.failed_connects == 2
        async with client_of(relay) as other:
            relay.http_status(403)
            with pytest.raises(ConnectError):
                await anext(aiter(other))


@pytest.mark.parametrize("kind", ["unknown", "short"])
async def test_unknown_frames_are_skipped(kind: Junk) -> None:
    """A program gets only the messages around them."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        for n in range(20):
            relay.junk(kind)
            await a.send(b.self_public_key, bytes([n]))
        assert [await b.recv() for _ in range(20)] == [
            ReceivedPacket(a.self_public_key, bytes([n])) for n in range(20)
        ]


@pytest.mark.parametrize("kind", ["oversized", "garbage"])
async def test_bytes_that_are_no_frames_end_the_connection(kind: Junk) -> None:
    """The error blames the relay; the next connection works."""
    async with FaultyRelay() as relay, client_pair(relay) as (a, b):
        relay.junk(kind, client=b.self_public_key)
        error = await ended(b)
        assert isinstance(error.__cause__, FrameTooLarge)
        assert b.stats.disconnects == {"protocol": 1}
        assert isinstance(await b.recv(), ServerInfo)
        await arrives(a, b)


@pytest.mark.parametrize("seed", range(3))
async def test_any_bytes_raise_only_documented_errors(seed: int) -> None:
    """The client can be used after any bytes of a relay after the login."""
    rng = random.Random(seed)
    async with FaultyRelay() as relay, client_of(relay) as client:
        for _ in range(30):
            await next_of(client, ServerInfo)
            data = rng.randbytes(rng.randrange(1, 300))
            if rng.randrange(2):  # a frame, and something in it
                data = bytes([rng.randrange(0x20)]) + len(data).to_bytes(4, "big") + data
            relay.inject(data)
            relay.cut()
            error = await ended(client)
            cause = error.__cause__
            assert cause is None or isinstance(cause, RemoteProtocolError | OSError)


# All faults in turn

Trouble = Callable[[FaultyRelay, random.Random], object]

TROUBLES: list[Trouble] = [
    lambda relay, rng: setattr(relay, "latency", rng.uniform(0, 0.02)),
    lambda relay, rng: setattr(relay, "jitter", rng.uniform(0, 0.02)),
    lambda relay, rng: setattr(relay, "loss", rng.uniform(0, 0.5)),
    lambda relay, rng: relay.drop_next(rng.randrange(10)),
    lambda relay, rng: relay.cut(reset=rng.random() < 0.5),
    lambda relay, rng: relay.cut_after(rng.randrange(1, 2000), way=rng.choice(("up", "down"))),
    lambda relay, _: relay.freeze(),
    *[lambda relay, _: relay.thaw()] * 4,
    lambda relay, _: relay.refuse(),
    *[lambda relay, _: relay.accept()] * 4,
    lambda relay, rng: relay.wrong_key(rng.randrange(3)),
    lambda relay, rng: relay.http_status(rng.choice((429, 500, 503))),
    lambda relay, rng: (
        relay.junk(rng.choice(("unknown", "short", "oversized", "garbage"))) and None
    ),
]


async def chaos(relay: FaultyRelay, rng: random.Random, seconds: float) -> None:
    """One fault after the other, and then none."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        if rng.random() < 0.05:
            await relay.restart(new_key=rng.random() < 0.5, announce=rng.random() < 0.5)
        else:
            rng.choice(TROUBLES)(relay, rng)
        await asyncio.sleep(rng.uniform(0, 0.02))
    relay.latency = relay.jitter = relay.loss = 0
    relay.drop_next(0)
    relay.wrong_key(0)
    relay.thaw()
    relay.accept()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_delivery_works_after_any_fault(seed: int) -> None:
    """The iterations never end, and after the faults packets arrive again, in order."""
    async with FaultyRelay(seed=seed) as relay, stream(relay) as numbers:
        await chaos(relay, random.Random(seed), 2.0)
        await numbers.goes_on()
        assert numbers.receiver.generation > 1
        assert relay.counters.cut > 5
        assert numbers.seen == sorted(set(numbers.seen))
