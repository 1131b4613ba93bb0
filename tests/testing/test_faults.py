"""Each fault has its effect, and without faults nothing changes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from pyderp.config import ManualTLS, RelayConfig
from pyderp.errors import BadBox, ConfigError, DerpError, FrameTooLarge, LocalProtocolError
from pyderp.relay.counters import DropReason
from pyderp.testing import FaultyRelay
from pyderp.wire.frames import pack_health
from pyderp.wire.messages import Health, PeerGone, Ping, ReceivedPacket, Restarting
from tests.owntime import own_time
from tests.server.certificates import trusting_nobody
from tests.server.dial import Client, Via, connect, drained, hang_up, open_stream, passes

LATE = 0.05


@asynccontextmanager
async def pair(relay: FaultyRelay, via: Via | None = None) -> AsyncIterator[tuple[Client, Client]]:
    """Two clients that log in one after the other, so that their numbers are known."""
    opened: list[Client] = []
    try:
        while len(opened) < 2:
            opened += [await connect(relay.address, via=via)]
        yield opened[0], opened[1]
    finally:
        for client in opened:
            await client.aclose()


async def received(client: Client, count: int) -> list[bytes]:
    return [await client.packet() for _ in range(count)]


async def burst(sender: Client, receiver: Client, count: int, *, chunk: int = 0) -> set[int]:
    """Send numbered packets, few at a time so that no queue overflows; returns those that
    arrived."""
    arrived = set()
    for number in range(count):
        sender.session.send_packet(receiver.key, number.to_bytes(4, "big"))
        data = b"".join(sender.session.data_to_send())
        for at in range(0, len(data), chunk or len(data)):
            sender.writer.write(data[at : at + (chunk or len(data))])
            await asyncio.sleep(0)
        if number % 10 == 9 or number == count - 1:
            await sender.ping()
            receiver.session.send_ping(mark := number.to_bytes(8, "big"))
            receiver.write()
            while getattr(message := await receiver.receive(), "data", None) != mark:
                if isinstance(message, ReceivedPacket):
                    arrived.add(int.from_bytes(message.data, "big"))
    return arrived


# No fault


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["plain", "websocket", "fast start"])
async def test_without_faults_packets_arrive_unchanged(kind: str, tls: bool) -> None:
    """Packets of all sizes, in order, over every transport of DERP."""
    async with FaultyRelay(tls=tls) as relay:
        via = Via(
            tls=trusting_nobody() if tls else None,
            websocket=kind == "websocket",
            fast_start=relay.public_key if kind == "fast start" else None,
        )
        async with pair(relay, via) as (a, b):
            sent = [bytes([n]) * n * 250 for n in range(31)]
            for packet in [*sent, bytes(65536)]:
                a.send(b, packet)
            assert await received(b, 31) == sent
            assert await b.packet() == bytes(65536)
            await passes(b, a)
            assert relay.counters.connections == relay.connections == 2
            assert relay.counters.passed == (0 if kind == "websocket" else 2 * 33)
            assert relay.counters.dropped == relay.counters.cut == 0
            assert relay.relay.clients == 2


async def test_other_requests_reach_the_relay() -> None:
    """Also twice on one connection."""
    async with FaultyRelay() as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: r\r\n\r\n")
        writer.write(b"GET /derp HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
        answers = await drained(reader)
        writer.close()
        await writer.wait_closed()
        assert answers.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 426 " in answers


async def test_bytes_that_are_not_http_reach_the_relay() -> None:
    """The relay's own refusal comes back."""
    async with FaultyRelay() as relay:
        for nonsense in (b"\x16\x03\x01\x02\x00\x01", b"NO HTTP\r\n\r\n"):
            reader, writer = await open_stream(relay.address)
            writer.write(nonsense)
            assert (await drained(reader)).startswith(b"HTTP/1.1 400 ")
            writer.close()
            await writer.wait_closed()


