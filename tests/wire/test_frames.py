"""Frames: constants, layouts and lengths, each against bytes from Go."""

from __future__ import annotations

import array
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pyderp.errors import (
    BadMagic,
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import NodePublic
from pyderp.wire import frames
from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.frames import FrameType
from tests import vectors as v

from .chunks import chunkings

HELLO = "68656c6c6f"
EIGHT = bytes(range(1, 9))

# (the frame that is packed, hex)
PACKED = [
    (frames.pack_server_key(v.SERVER.public), v.SERVER_KEY_FRAME.hex()),
    (frames.pack_client_info(v.K1, b"sealed"), f"02 00000026 {v.K1_HEX} 7365616c6564"),
    (frames.pack_server_info(b"sealed"), "03 00000006 7365616c6564"),
    (frames.pack_send_packet(v.K1, b"hello"), f"04 00000025 {v.K1_HEX} {HELLO}"),
    (frames.pack_send_packet(v.K1, b""), f"04 00000020 {v.K1_HEX}"),
    (frames.pack_received_packet(v.K1, b"hello"), f"05 00000025 {v.K1_HEX} {HELLO}"),
    (frames.KEEP_ALIVE_FRAME, "06 00000000"),
    (frames.pack_note_preferred(True), "07 00000001 01"),
    (frames.pack_note_preferred(False), "07 00000001 00"),
    (frames.pack_peer_gone(v.K1, 1), f"08 00000021 {v.K1_HEX} 01"),
    (
        frames.pack_peer_present(v.K1, bytes.fromhex(v.V4), 8080, 5),
        f"09 00000034 {v.K1_HEX} {v.V4} 1f90 05 00",
    ),
    (
        frames.pack_peer_present(v.K1, bytes.fromhex(v.V4), 8080, 1, "app one"),
        f"09 0000003b {v.K1_HEX} {v.V4} 1f90 01 07 617070206f6e65",
    ),
    (
        frames.pack_forward_packet(v.K1, v.K2, b"hello"),
        f"0a 00000045 {v.K1_HEX} {v.K2_HEX} {HELLO}",
    ),
    (frames.pack_watch_conns(), "10 00000000"),
    (frames.pack_close_peer(v.K1), f"11 00000020 {v.K1_HEX}"),
    (frames.pack_ping(EIGHT), "12 00000008 0102030405060708"),
    (frames.pack_pong(EIGHT), "13 00000008 0102030405060708"),
    (frames.pack_health("BAD"), "14 00000003 424144"),
    (frames.pack_health("é"), "14 00000002 c3a9"),
    (frames.pack_health(""), "14 00000000"),
    (frames.pack_restarting(0.001, 0.002), "15 00000008 00000001 00000002"),
    (frames.pack_restarting(30, 10), "15 00000008 00007530 00002710"),
]


@pytest.mark.parametrize(("frame", "hex_"), PACKED)
def test_frames_are_those_of_go(frame: bytes, hex_: str) -> None:
    assert frame.hex(" ") == bytes.fromhex(hex_).hex(" ")


@pytest.mark.parametrize(("frame", "_"), PACKED)
def test_packed_frames_are_read_back_however_they_are_cut(frame: bytes, _: str) -> None:
    for chunks in chunkings(frame + b"\x06"):  # and a beginning of the next
        buffer = FrameBuffer(limit=100)
        got = [f for chunk in chunks for f in buffer.receive_data(chunk)]
        assert got == [(frame[0], frame[5:])]
        assert len(buffer) == 1


def test_every_frame_type_is_packed_above() -> None:
    assert {frame[0] for frame, _ in PACKED} == set(FrameType)


def test_frame_types_are_those_of_go() -> None:
    numbers = [*range(0x01, 0x0B), *range(0x10, 0x16)]
    assert [int(t) for t in FrameType] == numbers


def test_limits_are_those_of_go() -> None:
    assert frames.MAGIC.hex() == "44455250f09f9491"
    assert frames.PROTOCOL_VERSION == 2
    assert frames.FRAME_HEADER_LEN == 5
    assert frames.MAX_PACKET_SIZE == 65536
    assert frames.MAX_INFO_LEN == 262144
    assert frames.MAX_CLIENT_FRAME == 1048576
    assert frames.MAX_SERVER_KEY_FRAME == 1024
    assert frames.MIN_CLIENT_INFO == 56
    assert frames.SERVER_KEY_LEN == 40
    assert frames.MIN_PEER_PRESENT_LEN == 52
    assert frames.MAX_UNKNOWN_FRAME_LEN == 65568
    assert [int(r) for r in frames.PeerGoneReason] == [0x00, 0x01, 0xF0]
    assert [int(f) for f in frames.PeerPresentFlags] == [0x01, 0x02, 0x04, 0x08]


@pytest.mark.parametrize("name", ["x" * 33, "é", "a\n", "\x7f"])
def test_an_invalid_app_name_is_not_packed(name: str) -> None:
    with pytest.raises(LocalProtocolError, match="invalid AppName"):
        frames.pack_peer_present(v.K1, bytes(16), 1, 1, name)


@pytest.mark.parametrize(
    ("length", "hex_"), [(0, "02 00000000"), (1024, "02 00000400"), (0xFFFFFFFF, "02 ffffffff")]
)
def test_a_header_is_a_type_byte_and_four_bytes_of_length(length: int, hex_: str) -> None:
    header = frames.frame_header(FrameType.CLIENT_INFO, length)
    assert header == bytes.fromhex(hex_)
    assert frames.HEADER.unpack(header) == (2, length)


def test_packets_of_64_kib_are_packed_and_larger_ones_refused() -> None:
    full = b"x" * 65536
    sent = frames.pack_send_packet(v.K1, full)
    assert len(sent) == 65573
    assert sent[:5].hex() == "0400010020"
    assert len(frames.pack_received_packet(v.K1, full)) == 65573
    assert len(frames.pack_forward_packet(v.K1, v.K2, full)) == 65605
    too_big = full + b"x"
    with pytest.raises(LocalProtocolError, match="packet too big: 65537, at most 65536"):
        frames.pack_send_packet(v.K1, too_big)
    with pytest.raises(LocalProtocolError, match="packet too big: 65537, at most 65536"):
        frames.pack_received_packet(v.K1, too_big)
    with pytest.raises(LocalProtocolError, match="packet too big: 65537, at most 65536"):
        frames.pack_forward_packet(v.K1, v.K2, too_big)


NUMBERS = array.array("I", [1, 2])
"""Two items, eight bytes."""


PACKERS: list[Callable[[Any], bytes]] = [
    frames.as_packet,
    partial(frames.pack_send_packet, v.K1),
    partial(frames.pack_received_packet, v.K1),
    partial(frames.pack_forward_packet, v.K1, v.K2),
]


class Own(bytes):
    """Bytes whose `len` is wrong."""

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "data",
    [
        NUMBERS.tobytes(),
        bytearray(NUMBERS),
        memoryview(NUMBERS),
        memoryview(NUMBERS.tobytes() * 2)[:8],
        memoryview(bytes(b for b in NUMBERS.tobytes() for _ in "ab"))[::2],
        NUMBERS,
        Own(NUMBERS),
    ],
)
def test_all_bytes_of_any_bytes_like_object_are_packed(data: Any) -> None:
    """The header counts bytes, not items."""
    plain = NUMBERS.tobytes()
    assert type(frames.as_packet(data)) is bytes
    assert frames.as_packet(data) == plain
    for pack in (*PACKERS, frames.pack_ping, frames.pack_pong):
        assert pack(data) == pack(plain)


