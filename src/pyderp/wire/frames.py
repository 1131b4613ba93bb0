"""Frames: types, limits and layouts. Each frame is packed and unpacked in one place.

A frame is a header of five bytes, the type (u8) and the payload's length (u32, big-endian), and
the payload. `pack_*` returns whole frames; `unpack_*_untrusted` reads a payload from a peer and
raises only `RemoteProtocolError`.

Constants are the Go names of `tailscale.com/derp` in upper case.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, TypeAlias, cast

from pyderp.errors import (
    BadMagic,
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import KEY_LEN, NONCE_LEN, NodePublic
from pyderp.text import invalid_app_name, is_app_name

__all__ = [
    "FRAME_HEADER_LEN",
    "MAGIC",
    "MAX_CLIENT_FRAME",
    "MAX_INFO_LEN",
    "MAX_PACKET_SIZE",
    "PROTOCOL_VERSION",
    "BytesLike",
    "FrameType",
    "PeerGoneReason",
    "PeerPresentFlags",
    "as_bytes",
    "as_packet",
    "frame_header",
    "looks_like_disco",
    "pack_client_info",
    "pack_close_peer",
    "pack_forward_packet",
    "pack_frame",
    "pack_health",
    "pack_note_preferred",
    "pack_peer_gone",
    "pack_peer_present",
    "pack_ping",
    "pack_pong",
    "pack_received_packet",
    "pack_restarting",
    "pack_send_packet",
    "pack_server_info",
    "pack_server_key",
    "pack_watch_conns",
    "send_packet_head",
]

PROTOCOL_VERSION: Final = 2
MAGIC: Final = "DERP🔑".encode()
"""The first eight bytes of ServerKey."""
FRAME_HEADER_LEN: Final = 5
MAX_PACKET_SIZE: Final = 64 * 1024
"""Bytes of a packet, without key and header."""
MAX_INFO_LEN: Final = 256 * 1024
"""Largest ClientInfo payload that a relay accepts, in bytes."""
MAX_CLIENT_FRAME: Final = 1024 * 1024
"""Largest payload that a client accepts after login, in bytes."""
MAX_SERVER_KEY_FRAME: Final = 1024
"""Largest ServerKey payload that a client accepts, in bytes."""
MIN_CLIENT_INFO: Final = KEY_LEN + NONCE_LEN
SERVER_KEY_LEN: Final = len(MAGIC) + KEY_LEN
PING_LEN: Final = 8
MAX_PING_LEN: Final = 1000
"""Largest Ping payload that a relay accepts; it ignores the bytes after the eighth."""
MIN_PEER_PRESENT_LEN: Final = KEY_LEN + 16 + 2 + 1 + 1
"""PeerPresent payload without AppName, in bytes (`peerPresentBaseLen`)."""
MAX_UNKNOWN_FRAME_LEN: Final = MAX_PACKET_SIZE + KEY_LEN
"""Largest payload of an unknown type that a relay reads, and discards."""

DISCO_MAGIC: Final = "TS💬".encode()
"""The first six bytes of a disco packet (`disco.Magic`)."""
DISCO_MIN_LEN: Final = len(DISCO_MAGIC) + KEY_LEN + NONCE_LEN

HEADER: Final = struct.Struct(">BI")

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""Types of data to send; other objects with a buffer are accepted too."""


class FrameType(IntEnum):
    """First byte of a frame (`derp.FrameType`)."""

    SERVER_KEY = 0x01
    CLIENT_INFO = 0x02
    SERVER_INFO = 0x03
    SEND_PACKET = 0x04
    RECV_PACKET = 0x05
    KEEP_ALIVE = 0x06
    NOTE_PREFERRED = 0x07
    PEER_GONE = 0x08
    PEER_PRESENT = 0x09
    FORWARD_PACKET = 0x0A
    WATCH_CONNS = 0x10
    CLOSE_PEER = 0x11
    PING = 0x12
    PONG = 0x13
    HEALTH = 0x14
    RESTARTING = 0x15


class PeerGoneReason(IntEnum):
    """Why a peer is gone (`derp.PeerGoneReasonType`); other values are passed on as they are."""

    DISCONNECTED = 0x00
    NOT_HERE = 0x01
    MESH_CONN_BROKE = 0xF0
    """Never on the wire: a mesh watcher reports it when it loses its relay."""


class PeerPresentFlags(IntFlag):
    """The kind of a present client (`derp.PeerPresentFlags`); 0: the relay does not say."""

    REGULAR = 0x01
    MESH_PEER = 0x02
    PROBER = 0x04
    NOT_IDEAL = 0x08


def frame_header(kind: int, length: int) -> bytes:
    """Return the header of a frame with a payload of `length` bytes."""
    return HEADER.pack(kind, length)