async def test_the_end_of_a_client_reaches_the_relay() -> None:
    """The receiver of its last packet gets PeerGone."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        await passes(a, b)
        await a.aclose()
        assert await b.wait_for(PeerGone) == PeerGone(a.key, 0)
        assert relay.relay.clients == 1


# Slow and lossy


async def test_latency_is_added_each_way() -> None:
    """A ping takes at least twice the latency; without latency it does not."""
    loop = asyncio.get_running_loop()
    async with FaultyRelay() as relay, pair(relay) as (a, _):
        relay.latency = LATE
        begin = loop.time()
        await a.ping()
        assert loop.time() - begin >= 2 * LATE - 0.002
        relay.latency = 0
        begin = own_time()
        await a.ping()
        assert own_time() - begin < 2 * LATE


async def test_delayed_packets_overlap() -> None:
    """Latency limits no bandwidth: packets sent together arrive together."""
    loop = asyncio.get_running_loop()
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.latency = LATE
        begin, own_begin = loop.time(), own_time()
        for n in range(20):
            a.send(b, bytes([n]))
            await asyncio.sleep(0)
        assert await received(b, 20) == [bytes([n]) for n in range(20)]
        assert loop.time() - begin >= 2 * LATE - 0.002
        assert own_time() - own_begin < 20 * LATE


async def test_jitter_keeps_the_order() -> None:
    """Packets with different delays arrive in order, also when jitter ends."""
    loop = asyncio.get_running_loop()
    async with FaultyRelay(seed=3) as relay, pair(relay) as (a, b):
        relay.jitter = LATE
        begin = loop.time()
        for n in range(10):
            a.send(b, bytes([n]))
        assert await received(b, 1) == [b"\0"]
        relay.jitter = 0
        for n in range(10, 20):
            a.send(b, bytes([n]))
        assert await received(b, 19) == [bytes([n]) for n in range(1, 20)]
        assert loop.time() - begin > LATE / 4


async def losses(seed: int, *, chunk: int = 0, loss: float = 0.3) -> set[int]:
    """Which of 100 packets arrive; the sender writes them in chunks of this size."""
    async with FaultyRelay(seed=seed) as relay, pair(relay) as (a, b):
        relay.loss = loss
        found = set(await burst(a, b, 100, chunk=chunk))
        assert relay.counters.dropped == 100 - len(found)
    return found


async def test_the_seed_decides_which_packets_are_lost() -> None:
    """The same seed loses the same packets in any chunks; another seed loses others."""
    once = await losses(1)
    assert 20 < len(once) < 80  # 49 on average, counting both directions
    assert await losses(1) == once
    assert await losses(1, chunk=3) == once
    assert await losses(2) != once


async def test_loss_of_0_and_1_is_exact() -> None:
    assert await losses(1, loss=0.0) == set(range(100))
    assert await losses(1, loss=1.0) == set()


async def test_only_packets_are_lost() -> None:
    """Login, pings and frames of the relay itself pass at any loss."""
    async with FaultyRelay() as relay:
        relay.loss = 1
        async with pair(relay) as (a, b):
            a.send(b, b"lost")
            await a.ping()
            assert relay.counters.dropped == 1
            assert relay.counters.passed == 0


@pytest.mark.parametrize("way", ["up", "down"])
async def test_drop_next_drops_this_many_packets(way: str) -> None:
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.drop_next(2, way="up" if way == "up" else "down")
        for n in range(5):
            a.send(b, bytes([n]))
        assert await received(b, 3) == [b"\2", b"\3", b"\4"]
        assert relay.counters.dropped == 2
        assert relay.relay.counters.packets_sent == (3 if way == "up" else 5)


# Cuts and freezes


@pytest.mark.parametrize("reset", [False, True])
async def test_cut_ends_all_connections(reset: bool) -> None:
    """FIN is an end of file; RST is an error."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        assert relay.cut(reset=reset) == 2
        for client in (a, b):
            if reset:
                with pytest.raises(ConnectionResetError):
                    await client.reader.read(1)
            else:
                assert await client.reader.read(1) == b""
        assert relay.counters.cut == 2
        again = await connect(relay.address)
        await again.ping()
        await again.aclose()


async def test_cut_of_one_client_spares_others() -> None:
    """The key chooses the connection; the relay sends PeerGone to others."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        await passes(a, b)
        assert relay.cut(client=a.key) == 1
        await a.closed()
        assert await b.wait_for(PeerGone) == PeerGone(a.key, 0)
        assert relay.cut(client=a.key) == 0
        assert relay.connections == 1


async def test_cut_drops_delayed_packets() -> None:
    """A packet on its way is lost with its connection."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.latency = LATE
        a.send(b, b"never arrives")
        while not relay.counters.passed:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        relay.cut()
        assert await drained(b.reader) == b""


