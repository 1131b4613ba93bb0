"""A connection after login, over a link in memory: what it writes, when it waits, how it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from pyderp import (
    ClientClosed,
    ConnectionClosed,
    LocalProtocolError,
    Ping,
    Pong,
    ReceivedPacket,
    RemoteProtocolError,
    Restarting,
    ServerInfo,
)
from pyderp.client import connection as module
from pyderp.client.config import ClientStats
from pyderp.client.connection import ClientConnection
from pyderp.client.login import Established
from pyderp.keys import NodePrivate
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import (
    FrameType,
    pack_frame,
    pack_ping,
    pack_pong,
    pack_restarting,
)
from tests.waiting import until

from .fakes import PEER, RELAY, FakeLink, bounded, frames_of, over, packet_frame, server_info_frame

KIB = 1024


def send(connection: ClientConnection, packet: bytes) -> None:
    connection.send_packets(PEER, (packet,))


def limit(link: FakeLink, connection: ClientConnection, rate: int, burst: int) -> None:
    """Send ServerInfo with a rate and a burst."""
    info = ServerInfo(2, rate, burst)
    link.feed(server_info_frame(connection.session.private.public, info))
    connection.messages.clear()


async def test_sends_of_one_turn_leave_in_one_write() -> None:
    """In order, also those of several tasks."""
    link = FakeLink()
    connection = over(link)

    async def sender(number: int) -> None:
        for part in range(10):
            send(connection, bytes((number, part)))

    await asyncio.gather(*map(sender, range(5)))
    await asyncio.sleep(0)
    assert len(link.written) == 1
    packets = [payload[32:] for _, payload in frames_of(link.written[0])]
    assert packets == [bytes((n, part)) for n in range(5) for part in range(10)]
    # The next turn writes nothing.
    await asyncio.sleep(0)
    assert len(link.written) == 1
    connection.end(None, "eof")


async def test_commands_and_packets_keep_their_order() -> None:
    link = FakeLink()
    connection = over(link)
    send(connection, b"1")
    connection.send_frame(pack_ping(b"12345678"))
    connection.forward_packet(PEER, RELAY.public, b"2")
    connection.flush()
    kinds = [kind for kind, _ in frames_of(b"".join(link.written))]
    assert kinds == [FrameType.SEND_PACKET, FrameType.PING, FrameType.FORWARD_PACKET]
    connection.end(None, "eof")


async def test_more_than_64_kib_leaves_at_once() -> None:
    """A full buffer is written before the turn ends."""
    link = FakeLink()
    connection = over(link)
    for _ in range(3):
        send(connection, bytes(30 * KIB))
    assert len(link.written) == 1
    assert len(link.written[0]) == 3 * (30 * KIB + 37)
    connection.end(None, "eof")


async def test_many_packets_stop_at_a_full_kernel() -> None:
    """A list is queued in parts; the caller drains in between."""
    link = FakeLink()
    link.pending_bytes = 100 * KIB
    connection = over(link)
    packets = [bytes((n,)) * 20 * KIB for n in range(8)]
    done = connection.send_packets(PEER, packets)
    assert connection.backed_up
    assert 0 < done < 8
    link.took_all()
    while done < 8:
        done = connection.send_packets(PEER, packets, done)
    connection.flush()
    assert [p[32:] for _, p in frames_of(b"".join(link.written))] == packets
    connection.end(None, "eof")


async def test_drain_waits_for_the_kernel() -> None:
    """Above 64 KiB senders wait; all go on when the kernel has taken the bytes."""
    link = FakeLink()
    connection = over(link)
    link.pending_bytes = 64 * KIB
    send(connection, b"x")
    connection.flush()
    await connection.drain()  # exactly 64 KiB, which is not too much
    link.pending_bytes += 1
    send(connection, b"x")
    connection.flush()
    senders = [asyncio.create_task(connection.drain()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in senders)
    # A waiting sender that is cancelled does not affect the others.
    senders[0].cancel()
    link.took_all()
    async with bounded():
        await asyncio.gather(*senders[1:])
    connection.end(None, "eof")


async def test_an_end_raises_in_each_waiting_call() -> None:
    """Receiver, senders and pings each get a new error."""
    link = FakeLink()
    connection = over(link)
    link.pending_bytes = 100 * KIB
    send(connection, b"x")
    connection.flush()
    waiting = [
        asyncio.create_task(connection.wait()),
        asyncio.create_task(connection.drain()),
        asyncio.create_task(connection.ping()),
    ]
    await asyncio.sleep(0)
    cause = ConnectionResetError("gone")
    link.lose(cause)
    async with bounded():
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(e) for e in errors] == [
        "derp.Recv: gone",
        "derp.Send: gone; the next call connects again",
        "derp.Recv: gone",
    ]
    for error in errors:
        assert isinstance(error, ConnectionClosed)
        assert error.__cause__ is cause
    assert len({id(error) for error in errors}) == 3


async def test_messages_before_an_end_are_received_before_its_error() -> None:
    """Each later call raises the error again."""
    link = FakeLink()
    connection = over(link)
    link.feed(packet_frame(b"1"), packet_frame(b"2"))
    link.lose()
    await connection.wait()
    assert [m.data for m in connection.messages if isinstance(m, ReceivedPacket)] == [
        b"1",
        b"2",
    ]
    connection.messages.clear()
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$") as caught:
            await connection.wait()
        assert caught.value.generation == 1
    with pytest.raises(ConnectionClosed, match=r"^derp\.Send: EOF; the next call "):
        send(connection, b"x")


async def test_the_first_error_of_an_end_stays() -> None:
    """What comes after the end is ignored."""
    link = FakeLink()
    stats = ClientStats()
    connection = over(link, stats=stats)
    link.lose(ConnectionResetError("first"))
    link.feed(packet_frame(b"late"))
    connection.end(OSError("second"), "error")
    with pytest.raises(ConnectionClosed, match="first"):
        await connection.wait()
    assert stats.disconnects == {"error": 1}
    assert stats.packets_received == 0
    assert link.aborted == 1


async def test_an_error_without_text_is_named_by_its_class() -> None:
    link = FakeLink()
    connection = over(link)
    link.lose(ConnectionResetError())
    with pytest.raises(ConnectionClosed, match=r"derp\.Recv: ConnectionResetError"):
        await connection.wait()


@pytest.mark.parametrize(
    ("error", "restarting", "reason"),
    [
        (None, False, "eof"),
        (ConnectionResetError(), False, "error"),
        (RemoteProtocolError("x"), False, "protocol"),
        (None, True, "restarting"),
        (ConnectionResetError(), True, "restarting"),
        (RemoteProtocolError("x"), True, "protocol"),
    ],
)
async def test_each_end_is_counted_by_its_reason(
    error: Exception | None, restarting: bool, reason: str
) -> None:
    link = FakeLink()
    stats = ClientStats()
    connection = over(link, stats=stats)
    if restarting:
        link.feed(pack_restarting(1.5, 60))
    link.lose(error)
    assert stats.disconnects == {reason: 1}
    assert connection.error("x").restarting == (Restarting(1.5, 60) if restarting else None)


async def test_a_frame_that_is_too_long_is_a_protocol_error() -> None:
    link = FakeLink()
    stats = ClientStats()
    connection = over(link, stats=stats)
    link.feed(b"\x05\xff\xff\xff\xff")
    assert link.aborted
    with pytest.raises(ConnectionClosed, match="unexpectedly large frame") as caught:
        await connection.wait()
    assert isinstance(caught.value.__cause__, RemoteProtocolError)
    assert stats.disconnects == {"protocol": 1}


async def test_a_second_receiver_is_refused() -> None:
    """The first one goes on."""
    link = FakeLink()
    connection = over(link)
    first = asyncio.create_task(connection.wait())
    await asyncio.sleep(0)
    with pytest.raises(LocalProtocolError, match="another task is receiving"):
        await connection.wait()
    link.feed(packet_frame(b"x"))
    await first
    connection.end(None, "eof")


async def test_a_cancelled_receiver_loses_no_message() -> None:
    link = FakeLink()
    connection = over(link)
    first = asyncio.create_task(connection.wait())
    await asyncio.sleep(0)
    link.feed(packet_frame(b"x"))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await connection.wait()
    assert len(connection.messages) == 1
    connection.end(None, "eof")


async def test_reading_stops_at_a_megabyte() -> None:
    """With more than 1 MiB unread the socket is not read until all was received."""
    link = FakeLink()
    connection = over(link)
    frame = packet_frame(bytes(64 * KIB - 37))
    for _ in range(16):
        link.feed(frame)
    assert link.reading  # exactly 1 MiB
    link.feed(packet_frame(b""))
    assert not link.reading
    connection.messages.clear()
    connection.taken()
    assert link.reading
    link.feed(frame)
    assert link.reading
    connection.end(None, "eof")


class TestTokenBucket:
    """The rate that a relay allows, and packets dropped for it."""

    async def test_no_limit(self) -> None:
        """Without a rate all packets pass (twin of TestClientSendRateLimiting)."""
        link = FakeLink()
        connection = over(link)
        limit(link, connection, 0, 1)
        for _ in range(1000):
            send(connection, bytes(1000))
        connection.flush()
        assert connection.stats.packets_sent == 1000
        assert connection.stats.packets_dropped == 0
        assert len(frames_of(b"".join(link.written))) == 1000
        connection.end(None, "eof")

    async def test_burst(self) -> None:
        """With a byte a second and a burst of two packets, two pass and nearly all others are
        dropped
        (twin of TestClientSendRateLimiting)."""
        link = FakeLink()
        connection = over(link)
        limit(link, connection, 1, 2 * (1000 + 37))
        connection.send_packets(PEER, [bytes(1000)] * 1000)
        connection.flush()
        assert len(frames_of(b"".join(link.written))) == 2
        assert connection.stats.packets_sent == 2
        assert connection.stats.packets_dropped == 998
        connection.end(None, "eof")

    async def test_larger_than_the_burst_never_passes(self) -> None:
        """Header and key are charged as well."""
        link = FakeLink()
        connection = over(link)
        limit(link, connection, 1 << 40, 1037)
        send(connection, bytes(1001))
        assert connection.stats.packets_dropped == 1
        send(connection, bytes(1000))
        assert connection.stats.packets_dropped == 1
        limit(link, connection, 1 << 40, 0)
        send(connection, b"")
        assert connection.stats.packets_dropped == 2
        connection.end(None, "eof")

    async def test_each_server_info_replaces_it(self) -> None:
        """A new ServerInfo fills the bucket, or removes it."""
        link = FakeLink()
        connection = over(link)
        for _ in range(2):
            limit(link, connection, 1, 137)
            send(connection, bytes(100))
            send(connection, bytes(100))
        assert connection.stats.packets_dropped == 2
        limit(link, connection, 0, 0)
        send(connection, bytes(100))
        assert connection.stats.packets_dropped == 2
        connection.end(None, "eof")

    async def test_packets_of_the_program_only(self) -> None:
        """Forwarded packets and commands are not charged."""
        link = FakeLink()
        connection = over(link)
        limit(link, connection, 1, 0)
        connection.forward_packet(PEER, PEER, bytes(1000))
        connection.send_frame(pack_pong(b"12345678"))
        connection.flush()
        assert len(frames_of(b"".join(link.written))) == 2
        connection.end(None, "eof")

    async def test_an_empty_bucket_does_not_hide_the_end(self) -> None:
        """Once the connection has ended, a packet without tokens raises instead of being
        dropped."""
        link = FakeLink()
        connection = over(link)
        limit(link, connection, 1, 0)
        link.lose()
        with pytest.raises(ConnectionClosed):
            send(connection, b"x")


def pings_of(link: FakeLink) -> list[bytes]:
    """The contents of the client's pings, in the order they left."""
    return [p for _, p in frames_of(b"".join(link.written))]


