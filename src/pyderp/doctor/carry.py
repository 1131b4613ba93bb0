"""Sends packets from one client to another, and counts how many of them arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pyderp.client.client import Client
from pyderp.errors import DerpError, RemoteProtocolError, without_frames
from pyderp.tasks import cancel_and_wait
from pyderp.wire.messages import ReceivedPacket, ServerInfo

__all__ = ["Carried", "carry", "carry_again", "stay_idle", "welcome"]


async def welcome(client: Client) -> ServerInfo:
    """Connect, log in, and wait for the relay's answer.

    Raises:
        LoginRefused: the relay closed the connection instead.
        ConnectError, ConnectionClosed: connecting failed, or the connection ended.
    """
    await client.connect()
    while True:
        message = await client.recv()
        if isinstance(message, ServerInfo):
            return message


_FIRST: Final = asyncio.FIRST_COMPLETED


@dataclass
class Carried:
    """How many of the packets arrived, and in what state."""

    sent: int = 0
    arrived: int = 0
    bytes_arrived: int = 0
    seconds: float = 0.0
    """From the first send to the last arrival."""
    intact: bool = True
    """All packets that arrived are unchanged and in the order in which they were sent. Some may
    be missing."""
    error: DerpError | None = field(default=None, repr=False)
    """The error that ended it early."""


async def carry(
    source: Client,
    target: Client,
    packets: Sequence[bytes],
    *,
    window: int,
    limit: float,
    late: set[bytes] | None = None,
) -> Carried:
    """Send packets from one client to another, and count what arrives.

    Args:
        source, target: clients that are logged in. They may be the same. Only this function may
            receive from `target`.
        window: the most packets that are sent and have not arrived yet.
        limit: seconds for all packets.
        late: packets of earlier calls that may still arrive and are then ignored. If this call
            ends before all of its packets have arrived, they are added.
    """
    late = set() if late is None else late
    transfer = _Transfer(source, target, packets, window, late)
    try:
        async with asyncio.timeout(limit):
            await transfer.run()
    except TimeoutError:
        pass
    except DerpError as e:
        transfer.done.error = without_frames(e)
    if transfer.done.arrived < transfer.done.sent:
        late.update(packets[: transfer.done.sent])
    return transfer.done


class _Transfer:
    """One transfer of packets from one client to another."""

    def __init__(
        self,
        source: Client,
        target: Client,
        packets: Sequence[bytes],
        window: int,
        late: set[bytes],
    ) -> None:
        self.done = Carried()
        self._source = source
        self._target = target
        self._packets = packets
        self._late = late
        self._room = asyncio.Semaphore(window)
        # Not the time of the loop, whose clock may have a resolution of milliseconds.
        self._began = time.perf_counter()
        self._next = 0
        """The index of the packet that arrives next if none is lost."""
        self._sent_all = False
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Send all packets, and receive until all of them have arrived."""
        sending = asyncio.create_task(self._send(), name="doctor sends")
        receiving = asyncio.create_task(self._receive(), name="doctor receives")
        try:
            await asyncio.wait((sending, receiving), return_when=_FIRST)
            if receiving.done():
                receiving.result()  # raises: receiving ends only by an error
            sending.result()
            self._sent_all = True
            if self.done.arrived < self.done.sent:
                await asyncio.wait((receiving, self._complete), return_when=_FIRST)
            if receiving.done():
                receiving.result()
        finally:
            await cancel_and_wait((sending, receiving))
            # A task may hold an error, whose traceback holds this frame: a reference cycle.
            del sending, receiving

    async def _send(self) -> None:
        done = self.done
        for packet in self._packets:
            await self._room.acquire()
            done.sent += 1
            await self._source.send(self._target.self_public_key, packet)

    async def _receive(self) -> None:
        while True:
            for message in await self._target.receive_many():
                if isinstance(message, ReceivedPacket):
                    self._take(message)

    def _take(self, packet: ReceivedPacket) -> None:
        done = self.done
        # Packets of other senders, or more than were sent (duplicates), are not counted.
        if packet.source != self._source.self_public_key or done.arrived == done.sent:
            return
        if packet.data in self._late:
            return
        # Packets that are skipped here were lost, or arrive late and then count as not intact.
        while self._next < done.sent and self._packets[self._next] != packet.data:
            self._next += 1
        done.intact &= self._next < done.sent
        self._next += 1
        done.arrived += 1
        done.bytes_arrived += len(packet.data)
        done.seconds = time.perf_counter() - self._began
        self._room.release()
        if self._sent_all and done.arrived == done.sent and not self._complete.done():
            self._complete.set_result(None)


async def stay_idle(one: Client, other: Client, seconds: float) -> None:
    """Receive from two clients, which may be the same, for some seconds, and send nothing.

    Raises:
        ConnectionClosed, ConnectError: a connection ended.
    """

    async def listen(client: Client) -> None:
        while True:
            await client.receive_many()

    clients = (one,) if one is other else (one, other)
    listening = [asyncio.create_task(listen(each), name="doctor listens") for each in clients]
    try:
        done, _ = await asyncio.wait(listening, timeout=seconds, return_when=_FIRST)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(listening)
        del listening  # A task may hold an error, whose traceback holds this frame.


async def carry_again(
    source: Client, target: Client, packet: bytes, *, every: float, limit: float
) -> float | None:
    """Send one packet repeatedly until it arrives; a mesh may need time to announce a new client.

    Args:
        every: seconds between two sends.
        limit: seconds until it gives up.

    Returns:
        seconds from the first send to the first arrival; `None`: none arrived in time.

    Raises:
        ConnectionClosed, ConnectError: a connection ended.
    """
    began = time.perf_counter()

    async def send() -> None:
        while True:
            await source.send(target.self_public_key, packet)
            await asyncio.sleep(every)

    sending = asyncio.create_task(send(), name="doctor sends")
    try:
        async with asyncio.timeout(limit):
            while True:
                message = await target.recv()
                if isinstance(message, ReceivedPacket) and message.data == packet:
                    if message.source != source.self_public_key:
                        raise RemoteProtocolError("the packet has another source than its sender")
                    return time.perf_counter() - began
    except TimeoutError:
        return None
    finally:
        await cancel_and_wait((sending,))
