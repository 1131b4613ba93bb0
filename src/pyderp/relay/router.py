"""The relay's decisions: which client gets which frames, and which packets are dropped. No I/O.

The server calls `login`, then `lane.receive` with each read, and `leave`; it calls `flush` at the
end of each turn of its loop in which `wants_flush` became true. All bytes leave by `Sink.send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pyderp.defaults import (
    HOME_MOVE_GRACE,
    MAX_PENDING_CHANGES,
    MAX_PENDING_CONTROL,
    NOT_HERE_BURST,
    NOT_HERE_RATE,
    SEND_QUEUE_DEPTH,
)
from pyderp.errors import RemoteProtocolError
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.relay.backlog import Backlog, recv_frame
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import Delivery, MeshLink
from pyderp.relay.registry import Forwarder, ForwarderTable
from pyderp.wire.frames import (
    HEADER,
    PING_LEN,
    FrameType,
    PeerGoneReason,
    looks_like_disco,
    pack_peer_gone,
    pack_pong,
)

__all__ = ["Router", "check"]

_FOR_MESH_PEERS: Final = frozenset(
    {FrameType.FORWARD_PACKET, FrameType.WATCH_CONNS, FrameType.CLOSE_PEER}
)


class Router(Delivery):
    """Routes packets between the connections of one relay and to other relays.

    Args:
        own_key: the relay's public key, 32 raw bytes.
        clock: monotonic seconds; not called on the packet path.
        send_queue_depth: packets in each of the two queues of a destination.
    """

    def __init__(
        self,
        own_key: bytes,
        clock: Callable[[], float],
        *,
        send_queue_depth: int = SEND_QUEUE_DEPTH,
    ) -> None:
        super().__init__(clock, send_queue_depth=send_queue_depth)
        self.own_key = own_key
        self.forwarders = ForwarderTable(self.counters)

    # Logins and departures

    def login(self, connection: Connection) -> None:
        """Register a connection, which gets its key's packets from now on; inform the watchers."""
        self.registry.add(connection)
        # After `add`: a watcher that sends to the new client at once finds it.
        if self.registry.watchers:
            self._send_to_watchers(connection.present_frame())

    def leave(self, connection: Connection, *, write_rest: bool = False) -> list[bytes]:
        """Unregister a connection, drop the packets that wait for it, inform peers and watchers.

        Packets that its transport holds are counted by `settle`, which must follow at once or
        later, when it is known whether the kernel took them.

        Args:
            write_rest: the transport stays open until it has written what it holds. Frames
                that were collected in this turn of the loop are written too.

        Returns:
            with `write_rest`, the queued frames that are not packets, for the caller to write.
        """
        # Before the rest is dropped: frames of this turn can still be written.
        if write_rest and not connection.paused:
            self._flush_one(connection)
        # The lane stops after the current frame, and `_send_to_watchers` passes over it.
        connection.has_left = True
        control = self._drop_waiting(connection, DropReason.GONE_DISCONNECTED)
        if connection.preferred:
            self.counters.home_connections -= 1
        # False while the key has another connection here: its peers can still reach it.
        if self.registry.remove(connection):
            self._notify_of_departure(connection.key)
        connection.sent_to = None
        return control if write_rest else []

    def _notify_of_departure(self, key: bytes) -> None:
        if self.registry.watchers:
            self.counters.peer_gone_disconnected += len(self.registry.watchers)
            self._send_to_watchers(pack_peer_gone(NodePublic(key), PeerGoneReason.DISCONNECTED))
        # With a forwarder the key can still be reached, through another relay of the mesh.
        if key not in self.forwarders:
            self._send_left_region(key)

    # Frames other than runs of SendPacket

    def on_frame(self, connection: Connection, kind: int, payload: bytes) -> None:
        """Act on one complete frame whose length was checked.

        Raises:
            RemoteProtocolError: the client is not allowed to send it.
        """
        if kind in _FOR_MESH_PEERS and not connection.can_mesh:
            raise RemoteProtocolError(
                "insufficient permissions: it asked for what only a relay with our mesh key may",
                frame_type=kind,
            )
        if kind == FrameType.SEND_PACKET:
            self.send_packet(connection, payload[:KEY_LEN], payload[KEY_LEN:])
        elif kind == FrameType.PING:
            self._on_ping(connection, payload)
        elif kind == FrameType.NOTE_PREFERRED:
            # As in Go, any other byte than 0 means yes.
            self._on_note_preferred(connection, preferred=payload != b"\0")
        elif kind == FrameType.FORWARD_PACKET:
            self._on_forward_packet(connection, payload)
        elif kind == FrameType.WATCH_CONNS:
            self._on_watch_conns(connection)
        elif kind == FrameType.CLOSE_PEER:
            for target in self.registry.connections_of(payload):
                target.sink.end(EndReason.MESH_PEER, How.NOW, "closed by a mesh peer")
        else:
            self.counters.unknown_frames += 1

    def _on_ping(self, connection: Connection, payload: bytes) -> None:
        self.counters.got_ping += 1
        # One pong may wait, further pings are ignored: a flood of them must not fill the queue.
        if not connection.pong_pending:
            connection.pong_pending = True
            self.counters.sent_pong += 1
            self.send_control(connection, pack_pong(payload[:PING_LEN]))

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

    # Packets one at a time: the reference for the fast lane, and what it leaves to the router

    def send_packet(self, connection: Connection, dst: bytes, packet: bytes) -> None:
        """Relay one SendPacket; `pyderp.relay.lane` does the same for whole runs."""
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
            self.forward_or_drop(connection, dst, packet, disco=disco)

    def forward_or_drop(
        self, connection: Connection, dst: bytes, packet: bytes, *, disco: bool
    ) -> None:
        """Forward a packet whose destination has no connection here to the mesh, or drop it."""
        forwarder = self.forwarders.get(dst)
        if forwarder is None:
            self.counters.drop(DropReason.UNKNOWN_DEST, disco=disco, size=len(packet))
            if disco:
                self._send_not_here(connection, dst)
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
            # A packet takes at most one hop: two relays could send it back and forth for ever.
            self.counters.drop(DropReason.UNKNOWN_DEST_ON_FWD, disco=disco, size=len(packet))
            if disco:
                self._send_not_here(connection, dst)
            return
        self.registry.remember_forwarded(src, destination)
        self.enqueue(destination, recv_frame(src, packet), disco=disco)

    def _send_not_here(self, connection: Connection, dst: bytes) -> None:
        # A token bucket: a client that sends to many absent keys does not get a frame for each.
        now = self.clock()
        tokens = connection.not_here_tokens + (now - connection.not_here_at) * NOT_HERE_RATE
        connection.not_here_at = now
        connection.not_here_tokens = min(tokens, float(NOT_HERE_BURST))
        if connection.not_here_tokens >= 1:
            connection.not_here_tokens -= 1
            self.counters.peer_gone_not_here += 1
            self.send_control(connection, pack_peer_gone(NodePublic(dst), PeerGoneReason.NOT_HERE))

    # Mesh

    def _on_watch_conns(self, connection: Connection) -> None:
        if connection.key == self.own_key:
            return  # the relay itself, whose own name is in its mesh list
        self.registry.watchers[connection] = None
        backlog = connection.backlog
        if backlog is not None and backlog.picture_waits:
            # The picture that waits and the changes after it are the answer already.
            self.counters.watch_repeats_ignored += 1
            return
        self._changes(connection, (c.present_frame() for c in self.registry.active.values()))
        if connection.backlog is not None:  # `_changes` ends a watcher that is too slow
            connection.backlog.picture_waits = True

    def add_forwarder(self, key: bytes, forwarder: Forwarder) -> None:
        """Note that another relay has a key."""
        self.forwarders.add(key, forwarder)

    def remove_forwarder(self, key: bytes, forwarder: Forwarder) -> None:
        """Note that another relay no longer has a key."""
        is_local = key in self.registry.active
        # A key that is connected here as well can still be reached.
        if self.forwarders.remove(key, forwarder, is_local=is_local) and not is_local:
            self._send_left_region(key)

    def disconnect_link(self, link: MeshLink) -> None:
        """Mark a mesh link as down; drop and count the packets that wait for it."""
        link.connected = False
        for frame in link.take():
            packet = frame[HEADER.size + 2 * KEY_LEN :]
            disco = looks_like_disco(packet)
            self.counters.drop(DropReason.MESH_LINK_DOWN, disco=disco, size=len(packet))

    def _send_to_watchers(self, frame: bytes) -> None:
        for watcher in list(self.registry.watchers):
            # A watcher that is too slow is ended, which is a change for the other ones.
            if not watcher.has_left:
                self._changes(watcher, (frame,))

    def _changes(self, watcher: Connection, frames: Iterator[bytes] | tuple[bytes, ...]) -> None:
        # Changes always pass through a backlog, which puts many of them into one write.
        if watcher.backlog is None:
            watcher.backlog = Backlog(depth=self._send_queue_depth)
            watcher.backlog.since = self.clock()
        changes = watcher.backlog.changes
        changes.extend(frames)
        # A whole picture may always wait; with more than that the watcher is too slow.
        if len(changes) > MAX_PENDING_CHANGES + len(self.registry.active):
            self.counters.watchers_closed += 1
            detail = "watcher does not keep up"
            watcher.sink.end(EndReason.WATCHER_BEHIND, How.NOW, detail)
        else:
            self.mark_dirty(watcher)

    def _send_left_region(self, source: bytes) -> None:
        frame = pack_peer_gone(NodePublic(source), PeerGoneReason.DISCONNECTED)
        for connection in self.registry.left_region(source):
            backlog = connection.backlog
            # Bounded: a mesh peer may announce any number of departures to a slow client.
            if backlog is not None and len(backlog.control) >= MAX_PENDING_CONTROL:
                self.counters.peer_gone_not_sent += 1
            else:
                self.counters.peer_gone_disconnected += 1
                self.send_control(connection, frame)