def pack_frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return HEADER.pack(kind, len(payload)) + payload


def looks_like_disco(packet: bytes | bytearray | memoryview) -> bool:
    """Whether a packet is a path-discovery message (`disco.LooksLikeDiscoWrapper`)."""
    return len(packet) >= DISCO_MIN_LEN and packet[: len(DISCO_MAGIC)] == DISCO_MAGIC


def as_packet(data: object) -> bytes:
    """Return a packet as bytes; of an array of larger items, all their bytes.

    Raises:
        TypeError: not a bytes-like object.
        LocalProtocolError: larger than 64 KiB.
    """
    packet = data if type(data) is bytes else as_bytes(data, "packet")
    if len(packet) > MAX_PACKET_SIZE:
        raise LocalProtocolError(f"packet too big: {len(packet)}, at most {MAX_PACKET_SIZE} bytes")
    return packet


def as_bytes(data: object, name: str) -> bytes:
    """Return all bytes of a bytes-like object; of an array of larger items, all their bytes.

    Args:
        name: what the object is, for the error.

    Raises:
        TypeError: not a bytes-like object.
    """
    # bytes(data) would also accept numbers and lists.
    try:
        view = memoryview(cast("bytes", data))
    except TypeError:
        raise TypeError(f"a {name} is bytes, not {type(data).__name__}") from None
    return view.tobytes()


# Login


def pack_server_key(server: NodePublic) -> bytes:
    """01 ServerKey: magic 8 ‖ server key 32."""
    return pack_frame(FrameType.SERVER_KEY, MAGIC + server.raw)


def pack_client_info(client: NodePublic, sealed: bytes) -> bytes:
    """02 ClientInfo: client key 32 ‖ nonce 24 ‖ box(JSON)."""
    return pack_frame(FrameType.CLIENT_INFO, client.raw + sealed)


def pack_server_info(sealed: bytes) -> bytes:
    """03 ServerInfo: nonce 24 ‖ box(JSON)."""
    return pack_frame(FrameType.SERVER_INFO, sealed)


def unpack_server_key_untrusted(kind: int, payload: bytes) -> NodePublic:
    """Read the relay's key from ServerKey; bytes after the fortieth are ignored, as by Go.

    Raises:
        UnexpectedFrame: another type.
        BadMagic: not a greeting of DERP.
        RemoteProtocolError: too short, or the zero key.
    """
    if kind != FrameType.SERVER_KEY:
        raise UnexpectedFrame("invalid server greeting", frame_type=kind)
    if len(payload) < SERVER_KEY_LEN:
        raise RemoteProtocolError("invalid server greeting", frame_type=kind)
    if not payload.startswith(MAGIC):
        raise BadMagic("invalid server greeting", frame_type=kind)
    key = NodePublic(payload[len(MAGIC) : SERVER_KEY_LEN])
    if key.is_zero():
        raise RemoteProtocolError("invalid server greeting: zero key", frame_type=kind)
    return key


# Packets


def send_packet_head(dst: NodePublic, size: int) -> bytes:
    """Return header and destination of a SendPacket frame for a packet of `size` bytes."""
    return HEADER.pack(FrameType.SEND_PACKET, KEY_LEN + size) + dst.raw


def pack_send_packet(dst: NodePublic, packet: BytesLike) -> bytes:
    """04 SendPacket: destination 32 ‖ packet.

    Raises:
        as `as_packet`.
    """
    packet = as_packet(packet)
    return send_packet_head(dst, len(packet)) + packet


def pack_received_packet(src: NodePublic, packet: BytesLike) -> bytes:
    """05 RecvPacket: source 32 ‖ packet.

    Raises:
        as `as_packet`.
    """
    return pack_frame(FrameType.RECV_PACKET, src.raw + as_packet(packet))


def pack_forward_packet(src: NodePublic, dst: NodePublic, packet: BytesLike) -> bytes:
    """0a ForwardPacket: source 32 ‖ destination 32 ‖ packet; between relays of a mesh.

    Raises:
        as `as_packet`.
    """
    return pack_frame(FrameType.FORWARD_PACKET, src.raw + dst.raw + as_packet(packet))


# Client to server


def pack_note_preferred(preferred: bool) -> bytes:
    """07 NotePreferred: one byte, whether this relay is the client's home."""
    return pack_frame(FrameType.NOTE_PREFERRED, b"\x01" if preferred else b"\x00")


def pack_watch_conns() -> bytes:
    """10 WatchConns: no payload; needs the mesh key."""
    return pack_frame(FrameType.WATCH_CONNS)


def pack_close_peer(target: NodePublic) -> bytes:
    """11 ClosePeer: target 32; needs the mesh key."""
    return pack_frame(FrameType.CLOSE_PEER, target.raw)


