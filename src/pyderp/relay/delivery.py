"""Sending frames: collected during a turn, written once, queued where a socket is full.

`Router` decides what goes to which connection, `Delivery` gets it there. Each packet is counted
once: as sent when the kernel has it, or as dropped with its reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Final

from pyderp.defaults import SEND_QUEUE_BYTES, SEND_QUEUE_DEPTH
from pyderp.relay.backlog import (
    MAX_RECV_FRAME,
    MAX_UNSENT,
    PACKET_OVERHEAD,
    Backlog,
    packets_at_the_end,
    split_run,
)
from pyderp.relay.connection import Connection
from pyderp.relay.counters import Counters, DropReason
from pyderp.relay.registry import Registry
from pyderp.wire.frames import KEEP_ALIVE_FRAME, FrameType, frame_header, looks_like_disco

__all__ = ["Delivery", "MeshLink"]


class Delivery:
    """Collects, writes and queues the frames for all connections of a relay.

    Args:
        clock: monotonic seconds; not called on the packet path.
        send_queue_depth: packets in each of the two queues of a destination.

    Attributes:
        dirty: connections that have something for `flush` to write.
    """

    def __init__(
        self, clock: Callable[[], float], *, send_queue_depth: int = SEND_QUEUE_DEPTH
    ) -> None:
        self.clock = clock
        self.counters = Counters()
        self.registry = Registry(self.counters)
        self.dirty: list[Connection] = []
        self._send_queue_depth = send_queue_depth

    # Collecting

    def enqueue(self, destination: Connection, frame: bytes, *, disco: bool) -> None:
        """Collect a RecvPacket frame for a connection, or queue it if the socket is full."""
        if self.make_room(destination, len(frame)):
            self.mark_dirty(destination)
            destination.out.append(frame)
            destination.out_bytes += len(frame)
            destination.out_packets += 1
            return
        self._queue(destination, frame, disco=disco)

    def _queue(self, destination: Connection, frame: bytes, *, disco: bool) -> None:
        backlog = destination.backlog
        assert backlog is not None
        for dropped, kind in backlog.put(frame, disco=disco):
            # Go's names: the tail is the frame that came last, the head one that waited.
            reason = DropReason.QUEUE_TAIL if dropped is frame else DropReason.QUEUE_HEAD
            self.counters.drop(reason, disco=kind, size=len(dropped) - PACKET_OVERHEAD)

    def make_room(self, destination: Connection, size: int) -> bool:
        """Make room for `size` more bytes in what a connection gets this turn.

        It writes what was collected so far. If the socket is full, or becomes full by that, it
        returns False and the connection has a backlog. It also returns False for a run that is
        larger than MAX_UNSENT, as a websocket message may bring: the caller then passes its
        frames one by one.
        """
        if destination.backlog is None and destination.out_bytes + size <= MAX_UNSENT:
            return True
        # A write in the middle of the turn: it keeps what one turn collects in memory small.
        if not destination.paused:
            self._flush_one(destination)
        return destination.backlog is None and size <= MAX_UNSENT

    def keep_alive(self, connection: Connection) -> None:
        """Send a KeepAlive frame, unless the client has other bytes to read."""
        # Bytes that wait show the client that the relay lives, as soon as it reads them.
        if not connection.paused:
            self.send_control(connection, KEEP_ALIVE_FRAME)

    def send_control(self, connection: Connection, frame: bytes) -> None:
        """Send a frame that is not a packet, such as Health or Restarting."""
        self.mark_dirty(connection)
        if connection.backlog is None:
            connection.out.append(frame)
        else:
            connection.backlog.control.append(frame)

    def mark_dirty(self, connection: Connection) -> None:
        """Have `flush` write what was collected for a connection."""
        if not connection.dirty:
            connection.dirty = True
            self.dirty.append(connection)

    # Writing

    @property
    def wants_flush(self) -> bool:
        """Whether `flush` must be called at the end of this turn."""
        return bool(self.dirty or self.registry.departed)

    def flush(self) -> None:
        """Write what was collected in this turn: one write for each destination."""
        # A write may end a connection, whose peers then get a PeerGone: they are dirty again.
        while self.dirty:
            # Replaced first: a write below may mark connections dirty, for the next round.
            dirty, self.dirty = self.dirty, []
            for connection in dirty:
                connection.dirty = False
                self._flush_one(connection)
        if self.registry.departed:
            self.registry.forget_departed()

    def _flush_one(self, connection: Connection) -> None:
        out = connection.out
        if out:
            # Taken out first: `send` may call `pause`, which queues what is still in `out`.
            connection.out = []
            counters = self.counters
            packets = connection.out_packets
            if packets:
                # Counted as sent before the write, because nearly all writes succeed whole;
                # `_take_back` corrects the count of the others.
                size = connection.out_bytes - PACKET_OVERHEAD * packets
                counters.packets_sent += packets
                counters.bytes_sent += size
                connection.packets_sent += packets
                connection.bytes_sent += size
                connection.out_bytes = connection.out_packets = 0
            if packets == 1:  # saves a call for a packet that comes alone
                counters.writes[1] += 1
            else:
                counters.wrote(packets or len(out))
            connection.pong_pending = False
            written = connection.sink.send(out)
            if connection.paused or not written:
                self._take_back(connection, out, written=written)
        if connection.backlog is not None and not connection.paused:
            self._drain(connection)

    def _take_back(self, connection: Connection, frames: list[bytes], *, written: bool) -> None:
        """Correct the counts by the packets of the last write that the kernel did not take."""
        if written:
            # `send` may have ended the connection, which has then no backlog.
            backlog = connection.backlog
            if backlog is None:
                return
            unsent = connection.sink.unsent_size()
            not_sent = backlog.in_flight = packets_at_the_end(frames, unsent)
        else:
            not_sent = packets_at_the_end(frames, sum(map(len, frames)))
            for _, size, disco in not_sent:
                self.counters.drop(DropReason.WRITE_ERROR, disco=disco, size=size)
        self._count_sent(connection, -len(not_sent), -sum(size for _, size, _ in not_sent))

    def _count_sent(self, connection: Connection, packets: int, size: int) -> None:
        self.counters.packets_sent += packets
        self.counters.bytes_sent += size
        connection.packets_sent += packets
        connection.bytes_sent += size

    def pause(self, connection: Connection, unsent: int) -> None:
        """Queue frames from now on: a connection's socket is full.

        Args:
            unsent: bytes that its transport holds; they count against SEND_QUEUE_BYTES.
        """
        connection.paused = True
        if connection.backlog is None:
            connection.backlog = Backlog(depth=self._send_queue_depth)
        # The bound holds for transport and queue together; the largest packet always fits.
        connection.backlog.limit = max(SEND_QUEUE_BYTES - unsent, MAX_RECV_FRAME)
        connection.backlog.since = self.clock()
        # `out` has frames if something else than a flush filled the socket, for example the
        # pong of a websocket.
        runs, connection.out = connection.out, []
        connection.out_bytes = connection.out_packets = 0
        for frame in chain.from_iterable(map(split_run, runs)):
            if frame[0] == FrameType.RECV_PACKET:
                disco = looks_like_disco(frame[PACKET_OVERHEAD:])
                self._queue(connection, frame, disco=disco)
            else:
                connection.backlog.control.append(frame)

    def resume(self, connection: Connection) -> None:
        """Write the queued frames: the kernel has taken all bytes."""
        connection.paused = False
        # The transport is empty: the kernel has all packets that were in flight.
        self.settle(connection, 0)
        self._drain(connection)

    def _drain(self, connection: Connection) -> None:
        backlog = connection.backlog
        counters = self.counters
        loops = 0
        while backlog and not connection.paused:
            batch = backlog.take()
            connection.pong_pending = False
            counters.wrote(len(batch.chunks))
            if batch.packets:
                self._count_sent(connection, batch.packets, batch.packet_bytes)
                waited = (self.clock() - backlog.since) * 1000
                counters.queue_time.waited(batch.packets, waited, counters.packets_sent)
            if batch.changes:
                loops += 1
                counters.mesh_update_batch_size.observe(batch.changes)
            written = connection.sink.send(batch.chunks)
            if not written or connection.paused:
                self._take_back(connection, batch.chunks, written=written)
        if loops:
            counters.mesh_update_loop_count.observe(loops)
        if not connection.paused:
            connection.backlog = None

    # Connections that end

    def give_up(self, connection: Connection, unsent: int) -> None:
        """Count as dropped all packets for a client that read nothing for too long.

        `leave` must follow at once.

        Args:
            unsent: as for `settle`.
        """
        self._drop_waiting(connection, DropReason.WRITE_TIMEOUT)
        self.settle(connection, unsent, DropReason.WRITE_TIMEOUT)

    def _drop_waiting(self, connection: Connection, reason: DropReason) -> list[bytes]:
        """Drop what waits for a connection and count its packets; return the other frames."""
        # What was collected in this turn is dropped like what was queued: neither was written.
        for frame in chain.from_iterable(map(split_run, connection.out)):
            if frame[0] == FrameType.RECV_PACKET:
                packet = frame[PACKET_OVERHEAD:]
                self.counters.drop(reason, disco=looks_like_disco(packet), size=len(packet))
        connection.out.clear()
        connection.out_bytes = connection.out_packets = 0
        connection.paused = True  # nothing may be handed to the sink any more
        backlog = connection.backlog
        if backlog is None:
            return []
        for frame, disco in backlog.drain_packets():
            self.counters.drop(reason, disco=disco, size=len(frame) - PACKET_OVERHEAD)
        control, backlog.control = backlog.control, []
        backlog.changes.clear()
        if not backlog.in_flight:
            connection.backlog = None
        return control

    def settle(
        self, connection: Connection, unsent: int, reason: DropReason = DropReason.WRITE_ERROR
    ) -> None:
        """Count the packets that the transport held as sent, or as lost with the connection.

        Args:
            unsent: bytes at the end of the last write that the kernel never took.
            reason: why the packets in them are dropped.
        """
        backlog = connection.backlog
        if backlog is None or not backlog.in_flight:
            return
        for behind, size, disco in backlog.in_flight:
            # A packet is lost as soon as one of its bytes is: the client cannot read the rest.
            if behind < unsent:
                self.counters.drop(reason, disco=disco, size=size)
            else:
                self._count_sent(connection, 1, size)
        backlog.in_flight = []


MESH_QUEUE_DEPTH: Final = 4096
MESH_QUEUE_BYTES: Final = 4 * 1024 * 1024


class MeshLink:
    """ForwardPacket frames for one other relay, until the link's task has written them.

    While the link is down or the queue is full, packets are dropped: an unreachable relay must
    not cost this one memory. A frame stays in the queue until `written` is called, so that it
    counts as dropped if the link breaks while the task writes it.

    Args:
        wake: called when the queue gets its first frame, to wake the task.
    """

    __slots__ = ("_frames", "_size", "_wake", "connected")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._wake = wake
        self.connected = False

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        """Queue a packet, as `Forwarder.forward`."""
        if not self.connected:
            return DropReason.MESH_LINK_DOWN
        header = frame_header(FrameType.FORWARD_PACKET, len(src) + len(dst) + len(packet))
        frame = b"".join((header, src, dst, packet))
        if len(self._frames) >= MESH_QUEUE_DEPTH or self._size + len(frame) > MESH_QUEUE_BYTES:
            return DropReason.MESH_LINK_FULL
        self._frames.append(frame)
        self._size += len(frame)
        if len(self._frames) == 1:
            self._wake()
        return None

    def batch(self, size: int) -> list[bytes]:
        """Return the first frames that have `size` bytes together, or all; they stay queued."""
        # They must still be here if the link breaks during the write, to be counted as dropped.
        frames = []
        for frame in self._frames:
            frames.append(frame)
            size -= len(frame)
            if size <= 0:
                break
        return frames

    def written(self, count: int) -> None:
        """Take out the first `count` frames, which were written."""
        for _ in range(count):
            self._size -= len(self._frames.popleft())

    def take(self) -> list[bytes]:
        """Take out and return all frames."""
        frames = list(self._frames)
        self._frames.clear()
        self._size = 0
        return frames