def check(router: Router) -> list[str]:
    """Compare counters and tables with the connections; return each difference as a line.

    Unlike Go's `ConsistencyCheck`, several connections with one key are not a difference.
    """
    registry = router.registry
    total = home = not_ideal = shared = left = 0
    for connection in registry.connections():
        total += 1
        home += connection.preferred
        not_ideal += connection.not_ideal
        shared += connection.is_dup
        left += connection.has_left
    active, watchers = registry.active, registry.watchers
    sets = [(key, duplicates.members) for key, duplicates in registry.duplicates.items()]
    wrong = {
        "keys that lead to a connection with another key": sum(
            connection.key != key for key, connection in active.items()
        ),
        "keys with several connections of which none is active": sum(
            active.get(key) not in members for key, members in sets
        ),
        "keys that count as having several connections and do not": sum(
            len(members) < 2 for _, members in sets
        ),
        "watchers that are not registered": sum(
            watcher not in registry.connections_of(watcher.key) for watcher in watchers
        ),
    }
    counts = {
        "connections": (registry.size, total),
        "home connections": (router.counters.home_connections, home),
        "not-ideal connections": (registry.not_ideal, not_ideal),
        "connections that share a key": (sum(len(members) for _, members in sets), shared),
        "registered connections that have left": (0, left),
        "noted pairs": (registry.pairs, sum(map(len, registry.sent_to.values()))),
    }
    return [f"{what}: {number}" for what, number in wrong.items() if number] + [
        f"{what} = {counted} != the connections say {found}"
        for what, (counted, found) in counts.items()
        if counted != found
    ]