def _eight(data: object) -> bytes:
    eight = as_bytes(data, "ping")
    if len(eight) != PING_LEN:
        raise LocalProtocolError(f"a ping carries {PING_LEN} bytes, got {len(eight)}")
    return eight


def pack_ping(data: BytesLike) -> bytes:
    """12 Ping: eight opaque bytes.

    Raises:
        TypeError: not a bytes-like object.
        LocalProtocolError: not eight bytes.
    """
    return pack_frame(FrameType.PING, _eight(data))


def pack_pong(data: BytesLike) -> bytes:
    """13 Pong: the eight bytes of the ping.

    Raises:
        as `pack_ping`.
    """
    return pack_frame(FrameType.PONG, _eight(data))


# Server to client

KEEP_ALIVE_FRAME: Final = pack_frame(FrameType.KEEP_ALIVE)


def pack_peer_gone(peer: NodePublic, reason: int) -> bytes:
    """08 PeerGone: peer 32 ‖ reason 1."""
    return pack_frame(FrameType.PEER_GONE, peer.raw + bytes((reason,)))


def pack_peer_present(
    peer: NodePublic, ip16: bytes, port: int, flags: int, app_name: str = ""
) -> bytes:
    """09 PeerPresent: peer 32 ‖ address 16 ‖ port 2 ‖ flags 1 ‖ length 1 ‖ AppName.

    Args:
        ip16: the IPv6 form, `::ffff:a.b.c.d` for IPv4; 16 zero bytes when unknown.
        app_name: the name of the client's program; empty: none, its length is then 0.

    Raises:
        LocalProtocolError: the name is not allowed (`pyderp.text.is_app_name`).
    """
    if not is_app_name(app_name):
        raise LocalProtocolError(invalid_app_name(app_name))
    name = app_name.encode("ascii")
    tail = port.to_bytes(2, "big") + bytes((flags, len(name)))
    return pack_frame(FrameType.PEER_PRESENT, peer.raw + ip16 + tail + name)


def pack_health(problem: str) -> bytes:
    """14 Health: UTF-8 text; empty: the problem is over."""
    return pack_frame(FrameType.HEALTH, problem.encode())


def pack_restarting(reconnect_in: float, try_for: float) -> bytes:
    """15 Restarting: two u32 in milliseconds.

    Args:
        reconnect_in: seconds to wait before reconnecting.
        try_for: seconds to keep trying before it counts as a failure.
    """
    body = struct.pack(">II", round(reconnect_in * 1000), round(try_for * 1000))
    return pack_frame(FrameType.RESTARTING, body)


_WRONG_SIZE: Final = {
    FrameType.NOTE_PREFERRED: (1, "frameNotePreferred wrong size"),
    FrameType.WATCH_CONNS: (0, "handleFrameWatchConns wrong size"),
    FrameType.CLOSE_PEER: (KEY_LEN, "handleFrameClosePeer wrong size"),
}


def check_client_frame_untrusted(kind: int, length: int) -> None:
    """Check the header of a frame from a logged-in client, before its payload arrives.

    Frames of unknown types are allowed, up to `MAX_UNKNOWN_FRAME_LEN`.

    Raises:
        RemoteProtocolError: the length is not allowed for this type.
    """
    if kind == FrameType.SEND_PACKET:
        _check_packet_frame(kind, length, KEY_LEN, "short send packet frame")
    elif kind == FrameType.FORWARD_PACKET:
        _check_packet_frame(kind, length, 2 * KEY_LEN, "short forward packet frame")
    elif kind == FrameType.PING:
        if length < PING_LEN:
            raise RemoteProtocolError(f"short ping: {length}", frame_type=kind)
        if length > MAX_PING_LEN:
            raise RemoteProtocolError(f"ping body too large: {length}", frame_type=kind)
    elif kind in _WRONG_SIZE:
        want, text = _WRONG_SIZE[FrameType(kind)]
        if length != want:
            raise RemoteProtocolError(f"{text}: {length}, want {want}", frame_type=kind)
    elif length > MAX_UNKNOWN_FRAME_LEN:
        # Without this a client could keep its connection busy with 4 GiB that mean nothing.
        raise FrameTooLarge(f"unknown frame type {kind} too large: {length} bytes", frame_type=kind)


def _check_packet_frame(kind: int, length: int, keys: int, short: str) -> None:
    if length < keys:
        raise RemoteProtocolError(short, frame_type=kind)
    if length - keys > MAX_PACKET_SIZE:
        raise FrameTooLarge(
            f"data packet longer ({length - keys}) than max of {MAX_PACKET_SIZE}", frame_type=kind
        )
