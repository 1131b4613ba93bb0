"""One end of a connection at a time, and the fate of packets that were on their way to it."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from .conftest import SECONDS, Sums
from .run import Run
from .steps import overrun, until_left, until_still

_SMALL_BUFFER = 4096
"""Of the client's kernel: what is sent stays with the relay's."""

_DRAIN = 2.0

_CLOCK = 0.01
"""Seconds by which two clocks of one process may differ; the log has milliseconds."""

_LATE_TURNS = 8
"""Turns of the loop in which the last connections and services end."""

_LATE = 0.2
"""Seconds after the deadline in which an idle loop may make many turns."""

_BUSY_FOR = 0.2
"""Seconds from the beginning of a stop until a client reads on, well within the drain."""


def test_packets_in_the_transport_of_a_cut_client_are_dropped(
    sums: Sums,
) -> None:
    """Each of many stalled readers has a packet in the relay's transport when it is cut."""

    async def scenario(run: Run) -> None:
        senders = await run.some_peers(2)
        stalled = await run.some_peers(20, _SMALL_BUFFER)
        for peer in stalled:
            peer.stop_reading()
        await overrun(run, senders, stalled)
        await until_left(run, len(senders))
        for peer in stalled:
            await peer.until_end()
        totals = await run.end()
        assert totals.dropped["write_timeout"] >= len(stalled)

    sums(scenario, "--tcp-write-timeout=0.5")


def test_packets_of_a_partial_write_are_counted_exactly(sums: Sums) -> None:
    """Many small packets leave in one write, and the kernel takes a part of it.

    A packet counts as sent if its client can get it: under TLS and in a websocket only if all
    of its record, and of its message, is with the kernel.
    """

    async def scenario(run: Run) -> None:
        senders = await run.some_peers(2)
        stalled = await run.some_peers(20, _SMALL_BUFFER)
        for peer in stalled:
            peer.stop_reading()
        await overrun(run, senders, stalled, largest=1000)
        await until_left(run, len(senders))
        for peer in stalled:
            await peer.until_end()
        totals = await run.end()
        assert totals.dropped["write_timeout"] >= len(stalled)

    sums(scenario, "--tcp-write-timeout=0.5")


def test_a_client_gets_its_queue_after_its_own_close(sums: Sums) -> None:
    """It closes its half while its queue waits, and only then reads."""

    async def scenario(run: Run) -> None:
        senders = await run.some_peers(2)
        stalled = await run.some_peers(4, _SMALL_BUFFER)
        for peer in stalled:
            peer.stop_reading()
        await overrun(run, senders, stalled)
        for peer in stalled:
            await peer.say_goodbye()
        await until_left(run, len(senders))
        for peer in stalled:
            await peer.until_end()
        await run.end()

    sums(scenario, "--tcp-write-timeout=30")


def test_a_packet_that_comes_with_the_end_of_its_destination(sums: Sums) -> None:
    """One turn of the relay's loop brings a packet for a client, and then that client's FIN."""

    async def scenario(run: Run) -> None:
        (sender,) = await run.some_peers(1)
        for _ in run.rounds(5):
            leaving = await run.peer()
            # epoll reports the sender first, as it was the last to be active.
            await sender.ping()
            run.relay.signal(signal.SIGSTOP)
            await sender.send(leaving.key, 200)
            leaving.close_half()
            run.relay.signal(signal.SIGCONT)
            await leaving.until_end()
        await sender.ping()
        await run.end()

    sums(scenario)


def test_a_stop_takes_nothing_from_a_client_that_is_sending(sums: Sums) -> None:
    """All packets counted as sent arrive, although the relay stops with input unread."""

    async def scenario(run: Run) -> None:
        (sender,) = await run.some_peers(1)
        busy = await run.peer(receive_buffer=_SMALL_BUFFER)
        busy.stop_reading()
        for _ in range(9):
            await sender.send(busy.key, 20_000)
        await sender.ping()
        assert (await run.relay.totals()).sent == 9
        await sender.leave()
        run.relay.signal(signal.SIGSTOP)
        sending = asyncio.create_task(run.blast(busy, [sender.key], rounds=1_000_000, pings=False))
        await until_still(run)
        run.relay.signal(signal.SIGTERM)
        run.relay.signal(signal.SIGCONT)
        await asyncio.sleep(_BUSY_FOR)
        busy.read_on()
        await asyncio.gather(busy.until_end(), sending)
        totals = await run.relay.ends()
        assert (busy.delivered.packets, busy.end) == (totals.sent, "eof")
        run.check_totals(totals)

    sums(scenario, "--drain=2")