@pytest.mark.parametrize("nbytes", [1, 4, 5, 36, 37, 100])
async def test_cut_after_is_exact_to_the_byte(nbytes: int) -> None:
    """This many bytes of the next frames arrive, then the end; the other client stays connected."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.cut_after(nbytes)
        for _ in range(3):
            a.send(b, b"12345")
        assert len(await drained(b.reader)) == nbytes
        assert relay.counters.cut == 1
        await a.ping()


async def test_cut_after_works_on_the_way_to_the_relay() -> None:
    """The relay gets half a frame; the sender's connection is reset."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.cut_after(50, way="up", reset=True)
        a.send(b, b"12345")  # 42 bytes with header and key
        assert await b.packet() == b"12345"
        a.send(b, b"67890")
        with pytest.raises(ConnectionResetError):
            await a.reader.read(1)
        assert await b.wait_for(PeerGone) == PeerGone(a.key, 0)


async def test_freeze_passes_no_byte_and_thaw_all() -> None:
    """Connections stay; bytes sent meanwhile arrive later. New connections wait as well."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.freeze()
        a.send(b, b"one")
        a.send(b, b"two")
        newcomer = asyncio.ensure_future(connect(relay.address))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.receive(), LATE)
        assert not newcomer.done()
        assert relay.counters.passed == 0
        relay.thaw()
        assert await received(b, 2) == [b"one", b"two"]
        await (await newcomer).aclose()


async def test_freeze_holds_delayed_packets() -> None:
    """A delayed packet stays on its way, and a cut ends a frozen connection."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.latency = LATE
        a.send(b, b"late")
        while not relay.counters.passed:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        relay.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.receive(), 3 * LATE)
        relay.thaw()
        assert await b.packet() == b"late"
        relay.freeze()
        relay.cut()
        await a.closed()
        await b.closed()


async def test_a_freeze_hides_the_end_of_a_connection() -> None:
    """The relay gets the client's end only after the thaw."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        await passes(a, b)
        relay.freeze()
        await a.aclose()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.receive(), LATE)
        assert relay.relay.clients == 2
        relay.thaw()
        assert await b.wait_for(PeerGone) == PeerGone(a.key, 0)


async def test_a_stalled_reader_stalls_the_relay() -> None:
    """The proxy buffers no more than a transport does: the relay drops packets as without a
    proxy."""
    async with FaultyRelay(RelayConfig(write_timeout=0)) as relay, pair(relay) as (a, b):
        b.writer.transport.pause_reading()  # type: ignore[attr-defined] # a read transport, too
        while not relay.relay.counters.dropped(DropReason.QUEUE_HEAD):
            a.send(b, bytes(65536))
            await a.ping()
        b.writer.transport.resume_reading()  # type: ignore[attr-defined] # as above
        await passes(a, b)


async def test_a_stalled_reader_is_cut() -> None:
    """It reads the bytes that were on their way, and then the end."""
    async with FaultyRelay(RelayConfig(write_timeout=0)) as relay, pair(relay) as (a, b):
        b.writer.transport.pause_reading()  # type: ignore[attr-defined] # a read transport, too
        while not relay.relay.counters.dropped(DropReason.QUEUE_HEAD):
            a.send(b, bytes(65536))
            await a.ping()
        assert relay.cut(client=b.key) == 1
        b.writer.transport.resume_reading()  # type: ignore[attr-defined] # as above
        assert len(await drained(b.reader)) > 65536
        assert relay.connections == 1


# Restarts


async def test_refused_connections_are_refused() -> None:
    """The port stays the same, and open connections stay."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        address = relay.address
        for _ in range(2):
            relay.refuse()
            relay.refuse()
            with pytest.raises(ConnectionRefusedError):
                await connect(address)
            await passes(a, b)
            relay.accept()
            relay.accept()
            again = await connect(address)
            await again.aclose()
        assert relay.address == address


@pytest.mark.parametrize("new_key", [False, True])
async def test_restart_is_announced(new_key: bool) -> None:
    """Clients get Restarting and are closed; the relay returns with the same key, or a new one."""
    async with FaultyRelay() as relay, pair(relay) as (a, _):
        key, address, first = relay.public_key, relay.address, relay.relay
        await relay.restart(new_key=new_key)
        assert await a.wait_for(Restarting) == Restarting(0.0, 60.0)
        await a.closed()
        assert (relay.public_key == key) is not new_key
        assert relay.address == address
        assert relay.relay is not first
        assert relay.counters.restarts == 1
        again = await connect(address)
        assert again.session.server_key == relay.public_key
        await again.aclose()


