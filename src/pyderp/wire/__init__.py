"""Floor 1: bytes ↔ meaning. No sockets, no clock, no randomness of its own."""

from __future__ import annotations

from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.frames import FrameType, PeerGoneReason, PeerPresentFlags
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import (
    Health,
    KeepAlive,
    Message,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    ReceivedPacket,
    Restarting,
    ServerInfo,
    Skipped,
)
from pyderp.wire.metacert import scan_chain_untrusted
from pyderp.wire.upgrade import UpgradeReply, upgrade_request

__all__ = [
    "ClientInfo",
    "ClientSession",
    "ClientState",
    "FrameBuffer",
    "FrameType",
    "Health",
    "KeepAlive",
    "Message",
    "PeerGone",
    "PeerGoneReason",
    "PeerPresent",
    "PeerPresentFlags",
    "Ping",
    "Pong",
    "ReceivedPacket",
    "Restarting",
    "ServerInfo",
    "Skipped",
    "UpgradeReply",
    "scan_chain_untrusted",
    "upgrade_request",
]
