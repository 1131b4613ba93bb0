"""The sending half of a connection to a relay: frames are queued, and leave in one write a turn."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pyderp.client.config import ClientStats
from pyderp.client.login import Established
from pyderp.defaults import CLIENT_WRITE_BUFFER
from pyderp.errors import ConnectionClosed
from pyderp.keys import NodePublic
from pyderp.throttle import TokenBucket
from pyderp.wire.frames import pack_forward_packet

__all__ = ["ConnectionWriter"]


class ConnectionWriter(ABC):
    """The sending half of a `ClientConnection`.

    Calls raise `ConnectionClosed` once the connection has ended.
    """

    def __init__(self, login: Established, stats: ClientStats) -> None:
        self.link = login.link
        self.session = login.session
        self.stats = stats
        self.ended = False
        self.backed_up = False
        """More than 64 KiB wait for the kernel."""
        self.busy = False
        """Senders must `drain` first: more than 64 KiB wait, or left since the last pause."""
        self._loop = asyncio.get_running_loop()
        self._out = self.session.out
        self._flush_scheduled = False
        self._senders: set[asyncio.Future[None]] = set()
        self._bucket: TokenBucket | None = None
        """The rate that the relay allows (ServerInfo)."""

    @abstractmethod
    def error(self, where: str) -> ConnectionClosed:
        """Returns the error to raise once the connection has ended."""

    def send_packets(self, dst: NodePublic, packets: Sequence[bytes], start: int = 0) -> int:
        """Queue packets for one peer, from the one at `start`.

        Stops early when the caller should `drain` first (`busy`). Packets above the rate that the
        relay allows are dropped without an error, and counted.

        Args:
            packets: results of `as_packet`.

        Returns:
            the position after the last packet that was queued or dropped.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        if self.ended:
            raise self.error("derp.Send")
        # As Go's client, this one keeps to the rate that the relay has announced. Most set none.
        allowed = None if self._bucket is None else self._allowed
        position = self._out.add_packets(dst, packets, start, CLIENT_WRITE_BUFFER, allowed)
        self._added()
        return position

    def _allowed(self, size: int) -> bool:
        assert self._bucket is not None
        if self._bucket.take(size, self._loop.time()):
            return True
        self.stats.packets_dropped += 1
        return False

    def forward_packet(self, src: NodePublic, dst: NodePublic, packet: bytes) -> None:
        """Queue a packet from another client; needs the mesh key."""
        frame = pack_forward_packet(src, dst, packet)
        if self.ended:
            raise self.error("derp.ForwardPacket")
        self._out.add(frame, packets=1)
        self._added()

    def forward_frames(self, frames: Sequence[bytes]) -> None:
        """Write ForwardPacket frames at once; needs the mesh key.

        They are not queued here, as the relay that calls this has a queue of them already.
        """
        if self.ended:
            raise self.error("derp.ForwardPacket")
        # Queued frames first, so that all leave in the order of the calls.
        packets = self._out.packets + len(frames)
        self._write(b"".join([*self._out.take(), *frames]), packets)

    def send_frame(self, frame: bytes) -> None:
        """Queue a whole frame, or several."""
        if self.ended:
            raise self.error("derp.Send")
        self._out.add(frame)
        self._added()

    def _added(self) -> None:
        """Write what is queued: at once above 64 KiB, or else at the end of this turn."""
        size = self._out.size
        if size > CLIENT_WRITE_BUFFER:
            self.flush()
            self.busy = True
        elif size and not self._flush_scheduled:
            # In this order, as `call_soon` raises if the loop is closed.
            self._loop.call_soon(self._scheduled_flush)
            self._flush_scheduled = True

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what is queued."""
        out = self._out
        if out.size and not self.ended:
            packets = out.packets
            self._write(b"".join(out.take()), packets)

    def _write(self, data: bytes, packets: int) -> None:
        self.stats.packets_sent += packets
        self.stats.bytes_sent += len(data)
        self.link.write(data)
        # The link calls `writable` when `pending` is low again; that clears it.
        self.backed_up = self.link.pending > CLIENT_WRITE_BUFFER
        if self.backed_up:
            self.busy = True

    async def drain(self) -> None:
        """Wait until at most 64 KiB wait for the kernel; let other tasks run in any case.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        if self.ended:
            # Without a pause first. In it other senders would come here, and each would get the
            # error; raised at once, it makes the caller forget the connection, and the next
            # sender connects.
            raise self.error("derp.Send")
        # Nothing waits, but 64 KiB left at once: receivers and other senders get their turn.
        if not self.backed_up:
            self.busy = False
            await asyncio.sleep(0)
        while self.backed_up:
            if self.ended:
                raise self.error("derp.Send")
            waiter = self._loop.create_future()
            self._senders.add(waiter)
            try:
                await waiter
            finally:
                self._senders.discard(waiter)
        self.busy = False

    def _wake_senders(self) -> None:
        for waiter in self._senders:
            if not waiter.done():
                waiter.set_result(None)
