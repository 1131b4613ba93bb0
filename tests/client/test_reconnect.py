"""How long a client waits, which errors may pass, and `async for message in client`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from pyderp import (
    CertificateError,
    Client,
    ClientClosed,
    ClientConfig,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    DialError,
    InvalidMap,
    LocalProtocolError,
    Message,
    PinMismatch,
    ReceivedPacket,
    RemoteProtocolError,
    Restarting,
    ServerInfo,
    TLSError,
    UpgradeRejected,
    is_transient,
)
from pyderp.client import reconnect as module
from pyderp.client.reconnect import Backoff
from pyderp.wire.frames import pack_restarting

from .fakes import (
    DIRECT,
    PEER,
    Links,
    Log,
    bounded,
    fake_relay,
    packet_frame,
    until,
)


def test_squares_of_ten_milliseconds() -> None:
    """The n-th wait is n² × 10 ms, at most 5 s."""
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.failed(0) for _ in range(30)]
    assert waits == pytest.approx([min(n * n * 0.01, 5.0) for n in range(1, 31)])


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.5), (0.999, 1.499)])
def test_jitter(uniform: float, factor: float) -> None:
    """A wait is between a half and one and a half of that."""
    assert Backoff(lambda: uniform).failed(0) == pytest.approx(0.01 * factor)


def test_reset() -> None:
    """After a success it begins anew."""
    backoff = Backoff(lambda: 0.5)
    for _ in range(9):
        backoff.failed(0)
    backoff.reset()
    assert backoff.failed(0) == pytest.approx(0.01)


def test_restart_that_was_announced() -> None:
    """A relay says when to come back; then attempts are frequent for as long as it says."""
    backoff = Backoff(lambda: 0.5)
    for _ in range(30):
        backoff.failed(100)
    assert backoff.announced(Restarting(reconnect_in=2.5, try_for=60), 100) == 2.5
    waits = [backoff.failed(102.5 + n) for n in range(20)]
    assert max(waits) == pytest.approx(1.0)
    # 162.5 is when the time ends.
    assert backoff.failed(162.4) == pytest.approx(1.0)
    assert backoff.failed(162.6) > 4


def test_advice_has_a_bound() -> None:
    """No relay keeps a client away for longer than a minute."""
    assert Backoff(lambda: 0.5).announced(Restarting(2**32 / 1000, 0), 0) == 60


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionClosed("x"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (DialError("x"), True),
        (TLSError("x"), True),
        (UpgradeRejected("x", status=503, body=""), True),
        (UpgradeRejected("x", status=500, body=""), True),
        (UpgradeRejected("x", status=429, body=""), True),
        (UpgradeRejected("x", status=408, body=""), True),
        (UpgradeRejected("x", status=404, body=""), False),
        (UpgradeRejected("x", status=200, body=""), False),
        (ClientClosed("x"), False),
        (CertificateError("x"), False),
        (PinMismatch("x"), False),
        (ConfigError("x"), False),
        (InvalidMap("x"), False),
        (LocalProtocolError("x"), False),
        (RemoteProtocolError("x"), False),
        (ConnectError("DERP region not available"), True),
        (ConnectError("x", attempts=[CertificateError("x")]), False),
        (ConnectError("x", attempts=[CertificateError("x"), DialError("x")]), True),
    ],
)
def test_is_transient(error: Exception, transient: bool) -> None:
    """What may pass by itself, and what needs a person."""
    assert is_transient(error) is transient


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the iteration wanted to wait; it does not."""
    asked: list[float] = []

    async def pause(_life: object, delay: float) -> None:
        asked.append(delay)
        await asyncio.sleep(0)

    monkeypatch.setattr(module, "pause", pause)
    return asked


async def collect(client: Client, found: list[Message]) -> None:
    async for message in client:
        found.append(message)  # noqa: PERF401 (what came before an error counts)


async def close(client: Client, links: Links) -> None:
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    links.finish()
    await closing