def test_bytes_are_not_copied() -> None:
    data = b"x" * 100
    assert frames.as_packet(data) is data


def test_the_limit_of_a_packet_is_in_bytes() -> None:
    with pytest.raises(LocalProtocolError, match="packet too big: 65540, at most 65536"):
        frames.as_packet(memoryview(array.array("I", bytes(65540))))


@pytest.mark.parametrize("data", ["text", "eight ch", [1, 2], (1,), 8, None, v.K1])
def test_other_types_than_bytes_are_refused(data: Any) -> None:
    name = type(data).__name__
    for pack in PACKERS:
        with pytest.raises(TypeError, match=f"^a packet is bytes, not {name}$"):
            pack(data)
    for pack in (frames.pack_ping, frames.pack_pong):
        with pytest.raises(TypeError, match=f"^a ping is bytes, not {name}$"):
            pack(data)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_pings_carry_eight_bytes(size: int) -> None:
    for pack in (frames.pack_ping, frames.pack_pong):
        with pytest.raises(LocalProtocolError, match=f"a ping carries 8 bytes, got {size}"):
            pack(bytes(size))


# Disco: path discovery, seen from outside

DISCO = bytes.fromhex("5453f09f92ac")


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    ("packet", "disco"),
    [
        (DISCO + bytes(56), True),
        (DISCO + bytes(1000), True),
        (DISCO + bytes(55), False),  # 61 bytes: no room for key and nonce
        (DISCO, False),
        (b"", False),
        (b"TS" + bytes(60), False),
        (DISCO[:5] + b"\xad" + bytes(56), False),
    ],
)
def test_disco_is_recognised_by_magic_and_length(
    make: type[bytes] | type[bytearray] | type[memoryview], packet: bytes, disco: bool
) -> None:
    assert frames.looks_like_disco(make(packet)) is disco


