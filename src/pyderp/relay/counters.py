"""What a relay counts. Plain integers; how they are shown is another floor's business."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Counters", "DropReason"]


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
    """The packet was with the transport when the connection failed."""
    DUP_CLIENT = "dup_client"
    """Several connections have the key and none is active; the default policy never gets there."""
    MESH_LINK_FULL = "mesh_link_full"
    """The queue to another relay is full."""
    MESH_LINK_DOWN = "mesh_link_down"
    """The other relay is not connected at the moment."""


KINDS: Final = ("other", "disco")
"""Packet kinds, indexed by whether a packet looks like disco."""


class Counters:
    """Counters since start and gauges of now, for one relay. Bytes are packet bytes only."""

    __slots__ = (
        "accepts",
        "bytes_received",
        "bytes_sent",
        "disco_received",
        "drops",
        "dup_client_conn_total",
        "forwarder_delete_other_value",
        "got_ping",
        "home_connections",
        "home_moves_in",
        "home_moves_out",
        "multiforwarder_created",
        "multiforwarder_deleted",
        "packets_forwarded_in",
        "packets_forwarded_out",
        "packets_received",
        "packets_sent",
        "peer_gone_disconnected",
        "peer_gone_not_here",
        "protocol_errors",
        "sent_pong",
        "unknown_frames",
        "watchers_closed",
        "websocket_accepts",
        "write_timeouts",
    )

    def __init__(self) -> None:
        self.accepts = 0
        self.bytes_received = 0
        self.bytes_sent = 0
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
        self.peer_gone_disconnected = 0
        self.peer_gone_not_here = 0
        self.protocol_errors = 0
        self.sent_pong = 0
        self.unknown_frames = 0
        self.watchers_closed = 0
        self.websocket_accepts = 0
        self.write_timeouts = 0
        # (packets, bytes) of each reason and kind; every series is there from the start.
        self.drops = {(reason, kind): [0, 0] for reason in DropReason for kind in KINDS}

    def drop(self, reason: DropReason, *, disco: bool, size: int) -> None:
        """Count a dropped packet of `size` bytes."""
        series = self.drops[reason, KINDS[disco]]
        series[0] += 1
        series[1] += size

    def dropped(self, reason: DropReason) -> int:
        """Packets dropped for a reason, of both kinds."""
        return sum(self.drops[reason, kind][0] for kind in KINDS)
