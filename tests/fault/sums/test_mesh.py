"""The sums of two relays: clients of one send to clients of the other, which may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .conftest import Sums
from .peer import BOUND, Peer
from .relays import CountedRelay, counted_relay
from .run import Run
from .steps import until_left

pytestmark = pytest.mark.parametrize(
    "way", [("plain", "uvloop"), ("plain", "asyncio")], ids=["uvloop", "asyncio"], indirect=True
)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.key"
    path.write_text("5a" * 32 + "\n")
    path.chmod(0o600)
    return path


@contextlib.asynccontextmanager
async def neighbour(run: Run, key_file: Path, receivers: int) -> AsyncIterator[CountedRelay]:
    """A second relay, which knows this many clients of the run's relay."""
    host, port = run.relay.address
    folder = key_file.parent / "neighbour"
    with counted_relay(
        "plain",
        folder,
        "uvloop",
        f"--mesh-psk-file={key_file}",
        f"--mesh-with=http://{host}:{port}/derp",
    ) as relay:
        async with asyncio.timeout(BOUND):
            while await linked_keys(relay) < receivers:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.02)
        yield relay


async def linked_keys(relay: CountedRelay) -> int:
    """Keys that a relay can forward to."""
    return int((await relay.variables())["derp"]["gauge_clients_remote"])


async def senders_of(run: Run, relay: CountedRelay, count: int) -> list[Peer]:
    """Clients of another relay than the run's."""
    return [await run.new_peer().connect(relay.address) for _ in range(count)]


def test_packets_to_another_relay_add_up(sums: Sums, key_file: Path) -> None:
    """Received = forwarded + dropped there, forwarded = sent + dropped here."""

    async def scenario(run: Run) -> None:
        receivers = await run.some_peers(3)
        async with neighbour(run, key_file, len(receivers)) as other:
            senders = await senders_of(run, other, 3)
            keys = [peer.key for peer in [*receivers, *senders]]
            await asyncio.gather(*(run.blast(peer, keys) for peer in senders))
            await settled(run, other)
            theirs, ours = await other.totals(), await run.relay.totals()
            assert not run.ledger.problems
            assert (theirs.unaccounted, ours.unaccounted) == (0, 0)
            assert theirs.forwarded_out == ours.forwarded_in > 0
            assert theirs.received == run.ledger.stamped.packets
            assert theirs.sent + ours.sent == run.ledger.delivered.packets
            for peer in [*senders, *receivers]:
                await peer.leave()

    sums(scenario, f"--mesh-psk-file={key_file}")


async def settled(run: Run, other: CountedRelay) -> None:
    """Wait until all that the two relays sent was delivered, up to a limit."""
    for _ in range(50):
        theirs, ours = await other.totals(), await run.relay.totals()
        delivered = theirs.sent + ours.sent == run.ledger.delivered.packets
        if delivered and theirs.forwarded_out == ours.forwarded_in:
            return
        await asyncio.sleep(0.02)


def test_sums_are_right_when_the_other_relay_is_killed(sums: Sums, key_file: Path) -> None:
    """Packets that wait for its link are dropped, and do not count as forwarded."""

    async def scenario(run: Run) -> None:
        receivers = await run.some_peers(3)
        async with neighbour(run, key_file, len(receivers)) as other:
            senders = await senders_of(run, other, 3)
            keys = [peer.key for peer in receivers]
            await asyncio.gather(*(run.blast(peer, keys) for peer in senders))
            # It reads no more, so the queue of the link fills.
            run.relay.signal(signal.SIGSTOP)
            while not (await other.totals()).dropped["mesh_link_full"]:
                for peer in senders:
                    await peer.send_run(keys[0], [60_000] * 8)
            run.relay.popen.kill()
            async with asyncio.timeout(BOUND):
                while await linked_keys(other):  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.02)
            await asyncio.gather(*(run.blast(peer, keys) for peer in senders))
            totals = await other.totals()
            assert not run.ledger.problems
            assert totals.dropped["mesh_link_down"] > 0
            assert totals.unaccounted == 0, f"{totals.unaccounted} left: {totals}"
            assert totals.received == sum(peer.sent.packets for peer in senders)
            for peer in senders:
                await peer.leave()

    sums(scenario, f"--mesh-psk-file={key_file}")


def test_sums_are_right_when_the_forwarding_relay_is_killed(sums: Sums, key_file: Path) -> None:
    """The other relay goes on."""

    async def scenario(run: Run) -> None:
        receivers = await run.some_peers(3)
        keys = [peer.key for peer in receivers]
        async with run.canaries(), neighbour(run, key_file, len(receivers)) as other:
            senders = await senders_of(run, other, 3)
            sending = [
                asyncio.create_task(run.blast(peer, keys, rounds=10**9, pings=False))
                for peer in senders
            ]
            async with asyncio.timeout(BOUND):
                while (await run.relay.totals()).forwarded_in < 200:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.01)
            other.popen.kill()
            await asyncio.gather(*sending)
        await until_left(run, len(receivers))  # its link has left, too
        for peer in receivers:
            await peer.leave()
        totals = await run.quiet()
        assert not run.ledger.problems
        assert totals.unaccounted == 0, f"{totals.unaccounted} left: {totals}"
        assert totals.sent == run.ledger.delivered.packets

    sums(scenario, f"--mesh-psk-file={key_file}")