async def turns() -> None:
    """Let every task run that can."""
    for _ in range(4):
        await asyncio.sleep(0)


class TestPings:
    """Pings of the client, and their pongs."""

    async def test_pings_side_by_side(self) -> None:
        """One is on its way at a time, as a relay answers only the last of those that it reads
        at once; all pings asked for meanwhile share the next. No message remains."""
        link = FakeLink()
        connection = over(link)
        first = asyncio.create_task(connection.ping())
        await turns()
        others = [asyncio.create_task(connection.ping()) for _ in range(5)]
        await turns()
        assert len(pings_of(link)) == 1
        link.feed(pack_pong(pings_of(link)[0]))
        await turns()
        assert first.done()
        assert not any(task.done() for task in others)
        assert len(pings_of(link)) == 2
        link.feed(pack_pong(pings_of(link)[1]))
        async with bounded():
            assert all(seconds >= 0 for seconds in await asyncio.gather(first, *others))
        assert not connection.messages
        connection.end(None, "eof")

    async def test_a_cancelled_ping_lets_the_next_go(self) -> None:
        """The end of the connection raises in all."""
        link = FakeLink()
        connection = over(link)
        first = asyncio.create_task(connection.ping())
        await turns()
        others = [asyncio.create_task(connection.ping()) for _ in range(3)]
        await turns()
        first.cancel()
        others[1].cancel()
        await turns()
        assert len(pings_of(link)) == 2
        link.lose()
        async with bounded():
            results = await asyncio.gather(first, *others, return_exceptions=True)
        kinds = [type(result) for result in results]
        assert kinds == [
            asyncio.CancelledError, ConnectionClosed, asyncio.CancelledError, ConnectionClosed,
        ]  # fmt: skip

    async def test_a_lost_ping_holds_up_the_next_for_one_second(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its pong still answers it if it comes later."""
        monkeypatch.setattr("pyderp.client.pings.NEXT_PING", 0.01)

        link = FakeLink()
        connection = over(link)
        late = asyncio.create_task(connection.ping())
        await turns()
        second = asyncio.create_task(connection.ping())
        async with bounded():
            await until(lambda: len(pings_of(link)) == 2)
            link.feed(pack_pong(pings_of(link)[1]))
            assert await second >= 0
            assert not late.done()
            link.feed(pack_pong(pings_of(link)[0]))
            assert await late >= 0
        connection.end(None, "eof")

    async def test_other_pongs_are_passed_on(self) -> None:
        """A pong to no ping, or to a cancelled one, is a message."""
        link = FakeLink()
        connection = over(link)
        asked = asyncio.create_task(connection.ping())
        await turns()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        [given_up] = pings_of(link)
        link.feed(pack_pong(b"12345678"), pack_pong(given_up), pack_ping(b"12345678"))
        assert list(connection.messages) == [
            Pong(b"12345678"),
            Pong(given_up),
            Ping(b"12345678"),
        ]
        connection.end(None, "eof")

    async def test_cancelled_as_the_connection_ends(self) -> None:
        """A ping that is cancelled in the turn of the end leaves no unretrieved error."""
        link = FakeLink()
        connection = over(link)
        ping = asyncio.create_task(connection.ping())
        await turns()
        link.lose()
        ping.cancel()
        result = await asyncio.gather(ping, return_exceptions=True)
        assert isinstance(result[0], asyncio.CancelledError)


def virtual_clock() -> Callable[[float], Awaitable[None]]:
    """Let seconds pass on the running loop of asyncio only when the result is called."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    loop.time = lambda: now  # type: ignore[method-assign]

    async def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)

    return pass_time


