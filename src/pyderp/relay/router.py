"""The relay's decisions: who gets what, who is told what, what is dropped. It never awaits.

The shell calls `login`, then `receive` with each read, and `leave`; it calls `flush` once
at the end of each turn of its loop in which `wants_flush` became true. All bytes go out
through `Sink.send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pyderp.defaults import (
    HOME_MOVE_GRACE,
    MAX_PENDING_CHANGES,
    NOT_HERE_BURST,
    NOT_HERE_RATE,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_DEPTH,
)
from pyderp.errors import RemoteProtocolError
from pyderp.keys import KEY_LEN
from pyderp.relay.backlog import MAX_RECV_FRAME, MAX_UNSENT, PACKET_OVERHEAD, Backlog
from pyderp.relay.connection import Connection
from pyderp.relay.counters import Counters, DropReason
from pyderp.relay.ending import EndReason, How
from pyderp.relay.forwarders import Forwarder, ForwarderTable, MeshLink
from pyderp.relay.registry import Registry
from pyderp.relay.runs import packets_at_the_end, recv_frame, split_run
from pyderp.wire.frames import (
    HEADER,
    KEEP_ALIVE_FRAME,
    PING_LEN,
    FrameType,
    PeerGoneReason,
    frame_header,
    looks_like_disco,
    pack_pong,
)

__all__ = ["Router"]

_PEER_GONE_HEADER: Final = frame_header(FrameType.PEER_GONE, KEY_LEN + 1)
_DISCONNECTED: Final = bytes((PeerGoneReason.DISCONNECTED,))
_NOT_HERE: Final = bytes((PeerGoneReason.NOT_HERE,))


class Router:
    """One relay's connections and the paths between them.

    Args:
        own_key: the relay's public key, 32 raw bytes.
        clock: seconds, monotonic; asked only off the packet path.
        send_queue_depth: packets in each of the two queues of a destination.
    """

    def __init__(
        self,
        own_key: bytes,
        clock: Callable[[], float],
        *,
        send_queue_depth: int = SEND_QUEUE_DEPTH,
    ) -> None:
        self.own_key = own_key
        self.clock = clock
        self.counters = Counters()
        self.registry = Registry(self.counters)
        self.forwarders = ForwarderTable(self.counters)
        self.touched: list[Connection] = []
        self._send_queue_depth = send_queue_depth

    # Life of a connection

    def login(self, connection: Connection) -> None:
        """Take in a connection and tell the watchers; it gets its key's packets from now on."""
        self.registry.add(connection)
        if self.registry.watchers:
            self._tell_watchers(connection.present_frame())

    def leave(self, connection: Connection, *, last_words: bool = False) -> list[bytes]:
        """Take out a connection, count the packets that waited, and tell those who care.

        Packets that its transport holds are counted when it is known what becomes of them:
        `settle` must follow, at once or later.

        Args:
            last_words: the transport stays open until it has written what it holds. What this
                turn of the loop brought is written, too.

        Returns:
            with `last_words`, frames that are no packets and waited, to be written last.
        """
        if last_words and not connection.paused:
            self._flush_one(connection)
        connection.has_left = True
        words = self._drop_waiting(connection)
        if connection.preferred:
            self.counters.home_connections -= 1
        if self.registry.remove(connection):
            self._tell_departure(connection.key)
        connection.sent_to = None
        return words if last_words else []

    def _tell_departure(self, key: bytes) -> None:
        if self.registry.watchers:
            self.counters.peer_gone_disconnected += len(self.registry.watchers)
            self._tell_watchers(_PEER_GONE_HEADER + key + _DISCONNECTED)
        if key not in self.forwarders:
            self._tell_left_region(key)

    def _drop_waiting(self, connection: Connection) -> list[bytes]:
        """Count the packets that waited as dropped; returns the other frames that did."""
        for run in connection.out:
            self._drop_run(run, DropReason.GONE_DISCONNECTED)
        connection.out.clear()
        connection.out_bytes = connection.out_packets = 0
        connection.paused = True  # nothing may be handed to the sink any more
        backlog = connection.backlog
        if backlog is None:
            return []
        for frame, disco in backlog.drain_packets():
            size = len(frame) - PACKET_OVERHEAD
            self.counters.drop(DropReason.GONE_DISCONNECTED, disco=disco, size=size)
        words, backlog.control = backlog.control, []
        backlog.changes.clear()
        if not backlog.in_flight:
            connection.backlog = None
        return words

    def settle(self, connection: Connection, unsent: int) -> None:
        """Count what the transport held: as sent, or as lost with the connection.

        Args:
            unsent: bytes at the end of it that the kernel never took.
        """
        backlog = connection.backlog
        if backlog is None or not backlog.in_flight:
            return
        counters = self.counters
        for behind, size, disco in backlog.in_flight:
            if behind < unsent:
                counters.drop(DropReason.WRITE_ERROR, disco=disco, size=size)
            else:
                counters.packets_sent += 1
                counters.bytes_sent += size
                connection.packets_sent += 1
                connection.bytes_sent += size
        backlog.in_flight = []

    def _drop_run(self, run: bytes, reason: DropReason) -> None:
        for frame in split_run(run):
            if frame[0] == FrameType.RECV_PACKET:
                packet = frame[PACKET_OVERHEAD:]
                self.counters.drop(reason, disco=looks_like_disco(packet), size=len(packet))

    # Frames other than runs of SendPacket

    def on_frame(self, connection: Connection, kind: int, payload: bytes) -> None:
        """Act on one whole frame whose length was checked.

        Raises:
            RemoteProtocolError: the client may not send this.
        """
        if kind == FrameType.SEND_PACKET:
            self.send_packet(connection, payload[:KEY_LEN], payload[KEY_LEN:])
        elif kind == FrameType.PING:
            self._on_ping(connection, payload)
        elif kind == FrameType.NOTE_PREFERRED:
            self._on_note_preferred(connection, preferred=payload != b"\0")
        elif kind == FrameType.FORWARD_PACKET:
            self._need_mesh(connection, kind)
            self._on_forward_packet(connection, payload)
        elif kind == FrameType.WATCH_CONNS:
            self._need_mesh(connection, kind)
            self._on_watch_conns(connection)
        elif kind == FrameType.CLOSE_PEER:
            self._need_mesh(connection, kind)
            for target in self.registry.connections_of(payload):
                target.sink.end(EndReason.MESH_PEER, How.NOW, "closed by a mesh peer")
        else:
            self.counters.unknown_frames += 1

    @staticmethod
    def _need_mesh(connection: Connection, kind: int) -> None:
        if not connection.can_mesh:
            raise RemoteProtocolError(
                "insufficient permissions: it asked for what only a relay with our mesh key may",
                frame_type=kind,
            )

    def _on_ping(self, connection: Connection, payload: bytes) -> None:
        self.counters.got_ping += 1
        # One pong may wait; pings beyond that are ignored, so that a flood earns nothing.
        if not connection.pong_pending:
            connection.pong_pending = True
            self.counters.sent_pong += 1
            self._control(connection, pack_pong(payload[:PING_LEN]))

    def _on_note_preferred(self, connection: Connection, *, preferred: bool) -> None:
        if connection.preferred == preferred:
            return
        connection.preferred = preferred
        self.counters.home_connections += 1 if preferred else -1
        if self.clock() - connection.connected_at > HOME_MOVE_GRACE:
            if preferred:
                self.counters.home_moves_in += 1
            else:
                self.counters.home_moves_out += 1

    # Packets one at a time: the plain path, and what the fast lane cannot do

    def send_packet(self, connection: Connection, dst: bytes, packet: bytes) -> None:
        """Relay one SendPacket, frame by frame: what `pyderp.relay.lane` does for whole runs."""
        disco = looks_like_disco(packet)
        self.counters.packets_received += 1
        self.counters.bytes_received += len(packet)
        self.counters.disco_received += disco
        connection.packets_received += 1
        connection.bytes_received += len(packet)
        frame = recv_frame(connection.key, packet)
        destination = self.registry.active.get(dst)
        if destination is not None:
            self.registry.remember(connection.key, destination)
            self.enqueue(destination, frame, disco=disco)
        else:
            self.send_elsewhere(connection, dst, packet, disco=disco)

    def send_elsewhere(
        self, connection: Connection, dst: bytes, packet: bytes, *, disco: bool
    ) -> None:
        """Relay a packet whose destination has no connection here: to the mesh, or nowhere."""
        forwarder = self.forwarders.get(dst)
        if forwarder is None:
            self.counters.drop(DropReason.UNKNOWN_DEST, disco=disco, size=len(packet))
            if disco:
                self._tell_not_here(connection, dst)
            return
        reason = forwarder.forward(connection.key, dst, packet)
        if reason is None:
            self.counters.packets_to_forward += 1
        else:
            self.counters.drop(reason, disco=disco, size=len(packet))

    def _on_forward_packet(self, connection: Connection, payload: bytes) -> None:
        src, dst = payload[:KEY_LEN], payload[KEY_LEN : 2 * KEY_LEN]
        packet = payload[2 * KEY_LEN :]
        disco = looks_like_disco(packet)
        self.counters.packets_forwarded_in += 1
        connection.packets_received += 1
        connection.bytes_received += len(packet)
        destination = self.registry.active.get(dst)
        if destination is None:
            # One hop: what was forwarded is never forwarded again.
            self.counters.drop(DropReason.UNKNOWN_DEST_ON_FWD, disco=disco, size=len(packet))
            if disco:
                self._tell_not_here(connection, dst)
            return
        self.registry.remember_forwarded(src, destination)
        self.enqueue(destination, recv_frame(src, packet), disco=disco)

    def enqueue(self, destination: Connection, frame: bytes, *, disco: bool) -> None:
        """Give a RecvPacket frame to a connection, or queue it if its socket takes no more."""
        if self.has_room(destination, len(frame)):
            self.touch(destination)
            destination.out.append(frame)
            destination.out_bytes += len(frame)
            destination.out_packets += 1
            return
        self._queue(destination, frame, disco=disco)

    def _queue(self, destination: Connection, frame: bytes, *, disco: bool) -> None:
        backlog = destination.backlog
        assert backlog is not None
        for dropped, kind in backlog.put(frame, disco=disco):
            reason = DropReason.QUEUE_TAIL if dropped is frame else DropReason.QUEUE_HEAD
            self.counters.drop(reason, disco=kind, size=len(dropped) - PACKET_OVERHEAD)

    def has_room(self, destination: Connection, size: int) -> bool:
        """Whether `size` more bytes may be added to what leaves for a connection this turn.

        Makes room by writing what is there already; if that blocks, the answer is no and
        the connection has a backlog. A run too large for any room, as a websocket message
        may bring, must be given frame by frame.
        """
        if destination.backlog is None and destination.out_bytes + size <= MAX_UNSENT:
            return True
        if not destination.paused:
            self._flush_one(destination)
        return destination.backlog is None and size <= MAX_UNSENT

    def _tell_not_here(self, connection: Connection, dst: bytes) -> None:
        now = self.clock()
        tokens = connection.not_here_tokens + (now - connection.not_here_at) * NOT_HERE_RATE
        connection.not_here_at = now
        connection.not_here_tokens = min(tokens, float(NOT_HERE_BURST))
        if connection.not_here_tokens >= 1:
            connection.not_here_tokens -= 1
            self.counters.peer_gone_not_here += 1
            self._control(connection, _PEER_GONE_HEADER + dst + _NOT_HERE)

    # Mesh

    def _on_watch_conns(self, connection: Connection) -> None:
        if connection.key == self.own_key:
            return  # the relay itself, by way of its own mesh list: nothing to learn
        self.registry.watchers[connection] = None
        backlog = connection.backlog
        if backlog is not None and backlog.picture_waits:
            # The picture that waits, with the changes behind it, is already the answer.
            self.counters.watch_repeats_ignored += 1
            return
        self._changes(connection, (c.present_frame() for c in self.registry.active.values()))
        if connection.backlog is not None:  # it may have been closed as too slow
            connection.backlog.picture_waits = True

    def add_forwarder(self, key: bytes, forwarder: Forwarder) -> None:
        """Another relay has a key."""
        self.forwarders.add(key, forwarder)

    def remove_forwarder(self, key: bytes, forwarder: Forwarder) -> None:
        """Another relay lost a key."""
        is_local = key in self.registry.active
        if self.forwarders.remove(key, forwarder, is_local=is_local) and not is_local:
            self._tell_left_region(key)

    def disconnect_link(self, link: MeshLink) -> None:
        """A mesh link broke: what waits for it is dropped and counted, as is what comes."""
        link.connected = False
        for frame in link.take():
            packet = frame[HEADER.size + 2 * KEY_LEN :]
            disco = looks_like_disco(packet)
            self.counters.drop(DropReason.MESH_LINK_DOWN, disco=disco, size=len(packet))

    def _tell_watchers(self, frame: bytes) -> None:
        for watcher in list(self.registry.watchers):
            # One that does not keep up is closed, which is news for the others.
            if not watcher.has_left:
                self._changes(watcher, (frame,))

    def _changes(self, watcher: Connection, frames: Iterator[bytes] | tuple[bytes, ...]) -> None:
        if watcher.backlog is None:
            watcher.backlog = Backlog(depth=self._send_queue_depth)
            watcher.backlog.since = self.clock()
        changes = watcher.backlog.changes
        changes.extend(frames)
        # A full picture may always wait; more than that means the watcher does not read.
        if len(changes) > MAX_PENDING_CHANGES + len(self.registry.active):
            self.counters.watchers_closed += 1
            detail = "watcher does not keep up"
            watcher.sink.end(EndReason.WATCHER_BEHIND, How.NOW, detail)
        else:
            self.touch(watcher)

    def _tell_left_region(self, source: bytes) -> None:
        told = self.registry.left_region(source)
        frame = _PEER_GONE_HEADER + source + _DISCONNECTED
        self.counters.peer_gone_disconnected += len(told)
        for connection in told:
            self._control(connection, frame)

    # Out

    def keep_alive(self, connection: Connection) -> None:
        """Send a KeepAlive frame; a peer that has yet to read what waits needs none."""
        if not connection.paused:
            self._control(connection, KEEP_ALIVE_FRAME)

    def send_control(self, connection: Connection, frame: bytes) -> None:
        """Send a frame that is no packet, such as Health or Restarting."""
        self._control(connection, frame)

    def _control(self, connection: Connection, frame: bytes) -> None:
        self.touch(connection)
        if connection.backlog is None:
            connection.out.append(frame)
        else:
            connection.backlog.control.append(frame)

    def touch(self, connection: Connection) -> None:
        """Have `flush` look at a connection."""
        if not connection.touched:
            connection.touched = True
            self.touched.append(connection)

    @property
    def wants_flush(self) -> bool:
        """Whether something waits for the end of the turn."""
        return bool(self.touched or self.registry.departed)

    def flush(self) -> None:
        """Write what this turn brought: one write a destination."""
        while self.touched:
            touched, self.touched = self.touched, []
            for connection in touched:
                connection.touched = False
                self._flush_one(connection)
        if self.registry.departed:
            self.registry.forget_departed()

    def _flush_one(self, connection: Connection) -> None:
        out = connection.out
        if out:
            connection.out = []
            packets = connection.out_packets
            if packets:
                size = connection.out_bytes - PACKET_OVERHEAD * packets
                self.counters.packets_sent += packets
                self.counters.bytes_sent += size
                connection.packets_sent += packets
                connection.bytes_sent += size
                connection.out_bytes = connection.out_packets = 0
            self.counters.wrote(packets or len(out))
            connection.pong_pending = False
            self._write(connection, out)
        if connection.backlog is not None and not connection.paused:
            self._drain(connection)

    def _write(self, connection: Connection, frames: list[bytes]) -> None:
        """Write frames that were counted as sent; take back what the kernel did not take."""
        sink, counters = connection.sink, self.counters
        if sink.send(frames):
            backlog = connection.backlog
            if not connection.paused or backlog is None:
                return
            not_sent = backlog.in_flight = packets_at_the_end(frames, sink.unsent_size())
        else:
            not_sent = packets_at_the_end(frames, sum(map(len, frames)))
            for _, size, disco in not_sent:
                counters.drop(DropReason.WRITE_ERROR, disco=disco, size=size)
        size = sum(size for _, size, _ in not_sent)
        counters.packets_sent -= len(not_sent)
        counters.bytes_sent -= size
        connection.packets_sent -= len(not_sent)
        connection.bytes_sent -= size

    def pause(self, connection: Connection, unsent: int) -> None:
        """The kernel takes no more for a connection.

        Args:
            unsent: bytes that its transport holds; they count against the bound.
        """
        connection.paused = True
        if connection.backlog is None:
            connection.backlog = Backlog(depth=self._send_queue_depth)
        connection.backlog.limit = max(SEND_QUEUE_BYTES - unsent, MAX_RECV_FRAME)
        connection.backlog.since = self.clock()
        if connection.out:
            self._queue_out(connection, connection.backlog)

    def _queue_out(self, connection: Connection, backlog: Backlog) -> None:
        # The socket filled up by other means than a flush, say by a websocket's pong.
        runs, connection.out = connection.out, []
        connection.out_bytes = connection.out_packets = 0
        for run in runs:
            for frame in split_run(run):
                if frame[0] == FrameType.RECV_PACKET:
                    disco = looks_like_disco(frame[PACKET_OVERHEAD:])
                    self._queue(connection, frame, disco=disco)
                else:
                    backlog.control.append(frame)

    def resume(self, connection: Connection) -> None:
        """The kernel took all; write what waits."""
        connection.paused = False
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
                counters.packets_sent += batch.packets
                counters.bytes_sent += batch.packet_bytes
                connection.packets_sent += batch.packets
                connection.bytes_sent += batch.packet_bytes
                waited = (self.clock() - backlog.since) * 1000
                counters.queue_time.waited(batch.packets, waited, counters.packets_sent)
            if batch.changes:
                loops += 1
                counters.mesh_update_batch_size.observe(batch.changes)
            self._write(connection, batch.chunks)
        if loops:
            counters.mesh_update_loop_count.observe(loops)
        if not connection.paused:
            connection.backlog = None
