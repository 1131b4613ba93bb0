"""What a relay counts. Plain integers; how they are shown is another floor's business."""

from __future__ import annotations

from enum import Enum
from typing import Final

from pyderp.relay.ending import EndReason
from pyderp.relay.histogram import Histogram

__all__ = ["Counters", "DropReason", "QueueTime"]


class DropReason(Enum):
    """Why a packet was not delivered; the first seven are the labels of Go's metric."""

    UNKNOWN_DEST = "unknown_dest"
    """Nobody here has the key, nor any relay of the mesh."""
    UNKNOWN_DEST_ON_FWD = "unknown_dest_on_fwd"
    """The same, for a packet that another relay forwarded."""
    GONE_DISCONNECTED = "gone_disconnected"
    """The destination's connection ended while the packet waited."""
    QUEUE_HEAD = "queue_head"
    """The oldest packet made room for a newer one."""
    QUEUE_TAIL = "queue_tail"
    """No room could be made for the newest packet."""
    WRITE_ERROR = "write_error"
    """The packet was with the transport when the connection ended; it does not count as sent."""
    DUP_CLIENT = "dup_client"
    """Several connections have the key and none is active; the default policy never gets there."""
    MESH_LINK_FULL = "mesh_link_full"
    """The queue to another relay is full."""
    MESH_LINK_DOWN = "mesh_link_down"
    """The other relay is not connected at the moment."""


KINDS: Final = ("other", "disco")
"""Packet kinds, indexed by whether a packet looks like disco."""


_WRITE_FRAMES: Final = (*range(11), 15, 20, 25, 50, 100)
_MANY: Final = 101
_UPDATE_SIZES: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_UPDATE_LOOPS: Final = (0, 1, 2, 5, 10, 20, 50, 100)


class QueueTime:
    """A moving average of how long packets wait here, in milliseconds; each counts a tenth.

    Nearly all packets leave in the turn of the loop that brought them, and count as zero:
    they are not looked at one by one, but added up when somebody asks.
    """

    __slots__ = ("_average", "_seen")

    def __init__(self) -> None:
        self._average = 0.0
        self._seen = 0

    def waited(self, packets: int, milliseconds: float, sent: int) -> None:
        """Some packets had to wait.

        Args:
            sent: all packets sent so far, these among them.
        """
        self._average = self.average(sent - packets)
        self._seen = sent
        keep = 0.9**packets
        self._average = self._average * keep + milliseconds * (1 - keep)

    def average(self, sent: int) -> float:
        """The average now, after `sent` packets in all."""
        direct, self._seen = max(sent - self._seen, 0), sent
        self._average *= 0.9**direct
        return self._average


class Counters:
    """Counters since start and gauges of now, for one relay. Bytes are packet bytes only."""

    __slots__ = (
        "accepts",
        "bytes_received",
        "bytes_sent",
        "derp_accepts",
        "disco_received",
        "drops",
        "dup_client_conn_total",
        "ends",
        "forwarder_delete_other_value",
        "got_ping",
        "home_connections",
        "home_moves_in",
        "home_moves_out",
        "large_writes",
        "mesh_keys_not_noted",
        "mesh_update_batch_size",
        "mesh_update_loop_count",
        "multiforwarder_created",
        "multiforwarder_deleted",
        "packets_forwarded_in",
        "packets_forwarded_out",
        "packets_received",
        "packets_sent",
        "packets_to_forward",
        "peer_gone_disconnected",
        "peer_gone_not_here",
        "peer_gone_not_sent",
        "queue_time",
        "sent_pong",
        "sources_not_noted",
        "tcp_rtt",
        "unknown_frames",
        "watch_repeats_ignored",
        "watchers_closed",
        "websocket_accepts",
        "write_timeouts",
        "writes",
    )

    def __init__(self) -> None:
        self.accepts = 0
        self.bytes_received = 0
        self.ends = dict.fromkeys(EndReason, 0)
        """Connections that ended, by why."""
        self.bytes_sent = 0
        self.derp_accepts = 0
        self.disco_received = 0
        self.dup_client_conn_total = 0
        self.forwarder_delete_other_value = 0
        self.got_ping = 0
        self.home_connections = 0
        self.home_moves_in = 0
        self.home_moves_out = 0
        self.multiforwarder_created = 0
        self.multiforwarder_deleted = 0
        self.packets_forwarded_in = 0
        self.packets_forwarded_out = 0
        self.packets_received = 0
        self.packets_sent = 0
        self.packets_to_forward = 0
        self.peer_gone_disconnected = 0
        self.peer_gone_not_here = 0
        self.peer_gone_not_sent = 0
        """PeerGone frames not sent, as too many other frames waited for a slow client."""
        self.sent_pong = 0
        self.mesh_keys_not_noted = 0
        """PeerPresent of another relay that had as many keys as it may."""
        self.sources_not_noted = 0
        """Forwarded packets whose new source was not noted, as a bound was reached."""
        self.unknown_frames = 0
        self.watch_repeats_ignored = 0
        """WatchConns of a watcher for which a whole picture waited already."""
        self.watchers_closed = 0
        self.websocket_accepts = 0
        self.write_timeouts = 0
        # Writes by how many frames they had; the last place is for all larger ones.
        self.writes = [0] * (_MANY + 1)
        self.large_writes = 0
        """Frames in writes of more than a hundred."""
        self.mesh_update_batch_size = Histogram(_UPDATE_SIZES)
        self.mesh_update_loop_count = Histogram(_UPDATE_LOOPS)
        self.tcp_rtt: dict[str, int] = {}
        """Samples of the round-trip time by label, as `pyderp.server.conn.rtt` takes them."""
        self.queue_time = QueueTime()
        # (packets, bytes) of each reason and kind; every series is there from the start.
        self.drops = {(reason, kind): [0, 0] for reason in DropReason for kind in KINDS}

    @property
    def protocol_errors(self) -> int:
        """Connections that ended as the client broke a protocol."""
        return self.ends[EndReason.PROTOCOL_ERROR]

    def drop(self, reason: DropReason, *, disco: bool, size: int) -> None:
        """Count a dropped packet of `size` bytes."""
        series = self.drops[reason, KINDS[disco]]
        series[0] += 1
        series[1] += size

    def wrote(self, frames: int) -> None:
        """Count a write of so many frames."""
        if frames < _MANY:
            self.writes[frames] += 1
        else:
            self.writes[_MANY] += 1
            self.large_writes += frames

    @property
    def buffered_write_frames(self) -> Histogram:
        """Frames in each write."""
        histogram = Histogram(_WRITE_FRAMES)
        for frames, times in enumerate(self.writes):
            histogram.add(frames, times)
        histogram.sum += self.large_writes - _MANY * self.writes[_MANY]
        return histogram

    @property
    def average_queue_ms(self) -> float:
        """How long packets waited here, a moving average in milliseconds."""
        return self.queue_time.average(self.packets_sent)

    def dropped(self, reason: DropReason) -> int:
        """Packets dropped for a reason, of both kinds."""
        return sum(self.drops[reason, kind][0] for kind in KINDS)
