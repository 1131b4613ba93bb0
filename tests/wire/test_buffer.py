"""FrameBuffer: whole frames, however the stream is cut."""

from __future__ import annotations

import pytest

from pyderp.errors import FrameTooLarge
from pyderp.wire.buffer import FrameBuffer

from .chunks import byte_by_byte, chunkings

STREAM = bytes.fromhex(
    "04 00000003 616263"  # a small frame
    "06 00000000"  # an empty one
    "ff 00000001 00"  # an unknown type
)
FRAMES = [(0x04, b"abc"), (0x06, b""), (0xFF, b"\0")]


@pytest.mark.parametrize("chunks", chunkings(STREAM))
def test_any_chunking_gives_the_same_frames(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(limit=3)
    assert [f for chunk in chunks for f in buffer.receive_data(chunk)] == FRAMES
    assert len(buffer) == 0


def test_frame_comes_with_its_last_byte() -> None:
    buffer = FrameBuffer(limit=3)
    held = [(list(buffer.receive_data(chunk)), len(buffer)) for chunk in byte_by_byte(STREAM[:8])]
    assert held == [([], n) for n in range(1, 8)] + [([FRAMES[0]], 0)]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_buffer_may_be_fed_and_reused(
    make: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    mutable = bytearray(STREAM)
    buffer = FrameBuffer(limit=3)
    given = list(buffer.receive_data(make(mutable)))
    mutable[:] = bytes(len(mutable))
    assert given == FRAMES
    assert all(type(payload) is bytes for _, payload in given)


@pytest.mark.parametrize("limit", [0, 1, 1024, 1048576])
def test_limit_is_inclusive(limit: int) -> None:
    payload = b"x" * limit
    assert list(FrameBuffer(limit).receive_data(b"\x05" + limit.to_bytes(4, "big") + payload)) == [
        (5, payload)
    ]


@pytest.mark.parametrize("chunks", chunkings(bytes.fromhex("06 00000000 05 00100001")))
def test_larger_frame_is_refused_by_its_header(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(limit=1048576)
    frames: list[tuple[int, bytes]] = []

    def feed_all() -> None:
        for chunk in chunks:
            frames.extend(buffer.receive_data(chunk))

    with pytest.raises(FrameTooLarge) as caught:
        feed_all()
    assert str(caught.value) == (
        "unexpectedly large frame of 1048577 bytes returned, limit is 1048576"
    )
    assert caught.value.frame_type == 5
    assert frames == [(6, b"")]


def test_limit_may_change_between_two_frames_of_one_chunk() -> None:
    buffer = FrameBuffer(limit=3)
    frames = []
    for frame in buffer.receive_data(STREAM[:8] + b"\x05\x00\x00\x00\x04wxyz"):
        frames.append(frame)
        buffer.limit = 4
    assert frames == [FRAMES[0], (5, b"wxyz")]


def test_frames_taken_before_the_loop_is_left_are_not_given_again() -> None:
    buffer = FrameBuffer(limit=3)
    first = buffer.receive_data(STREAM)
    assert next(first) == FRAMES[0]
    first.close()  # type: ignore[attr-defined]  # a generator
    assert list(buffer.receive_data(b"")) == FRAMES[1:]


def test_missing_is_what_a_header_and_then_its_frame_needs() -> None:
    buffer = FrameBuffer(limit=100)
    seen = []
    for chunk in byte_by_byte(bytes.fromhex("04 00000003 616263 06 00")):
        seen.append(buffer.missing)
        list(buffer.receive_data(chunk))
    assert seen == [5, 4, 3, 2, 1, 3, 2, 1, 5, 4]
    assert buffer.missing == 3