def test_a_client_with_a_queue_gets_restarting_at_a_stop(sums: Sums) -> None:
    """It reads on soon after the relay began to stop: Restarting and a clean end come as well."""

    async def scenario(run: Run) -> None:
        (sender,) = await run.some_peers(1)
        stalled = await run.peer(receive_buffer=_SMALL_BUFFER)
        stalled.stop_reading()
        await overrun(run, [sender], [stalled])
        await sender.leave()
        run.relay.signal(signal.SIGTERM)
        await asyncio.to_thread(run.relay.wait_for, "SIGTERM: stopping")
        await asyncio.sleep(_BUSY_FOR)
        await stalled.until_end()
        totals = await run.relay.ends()
        assert stalled.restarting is not None
        assert stalled.end == "eof"
        run.check_totals(totals)

    sums(scenario, "--drain=2", "--tcp-write-timeout=30")


def test_a_stop_under_full_load_ends_in_time(sums: Sums) -> None:
    """Clients that send without a pause and never close their half delay it to the end.

    The time counts from the signal, although the loop has made some turns before the stop
    begins; and after the deadline, the loop makes only the turns needed to close what is left.
    """

    async def scenario(run: Run) -> None:
        senders = await run.some_peers(8)
        stalled = await run.some_peers(8, _SMALL_BUFFER)
        for peer in stalled:
            peer.stop_reading()
        await overrun(run, senders, stalled)
        keys = [peer.key for peer in (*senders, *stalled)]
        sending = [
            asyncio.create_task(run.blast(peer, keys, rounds=10**9, pings=False))
            for peer in senders
        ]
        before = (await run.relay.totals()).received
        while (await run.relay.totals()).received < before + 1000:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.01)
        begin = time.monotonic()
        run.relay.signal(signal.SIGTERM)
        await asyncio.to_thread(run.relay.wait_for, "SIGTERM: stopping")
        for peer in stalled[::2]:
            peer.read_on()
        totals = await run.relay.ends()
        seconds = time.monotonic() - begin
        for peer in run.peers:
            await peer.until_end()
        await asyncio.gather(*sending)
        run.check_totals(totals)
        stop = run.relay.stopped()
        print(f"{seconds - _DRAIN:+.2f} s late, {stop.late_turns} turns")  # noqa: T201
        assert all(peer.restarting for peer in (*senders, *stalled[::2]))
        assert stop.deadline <= stop.signalled + _DRAIN + _CLOCK
        # Without a load a turn takes microseconds, so only the clock counts.
        assert stop.late_turns <= _LATE_TURNS or stop.late_seconds <= _LATE
        assert stop.ends["stopped"] >= len(run.peers)

    sums(scenario, f"--drain={_DRAIN:g}", "--tcp-write-timeout=60")


async def _keep_slow_readers(run: Run, *, buffer: int, rate: int, at_once: int, count: int) -> None:
    """Clients read slowly and steadily while one sends them more: all stay connected."""
    done = False
    (sender,) = await run.some_peers(1)
    slow = await run.some_peers(count, buffer)
    for peer in slow:
        peer.read_slowly(rate, at_once)
    sending = asyncio.create_task(
        run.blast(
            sender,
            [peer.key for peer in slow],
            rounds=10**9,
            stop=lambda: done,
            pings=not SECONDS,
        )
    )
    await asyncio.wait([sending], timeout=max(6, SECONDS))
    done = True
    await sending
    assert await run.relay.clients() == 1 + len(slow)
    for peer in slow:
        await peer.leave()
    assert [peer for peer in slow if peer.end != "eof"] == []
    await run.end()


@pytest.mark.parametrize("way", [("plain", "uvloop")], ids=["plain"], indirect=True)
def test_slow_readers_outlive_the_timeout_of_dead_paths(sums: Sums) -> None:
    """Their windows are closed most of the time, for longer than the timeout at a time.

    Only the kernel matters, so one transport is enough. With plenty of time it is the real timeout.
    """

    async def scenario(run: Run) -> None:
        if SECONDS:
            await _keep_slow_readers(run, buffer=_SMALL_BUFFER, rate=20_000, at_once=1000, count=50)
        else:
            await _keep_slow_readers(run, buffer=128 * 1024, rate=10_000, at_once=1000, count=4)

    sums(scenario, *([] if SECONDS else ["--tcp-user-timeout=1", "--tcp-write-timeout=10"]))


@pytest.mark.parametrize("way", [("plain", "uvloop")], ids=["plain"], indirect=True)
def test_slow_readers_live_with_default_settings(sums: Sums) -> None:
    """With the system's buffers and the relay's defaults.

    Such a client's kernel opens its window in steps of some 100 KB: for five seconds at a time
    the relay sees no progress.
    """

    async def scenario(run: Run) -> None:
        await _keep_slow_readers(run, buffer=0, rate=20_000, at_once=2000, count=4)

    sums(scenario)