class TestSilence:
    """A silent relay is given up."""

    async def test_timeout(self) -> None:
        """After `receive_timeout` without a byte the connection ends."""
        link = FakeLink()
        stats = ClientStats()
        connection = over(link, receive_timeout=0.05, stats=stats)
        async with bounded():
            with pytest.raises(ConnectionClosed, match=r"nothing received for 0\.05 s"):
                await connection.wait()
        assert stats.disconnects == {"timeout": 1}
        assert link.aborted

    @pytest.mark.parametrize("on_loop", ["asyncio"], indirect=True)
    async def test_any_byte_counts(self) -> None:
        """A part of a frame keeps the connection as well."""
        pass_time = virtual_clock()
        link = FakeLink()
        connection = over(link, receive_timeout=0.05)
        for byte in packet_frame(bytes(60)):
            await pass_time(0.04)
            link.feed(bytes([byte]))
        assert not connection.ended
        await pass_time(0.06)
        assert connection.ended

    @pytest.mark.parametrize("on_loop", ["asyncio"], indirect=True)
    async def test_not_while_we_do_not_listen(self) -> None:
        """Time that a slow receiver takes does not count; after it has caught up, it does."""
        pass_time = virtual_clock()
        link = FakeLink()
        connection = over(link, receive_timeout=0.05)
        while link.reading:
            link.feed(packet_frame(bytes(60 * KIB)))
        await pass_time(1)
        assert not connection.ended
        connection.messages.clear()
        connection.taken()
        assert not connection.ended
        await pass_time(0.06)
        async with bounded():
            with pytest.raises(ConnectionClosed, match="nothing received"):
                await connection.wait()