@pytest.fixture
def _all_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short a connection was, it counts as one that worked."""
    monkeypatch.setattr(module, "STABLE", 0.0)


@pytest.mark.usefixtures("_all_stable")
async def test_through_breaks(pauses: list[float]) -> None:
    """Messages of all connections come in one stream; each break is a short wait."""
    links = Links()
    client = links.client()
    found: list[Message] = []
    task = asyncio.create_task(collect(client, found))
    for number in range(5):
        await until(lambda: len(links.all) > number and client.connected)  # noqa: B023 (awaited)
        links.last.feed(packet_frame(bytes((number,))))
        links.last.lose(ConnectionResetError() if number % 2 else None)
    await until(lambda: len(links.all) == 6 and client.connected)
    await close(client, links)
    async with bounded():
        await task  # it ends with the client, without an error
    assert found == [ReceivedPacket(PEER, bytes((number,))) for number in range(5)]
    # Each message before was a success.
    assert pauses == pytest.approx([0.01] * 5, abs=0.005)
    assert client.stats.disconnects.total() == 5


@pytest.mark.usefixtures("_all_stable")
async def test_backoff(pauses: list[float]) -> None:
    """Failures in a row make the waits longer; a connection that works makes them short again."""
    links = Links()
    client = links.client()
    links.error = OSError("no way")
    found: list[Message] = []
    task = asyncio.create_task(collect(client, found))
    await until(lambda: len(pauses) >= 30)
    links.error = None
    await until(lambda: client.connected)
    before = len(pauses)
    links.last.feed(packet_frame(b"x"))
    links.last.lose()
    await until(lambda: client.generation == 2)
    await close(client, links)
    await task
    assert pauses[:10] == pytest.approx([n * n * 0.01 for n in range(1, 11)], abs=0.005)
    assert pauses[29] == pytest.approx(5.0, abs=0.005)
    assert pauses[before:] == pytest.approx([0.01], abs=0.005)


async def test_a_connection_without_a_message_is_no_success(pauses: list[float]) -> None:
    """A relay that takes connections and drops them is not asked in a tight loop."""
    links = Links()
    client = links.client()
    task = asyncio.create_task(collect(client, []))
    for number in range(1, 6):
        await until(lambda: client.generation == number and client.connected)  # noqa: B023
        links.last.lose()
    await until(lambda: client.generation == 6)
    await close(client, links)
    await task
    assert pauses == pytest.approx([n * n * 0.01 for n in range(1, 6)], abs=0.005)


async def test_a_relay_that_lets_in_and_hangs_up(pauses: list[float]) -> None:
    """Messages alone make no success: such a relay is asked less and less often, too, also if
    it says to come back at once."""
    links = Links()
    client = links.client()
    task = asyncio.create_task(collect(client, []))
    for number in range(1, 6):
        await until(lambda: client.generation == number and client.connected)  # noqa: B023
        links.last.feed(packet_frame(b"x"), pack_restarting(0, 0))
        links.last.lose()
    await until(lambda: client.generation == 6)
    await close(client, links)
    await task
    assert pauses == pytest.approx([n * n * 0.01 for n in range(1, 6)], abs=0.005)


async def test_another_connect_ends_the_wait() -> None:
    """The relay asks to stay away, and a sender does not: the receiver is there at once."""
    links = Links()
    client = links.client()
    found: list[Message] = []
    task = asyncio.create_task(collect(client, found))
    await until(lambda: client.connected)
    links.last.feed(pack_restarting(30, 30))
    links.last.lose()
    await until(lambda: len(found) == 1 and not client.connected)
    await client.send(PEER, b"y")
    links.last.feed(packet_frame(b"answer"))
    async with bounded():
        await until(lambda: len(found) == 2)
    await close(client, links)
    await task


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    """The iteration goes on where it was."""
    links = Links()
    client = links.client()
    await client.connect()
    stream = client.messages()
    for _ in range(3):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    links.last.feed(packet_frame(b"x"))
    assert await anext(stream) == ReceivedPacket(PEER, b"x")
    await close(client, links)


async def test_restart(pauses: list[float]) -> None:
    """A relay that restarts says when to come back; then attempts stay frequent for a while."""
    links = Links()
    client = links.client()
    found: list[Message] = []
    task = asyncio.create_task(collect(client, found))
    await until(lambda: client.connected)
    links.error = OSError("restarting")
    links.last.feed(pack_restarting(3.5, 60))
    links.last.lose()
    await until(lambda: len(pauses) >= 30)
    links.error = None
    await until(lambda: client.generation == 2)
    await close(client, links)
    await task
    assert found == [Restarting(3.5, 60)]
    assert pauses[0] == pytest.approx(3.5, abs=0.005)
    assert max(pauses[1:]) == pytest.approx(1.0, abs=0.005)


async def test_without_reconnect() -> None:
    """With `reconnect=False` the end of the connection is raised."""
    links = Links()
    client = links.client()
    stream = client.messages(reconnect=False)
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: client.connected)
    links.last.feed(packet_frame(b"x"))
    links.last.lose()
    assert await first == ReceivedPacket(PEER, b"x")
    with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):
        await anext(stream)
    links.error = OSError("no way")
    with pytest.raises(ConnectError, match="no way"):
        await anext(client.messages(reconnect=False))
    await close(client, links)


async def test_permanent_before_the_first_success(pauses: list[float]) -> None:
    """What looks permanent is raised, as long as it has never worked."""
    links = Links()
    client = links.client()
    links.error = UpgradeRejected("no", status=404, body="")
    with pytest.raises(ConnectError, match="no"):
        await anext(client.messages())
    assert pauses == []
    # After a success the relay is known to be one: then it may be a passing trouble.
    links.error = None
    task = asyncio.create_task(collect(client, []))
    await until(lambda: client.connected)
    links.error = UpgradeRejected("no", status=404, body="")
    links.last.lose()
    await until(lambda: len(pauses) >= 5)
    assert not task.done()
    await close(client, links)
    await task


async def test_what_passes_before_the_first_success(pauses: list[float]) -> None:
    """A network that is not there yet is waited for."""
    links = Links()
    client = links.client()
    links.error = UpgradeRejected("soon", status=503, body="")
    task = asyncio.create_task(collect(client, []))
    await until(lambda: len(pauses) >= 3)
    links.error = ConnectionRefusedError("no")
    await until(lambda: len(pauses) >= 6)
    links.error = None
    await until(lambda: client.connected)
    await close(client, links)
    await task


async def test_one_stream_only(pauses: list[float]) -> None:
    """A stream that cannot be opened again ends the iteration with an error."""
    links = Links()
    client = Client.over_stream(await links.open())
    task = asyncio.create_task(collect(client, []))
    await until(lambda: client.connected)
    links.last.lose()
    async with bounded():
        with pytest.raises(ConnectError, match="has ended") as caught:
            await task
    assert isinstance(caught.value.attempts[0], LocalProtocolError)
    assert len(pauses) == 1
    await client.aclose()


async def test_connect_scope_that_times_out(pauses: list[float]) -> None:
    """A connect that a scope ends is tried again like any other."""
    async with fake_relay() as relay:
        config = ClientConfig(network=DIRECT, connect_scope=lambda: asyncio.timeout(0.1))
        async with Client.for_url(relay.url, config=config) as client, bounded():
            task = asyncio.ensure_future(anext(aiter(client)))
            await (await relay.accept()).gone()
            await relay.serve()
            assert await task == ServerInfo(2)
        assert len(pauses) == 1


@pytest.mark.parametrize("when", ["receiving", "waiting", "connecting"])
async def test_ends_with_the_client(when: str) -> None:
    """Closing ends the iteration at once, also in the middle of a wait or a connect."""
    links = Links()
    if when == "connecting":
        async with fake_relay() as relay:
            client = Client.for_url(relay.url, config=ClientConfig(network=DIRECT))
            task = asyncio.create_task(collect(client, []))
            await relay.accept()
            async with asyncio.timeout(1):
                await client.aclose()
                await task
        return
    client = links.client()
    if when == "waiting":
        links.error = OSError("no way")
    task = asyncio.create_task(collect(client, []))
    if when == "waiting":
        # Six failures take about a second, and the next wait half of one.
        await until(lambda: client.stats.failed_connects == 6)
    else:
        await until(lambda: client.connected)
    async with asyncio.timeout(0.2):
        await close(client, links)
        await task


async def test_log(pauses: list[float]) -> None:
    """Each break is a line in the log, with the wait."""
    links = Links()
    client = links.client()
    with Log("pyderp.client") as log:
        task = asyncio.create_task(collect(client, []))
        await until(lambda: client.connected)
        links.last.lose()
        await until(lambda: client.generation == 2)
        await close(client, links)
        await task
    assert "derp.Recv: EOF; connecting again in 0.01 s" in log.lines
    assert pauses


async def test_iterator_can_be_left() -> None:
    """Leaving a loop keeps the connection; another loop goes on where it stopped."""
    links = Links()
    client = links.client()
    await client.connect()
    links.last.feed(*(packet_frame(bytes((n,))) for n in range(4)))
    found: list[Message] = []
    for _ in range(2):
        async with aclosing(client.messages()) as messages:
            async for message in messages:
                found.append(message)
                if len(found) % 2 == 0:
                    break
    assert found == [ReceivedPacket(PEER, bytes((n,))) for n in range(4)]
    assert client.generation == 1
    await close(client, links)
