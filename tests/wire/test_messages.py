"""How a client reads each frame; short frames are skipped, extra bytes ignored."""

from __future__ import annotations

import pytest

from pyderp.wire.frames import HEADER, FrameType, PeerPresentFlags
from pyderp.wire.messages import (
    Health,
    Message,
    PeerPresent,
    Ping,
    Pong,
    Skipped,
    has_short_app_name,
    unpack_message_untrusted,
)
from tests import vectors as v

Unpacked = tuple[list[Message], list[int]]


def unpack_all(stream: bytes) -> Unpacked:
    """Read a stream of complete frames, without a buffer."""
    messages: list[Message] = []
    skipped: list[int] = []
    while stream:
        kind, length = HEADER.unpack_from(stream)
        unpacked = unpack_message_untrusted(kind, stream[5 : 5 + length])
        if isinstance(unpacked, Skipped):
            assert unpacked.frame_type == kind
            skipped.append(kind)
        else:
            messages.append(unpacked)
        stream = stream[5 + length :]
    return messages, skipped


@pytest.mark.parametrize(("hex_", "messages", "skipped"), v.SERVER_STREAMS)
def test_frames_are_read_as_by_go(hex_: str, messages: list[Message], skipped: list[int]) -> None:
    assert unpack_all(bytes.fromhex(hex_)) == (messages, skipped)


@pytest.mark.parametrize(
    ("kind", "least", "remark"),
    [
        (FrameType.RECV_PACKET, 32, "short packet from DERP server"),
        (FrameType.KEEP_ALIVE, 0, ""),
        (FrameType.PEER_GONE, 32, "short peerGone frame from DERP server"),
        (FrameType.PEER_PRESENT, 32, "short peerPresent frame from DERP server"),
        (FrameType.PING, 8, "short ping frame"),
        (FrameType.PONG, 8, "short ping frame"),
        (FrameType.HEALTH, 0, ""),
        (FrameType.RESTARTING, 8, "short server restarting frame"),
    ],
)
def test_frames_below_their_minimum_length_are_skipped(kind: int, least: int, remark: str) -> None:
    for size in range(60):
        unpacked = unpack_message_untrusted(kind, bytes(size))
        if size < least:
            assert unpacked == Skipped(kind, remark)
        else:
            assert not isinstance(unpacked, Skipped)


@pytest.mark.parametrize(
    "kind", sorted(set(range(256)) - {0x05, 0x06, 0x08, 0x09, 0x12, 0x13, 0x14, 0x15})
)
def test_frames_of_other_types_are_skipped(kind: int) -> None:
    """Among them frames that only a client sends, and a late ServerKey."""
    assert unpack_message_untrusted(kind, bytes(100)) == Skipped(kind, "unknown frame type")


@pytest.mark.parametrize("size", range(32, 60))
def test_fields_of_peer_present_are_read_only_if_complete(size: int) -> None:
    """Also the app name, here of three bytes."""
    payload = v.K1.raw + bytes.fromhex(v.V4) + b"\x1f\x90" + b"\x08" + b"\x03abc" + bytes(8)
    seen = unpack_message_untrusted(FrameType.PEER_PRESENT, payload[:size])
    with_address = size >= 50
    address = v.EXAMPLE if with_address else None
    flags = 8 if size >= 51 else 0
    assert seen == PeerPresent(
        v.K1,
        address,
        8080 if with_address else None,
        PeerPresentFlags(flags),
        "abc" if size >= 55 else "",
    )


def test_health_that_is_not_utf8_is_decoded_with_replacements() -> None:
    shown = unpack_message_untrusted(FrameType.HEALTH, b"bad \xff link")
    assert shown == Health("bad \N{REPLACEMENT CHARACTER} link")


def test_ping_and_pong_of_the_same_bytes_differ() -> None:
    ping, pong = Ping(bytes(8)), Pong(bytes(8))
    assert [ping, pong] != [pong, ping]


@pytest.mark.parametrize("size", range(32, 60))
def test_an_app_name_is_short_only_if_its_length_arrived_and_the_name_did_not(size: int) -> None:
    payload = bytes(51) + b"\x03abc" + bytes(8)
    assert has_short_app_name(payload[:size]) == (size in (52, 53, 54))