async def test_a_forwarded_packet_that_cannot_leave_in_five_seconds_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FORWARD_TIMEOUT", 0.05)

    link = FakeLink()
    stats = ClientStats()
    connection = over(link, stats=stats)
    link.pending_bytes = 100 * KIB
    connection.forward_packet(PEER, PEER, bytes(60 * KIB))
    connection.forward_packet(PEER, PEER, bytes(60 * KIB))
    assert connection.busy
    async with bounded():
        with pytest.raises(ConnectionClosed, match=r"derp\.ForwardPacket: "):
            await connection.drain_forward()
    assert link.aborted
    assert stats.disconnects == {"timeout": 1}


async def test_close_sends_what_was_queued() -> None:
    """A close writes first, closes in order, and waits until the link is closed."""
    link = FakeLink()
    stats = ClientStats()
    connection = over(link, stats=stats)
    send(connection, b"last")
    closing = asyncio.create_task(connection.aclose(ClientClosed("closed")))
    await asyncio.sleep(0)
    assert len(link.written) == 1
    assert link.closed
    assert not link.aborted
    link.lose()
    async with bounded():
        await closing
    assert link.aborted
    with pytest.raises(ClientClosed, match=r"^closed$") as caught:
        await connection.wait()
    assert caught.value.generation == 1
    assert not stats.disconnects


