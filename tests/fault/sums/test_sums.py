"""Sent = delivered + dropped, to the packet, whatever clients and signals do to the relay.

`run.py` has the equations. Every packet's source, order and content is checked as well.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from pyderp.keys import MeshKey, NodePrivate, NodePublic
from tests.waiting import until

from .conftest import Sums
from .junk import JUNK, Junk, garble
from .peer import BOUND, Peer
from .run import Run
from .steps import overrun, until_left, until_nothing_waits, until_still


def test_steady_traffic_adds_up(sums: Sums) -> None:
    async def scenario(run: Run) -> None:
        async with run.canaries(2):
            peers = await run.some_peers(4)
            keys = [peer.key for peer in peers]
            await asyncio.gather(*(run.blast(peer, keys, lasting=True) for peer in peers))
        await run.end()

    sums(scenario)


def test_logins_and_logouts_under_traffic_add_up(sums: Sums) -> None:
    """Keys come, go and have several connections; some close in order, some do not."""

    async def come_and_go(run: Run, keys: list[NodePrivate]) -> None:
        for _ in run.rounds(10):
            peer = await run.peer(run.rng.choice(keys), 64 * 1024)
            await run.blast(peer, [key.public for key in keys], rounds=run.rng.randrange(8))
            end = run.rng.choice((peer.leave, peer.leave, peer.leave, peer.close, peer.reset))
            if (ending := end()) is not None:
                await ending

    async def scenario(run: Run) -> None:
        keys = [run.key() for _ in range(6)]
        run.ledger.shared_keys |= {key.public.raw for key in keys}
        destinations = [key.public for key in keys]
        async with run.canaries():
            steady = await run.some_peers(2)
            await asyncio.gather(
                *(come_and_go(run, keys) for _ in range(4)),
                *(run.blast(peer, destinations, rounds=150, lasting=True) for peer in steady),
            )
        await run.end()

    sums(scenario)


def test_clients_that_close_in_order_under_traffic_lose_nothing(sums: Sums) -> None:
    async def come_and_go(run: Run, key: NodePrivate) -> None:
        for _ in run.rounds(12):
            peer = await run.peer(key)
            await run.blast(peer, [key.public], rounds=run.rng.randrange(8))
            await peer.leave()

    async def scenario(run: Run) -> None:
        keys = [run.key() for _ in range(4)]
        run.ledger.shared_keys |= {key.public.raw for key in keys}
        steady = await run.some_peers(2)
        destinations = [key.public for key in keys]
        await asyncio.gather(
            *(come_and_go(run, key) for key in keys),
            *(run.blast(peer, destinations, rounds=150, lasting=True) for peer in steady),
        )
        await run.end()

    sums(scenario)


def test_stalled_readers_that_continue_add_up(sums: Sums) -> None:
    async def scenario(run: Run) -> None:
        senders = await run.some_peers(2)
        async with run.canaries():
            for _ in run.rounds(1):
                stalled = await run.some_peers(4, 16 * 1024)
                for peer in stalled:
                    peer.stop_reading()
                await overrun(run, senders, stalled)
                for peer in stalled:
                    peer.read_on()
                await until_nothing_waits(run)
                for peer in stalled:
                    await peer.leave()
        await run.end()

    sums(scenario, "--tcp-write-timeout=30")


def test_stalled_readers_that_the_relay_cuts_add_up(sums: Sums) -> None:
    """They get the bytes that the kernel took when they read on."""

    async def scenario(run: Run) -> None:
        senders = await run.some_peers(2)
        async with run.canaries():
            for _ in run.rounds(1):
                stalled = await run.some_peers(4, 16 * 1024)
                for peer in stalled:
                    peer.stop_reading()
                await overrun(run, senders, stalled)
                await until_left(run, 4)
                for peer in stalled:
                    await peer.until_end()
        await run.end()

    sums(scenario, "--tcp-write-timeout=0.5")


def test_slow_readers_add_up(sums: Sums) -> None:
    async def scenario(run: Run) -> None:
        async with run.canaries():
            senders = await run.some_peers(2)
            slow = await run.some_peers(6, 4096)
            for peer in slow:
                peer.read_slowly(20_000, 2000)
            for _ in run.rounds(1):
                await overrun(run, senders, slow)
            for peer in slow:
                peer.read_on()
            await until_nothing_waits(run)
        await run.end()

    sums(scenario)


def test_resets_in_mid_traffic_add_up(sums: Sums) -> None:
    async def come_and_break(run: Run, key: NodePrivate, others: list[NodePublic]) -> None:
        for _ in run.rounds(10):
            peer = await run.peer(key, 64 * 1024)
            if run.rng.random() < 0.5:
                peer.stop_reading()
                await peer.send_run(run.rng.choice(others), run.sizes())
            else:
                await run.blast(peer, others, rounds=run.rng.randrange(10))
            peer.reset()

    async def scenario(run: Run) -> None:
        async with run.canaries(2):
            steady = await run.some_peers(3)
            keys = [run.key() for _ in range(3)]
            run.ledger.shared_keys |= {key.public.raw for key in keys}
            all_keys = [*(peer.key for peer in steady), *(key.public for key in keys)]
            await asyncio.gather(
                *(come_and_break(run, key, all_keys) for key in keys),
                *(run.blast(peer, all_keys, rounds=150, lasting=True) for peer in steady),
            )
        await run.end()

    sums(scenario)


def test_clients_that_a_mesh_peer_has_closed_add_up(sums: Sums, tmp_path: Path) -> None:
    """While they send and receive; so do clients whose keys are revoked."""
    mesh_key = MeshKey.parse("5a" * 32)
    key_file = tmp_path / "mesh.key"
    key_file.write_text(mesh_key.to_text())
    key_file.chmod(0o600)

    async def come_and_be_closed(run: Run, closer: Peer, all_keys: list[NodePublic]) -> None:
        for number in run.rounds(6):
            peer = await run.peer(receive_buffer=64 * 1024)
            all_keys.append(peer.key)
            sending = asyncio.create_task(
                run.blast(peer, all_keys, rounds=10**9, pings=number % 2 == 0)
            )
            async with asyncio.timeout(BOUND):
                while not peer.delivered.packets:  # noqa: ASYNC110 (no event of its ledger)
                    await asyncio.sleep(0.001)
            await closer.close_peer(peer.key)
            await asyncio.gather(peer.until_end(), sending)
            all_keys.remove(peer.key)

    async def scenario(run: Run) -> None:
        done = False
        async with run.canaries():
            steady = await run.some_peers(2)
            closer = await run.new_peer(mesh_key=mesh_key).connect(run.relay.address)
            all_keys = [peer.key for peer in steady]
            sending = [
                asyncio.create_task(run.blast(peer, all_keys, rounds=10**9, stop=lambda: done))
                for peer in steady
            ]
            await asyncio.gather(*(come_and_be_closed(run, closer, all_keys) for _ in range(2)))
            done = True
            await asyncio.gather(*sending)
        await run.end()

    sums(scenario, f"--mesh-psk-file={key_file}")


def test_junk_of_other_clients_costs_no_packet(sums: Sums) -> None:
    """Clients that break the protocol, while they receive packets, harm only themselves."""

    async def spoil(run: Run, junk: Junk, key: NodePrivate, others: list[NodePublic]) -> None:
        peer = await run.peer(key, 64 * 1024)
        peer.spoilt = True
        await peer.send_run(run.rng.choice(others), run.sizes())
        await peer.ping()
        await peer.write_raw(junk.bytes_for(peer, run.rng))
        if junk.hangs_up:
            peer.close()
        else:
            await peer.until_end()

    async def scenario(run: Run) -> None:
        done = False
        async with run.canaries():
            steady = await run.some_peers(2)
            kinds = [junk for junk in JUNK if run.kind in junk.kinds]
            keys = [run.key() for _ in kinds]
            all_keys = [*(peer.key for peer in steady), *(key.public for key in keys)]
            sending = [
                asyncio.create_task(run.blast(peer, all_keys, rounds=10_000, stop=lambda: done))
                for peer in steady
            ]
            for _ in run.rounds(1):
                await asyncio.gather(
                    *(garble(run) for _ in range(4)),
                    *(
                        spoil(run, junk, key, all_keys)
                        for junk, key in zip(kinds, keys, strict=True)
                    ),
                )
            done = True
            await asyncio.gather(*sending)
        await run.end()

    sums(scenario)


def test_running_out_of_file_descriptors_costs_no_packet(sums: Sums) -> None:
    """Connections that cannot be served are closed at once, and no other client loses a packet."""

    async def scenario(run: Run) -> None:
        done = False
        async with run.canaries():
            steady = await run.some_peers(2)
            keys = [peer.key for peer in steady]
            sending = [
                asyncio.create_task(run.blast(peer, keys, rounds=10_000, stop=lambda: done))
                for peer in steady
            ]
            for _ in run.rounds(2):
                crowd = [run.new_peer() for _ in range(60)]
                await asyncio.gather(
                    *(peer.connect(run.relay.address) for peer in crowd), return_exceptions=True
                )
                turned_away = [peer for peer in crowd if peer.end]
                assert turned_away, "the relay took all of them"
                for peer in crowd:
                    await (peer.until_end() if peer.end else peer.leave())
            done = True
            await asyncio.gather(*sending)
        await run.end()

    sums(scenario, files=64)


def test_a_relay_that_is_stopped_and_continued_adds_up(sums: Sums) -> None:
    """SIGSTOP until its clients can send no more, and SIGCONT."""

    async def scenario(run: Run) -> None:
        async with run.canaries():
            peers = await run.some_peers(4)
            keys = [peer.key for peer in peers]
            for _ in run.rounds(2):
                await asyncio.gather(*(run.blast(peer, keys, rounds=10) for peer in peers))
                run.relay.signal(signal.SIGSTOP)
                sending = [asyncio.create_task(run.blast(peer, keys, rounds=100)) for peer in peers]
                # Each waits for the pong to its ping.
                await until_still(run)
                run.relay.signal(signal.SIGCONT)
                await asyncio.gather(*sending)
        await run.end()

    sums(scenario)


def test_a_stop_under_load_loses_no_packet_that_counts_as_sent(sums: Sums) -> None:
    """SIGTERM while all clients send: each gets all packets, Restarting, and a clean end.

    The client that is closed last may have too little time left to close first.
    """

    async def scenario(run: Run) -> None:
        peers = await run.some_peers(5)
        keys = [peer.key for peer in peers]
        sending = [
            asyncio.create_task(run.blast(peer, keys, rounds=10**9, pings=False)) for peer in peers
        ]
        await until(lambda: run.ledger.delivered.packets >= 500)
        run.relay.signal(signal.SIGTERM)
        await asyncio.gather(*(peer.until_end() for peer in peers), *sending)
        totals = await run.relay.ends()
        run.check_totals(totals)
        assert len([peer for peer in peers if peer.end != "eof"]) <= 1
        assert [peer for peer in peers if peer.restarting is None] == []

    sums(scenario, "--drain=2")
