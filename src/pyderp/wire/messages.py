"""The messages of a relay to a client after login: a class for each frame, and how it is read.

`unpack_message_untrusted` does as Go's client does: it skips frames that are too short and unknown
types, with a remark, and ignores surplus bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from pyderp.addresses import unmapped
from pyderp.errors import Restarting
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.text import is_app_name
from pyderp.wire.frames import MIN_PEER_PRESENT_LEN, PING_LEN, FrameType, PeerPresentFlags

__all__ = [
    "Health",
    "KeepAlive",
    "Message",
    "PeerGone",
    "PeerPresent",
    "Ping",
    "Pong",
    "ReceivedPacket",
    "Restarting",
    "ServerInfo",
    "Skipped",
]


@dataclass(slots=True)
class ReceivedPacket:
    """A packet for this client. Only the relay vouches for its source: see `docs/security.md`."""

    source: NodePublic
    data: bytes


@dataclass(slots=True)
class PeerGone:
    """A peer that wrote to this client left (reason 0), or a destination is not here (1)."""

    peer: NodePublic
    reason: int


@dataclass(slots=True)
class PeerPresent:
    """A connection on the relay, reported to mesh watchers.

    `address` and `port` are `None` when the relay does not say; IPv4 is un-mapped.
    """

    peer: NodePublic
    address: IPv4Address | IPv6Address | None
    port: int | None
    flags: PeerPresentFlags
    app_name: str = ""
    """The name of the client's program, as the client said; empty: none, or the relay does not
    pass it on."""


@dataclass(slots=True)
class ServerInfo:
    """The relay's answer to a login. Rates in bytes a second and bytes; 0: no limit."""

    version: int = 0
    token_bucket_bytes_per_second: int = 0
    token_bucket_bytes_burst: int = 0


@dataclass(slots=True)
class Ping:
    """The relay asks for a Pong with the same eight bytes."""

    data: bytes


@dataclass(slots=True)
class Pong:
    """The answer to a ping of this client: the same eight bytes."""

    data: bytes


@dataclass(slots=True)
class KeepAlive:
    """The relay is alive and has nothing else to send."""


@dataclass(slots=True)
class Health:
    """A problem that the relay sees with this connection; empty: it is over."""

    problem: str


@dataclass(slots=True)
class Skipped:
    """A frame, or the end of one, that the client ignores without an error; for a log line."""

    frame_type: int
    remark: str


Message: TypeAlias = (
    ReceivedPacket
    | PeerGone
    | PeerPresent
    | ServerInfo
    | Ping
    | Pong
    | KeepAlive
    | Health
    | Restarting
)

_ADDRESS_END: Final = KEY_LEN + 16 + 2


def unpack_message_untrusted(kind: int, payload: bytes) -> Message | Skipped:
    """Read a frame from a relay other than ServerInfo, which needs keys.

    Returns:
        the message, or `Skipped` for a frame that a client ignores.
    """
    known = _READERS.get(kind)
    if known is None:
        return Skipped(kind, "unknown frame type")
    least, too_short, read = known
    if len(payload) < least:
        return Skipped(kind, too_short)
    return read(payload)


def _received_packet(payload: bytes) -> ReceivedPacket:
    return ReceivedPacket(NodePublic(payload[:KEY_LEN]), payload[KEY_LEN:])


def _peer_gone(payload: bytes) -> PeerGone:
    reason = payload[KEY_LEN] if len(payload) > KEY_LEN else 0
    return PeerGone(NodePublic(payload[:KEY_LEN]), reason)


def _peer_present(payload: bytes) -> PeerPresent:
    # Four groups of 32, 18, 1 and 1 + n bytes; older relays leave out the last ones.
    peer = NodePublic(payload[:KEY_LEN])
    if len(payload) < _ADDRESS_END:
        return PeerPresent(peer, None, None, PeerPresentFlags(0))
    ip6 = IPv6Address(payload[KEY_LEN : KEY_LEN + 16])
    port = int.from_bytes(payload[KEY_LEN + 16 : _ADDRESS_END], "big")
    flags = payload[_ADDRESS_END] if len(payload) > _ADDRESS_END else 0
    if len(payload) < MIN_PEER_PRESENT_LEN or has_short_app_name(payload):
        return PeerPresent(peer, unmapped(ip6), port, PeerPresentFlags(flags))
    end = MIN_PEER_PRESENT_LEN + payload[MIN_PEER_PRESENT_LEN - 1]
    # Latin-1 decodes any bytes; `is_app_name` then refuses what is not ASCII.
    name = payload[MIN_PEER_PRESENT_LEN:end].decode("latin-1")
    name = name if is_app_name(name) else ""
    return PeerPresent(peer, unmapped(ip6), port, PeerPresentFlags(flags), name)


def has_short_app_name(payload: bytes) -> bool:
    """Whether a PeerPresent is too short for its AppName, which is then ignored."""
    if len(payload) < MIN_PEER_PRESENT_LEN:
        return False
    return len(payload) - MIN_PEER_PRESENT_LEN < payload[MIN_PEER_PRESENT_LEN - 1]


def _restarting(payload: bytes) -> Restarting:
    reconnect_ms, try_ms = struct.unpack_from(">II", payload)
    return Restarting(reconnect_ms / 1000, try_ms / 1000)


_READERS: Final[Mapping[int, tuple[int, str, Callable[[bytes], Message]]]] = {
    FrameType.RECV_PACKET: (KEY_LEN, "short packet from DERP server", _received_packet),
    FrameType.KEEP_ALIVE: (0, "", lambda _: KeepAlive()),
    FrameType.PEER_GONE: (KEY_LEN, "short peerGone frame from DERP server", _peer_gone),
    FrameType.PEER_PRESENT: (KEY_LEN, "short peerPresent frame from DERP server", _peer_present),
    FrameType.PING: (PING_LEN, "short ping frame", lambda p: Ping(p[:PING_LEN])),
    FrameType.PONG: (PING_LEN, "short ping frame", lambda p: Pong(p[:PING_LEN])),
    FrameType.HEALTH: (0, "", lambda p: Health(p.decode("utf-8", "replace"))),
    FrameType.RESTARTING: (8, "short server restarting frame", _restarting),
}
"""Frame type → shortest payload in bytes, the remark if it is shorter, the reader."""