# The greeting

KEY = v.SERVER.public.raw


@pytest.mark.parametrize("spare", [b"", b"\xff", bytes(984)])
def test_server_key_may_be_longer(spare: bytes) -> None:
    payload = frames.MAGIC + KEY + spare
    assert frames.unpack_server_key_untrusted(1, payload) == v.SERVER.public


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        (2, frames.MAGIC + KEY, UnexpectedFrame),
        (0, frames.MAGIC + KEY, UnexpectedFrame),
        (1, b"", RemoteProtocolError),
        (1, frames.MAGIC + KEY[:31], RemoteProtocolError),
        (1, frames.MAGIC[:7] + b"\x92" + KEY, BadMagic),
        (1, bytes(8) + KEY, BadMagic),
        (1, frames.MAGIC + bytes(32), RemoteProtocolError),  # Go's client would crash
    ],
)
def test_an_invalid_server_key_frame_is_refused(
    kind: int, payload: bytes, error: type[RemoteProtocolError]
) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^invalid server greeting") as caught:
        frames.unpack_server_key_untrusted(kind, payload)
    assert type(caught.value) is error
    assert caught.value.frame_type == kind


def test_the_zero_key_is_named_in_the_error() -> None:
    with pytest.raises(RemoteProtocolError, match="zero key"):
        frames.unpack_server_key_untrusted(1, frames.MAGIC + bytes(32))


# Lengths of frames that a server accepts from a logged-in client


def is_legal(kind: int, length: int) -> bool:
    try:
        frames.check_client_frame_untrusted(kind, length)
    except RemoteProtocolError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (0x04, 32),
        (0x04, 32 + 65536),
        (0x0A, 64),
        (0x0A, 64 + 65536),
        (0x07, 1),
        (0x10, 0),
        (0x11, 32),
        (0x12, 8),
        (0x12, 1000),
        # types that a server does not know, or no longer expects
        *[(kind, n) for kind in (0, 1, 2, 3, 5, 6, 8, 9, 0x13, 0xFF) for n in (0, 65568)],
    ],
)
def test_legal_lengths_are_accepted(kind: int, length: int) -> None:
    assert is_legal(kind, length)


@pytest.mark.parametrize(
    ("kind", "length", "error"),
    [
        (0x04, 0, "short send packet frame"),
        (0x04, 31, "short send packet frame"),
        (0x04, 65569, "data packet longer (65537) than max of 65536"),
        (0x04, 0xFFFFFFFF, "data packet longer (4294967263) than max of 65536"),
        (0x0A, 63, "short forward packet frame"),
        (0x0A, 65601, "data packet longer (65537) than max of 65536"),
        (0x07, 0, "frameNotePreferred wrong size: 0, want 1"),
        (0x07, 2, "frameNotePreferred wrong size: 2, want 1"),
        (0x10, 1, "handleFrameWatchConns wrong size: 1, want 0"),
        (0x11, 31, "handleFrameClosePeer wrong size: 31, want 32"),
        (0x11, 33, "handleFrameClosePeer wrong size: 33, want 32"),
        (0x12, 0, "short ping: 0"),
        (0x12, 7, "short ping: 7"),
        (0x12, 1001, "ping body too large: 1001"),
    ],
)
def test_other_lengths_are_refused(kind: int, length: int, error: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        frames.check_client_frame_untrusted(kind, length)
    assert str(caught.value) == error
    assert caught.value.frame_type == kind
    assert isinstance(caught.value, FrameTooLarge) == ("longer" in error)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 6, 8, 9, 0x13, 0x16, 0xFF])
@pytest.mark.parametrize("length", [65569, 0xFFFFFFFF])
def test_unknown_frames_larger_than_a_packet_frame_are_refused(kind: int, length: int) -> None:
    with pytest.raises(FrameTooLarge) as caught:
        frames.check_client_frame_untrusted(kind, length)
    assert str(caught.value) == f"unknown frame type {kind} too large: {length} bytes"
    assert caught.value.frame_type == kind


def test_a_packed_server_key_is_read_back() -> None:
    frame = frames.pack_server_key(NodePublic(b"\xff" * 32))
    assert frames.unpack_server_key_untrusted(frame[0], frame[5:]).raw == b"\xff" * 32
