"""A relay's counters: plain integers, which `server/site` shows as metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pyderp.relay.connection import EndReason

__all__ = ["Counters", "DropReason", "Histogram", "QueueTime"]


class DropReason(Enum):
    """Why a packet was not delivered; the first seven are the labels of Go's metric."""

    UNKNOWN_DEST = "unknown_dest"
    """Neither a client of this relay nor another relay of the mesh has the key."""
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
    """Several connections have the key and none is active: not with this relay's policy."""
    MESH_LINK_FULL = "mesh_link_full"
    """The queue to another relay is full."""
    MESH_LINK_DOWN = "mesh_link_down"
    """The other relay is not connected at the moment."""
    WRITE_TIMEOUT = "write_timeout"
    """It waited, or was with the transport, when the relay closed a client that read nothing."""


KINDS: Final = ("other", "disco")
"""Labels of packet kinds, indexed by `looks_like_disco`."""


_WRITE_FRAMES: Final = (*range(11), 15, 20, 25, 50, 100)
_MANY: Final = 101
_UPDATE_SIZES: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_UPDATE_LOOPS: Final = (0, 1, 2, 5, 10, 20, 50, 100)


class QueueTime:
    """A moving average of the time packets wait here, in milliseconds; each weighs a tenth.

    Nearly all packets leave in the turn of the loop that brought them and count as 0 ms. They
    cost nothing on the packet path: they are added up when the average is read.
    """

    __slots__ = ("_average", "_seen")

    def __init__(self) -> None:
        self._average = 0.0
        self._seen = 0

    def waited(self, packets: int, milliseconds: float, sent: int) -> None:
        """Add packets that waited.

        Args:
            sent: all packets sent so far, including these.
        """
        self._average = self.average(sent - packets)
        self._seen = sent
        keep = 0.9**packets
        self._average = self._average * keep + milliseconds * (1 - keep)

    def average(self, sent: int) -> float:
        """Return the average after `sent` packets in all."""
        direct, self._seen = max(sent - self._seen, 0), sent
        self._average *= 0.9**direct
        return self._average


@dataclass(slots=True, eq=False)
class Counters:
    """One relay's counters since its start, and gauges. Bytes are those of packets alone."""

    accepts: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    derp_accepts: int = 0
    disco_received: int = 0
    dup_client_conn_total: int = 0
    forwarder_delete_other_value: int = 0
    got_ping: int = 0
    home_connections: int = 0
    home_moves_in: int = 0
    home_moves_out: int = 0
    large_writes: int = 0
    """Frames in writes that had more than 100 of them."""
    mesh_keys_not_noted: int = 0
    """PeerPresent frames ignored because the other relay had reached its bound of keys."""
    multiforwarder_created: int = 0
    multiforwarder_deleted: int = 0
    packets_forwarded_in: int = 0
    packets_forwarded_out: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    packets_to_forward: int = 0
    peer_gone_disconnected: int = 0
    peer_gone_not_here: int = 0
    peer_gone_not_sent: int = 0
    """PeerGone frames not sent because too many frames waited for a slow client."""
    sent_pong: int = 0
    sources_not_noted: int = 0
    """Forwarded packets whose new source was not noted because a bound was reached."""
    unknown_frames: int = 0
    watch_repeats_ignored: int = 0
    """WatchConns frames ignored because the watcher still had a whole picture to read."""
    watchers_closed: int = 0
    websocket_accepts: int = 0
    write_timeouts: int = 0
    ends: dict[EndReason, int] = field(default_factory=lambda: dict.fromkeys(EndReason, 0))
    """Connections that ended, by reason."""
    writes: list[int] = field(default_factory=lambda: [0] * (_MANY + 1))
    """Number of writes by frames in them; the last item counts all larger writes."""
    mesh_update_batch_size: Histogram = field(default_factory=lambda: Histogram(_UPDATE_SIZES))
    mesh_update_loop_count: Histogram = field(default_factory=lambda: Histogram(_UPDATE_LOOPS))
    tcp_rtt: dict[str, int] = field(default_factory=dict)
    """Samples of the round-trip time by label, as `pyderp.server.conn.watch` takes them."""
    queue_time: QueueTime = field(default_factory=QueueTime)
    drops: dict[tuple[DropReason, str], list[int]] = field(
        default_factory=lambda: {(reason, kind): [0, 0] for reason in DropReason for kind in KINDS}
    )
    """Packets and bytes by reason and kind; every series exists from the start."""

    @property
    def protocol_errors(self) -> int:
        """Connections that ended because the client broke a protocol."""
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
        """The moving average of the time that packets waited here, in milliseconds."""
        return self.queue_time.average(self.packets_sent)

    def dropped(self, reason: DropReason) -> int:
        """Return the packets dropped for a reason, of both kinds."""
        return sum(self.drops[reason, kind][0] for kind in KINDS)


class Histogram:
    """Numbers counted in buckets, as Prometheus has them.

    Args:
        bounds: upper bounds, ascending, each within its bucket. One more bucket is for larger
            numbers.

    Attributes:
        counts: one for each bucket, not cumulative.
        sum: of all observed numbers.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0

    def observe(self, number: int) -> None:
        """Count one number."""
        self.add(number, 1)

    def add(self, number: int, times: int) -> None:
        """Count a number several times."""
        self.counts[bisect_left(self.bounds, number)] += times
        self.sum += number * times

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Return each bound as text, `+Inf` last, and how many numbers are at most that."""
        total = 0
        pairs = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs
