"""The queues of one destination: isolated, bounded in packets and bytes, dropped at the head."""

from __future__ import annotations

import pytest

from pyderp.defaults import SEND_QUEUE_BYTES, SEND_QUEUE_DEPTH
from pyderp.keys import KEY_LEN
from pyderp.relay.backlog import (
    MAX_RECV_FRAME,
    MAX_UNSENT,
    PACKET_OVERHEAD,
    Backlog,
    Batch,
    packets_at_the_end,
    recv_frame,
    split_run,
)
from pyderp.wire.frames import KEEP_ALIVE_FRAME, MAX_PACKET_SIZE, FrameType, pack_frame
from tests.relay.world import disco, key

LARGEST = bytes(MAX_PACKET_SIZE)


def recv(data: bytes) -> bytes:
    return pack_frame(FrameType.RECV_PACKET, key("s") + data)


def data_frame(i: int, size: int = 10) -> bytes:
    return recv(i.to_bytes(4, "big").ljust(size, b"."))


def disco_frame(i: int) -> bytes:
    return recv(disco(i.to_bytes(4, "big")))


def fill(backlog: Backlog, count: int, *, is_disco: bool = False) -> list[tuple[bytes, bool]]:
    """Queue `count` numbered packets; return all that were dropped to make room."""
    dropped = []
    for i in range(count):
        dropped += backlog.put(disco_frame(i) if is_disco else data_frame(i), disco=is_disco)
    return dropped


def test_the_default_bounds() -> None:
    assert SEND_QUEUE_DEPTH == 32
    assert SEND_QUEUE_BYTES == 256 * 1024
    assert len(recv(LARGEST)) == MAX_RECV_FRAME
    assert MAX_UNSENT + MAX_RECV_FRAME == SEND_QUEUE_BYTES
    assert len(recv(b"")) == PACKET_OVERHEAD


@pytest.mark.parametrize("is_disco", [False, True])
def test_the_33rd_packet_drops_the_oldest(is_disco: bool) -> None:
    make = disco_frame if is_disco else data_frame
    backlog = Backlog()
    assert fill(backlog, 32, is_disco=is_disco) == []
    assert backlog.put(make(32), disco=is_disco) == [(make(0), is_disco)]
    assert backlog.put(make(33), disco=is_disco) == [(make(1), is_disco)]
    queue = backlog.disco if is_disco else backlog.data
    assert list(queue) == [make(i) for i in range(2, 34)]


@pytest.mark.parametrize("depth", [1, 5, 100])
def test_the_depth_can_be_configured(depth: int) -> None:
    backlog = Backlog(depth=depth)
    assert fill(backlog, depth) == fill(backlog, depth, is_disco=True) == []
    assert backlog.put(data_frame(depth), disco=False) == [(data_frame(0), False)]


@pytest.mark.parametrize("flood", [False, True])
def test_a_flood_of_one_kind_leaves_the_other_alone(flood: bool) -> None:
    backlog = Backlog()
    fill(backlog, 32, is_disco=not flood)
    dropped = fill(backlog, 1000, is_disco=flood)
    assert len(dropped) == 1000 - 32
    assert {is_disco for _, is_disco in dropped} == {flood}
    assert (len(backlog.data), len(backlog.disco)) == (32, 32)


def test_large_packets_are_bounded_by_their_bytes() -> None:
    backlog = Backlog()
    dropped = []
    for _ in range(10):
        dropped += backlog.put(recv(LARGEST), disco=False)
        assert backlog.data.size <= SEND_QUEUE_BYTES
    assert len(backlog.data) == SEND_QUEUE_BYTES // MAX_RECV_FRAME == 3
    assert len(dropped) == 7


def test_the_queue_holds_exactly_its_limit_of_bytes() -> None:
    frame = data_frame(0, size=63)
    assert len(frame) == 100
    backlog = Backlog(limit=300)
    assert sum(len(backlog.put(frame, disco=False)) for _ in range(3)) == 0
    assert len(backlog.put(data_frame(9, size=0), disco=False)) == 1
    tight = Backlog(limit=299)
    assert sum(len(tight.put(frame, disco=False)) for _ in range(3)) == 1


def test_packets_are_dropped_from_the_queue_with_more_bytes() -> None:
    backlog = Backlog()
    fill(backlog, 10, is_disco=True)
    large = [data_frame(i, size=60_000) for i in range(10)]
    dropped = [drop for frame in large for drop in backlog.put(frame, disco=False)]
    assert dropped == [(frame, False) for frame in large[:6]]
    dropped = backlog.put(recv(disco() + bytes(30_000)), disco=True)
    assert dropped == [(large[6], False)]
    assert (len(backlog.data), len(backlog.disco)) == (3, 11)


def test_disco_is_dropped_if_the_disco_queue_has_more_bytes() -> None:
    backlog = Backlog(limit=MAX_RECV_FRAME)
    large = recv(disco() + bytes(40_000))
    assert backlog.put(large, disco=True) == []
    assert backlog.put(data_frame(1, size=20_000), disco=False) == []
    assert backlog.put(data_frame(2, size=20_000), disco=False) == [(large, True)]
    assert len(backlog.data) == 2


def test_a_packet_larger_than_the_limit_is_dropped_itself() -> None:
    backlog = Backlog(limit=10)
    assert backlog.put(data_frame(0), disco=False) == [(data_frame(0), False)]
    assert not backlog


@pytest.mark.parametrize("disco", [False, True])
def test_a_kind_within_its_half_is_never_dropped_for_the_other(disco: bool) -> None:
    small, large = bytes(100), bytes(900)
    backlog = Backlog(limit=1000)
    assert backlog.put(small, disco=not disco) == []
    assert backlog.put(small, disco=not disco) == []
    assert backlog.put(large, disco=disco) == [(large, disco)]
    assert len(backlog.disco if not disco else backlog.data) == 2


@pytest.mark.parametrize("disco", [False, True])
def test_a_kind_beyond_its_half_is_dropped_for_the_other(disco: bool) -> None:
    backlog = Backlog(limit=1000)
    first, second, third = (bytes([i]) * 300 for i in range(3))
    for frame in (first, second, third):
        assert backlog.put(frame, disco=not disco) == []
    new = bytes(300)
    assert backlog.put(new, disco=disco) == [(first, not disco)]


def test_one_drop_is_enough_for_both_bounds() -> None:
    backlog = Backlog(limit=32 * len(data_frame(0)))
    fill(backlog, 32)
    assert backlog.put(data_frame(32), disco=False) == [(data_frame(0), False)]


def test_take_returns_control_then_changes_then_both_kinds_in_turn() -> None:
    backlog = Backlog()
    fill(backlog, 3)
    fill(backlog, 2, is_disco=True)
    backlog.changes += [b"change 1", b"change 2"]
    backlog.control += [KEEP_ALIVE_FRAME]
    batch = backlog.take()
    assert batch.chunks == [
        KEEP_ALIVE_FRAME,
        b"change 1",
        b"change 2",
        disco_frame(0),
        data_frame(0),
        disco_frame(1),
        data_frame(1),
        data_frame(2),
    ]
    assert batch.size == sum(map(len, batch.chunks))
    assert batch.packets == 5
    assert batch.packet_bytes == 3 * 10 + 2 * len(disco())
    assert not backlog
    assert backlog.data.size == backlog.disco.size == 0
    assert backlog.take().chunks == []


def test_disco_alone_is_taken_in_order() -> None:
    backlog = Backlog()
    fill(backlog, 2, is_disco=True)
    assert backlog.take().chunks == [disco_frame(0), disco_frame(1)]


def test_a_batch_ends_once_it_has_64_kib() -> None:
    backlog = Backlog()
    for i in range(8):
        backlog.put(data_frame(i, size=30_000), disco=False)
    taken = []
    while backlog:
        batch = backlog.take()
        assert batch.size < 64 * 1024 + 30_000 + PACKET_OVERHEAD
        taken.append(batch.packets)
    assert taken == [3, 3, 2]


def test_a_batch_of_changes_is_bounded_and_packets_wait_for_all_changes() -> None:
    change = bytes(56)
    backlog = Backlog()
    backlog.changes.extend([change] * 2000)
    backlog.put(data_frame(0), disco=False)
    first = backlog.take()
    assert first.chunks == [change] * 1171
    assert first.packets == 0
    second = backlog.take()
    assert second.chunks == [change] * 829 + [data_frame(0)]


def test_all_control_frames_are_taken_at_once() -> None:
    backlog = Backlog()
    backlog.control += [KEEP_ALIVE_FRAME] * 20_000
    backlog.put(data_frame(0), disco=False)
    assert backlog.take().size == 20_000 * len(KEEP_ALIVE_FRAME)
    assert backlog.take().chunks == [data_frame(0)]


def test_drain_packets_returns_every_packet_with_its_kind_and_keeps_control_frames() -> None:
    backlog = Backlog()
    fill(backlog, 2)
    fill(backlog, 1, is_disco=True)
    backlog.control.append(KEEP_ALIVE_FRAME)
    assert backlog.drain_packets() == [
        (data_frame(0), False),
        (data_frame(1), False),
        (disco_frame(0), True),
    ]
    assert backlog.data.size == backlog.disco.size == 0
    assert backlog.drain_packets() == []
    assert backlog.take().chunks == [KEEP_ALIVE_FRAME]


@pytest.mark.parametrize("what", ["control", "changes", "data", "disco"])
def test_a_backlog_is_true_while_any_frame_waits(what: str) -> None:
    backlog = Backlog()
    assert not backlog
    if what in ("data", "disco"):
        backlog.put(data_frame(0), disco=what == "disco")
    else:
        getattr(backlog, what).append(KEEP_ALIVE_FRAME)
    assert backlog


def test_a_batch_counts_packets_and_their_bytes_without_key_and_header() -> None:
    batch = Batch()
    batch.add(KEEP_ALIVE_FRAME)
    batch.add_packet(recv(b""))
    batch.add_packet(recv(bytes(KEY_LEN)))
    assert (batch.packets, batch.packet_bytes) == (2, KEY_LEN)
    assert batch.size == len(KEEP_ALIVE_FRAME) + 2 * PACKET_OVERHEAD + KEY_LEN


def test_a_recv_frame_is_type_length_source_and_packet() -> None:
    assert recv_frame(key("s"), b"abc") == bytes.fromhex("05 00000023") + key("s") + b"abc"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_run_is_split_into_its_frames(count: int) -> None:
    frames = [data_frame(i, size=4 + i) for i in range(count)]
    assert list(split_run(b"".join(frames))) == frames


WRITTEN = [data_frame(0, size=100) + disco_frame(1), KEEP_ALIVE_FRAME, data_frame(2, size=7)]
"""The bytes of one write: a run of two packets, another frame, a packet."""
LAST, BEFORE, FIRST = len(recv(bytes(7))), len(disco_frame(1)), len(recv(bytes(100)))
BEHIND = len(KEEP_ALIVE_FRAME) + LAST
"""Bytes behind the disco packet."""


@pytest.mark.parametrize(
    ("unsent", "packets"),
    [
        (0, 0),
        (1, 1),
        (LAST, 1),
        (LAST + 1, 1),  # the keep-alive is not a packet
        (BEHIND, 1),
        (BEHIND + 1, 2),
        (BEHIND + BEFORE, 2),
        (BEHIND + BEFORE + 1, 3),
        (BEHIND + BEFORE + FIRST, 3),
    ],
)
def test_a_packet_is_at_the_end_if_one_of_its_bytes_is_unsent(unsent: int, packets: int) -> None:
    found = [(0, 7, False), (BEHIND, len(disco()), True), (BEHIND + BEFORE, 100, False)]
    assert packets_at_the_end(WRITTEN, unsent) == found[:packets]
