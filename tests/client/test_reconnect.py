"""How long a client waits, which errors are transient, and `async for message in client`."""

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
from tests.owntime import own_time
from tests.waiting import until

from .fakes import DIRECT, PEER, Links, Log, bounded, fake_relay, packet_frame


def test_the_nth_wait_is_n_squared_times_10_ms() -> None:
    """At most 5 s."""
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.failed(0) for _ in range(30)]
    assert waits == pytest.approx([min(n * n * 0.01, 5.0) for n in range(1, 31)])


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.5), (0.999, 1.499)])
def test_jitter_makes_a_wait_half_to_one_and_a_half(uniform: float, factor: float) -> None:
    assert Backoff(lambda: uniform).failed(0) == pytest.approx(0.01 * factor)


def test_a_success_resets_the_waits() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(9):
        backoff.failed(0)
    backoff.reset()
    assert backoff.failed(0) == pytest.approx(0.01)


def test_an_announced_restart_sets_wait_and_time_of_attempts() -> None:
    """The relay says when to come back; then attempts are frequent for as long as it says."""
    backoff = Backoff(lambda: 0.5)
    for _ in range(30):
        backoff.failed(100)
    assert backoff.announced(Restarting(reconnect_in=2.5, try_for=60), 100) == 2.5
    waits = [backoff.failed(102.5 + n) for n in range(20)]
    assert max(waits) == pytest.approx(1.0)
    # The time ends at 162.5.
    assert backoff.failed(162.4) == pytest.approx(1.0)
    assert backoff.failed(162.6) > 4


def test_a_relay_cannot_ask_for_more_than_a_minute() -> None:
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
def test_transient_errors_are_those_that_can_pass_by_themselves(
    error: Exception, transient: bool
) -> None:
    assert is_transient(error) is transient


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the iteration wanted to wait; it does not wait."""
    asked: list[float] = []

    async def pause(_life: object, delay: float) -> None:
        asked.append(delay)
        await asyncio.sleep(0)

    monkeypatch.setattr(module, "pause", pause)
    return asked


async def collect(client: Client, found: list[Message]) -> None:
    async for message in client:
        found.append(message)  # noqa: PERF401 (messages before an error count)


async def close(client: Client, links: Links) -> None:
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    links.finish()
    await closing


@pytest.fixture
def _all_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection counts as one that worked, however short it was."""
    monkeypatch.setattr(module, "STABLE", 0.0)


@pytest.mark.usefixtures("_all_stable")
async def test_messages_of_all_connections_come_in_one_stream(pauses: list[float]) -> None:
    """Each break is a short wait."""
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
        await task  # ends with the client, without an error
    assert found == [ReceivedPacket(PEER, bytes((number,))) for number in range(5)]
    # Each message before was a success.
    assert pauses == pytest.approx([0.01] * 5, abs=0.005)
    assert client.stats.disconnects.total() == 5


@pytest.mark.usefixtures("_all_stable")
async def test_failures_in_a_row_make_the_waits_longer(pauses: list[float]) -> None:
    """A connection that works makes them short again."""
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


async def test_a_connection_without_a_message_does_not_reset_the_waits(pauses: list[float]) -> None:
    """The waits for a relay that takes connections and drops them become longer."""
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


async def test_a_short_connection_with_messages_does_not_reset_the_waits(
    pauses: list[float],
) -> None:
    """The waits become longer also if the relay asks to be tried again at once."""
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
    """The relay asks to wait, and a sender connects: the receiver goes on at once."""
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


async def test_a_cancelled_receive_loses_no_message() -> None:
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


async def test_a_restarting_relay_sets_the_wait(pauses: list[float]) -> None:
    """Attempts stay frequent for a while."""
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


async def test_without_reconnect_the_end_is_raised() -> None:
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


async def test_a_permanent_error_is_raised_before_the_first_success(pauses: list[float]) -> None:
    """After a success it is waited for."""
    links = Links()
    client = links.client()
    links.error = UpgradeRejected("no", status=404, body="")
    with pytest.raises(ConnectError, match="no"):
        await anext(client.messages())
    assert pauses == []
    # After a success the address is known to be right: then the error may pass.
    links.error = None
    task = asyncio.create_task(collect(client, []))
    await until(lambda: client.connected)
    links.error = UpgradeRejected("no", status=404, body="")
    links.last.lose()
    await until(lambda: len(pauses) >= 5)
    assert not task.done()
    await close(client, links)
    await task


async def test_a_transient_error_is_waited_for_before_the_first_success(
    pauses: list[float],
) -> None:
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


async def test_a_stream_that_cannot_be_opened_again_ends_the_iteration(pauses: list[float]) -> None:
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


async def test_a_connect_that_its_scope_cancels_is_tried_again(pauses: list[float]) -> None:
    """A connect that a scope cancels is tried again like any other."""
    async with fake_relay() as relay:
        config = ClientConfig(network=DIRECT, connect_scope=lambda: asyncio.timeout(0.1))
        async with Client.for_url(relay.url, config=config) as client, bounded():
            task = asyncio.ensure_future(anext(aiter(client)))
            await (await relay.accept()).gone()
            await relay.serve()
            assert await task == ServerInfo(2)
        assert len(pauses) == 1


@pytest.mark.parametrize("when", ["receiving", "waiting", "connecting"])
async def test_a_close_ends_the_iteration_at_once(when: str) -> None:
    """Also during a wait or a connect."""
    links = Links()
    if when == "connecting":
        async with fake_relay() as relay:
            client = Client.for_url(relay.url, config=ClientConfig(network=DIRECT))
            task = asyncio.create_task(collect(client, []))
            await relay.accept()
            async with asyncio.timeout(10):
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
    begin = own_time()
    await close(client, links)
    await task
    assert own_time() - begin < 0.4  # the wait would be half a second


async def test_each_break_is_logged_with_the_wait(pauses: list[float]) -> None:
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


async def test_a_loop_that_is_left_keeps_the_connection() -> None:
    """Another loop goes on where it stopped."""
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
