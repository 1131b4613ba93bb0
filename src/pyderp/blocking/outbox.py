"""A queue of packets that a blocking client hands to the loop's thread without waiting for it.

A call that waits costs two thread switches, many times the cost of the packet. So the blocking
`send` waits only where the asynchronous `Client.send` would wait, connect or raise.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque

from pyderp.client.connection import ClientConnection
from pyderp.client.lifecycle import Lifecycle
from pyderp.defaults import CLIENT_WRITE_BUFFER
from pyderp.errors import ConnectionClosed
from pyderp.keys import NodePublic

__all__ = ["Outbox"]


class Outbox:
    """Packets of one client that the loop's thread has not taken yet, in the order of the calls.

    There is no lock, because a signal handler or a finalizer that sends could interrupt code that
    holds it, and would then wait for ever. Appending to a deque is atomic. Two threads may set
    the other fields at the same time: that costs one wake-up more, or lets 64 KiB more wait.

    Args:
        life: the client's connections.
    """

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._waiting: deque[tuple[ClientConnection, NodePublic, bytes]] = deque()
        self._size = 0
        """Bytes of those packets."""
        self._scheduled = False
        """Whether `flush` is scheduled on the loop and has not begun."""

    def take(self, loop: AbstractEventLoop, dst: NodePublic, packet: bytes) -> bool:
        """Queue a packet and return at once; in any thread.

        Args:
            loop: the loop of the background thread.
            packet: a result of `as_packet`.

        Returns:
            whether the packet was queued; if not, `Client.send` has to wait, connect or raise.
        """
        life = self._life
        connection = life.connection
        if (
            type(dst) is not NodePublic
            or connection is None
            or connection.ended
            or connection.busy
            or life.unsent is not None
            or self._size > CLIENT_WRITE_BUFFER
        ):
            return False
        try:
            self._waiting.append((connection, dst, packet))
            self._size += len(packet)
            if not self._scheduled:
                self._scheduled = True
                loop.call_soon_threadsafe(self.flush)
        except BaseException:
            # Ctrl-C: `flush` may or may not be scheduled. Calling it twice does no harm.
            loop.call_soon_threadsafe(self.flush)
            raise
        return True

    def flush(self) -> None:
        """Send all packets that wait; in the loop's thread, before later calls of the client."""
        self._scheduled = False
        self._size = 0
        waiting = self._waiting
        while waiting:
            taken_for, dst, packet = waiting.popleft()
            packets = [packet]
            while waiting and waiting[0][1] == dst:
                packets.append(waiting.popleft()[2])
            self._send(taken_for, dst, packets)

    def _send(self, taken_for: ClientConnection, dst: NodePublic, packets: list[bytes]) -> None:
        life = self._life
        connection = life.connection or taken_for
        try:
            done = 0
            while done < len(packets):  # the caller of the next `send` drains
                done = connection.send_packets(dst, packets, done)
        except ConnectionClosed:
            # The next call that sends raises the error: if the connection is still the current
            # one, when it uses that, otherwise because of `unsent`.
            connection.write_failed = True
            if life.connection is None and not life.closed:
                life.unsent = connection
