"""One run: a relay, its clients, their actions, and whether the sums are right at the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from pyderp.keys import MeshKey, NodePrivate, NodePublic

from .packets import HEAD_SIZE, Count, Ledger
from .peer import BOUND, Peer
from .relays import CountedRelay, Totals

__all__ = ["LARGEST", "Run"]

_POLL: Final = 0.02
_STILL: Final = 20
"""So often the counters must be equal before they count as final. Each
reading goes through the relay's loop, so whatever was ready before it has been done."""
_RELAY_HOLDS: Final = 512 * 1024
"""Bytes that the relay's kernel holds for a connection at most: `TCP_NOTSENT_LOWAT`, and the one
write beyond it; what it has sent and not got acknowledged is bounded by the client's buffer."""
_CANARY_BYTES: Final = 16 * 1024
_SMALL: Final = 300
LARGEST: Final = 64 * 1024
"""Bytes of the largest packet."""


class Run:
    """Tools of a scenario.

    Args:
        relay: the relay under test.
        kind: how clients reach it.
        rng: the source of all choices.
        seconds: for how long traffic goes on at least; 0: as short as possible.
    """

    def __init__(self, relay: CountedRelay, kind: str, rng: random.Random, seconds: float) -> None:
        self.relay = relay
        self.kind = kind
        self.rng = rng
        self.ledger = Ledger()
        self.peers: list[Peer] = []
        self._until = time.monotonic() + seconds

    def rounds(self, least: int) -> _Rounds:
        """A loop of at least this many rounds, and of more while there is time left."""
        return _Rounds(least, self._until)

    # Clients

    def key(self) -> NodePrivate:
        """A new key."""
        return NodePrivate.generate(self.rng.randbytes(32))

    def new_peer(
        self,
        private: NodePrivate | None = None,
        receive_buffer: int = 0,
        mesh_key: MeshKey | None = None,
    ) -> Peer:
        """A client that is not connected yet."""
        peer = Peer(
            self.kind,
            self.ledger,
            private or self.key(),
            receive_buffer=receive_buffer,
            mesh_key=mesh_key,
        )
        self.peers.append(peer)
        return peer

    async def peer(self, private: NodePrivate | None = None, receive_buffer: int = 0) -> Peer:
        """A client that is logged in."""
        return await self.new_peer(private, receive_buffer).connect(self.relay.address)

    async def some_peers(self, count: int, receive_buffer: int = 0) -> list[Peer]:
        """Clients that are logged in."""
        return [await self.peer(receive_buffer=receive_buffer) for _ in range(count)]

    def close(self) -> None:
        """Close the remaining clients."""
        for peer in self.peers:
            peer.close()

    # Traffic

    def sizes(self) -> list[int]:
        """Sizes of packets that leave in one write: mostly few and small."""
        if self.rng.random() < 0.1:
            return [self.rng.randint(HEAD_SIZE, LARGEST)]
        count = self.rng.choice((1, 1, 2, 4, 16))
        return [self.rng.randint(HEAD_SIZE, _SMALL) for _ in range(count)]

    async def blast(
        self,
        sender: Peer,
        destinations: Sequence[NodePublic],
        *,
        rounds: int = 40,
        lasting: bool = False,
        stop: Callable[[], bool] = lambda: False,
        pings: bool = True,
    ) -> None:
        """Send without waiting for delivery, until the connection ends at the latest.

        Args:
            rounds: writes, of some packets each.
            lasting: this is the main traffic of a run, which goes on for as long as the run.
            stop: asked before each round.
            pings: wait for the relay now and then, so that its drops stay few; otherwise only the
                kernel slows it down.
        """
        for number in self.rounds(rounds) if lasting else range(rounds):
            if stop():
                break
            destination = self.rng.choice(destinations)
            disco = self.rng.random() < 0.3
            if not await sender.send_run(destination, self.sizes(), disco=disco):
                return
            if pings and number % 8 == 7 and not await sender.ping():
                return
            if not pings:
                await asyncio.sleep(0)  # all other clients want to send, too
        await sender.ping()

    @contextlib.asynccontextmanager
    async def canaries(self, count: int = 1) -> AsyncIterator[None]:
        """Pairs of clients that lose no packet, whatever happens to other clients.

        Each waits until its last few packets have come through before it sends the next: the
        relay has no reason to drop any.
        """
        pairs = [await self.some_peers(2) for _ in range(count)]
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sing(a, b, stopped)) for a, b in pairs]
            try:
                yield
            finally:
                stopped.set()
        for task in tasks:
            assert task.result(), "not a single packet passed"
        for a, b in pairs:
            await a.leave()
            await b.leave()

    async def _sing(self, a: Peer, b: Peer, stopped: asyncio.Event) -> int:
        sung = 0
        while not (stopped.is_set() and sung):
            for sender, receiver in ((a, b), (b, a)):
                before = receiver.delivered + Count()
                sent = sender.sent + Count()
                came = asyncio.Event()
                receiver.on_packet = lambda _, came=came: came.set()  # type: ignore[misc]
                left = _CANARY_BYTES
                for size in self.sizes():
                    if size <= left:
                        left -= size
                        await sender.send(receiver.key, size, disco=self.rng.random() < 0.5)
                expected = before + (sender.sent - sent)
                async with asyncio.timeout(BOUND):
                    while receiver.delivered != expected and not receiver.end:
                        came.clear()
                        await came.wait()
                assert not receiver.end, f"{receiver} ended while others had trouble"
                sung += 1
        return sung

    # Sums

    async def quiet(self) -> Totals:
        """Wait until no packet is on its way; returns the relay's counters."""
        before: tuple[Totals, Count] | None = None
        still = 0
        while still < _STILL:
            totals = await self.relay.totals()
            now = totals, self.ledger.delivered + Count()
            still = still + 1 if now == before else 0
            before = now
            if still and not self._differences(totals):
                break
            await asyncio.sleep(_POLL)
        assert before is not None
        return before[0]

    async def check(self) -> Totals:
        """Wait until all is quiet, and check the sums."""
        totals = await self.quiet()
        self.check_totals(totals)
        return totals

    def check_totals(self, totals: Totals) -> None:
        """Check the sums of the relay's counters."""
        assert not self.ledger.problems, "\n".join(self.ledger.problems)
        differences = self._differences(totals)
        assert not differences, "\n".join([*differences, *self._account(totals)])

    async def end(self) -> Totals:
        """All clients leave, the relay stops, and the sums are right."""
        for peer in self.peers:
            if not peer.end:
                await peer.leave()
        before = await self.check()
        assert await self.relay.clients() == 0
        self.relay.signal(signal.SIGTERM)
        after = await self.relay.ends()
        assert after == before, f"before the stop: {before}\nafter it: {after}"
        return after

    def _differences(self, totals: Totals) -> list[str]:
        ledger = self.ledger
        found = []
        if totals.unaccounted:
            found.append(f"packets: received − sent − dropped = {totals.unaccounted}; it must be 0")
        bytes_left = totals.bytes_received - totals.bytes_sent - sum(totals.bytes_dropped.values())
        if bytes_left and not totals.forwarded_in and not totals.forwarded_out:
            found.append(f"bytes: received − sent − dropped = {bytes_left}; it must be 0")
        received = Count(totals.received, totals.bytes_received)
        if not (ledger.arrived <= received <= ledger.stamped):
            found.append(f"received {received} is not within {ledger.arrived}, {ledger.stamped}")
        if ledger.arrived == ledger.stamped and totals.disco_received != ledger.stamped_disco:
            found.append(f"disco: received {totals.disco_received} of {ledger.stamped_disco}")
        lost = Count(totals.sent, totals.bytes_sent) - ledger.delivered
        allowed = self._allowed()
        if not Count() <= lost or lost.bytes > allowed or (lost.packets and not allowed):
            found.append(
                f"sent − delivered = {lost.packets} packets, {lost.bytes} bytes; "
                f"the kernel may have kept {allowed} bytes of connections that were reset"
            )
        disco_lost = totals.disco_received - totals.disco_dropped - ledger.delivered_disco
        if disco_lost and not allowed and not found:
            found.append(f"disco: received − dropped − delivered = {disco_lost}; it must be 0")
        return found

    def _allowed(self) -> int:
        return sum(_RELAY_HOLDS + 2 * peer.held_at_most for peer in self.peers if peer.may_lose)

    def _account(self, totals: Totals) -> list[str]:
        ledger = self.ledger
        ends: dict[str, int] = {}
        for peer in self.peers:
            ends[peer.end or "open"] = ends.get(peer.end or "open", 0) + 1
        return [
            f"relay: {totals}",
            f"clients: stamped {ledger.stamped}, arrived {ledger.arrived}, "
            f"delivered {ledger.delivered}",
            f"connections by their end: {ends}",
        ]


class _Rounds:
    """Numbers from 0 on: at least this many, and more while there is time."""

    def __init__(self, least: int, until: float) -> None:
        self._least = least
        self._until = until
        self._done = 0

    def __iter__(self) -> _Rounds:
        return self

    def __next__(self) -> int:
        if self._done >= self._least and time.monotonic() >= self._until:
            raise StopIteration
        self._done += 1
        return self._done - 1