async def test_close_waits_for_the_kernel_for_one_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT", 0.05)

    link = FakeLink()
    connection = over(link)
    async with bounded():
        await connection.aclose(ClientClosed("closed"))
    assert link.aborted


async def test_cancelled_close_aborts() -> None:
    """A cancelled close leaves no socket that lingers in the kernel."""
    link = FakeLink()
    connection = over(link)
    closing = asyncio.create_task(connection.aclose(ClientClosed("closed")))
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert link.aborted


@pytest.mark.parametrize("queued", ["in our buffer", "in the link", "broken pipe", "nothing"])
async def test_a_connection_knows_whether_sent_bytes_are_lost(queued: str) -> None:
    link = FakeLink()
    connection = over(link)
    error: Exception | None = None
    if queued == "in our buffer":
        send(connection, b"x")
    elif queued == "in the link":
        link.pending_bytes = 100 * KIB
        send(connection, b"x")
        connection.flush()
    elif queued == "broken pipe":
        error = BrokenPipeError()
    link.lose(error)
    assert connection.write_failed is (queued != "nothing")
    await asyncio.sleep(0)


async def test_a_connection_over_a_closed_link_has_ended_from_the_start() -> None:
    class Gone(FakeLink):
        def start(self, receiver: object) -> None:
            super().start(receiver)  # type: ignore[arg-type]  # passed on unchanged
            self.lose()

    connection = over(Gone())
    assert connection.ended


async def test_messages_that_came_with_the_login_are_received_first() -> None:
    private = NodePrivate.generate()
    session = ClientSession(private, random=os.urandom, server_key=RELAY.public)
    stats = ClientStats()
    login = Established(FakeLink(), session, [ServerInfo(2), ReceivedPacket(PEER, b"x")])
    connection = ClientConnection(login, stats=stats)
    await connection.wait()
    assert len(connection.messages) == 2
    assert stats.packets_received == 1
    connection.end(None, "eof")


async def test_unknown_frames_are_skipped() -> None:
    """A frame of a newer protocol makes no message and wakes no receiver."""
    link = FakeLink()
    connection = over(link)
    link.feed(pack_frame(0x7F, b"future"), packet_frame(b"x"))
    assert connection.messages == connection.messages.__class__([ReceivedPacket(PEER, b"x")])
    connection.end(None, "eof")