async def test_a_crash_is_not_announced() -> None:
    """Without an announcement only the end arrives; connections stay refused."""
    async with FaultyRelay() as relay, pair(relay) as (a, _):
        relay.refuse()
        await relay.restart(announce=False)
        assert await drained(a.reader) == b""
        with pytest.raises(ConnectionRefusedError):
            await connect(relay.address)


async def test_a_restart_under_tls_has_the_same_pin() -> None:
    """The certificate stays; the meta certificate has the new key."""
    async with FaultyRelay(tls=True) as relay:
        region = relay.region
        assert region.nodes[0].cert_name.startswith("sha256-raw:")
        await relay.restart(new_key=True)
        assert relay.region == region
        async with pair(relay, Via(tls=trusting_nobody())) as (a, b):
            await passes(a, b)


# Wrong answers


async def test_wrong_key_fails_one_login() -> None:
    """The box of one login does not open; that of the next does."""
    async with FaultyRelay() as relay:
        relay.wrong_key()
        with pytest.raises(BadBox):
            await connect(relay.address)
        assert relay.counters.wrong_keys == 1
        async with pair(relay) as (a, b):
            await passes(a, b)


@pytest.mark.parametrize("websocket", [False, True])
async def test_http_status_refuses_upgrades(websocket: bool) -> None:
    """Two upgrades are refused, with a body; a probe in between is not."""
    async with FaultyRelay() as relay:
        relay.http_status(503, count=2)
        with pytest.raises(Exception, match="503"):
            await connect(relay.address, via=Via(websocket=websocket))
        reader, writer = await open_stream(relay.address)
        writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
        assert (await drained(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
        with pytest.raises(DerpError, match="503 Service Unavailable: 503 Service Unavail"):
            await connect(relay.address)
        await (await connect(relay.address)).aclose()
        assert relay.counters.rejected == 2


@pytest.mark.parametrize("kind", ["unknown", "short"])
async def test_unknown_frames_are_skipped(kind: str) -> None:
    """They are whole: the frames after them are read."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        for _ in range(20):
            assert relay.junk("unknown" if kind == "unknown" else "short")
        a.send(b, b"after")
        assert isinstance(message := await b.receive(), ReceivedPacket)
        assert message.data == b"after"
        assert relay.counters.injected == 40


@pytest.mark.parametrize("kind", ["oversized", "garbage"])
@pytest.mark.parametrize("seed", range(5))
async def test_junk_ends_the_connection(kind: str, seed: int) -> None:
    """Only that of the client that got it."""
    async with FaultyRelay(seed=seed) as relay, pair(relay) as (a, b):
        relay.junk("oversized" if kind == "oversized" else "garbage", client=a.key)
        with pytest.raises(FrameTooLarge):
            await a.receive()
        await b.ping()
        assert relay.counters.injected == 1


async def test_junk_follows_the_seed() -> None:
    """The same seed makes the same junk, also without a client to get it."""
    made = []
    for seed in (1, 1, 2):
        async with FaultyRelay(seed=seed) as relay:
            made.append([relay.junk("garbage"), relay.junk("unknown"), relay.junk("garbage")])
            assert relay.counters.injected == 0
    assert made[0] == made[1] != made[2]
    assert made[0][0] != made[0][2]


async def test_a_frame_can_be_inserted() -> None:
    """Between two others, in its place also when they are delayed."""
    async with FaultyRelay() as relay, pair(relay) as (a, b):
        relay.latency = LATE
        a.send(b, b"first")
        while relay.counters.passed < 2:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        assert relay.inject(pack_health("sick"), client=b.key) == 1
        relay.latency = 0
        assert relay.inject(b"\x12\0\0\0\x0812345678", client=b.key) == 1
        assert isinstance(await b.receive(), ReceivedPacket)
        assert await b.receive() == Health("sick")
        assert await b.receive() == Ping(b"12345678")


async def test_no_frame_can_be_inserted_into_a_websocket() -> None:
    """The proxy does not read the frames of websockets."""
    async with FaultyRelay() as relay, pair(relay, Via(websocket=True)) as (a, b):
        relay.loss = 1
        assert relay.inject(b"junk") == 0
        await passes(a, b)


# Use and misuse


@pytest.mark.parametrize(
    "use",
    [
        lambda relay: setattr(relay, "loss", 1.1),
        lambda relay: setattr(relay, "loss", float("nan")),
        lambda relay: setattr(relay, "latency", -1),
        lambda relay: setattr(relay, "jitter", float("nan")),
        lambda relay: relay.drop_next(-1),
        lambda relay: relay.cut_after(0),
        lambda relay: relay.wrong_key(-1),
        lambda relay: relay.http_status(999),
        lambda relay: relay.http_status(101),
        lambda relay: relay.http_status(200),
        lambda relay: relay.http_status(503, count=-1),
        lambda relay: relay.http_status(503, count=0.5),
        lambda relay: setattr(relay, "loss", -0.1),
        lambda relay: setattr(relay, "latency", float("inf")),
        lambda relay: setattr(relay, "jitter", float("inf")),
        lambda relay: relay.drop_next(1, way="sideways"),
        lambda relay: relay.drop_next(1.5),
        lambda relay: relay.drop_next(True),
        lambda relay: relay.cut_after(1, way="sideways"),
        lambda relay: relay.cut_after(1.5),
        lambda relay: relay.wrong_key(1.5),
        lambda relay: relay.junk("nonsense"),
    ],
)
def test_an_impossible_fault_is_refused(use: Callable[[FaultyRelay], object]) -> None:
    """The error changes no setting."""
    relay = FaultyRelay()
    with pytest.raises(ConfigError):
        use(relay)
    assert (relay.loss, relay.latency, relay.jitter) == (0, 0, 0)


def test_tls_settings_of_the_relay_are_refused(tls: ManualTLS) -> None:
    """The proxy could not read frames."""
    with pytest.raises(ConfigError, match="tls=True"):
        FaultyRelay(RelayConfig(tls=tls))


@pytest.mark.parametrize("name", ["address", "url", "region", "relay", "connections"])
def test_before_the_start_attributes_raise(name: str) -> None:
    """Only a running relay has an address."""
    with pytest.raises(LocalProtocolError, match="not started"):
        getattr(FaultyRelay(), name)


async def test_it_starts_once() -> None:
    """A second start is refused; a second close is not."""
    async with FaultyRelay() as relay:
        with pytest.raises(LocalProtocolError):
            await relay.start()
        assert relay.url == f"http://127.0.0.1:{relay.address[1]}/derp"
    await relay.aclose()


async def test_without_a_relay_connections_end() -> None:
    """The proxy accepts, finds no relay and closes, also if the client speaks no TLS."""
    async with FaultyRelay() as relay:
        await relay.relay.aclose()
        reader, writer = await open_stream(relay.address)
        assert await drained(reader) == b""
        await hang_up(writer)
    async with FaultyRelay(tls=True) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in await drained(reader)
        await hang_up(writer)


async def test_a_cut_during_the_handshake_ends_it_later() -> None:
    """A connection that is not complete ends as soon as it is."""
    async with FaultyRelay(tls=True) as relay:
        connecting = asyncio.ensure_future(open_stream(relay.address, Via(tls=trusting_nobody())))
        while not relay.connections:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        assert relay.cut() == 1
        reader, writer = await connecting
        assert await drained(reader) == b""
        await hang_up(writer)


async def test_close_ends_all_connections() -> None:
    """Frozen, delayed and half-open ones, and the port is free."""
    async with FaultyRelay(tls=True) as relay:
        via = Via(tls=trusting_nobody())
        a, b = await connect(relay.address, via=via), await connect(relay.address, via=via)
        half = socket.create_connection(relay.address)
        relay.latency = 60
        a.send(b, b"late")
        while not relay.counters.passed:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        relay.freeze()
    await a.closed()
    await b.closed()
    half.close()
    await a.aclose()
    await b.aclose()
    with pytest.raises(ConnectionRefusedError):
        await connect(relay.address, via=via)


async def test_a_failed_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is free again, and the block is never entered."""

    async def fails(_: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("pyderp.server.app.relay.Relay.start", fails)
    with pytest.raises(ConfigError, match="no"):
        await FaultyRelay().start()
