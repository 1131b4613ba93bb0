"""The walk over frames, compared with a slow version in Python."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("pyderp_fast")

import pyderp_fast
from hypothesis import given
from hypothesis import strategies as st

SOURCE = b"s" * 32
MAX_PACKET = 64 * 1024
MAGIC = "TS💬".encode()

Walked = tuple[int, list[tuple[bytes, bytes, int]], int, int, int]


def slow_walk(data: bytearray, pos: int, end: int, key: bytes) -> Walked:
    """Do the same as `walk`, frame by frame."""
    runs: list[tuple[bytes, bytes, int]] = []
    packets = size = disco = 0
    while end - pos >= 37:
        kind, length = struct.unpack_from(">BI", data, pos)
        stop = pos + 5 + length
        if kind != 4 or not 32 <= length <= 32 + MAX_PACKET or stop > end:
            break
        destination, packet = bytes(data[pos + 5 : pos + 37]), bytes(data[pos + 37 : stop])
        frame = struct.pack(">BI", 5, length) + key + packet
        data[pos:stop] = frame
        if runs and runs[-1][0] == destination:
            runs[-1] = (destination, runs[-1][1] + frame, runs[-1][2] + 1)
        else:
            runs.append((destination, frame, 1))
        packets += 1
        size += len(packet)
        disco += packet.startswith(MAGIC) and len(packet) >= 62
        pos = stop
    return pos, runs, packets, size, disco


def frame(kind: int, length: int, destination: int, packet: bytes) -> bytes:
    return struct.pack(">BI", kind, length) + bytes([destination]) * 32 + packet


packets = st.one_of(
    st.binary(max_size=100),
    st.binary(min_size=50, max_size=60).map(lambda rest: MAGIC + rest),
    st.sampled_from([bytes(MAX_PACKET), bytes(MAX_PACKET + 1)]),
)
good = st.builds(
    lambda destination, packet: frame(4, 32 + len(packet), destination, packet),
    st.integers(0, 2),
    packets,
)
odd = st.one_of(
    st.builds(frame, st.integers(0, 20), st.integers(0, 200), st.integers(0, 2), packets),
    st.builds(frame, st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 2), packets),
    st.binary(max_size=50),
)
streams = st.lists(st.one_of(good, good, good, odd), max_size=12).map(b"".join)


@given(streams, st.integers(0, 40), st.integers(0, 40))
def test_it_does_what_the_slow_one_does(stream: bytes, before: int, behind: int) -> None:
    """Both make the same runs, sums and bytes, at any position in the buffer."""
    data = bytearray(before) + stream
    end = len(data)
    data += bytes(behind)
    twin = bytearray(data)
    assert pyderp_fast.walk(data, before, end, SOURCE) == slow_walk(twin, before, end, SOURCE)
    assert data == twin


@given(streams, st.data())
def test_an_incomplete_frame_is_left_for_the_next_read(
    stream: bytes, choose: st.DataObject
) -> None:
    """Wherever the bytes are cut, no packet is lost or relayed twice."""
    whole = bytearray(stream)
    expected = slow_walk(whole, 0, len(whole), SOURCE)
    cut = choose.draw(st.integers(0, len(stream)))
    data = bytearray(stream)
    first = pyderp_fast.walk(data, 0, cut, SOURCE)
    second = pyderp_fast.walk(data, first[0], len(data), SOURCE)
    assert second[0] == expected[0]
    assert data == whole
    assert [a + b for a, b in zip(first[2:], second[2:], strict=True)] == list(expected[2:])
    assert b"".join(run[1] for run in first[1] + second[1]) == bytes(whole[: expected[0]])


def test_it_works_on_a_view() -> None:
    """The relay passes a view of its shared buffer."""
    data = bytearray(frame(4, 34, 1, b"ab"))
    with memoryview(data) as view:
        result = pyderp_fast.walk(view, 0, len(data), SOURCE)
    assert result == (39, [(b"\1" * 32, bytes(data), 1)], 1, 2, 0)
    assert data == b"\5\0\0\0\x22" + SOURCE + b"ab"


def test_what_cannot_be_is_refused() -> None:
    """Positions outside the buffer, a short key and a read-only buffer raise an error."""
    data = bytearray(frame(4, 34, 1, b"ab"))
    for pos, end in [(0, 40), (40, 40), (20, 10)]:
        with pytest.raises(ValueError, match="in the buffer"):
            pyderp_fast.walk(data, pos, end, SOURCE)
    with pytest.raises(OverflowError):
        pyderp_fast.walk(data, -1, 5, SOURCE)
    with pytest.raises(ValueError, match="32 bytes"):
        pyderp_fast.walk(data, 0, 39, b"short")
    with pytest.raises(BufferError):
        pyderp_fast.walk(bytes(data), 0, 39, SOURCE)  # type: ignore[arg-type]
    assert data[0] == 4
